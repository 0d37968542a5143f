rule make_model_ready:
    input:
        get_model_file,
    output:
        update(build.model_ready),
    log:
        f"logs/model.{build.model_key}.log",
    localrule: build.model.kind != "gguf"
    conda:
        "../envs/model.yaml"
    resources:
        **get_conversion_resources(),
    params:
        model=vars(build.model),
        dtype=build.dtype,
        recipes=get_recipes,
    message:
        "Model {params.model[source]}"
    script:
        "../scripts/model.py"


rule model:
    input:
        [] if build.model.kind == "folder" else [ancient(build.model_ready)],
