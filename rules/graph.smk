rule snapshot:
    input:
        get_graph,
    output:
        build.snapshot,
    log:
        "logs/snapshot.log",
    conda:
        "../envs/light.yaml"
    params:
        sha256=build.graph_sha256,
    message:
        f"Snapshot of {build.graph}"
    script:
        "../scripts/snapshot.py"
