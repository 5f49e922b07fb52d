"""Plot a task: scores and analysis tables in, its figures out."""

from pathlib import Path

from kv_transition.analysis.plots import draw_task
from kv_transition.run.script import job

with job(snakemake) as j:
    draw_task(
        j.wildcards.task,
        tables={name: path for name, path in j.input.items() if name != "scores"},
        scores=j.input.scores,
        folder=Path(j.output[0]).parent,
        settings=j.params.figure,
    )
