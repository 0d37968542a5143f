rule why:
    log:
        "logs/why.log",
    conda:
        "../envs/light.yaml"
    params:
        output=f"{build.results}/why.json",
    message:
        "Why files would be built"
    script:
        "../scripts/why.py"
