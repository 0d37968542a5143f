rule changes:
    input:
        ancient(build.snapshot),
    log:
        "logs/changes.log",
    conda:
        "../envs/light.yaml"
    params:
        manifest=f"{build.results}/readout/manifest.json",
        current=build.change_settings(),
        files=get_built_files(),
        fetched=str(Path(build.config["snapshot"]).expanduser()),
        rules=build.rules.ingredients(),
        output=f"{build.results}/changes.json",
    message:
        "Changes since the last release"
    script:
        "../scripts/changes.py"
