def get_quality_files():
    """{emotion: the files behind its figures}"""
    return {
        emotion: {
            "examples": build.examples(emotion),
            "vectors": dict(zip(build.layers, build.vectors(emotion))),
            "heads": dict(zip(build.layers, build.heads(emotion))),
        }
        for emotion in build.emotions
    }


def get_quality_inputs():
    return [
        path
        for emotion in build.emotions
        for path in [
            build.examples(emotion),
            *build.vectors(emotion),
            *build.heads(emotion),
        ]
    ]


rule measure_quality:
    input:
        files=unless_stored([build.quality], get_quality_inputs()),
        indices=unless_stored([build.quality], build.indices),
    output:
        build.quality,
    log:
        "logs/quality.log",
    conda:
        "../envs/light.yaml"
    params:
        space=build.space,
        layers=build.layers,
        files=get_quality_files(),
    message:
        "Quality of {output}"
    script:
        "../scripts/quality.py"


rule quality:
    input:
        ancient(build.quality),
