# `release:` names a stored release: it is shown again, and nothing is built.
rule readout:
    input:
        [ancient(str(path)) for path in pinned.files.values()],
    output:
        get_pinned_marker(),
        [update(path) for path in get_pinned_results()],
    log:
        "logs/publish/readout.log",
    conda:
        "../envs/light.yaml"
    params:
        release=pinned.key,
        prefix="readout.",
        check=True,
    message:
        f"Publish release {pinned.key}"
    script:
        "../scripts/publish.py"
