from pathlib import Path

from snakemake.utils import min_version

min_version("9.27")


configfile: Path(workflow.basedir) / "config.yaml"


if Path("config.yaml").exists():

    configfile: "config.yaml"


include: "rules/common.smk"
include: "rules/refresh.smk"


if build is not None:

    include: "rules/graph.smk"
    include: "rules/examples.smk"
    include: "rules/model.smk"
    include: "rules/activations.smk"
    include: "rules/vectors.smk"
    include: "rules/heads.smk"
    include: "rules/quality.smk"
    include: "rules/readout.smk"
    include: "rules/changes.smk"

    localrules:
        changes,
        selection,


localrules:
    all,
    refresh,


rule all:
    default_target: True
    input:
        get_final_output(),
