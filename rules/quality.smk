rule measure_quality:
    input:
        files=get_quality_inputs,
        indices=get_quality_indices,
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
        "Quality figures"
    script:
        "../scripts/quality.py"


rule quality:
    input:
        ancient(build.quality),
