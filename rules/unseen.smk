# How the release does on texts from elsewhere (`unseen:` in the configuration).
rule score_unseen:
    input:
        texts=get_unseen_texts,
        examples=get_unseen_examples,
        index=get_unseen_index,
        release=get_unseen_release,
        quality=get_unseen_quality,
    output:
        figures=update(build.unseen_report[0]),
        picture=update(build.unseen_report[1]),
    log:
        "logs/unseen.log",
    group:
        get_group("vectors")
    localrule: runs_here()
    conda:
        "../envs/light.yaml"
    resources:
        **get_light_resources(),
    params:
        release=build.selections["readout"].key,
        min_positive_score=build.config["min_positive_score"],
        aliases=build.rules.aliases,
        recipes=get_recipes,
    message:
        "The release on texts from elsewhere"
    script:
        "../scripts/unseen.py"


rule unseen:
    input:
        [ancient(path) for path in build.unseen_report] if not build.no_unseen else get_no_unseen,
    output:
        f"{build.results}/.current/unseen.{build.unseen_key}",
        update([f"{build.results}/unseen.json", f"{build.results}/unseen.svg"]),
    log:
        "logs/publish/unseen.log",
    localrule: True
    conda:
        "../envs/light.yaml"
    params:
        release=build.unseen_key,
        prefix="unseen.",
    message:
        f"Publish {build.results}/unseen.json"
    script:
        "../scripts/publish.py"
