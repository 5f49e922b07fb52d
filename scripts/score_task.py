"""Score a task: responses of all its runs in, one row per request out."""

from kv_transition.eval.score import score_task, write_scores
from kv_transition.run.script import job

with job(snakemake, pandas=False) as j:
    table = score_task(
        manifest_path=j.input.manifest,
        response_paths=list(j.input.responses),
        scoring={**j.params.scoring, "code": j.params.code},
        cache_dir=j.config["run"]["cache_dir"],
    )
    write_scores(j.output.scores, table)
