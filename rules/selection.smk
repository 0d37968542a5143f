rule selection:
    input:
        ancient(build.snapshot),
    log:
        "logs/selection.log",
    conda:
        "../envs/light.yaml"
    params:
        selection=build.plan.selection,
        counts=get_all_counts(),
        index=build.index_settings(),
        rules=build.rules.ingredients(),
        output=f"{build.results}/selection.json",
    message:
        "Selection of emotions"
    script:
        "../scripts/selection.py"
