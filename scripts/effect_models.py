"""Tables effect_models and macro: scores and manifests of all tasks in, fitted terms and means over tasks out."""

from kv_transition.analysis.effect_models import write_effect_models
from kv_transition.analysis.macro import write_macro
from kv_transition.run.script import job

with job(snakemake) as j:
    scores, manifests = list(j.input.scores), list(j.input.manifests)
    write_effect_models(scores, manifests, j.params.analysis, j.output.table)
    write_macro(scores, manifests, j.params.analysis, j.output.macro)
