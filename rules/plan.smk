# What a build will cost on a cluster; `changes` says why.
rule plan:
    input:
        ancient(build.snapshot),
    log:
        "logs/plan.log",
    conda:
        "../envs/light.yaml"
    params:
        cluster=build.config["cluster"],
        gpus=get_planned_gpus,
        weights=get_planned_weights,
        files=get_planned_files,
        index=build.index_settings(),
        rules=build.rules.ingredients(),
        emotions=build.emotions,
        neutral={text.digest: len(text.text) for text in build.neutral},
        layers=build.layers,
        spaces=build.spaces,
        shards=build.config["shards"],
        output=f"{build.results}/plan.json",
    message:
        "Plan of the next build"
    script:
        "../scripts/plan.py"
