from amygdala.reportfiles import PAGE


rule score_tokens:
    input:
        files=get_token_files,
        quality=get_token_quality,
        indices=get_token_indices,
        model=get_token_model,
    output:
        update(build.token_scores),
    log:
        "logs/tokens.log",
    conda:
        "../envs/model.yaml"
    threads: 32
    resources:
        **get_gpu_resources(get_model_runtime),
    params:
        model=vars(build.model),
        settings=build.capture_settings(),
        pooling=build.poolings[0],
        texts=build.config["report_texts"],
        files=get_report_texts(),
        recipes=get_recipes,
    message:
        "Tokens of the report's texts"
    script:
        "../scripts/token_scores.py"


rule draw_report:
    input:
        release=get_report_release,
        quality=get_report_quality,
        tokens=get_report_tokens,
        heads=get_report_head_files,
    output:
        update(build.report),
    log:
        "logs/report.log",
    group:
        get_group("report")
    localrule: runs_here()
    conda:
        "../envs/light.yaml"
    resources:
        **get_light_resources(),
    params:
        heads=get_report_heads(),
        recipes=get_recipes,
    message:
        "Report"
    script:
        "../scripts/report.py"


rule report:
    input:
        [ancient(path) for path in build.report],
    output:
        build.report_marker,
        get_shown_report(),
    log:
        "logs/publish/report.log",
    localrule: True
    conda:
        "../envs/light.yaml"
    params:
        release=build.report_key,
        prefix="report.",
    message:
        f"Publish {build.results}/{PAGE}"
    script:
        "../scripts/publish.py"
