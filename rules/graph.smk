rule snapshot:
    input:
        get_graph,
    output:
        update(build.snapshot),
    log:
        "logs/snapshot.log",
    group:
        get_group("examples")
    localrule: runs_here()
    conda:
        "../envs/light.yaml"
    resources:
        **get_light_resources(),
    params:
        graph=build.current.graph.title,
        settings=build.graph_settings(),
        recipes=get_recipes,
    message:
        "Snapshot of {params.graph}"
    script:
        "../scripts/snapshot.py"
