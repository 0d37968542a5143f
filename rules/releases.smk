rule releases:
    log:
        "logs/releases.log",
    conda:
        "../envs/light.yaml"
    params:
        store=settings["store"],
        results=settings["results"],
    message:
        "Releases in the store"
    script:
        "../scripts/releases.py"
