from pathlib import Path

from snakemake.utils import min_version

min_version("9.27")


configfile: Path(workflow.basedir) / "config.yaml"


if Path("config.yaml").exists():

    configfile: "config.yaml"


report: "report/workflow.rst"


include: "rules/start.smk"
include: "rules/cluster.smk"
include: "rules/common.smk"
include: "rules/refresh.smk"
include: "rules/releases.smk"
include: "rules/stats.smk"


if build is not None:

    include: "rules/graph.smk"
    include: "rules/examples.smk"
    include: "rules/model.smk"
    include: "rules/texts.smk"
    include: "rules/activations.smk"
    include: "rules/compare.smk"
    include: "rules/selection.smk"
    include: "rules/why.smk"

    localrules:
        selection,
        why,

    if build.layers:

        include: "rules/weights.smk"
        include: "rules/vectors.smk"
        include: "rules/heads.smk"
        include: "rules/quality.smk"
        include: "rules/readout.smk"
        include: "rules/changes.smk"
        include: "rules/plan.smk"
        include: "rules/ablation.smk"
        include: "rules/unseen.smk"
        include: "rules/report.smk"
        include: "rules/verify.smk"

        localrules:
            changes,
            plan,
            verify,

    else:

        include: "rules/unswept.smk"
    include: "rules/gc.smk"

    localrules:
        gc,

else:

    include: "rules/refused.smk"

    if pinned is not None:

        include: "rules/pinned.smk"

        localrules:
            readout,


# Called in the main process alone, when there are jobs to run and they are not only shown. (A second `onstart` would replace it.)
onstart:
    prepare_run()


localrules:
    all,
    refresh,
    releases,
    stats,


rule all:
    default_target: True
    input:
        get_final_output(),


# What the run made goes into the ledger. (A run with nothing to do calls no handler: RunRecord.leave is for it.)
onsuccess:
    run_record.end("done")


onerror:
    run_record.end("failed")
