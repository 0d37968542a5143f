from pathlib import Path

from snakemake.utils import min_version

min_version("9.27")


configfile: Path(workflow.basedir) / "config.yaml"


if Path("config.yaml").exists():

    configfile: "config.yaml"


report: "report/workflow.rst"


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

    localrules:
        selection,

    if build.layers:

        include: "rules/weights.smk"
        include: "rules/vectors.smk"
        include: "rules/heads.smk"
        include: "rules/quality.smk"
        include: "rules/readout.smk"
        include: "rules/changes.smk"
        include: "rules/ablation.smk"
        include: "rules/unseen.smk"
        include: "rules/report.smk"

        localrules:
            changes,

    else:

        include: "rules/unswept.smk"

else:

    include: "rules/refused.smk"

    if pinned is not None:

        include: "rules/pinned.smk"

        localrules:
            readout,


localrules:
    all,
    refresh,
    releases,
    stats,


rule all:
    default_target: True
    input:
        get_final_output(),


# The ledger of hits and of what is made. (A run with nothing to do calls none of these: RunRecord.leave is for it.)
onstart:
    run_record.begin()


onsuccess:
    run_record.end("done")


onerror:
    run_record.end("failed")
