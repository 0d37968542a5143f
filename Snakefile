from pathlib import Path

from snakemake.utils import min_version

min_version("9.27")


configfile: Path(workflow.basedir) / "config.yaml"


if Path("config.yaml").exists():

    configfile: "config.yaml"


report: "report/workflow.rst"


include: "rules/common.smk"
include: "rules/refresh.smk"


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
        include: "rules/ablation.smk"
        include: "rules/unseen.smk"
        include: "rules/report.smk"

        localrules:
            changes,

    else:

        include: "rules/unswept.smk"


# Each look at the ready jobs plans another a second later: after n jobs n looks a second, each at all inputs of the ready jobs. On
# one machine there is nothing to submit slowly.
onstart:
    if workflow.local_exec:
        workflow.scheduler.job_rate_limiter = None


localrules:
    all,
    refresh,


rule all:
    default_target: True
    input:
        get_final_output(),
