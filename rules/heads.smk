rule measure_heads:
    input:
        examples=get_head_examples,
        indices=get_head_indices,
    output:
        update(
            expand(
                f"{build.store}/heads/{{{{emotion}}}}.{{{{key}}}}/layer_{{layer:03d}}.json",
                layer=build.layers,
            )
        ),
    log:
        "logs/heads/{emotion}.{key}.log",
    conda:
        "../envs/light.yaml"
    params:
        layers=build.layers,
    message:
        "Heads of {wildcards.emotion}"
    script:
        "../scripts/heads.py"


rule heads:
    input:
        [ancient(path) for emotion in build.emotions for path in build.heads(emotion)],
