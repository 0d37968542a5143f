rule refresh:
    log:
        "logs/refresh.log",
    conda:
        "../envs/light.yaml"
    params:
        settings={
            name: config[name] for name in ("graph", "snapshot", "bad_nodes", "max_lost_nodes")
        },
    message:
        "Refresh of the live sources"
    script:
        "../scripts/refresh.py"
