"""Table noise_floor: full-cache answers of all tasks, computed two ways, in, one row per task out."""

from kv_transition.analysis.noise import write_noise_floor
from kv_transition.run.script import job

with job(snakemake) as j:
    shards = len(j.input.answers) // len(j.input.manifests)
    answers = [list(j.input.answers[i : i + shards]) for i in range(0, len(j.input.answers), shards)]
    write_noise_floor(
        list(zip(j.input.manifests, answers, j.input.noise, strict=True)),
        {**j.params.scoring, "code": j.params.score_code},
        j.config["run"]["cache_dir"],
        j.params.analysis,
        j.output.table,
    )
