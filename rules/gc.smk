from amygdala.roots import entry_of, root_id
from amygdala.roots import save as save_root

# The last file to be read: all keys of the build are known. Snakemake looks at stored files after this.
if workflow.is_main_process and not workflow.logger_manager.settings.dryrun:
    save_root(build.store, entry_of(build))


rule gc:
    log:
        "logs/gc.log",
    conda:
        "../envs/light.yaml"
    params:
        store=build.store,
        root=root_id(build.results),
        settings=build.config["gc"],
        confirmed=build.config["gc_confirm"],
        output=f"{build.results}/gc.json",
    message:
        "Garbage of the store"
    script:
        "../scripts/garbage.py"
