"""kv-transition: at which KV-cache budget does quality break, for which method, at which length, and how sure are we?

snakemake --cores 8 results/report.md                                                  the default experiment
snakemake --cores 8 results/report.md --configfile config/experiments/X.yaml           another one
snakemake -n results/report.md                                                         what would run, and why
"""

from snakemake.utils import min_version

min_version("9.27")


configfile: "config/default.yaml"


include: "rules/common.smk"
include: "rules/retrieve.smk"
include: "rules/data.smk"
include: "rules/inference.smk"
include: "rules/scoring.smk"
include: "rules/analysis.smk"
include: "rules/report.smk"
include: "rules/database.smk"


rule all:
    """Report, figures and database of the configured experiment."""
    default_target: True
    input:
        paths.report_copy(),


onstart:
    lock_experiment(settings.experiment.id, workflow.dag_settings.targets)
