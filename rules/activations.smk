rule capture:
    input:
        examples=get_capture_examples,
        model=get_capture_model,
    output:
        update([f"{space}/index/shard_{{shard}}.{{key}}.safetensors" for space in build.spaces]),
    log:
        "logs/activations/shard_{shard}.{key}.log",
    conda:
        "../envs/model.yaml"
    threads: 32
    resources:
        **get_gpu_resources(get_capture_runtime),
    params:
        model=vars(build.model),
        settings=get_capture_settings,
        layers=get_capture_layers,
        shard=get_capture_shard,
        shards=get_capture_shards,
        poolings=build.poolings,
        recipes=get_recipes,
    message:
        "Activations of shard {wildcards.shard} at layers {params.layers}"
    script:
        "../scripts/activations.py"


rule activations:
    input:
        [ancient(path) for path in build.all_indices] if build.layers else get_unswept,
