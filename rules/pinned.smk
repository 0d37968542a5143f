from amygdala.roots import entry_of_release
from amygdala.roots import save as save_root

# `release:` names a stored release: it is shown again, and nothing is built.
# It is a root of the store as long as it is shown (rules/gc.smk).
if workflow.is_main_process and not workflow.logger_manager.settings.dryrun:
    save_root(
        store, entry_of_release(store, str(Path(settings["results"]).expanduser()), pinned.key)
    )


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
