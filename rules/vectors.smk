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
        layers=build.layers,
        method=build.config["method"],
    message:
        "Vectors of {wildcards.emotion}"
    script:
        "../scripts/vectors.py"


rule vectors:
    input:
        [ancient(path) for emotion in build.emotions for path in build.vectors(emotion)],
