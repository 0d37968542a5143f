def get_head_examples(wildcards):
    emotion = wildcards.emotion
    refuse_other_key(emotion, wildcards.key, build.head_keys)
    return unless_stored(build.heads(emotion), [build.examples(emotion)])


def get_head_indices(wildcards):
    return unless_stored(build.heads(wildcards.emotion), build.indices)


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
        space=build.space,
        layers=build.layers,
    message:
        "Heads of {wildcards.emotion}"
    script:
        "../scripts/heads.py"


rule heads:
    input:
        [ancient(path) for emotion in build.emotions for path in build.heads(emotion)],
