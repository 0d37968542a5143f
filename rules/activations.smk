rule capture:
    input:
        examples=get_capture_examples,
        model=get_capture_model,
    output:
        f"{build.space}/index/shard_{{shard}}.{{key}}.safetensors",
    log:
        "logs/activations/shard_{shard}.{key}.log",
    conda:
        "../envs/model.yaml"
    threads: 32
    params:
        model=vars(build.model),
        settings=build.capture_settings(),
        layers=build.layers,
        shard=get_shard,
        shards=len(build.index_keys),
    message:
        "Activations of shard {wildcards.shard} at layers {params.layers}"
    script:
        "../scripts/activations.py"


rule activations:
    input:
        [ancient(path) for path in build.indices],
