"""Plot a task: analysis tables in; score against budget, heat map and transition against length out."""

from pathlib import Path

from kv_transition.analysis.plots import draw_task
from kv_transition.run.script import job

with job(snakemake) as j:
    draw_task(
        j.wildcards.task,
        tables={name: j.input[name] for name in ("bin_stats", "retention", "transition")},
        scores=j.input.scores,
        folder=Path(j.output[0]).parent,
        settings=j.params.figure,
    )
