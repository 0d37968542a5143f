rule choose_examples:
    input:
        get_snapshot,
    output:
        f"{build.store}/examples/{{emotion}}.{{key}}.json",
    log:
        "logs/examples/{emotion}.{key}.log",
    conda:
        "../envs/light.yaml"
    params:
        rules=build.rules.ingredients(),
    message:
        "Examples of {wildcards.emotion}"
    script:
        "../scripts/examples.py"


rule examples:
    input:
        [ancient(build.examples(emotion)) for emotion in build.emotions],
