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
        graph=build.graph,
        sha256=build.graph_sha256,
    message:
        "Snapshot of {params.graph}"
    script:
        "../scripts/snapshot.py"
