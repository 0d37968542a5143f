def get_model_ready():
    """The model's marker; a model folder is used where it lies."""
    return [] if build.model.kind == "folder" else [build.model_ready]


def get_capture_examples(wildcards):
    shard = int(wildcards.shard)
    if shard >= len(build.index_keys) or build.index_keys[shard] != wildcards.key:
        raise WorkflowError(
            f"shard {shard} with the key {wildcards.key} is not part of the current build"
        )
    return unless_stored(
        [build.index(shard)], [build.examples(emotion) for emotion in build.emotions]
    )


def get_shard(wildcards):
    return int(wildcards.shard)


def get_capture_model(wildcards):
    return unless_stored([build.index(int(wildcards.shard))], get_model_ready())


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
    threads: 8
    params:
        model=vars(build.model),
        settings=build.capture_settings(),
        space=build.space,
        store=build.store,
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
