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
        layers=build.layers,
        files=get_quality_files(),
    message:
        "Quality of {output}"
    script:
        "../scripts/quality.py"


rule quality:
    input:
        ancient(build.quality),
