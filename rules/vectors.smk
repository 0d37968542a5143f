def get_vector_examples(wildcards):
    emotion = wildcards.emotion
    refuse_other_key(emotion, wildcards.key, build.vector_keys)
    return unless_stored(build.vectors(emotion), [build.examples(emotion)])


def get_vector_indices(wildcards):
    return unless_stored(build.vectors(wildcards.emotion), build.indices)


rule compute_vectors:
    input:
        examples=get_vector_examples,
        indices=get_vector_indices,
    output:
        update(
            expand(
                f"{build.store}/vectors/{{{{emotion}}}}.{{{{key}}}}/layer_{{layer:03d}}.safetensors",
                layer=build.layers,
            )
        ),
    log:
        "logs/vectors/{emotion}.{key}.log",
    conda:
        "../envs/light.yaml"
    params:
        space=build.space,
        layers=build.layers,
        method=config["method"],
    message:
        "Vectors of {wildcards.emotion}"
    script:
        "../scripts/vectors.py"


rule vectors:
    input:
        [ancient(path) for emotion in build.emotions for path in build.vectors(emotion)],
