rule snapshot:
    input:
        get_graph,
    output:
        update(build.snapshot),
    log:
        "logs/snapshot.log",
    conda:
        "../envs/light.yaml"
    params:
        graph=build.current.graph.title,
        settings=build.graph_settings(),
        recipes=get_recipes,
    message:
        "Snapshot of {params.graph}"
    script:
        "../scripts/snapshot.py"
