rule extract_weights:
    input:
        get_weights_model,
    output:
        update(build.weights()),
    log:
        f"logs/weights.{build.weights_key}.log",
    group:
        get_group("vectors")
    localrule: runs_here()
    conda:
        "../envs/model.yaml"
    resources:
        **get_light_resources(),
    params:
        model=vars(build.model),
        settings=build.weights_settings(),
        layers=build.layers,
        recipes=get_recipes,
    message:
        "Output projections and neurons of layers {params.layers}"
    script:
        "../scripts/weights.py"


rule weights:
    input:
        [ancient(path) for path in build.weights()],
