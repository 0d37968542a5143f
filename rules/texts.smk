# Texts beside the graph, for capture: neutral ones (denoise), and those from elsewhere that a release is measured on.
rule store_neutral:
    input:
        get_neutral_source,
    output:
        update(build.texts("neutral")),
    log:
        "logs/texts/neutral.log",
    group:
        get_group("examples")
    localrule: runs_here()
    conda:
        "../envs/light.yaml"
    resources:
        **get_light_resources(),
    params:
        neutral=get_neutral_path(),
        digests=get_digests(build.neutral),
        least=build.config["min_content_chars"],
        recipes=get_recipes,
    message:
        "Neutral texts"
    script:
        "../scripts/texts.py"


rule store_unseen:
    input:
        get_unseen_sources,
    output:
        update(build.texts("unseen")),
    log:
        "logs/texts/unseen.log",
    group:
        get_group("examples")
    localrule: runs_here()
    conda:
        "../envs/light.yaml"
    resources:
        **get_light_resources(),
    params:
        sets=[vars(one) for one in build.unseen],
        least=build.config["min_content_chars"],
        recipes=get_recipes,
    message:
        "Texts from elsewhere"
    script:
        "../scripts/texts.py"
