rule snapshot:
    input:
        unless_stored([build.snapshot], [build.graph]),
    output:
        build.snapshot,
    log:
        "logs/snapshot.log",
    conda:
        "../envs/light.yaml"
    params:
        sha256=build.graph_sha256,
    message:
        "Snapshot of {input}"
    script:
        "../scripts/snapshot.py"
