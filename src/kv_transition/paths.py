"""Where everything is: the one place that builds paths.

All paths are relative to the project folder, in which Snakemake and the commands run. Nothing is created here.
`{task}`-like wildcards may stand where a name is expected, so rules and library build paths alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DEFAULT_CONFIG = Path("config/default.yaml")
CONFIG_SCHEMA = Path("config/schema.json")

#: The commit of THUDM/LongBench whose prompts and lengths the official protocol is.
LONGBENCH_COMMIT = "2e00731f8d0bff23dc4325161044d0ed8af94c1e"


def data_dir() -> Path:
    """Records retrieved from the hub: a folder per dataset and revision, one file a task."""
    return Path("resources/longbench")


def runs_dir() -> Path:
    """One folder per experiment."""
    return Path("results")


def run_dir(exp_group_id: str) -> Path:
    """Everything that belongs to one experiment."""
    return runs_dir() / exp_group_id


def dataset_id(dataset: str, task: str) -> str:
    """The identifier of one task of a dataset, `<dataset>__<task>`."""
    return f"{dataset}__{task}"


def processed_dir(dataset_id: str, exp_group_id: str = "demo") -> Path:
    """Canonical examples and the manifest of one task in one experiment.

    Parameters
    ----------
    dataset_id : `<dataset>__<task>`; the task alone names the folder.
    exp_group_id : experiment id; by default that of the default configuration.
    """
    return run_dir(exp_group_id) / "data" / dataset_id.split("__", 1)[-1]


def db_path(exp_group_id: str, db_path_cfg: str = "auto") -> Path:
    """The SQLite file: `auto` is kv_transition.sqlite in the experiment's folder, anything else a path."""
    return run_dir(exp_group_id) / "kv_transition.sqlite" if db_path_cfg == "auto" else Path(db_path_cfg)


def report_copy() -> str:
    """The report of the experiment that was asked for last."""
    return str(runs_dir() / "report.md")


def report_html_copy() -> str:
    """The one-file report of the experiment that was asked for last."""
    return str(runs_dir() / "report.html")


def raw_records(task: str, hub_id: str, revision: str | None) -> str:
    """A task's records as retrieved from the hub; datasets and revisions never share a file."""
    return str(data_dir() / f"{hub_id.replace('/', '--')}@{revision or 'newest'}" / f"{task}.jsonl")


def protocol_tables() -> str:
    """LongBench's official prompts and lengths, in one file named by their commit."""
    return str(Path("resources/longbench-protocol") / f"{LONGBENCH_COMMIT[:8]}.json")


@dataclass(frozen=True)
class ExperimentPaths:
    """The files of one experiment (`id`), as text for rules."""

    id: str

    def _in(self, *parts: str) -> str:
        return str(Path(run_dir(self.id), *parts))

    def made_records(self, task: str) -> str:
        """Records that a rule makes for this experiment alone: synthetic ones, or those of published results."""
        return self._in("records", f"{task}.jsonl")

    def examples(self, task: str) -> str:
        return self._in("data", task, "examples.parquet")

    def manifest(self, task: str) -> str:
        return self._in("data", task, "manifest.json")

    def responses(self, task: str, cell: str, shard: str) -> str:
        """`cell` is `<method>/<budget label>`."""
        return self._in("responses", task, *cell.split("/"), f"{shard}.parquet")

    def noise(self, task: str) -> str:
        """Answers of the full cache, computed a second way."""
        return self._in("noise", f"{task}.parquet")

    def scores(self, task: str) -> str:
        return self._in("scores", f"{task}.parquet")

    def analysis(self, table: str) -> str:
        return self._in("analysis", f"{table}.parquet")

    def figure(self, name: str, suffix: str) -> str:
        return self._in("figures", f"{name}.{suffix}")

    def caption(self, name: str) -> str:
        return self._in("figures", f"{name}.txt")

    def config(self) -> str:
        """The resolved configuration, which makes the experiment again."""
        return self._in("config.yaml")

    def report(self) -> str:
        return self._in("report.md")

    def report_html(self) -> str:
        """The report as one file that needs no other."""
        return self._in("report.html")

    def log(self, *parts: str) -> str:
        return self._in("logs", *parts[:-1], f"{parts[-1]}.log")

    def benchmark(self, *parts: str) -> str:
        """Time and memory of a job, as Snakemake's `benchmark:` measures them; the input of no rule."""
        return self._in("benchmarks", *parts[:-1], f"{parts[-1]}.tsv")


def cell_of_response(path: str | Path) -> tuple[str, str]:
    """(method, budget label) of a response file, read from its path."""
    folder = Path(path).parent
    return folder.parent.name, folder.name


def shard_names(shards: int) -> list[str]:
    """Zero-padded names of the shards of a task: ["000", "001", ...]."""
    return [f"{index:03d}" for index in range(shards)]
