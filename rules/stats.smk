rule stats:
    log:
        "logs/stats.log",
    conda:
        "../envs/light.yaml"
    params:
        store=settings["store"],
        results=settings["results"],
    message:
        "What the store saved"
    script:
        "../scripts/stats.py"
