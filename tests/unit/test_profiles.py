"""The profiles: `--profile slurm` is found, nothing overrides it, and its README explains every key."""

from __future__ import annotations

import os
import re
from pathlib import Path

import yaml

#: Rules that are jobs on a cluster: they load the model, ask the server, or read every answer of a task.
JOBS = {"infer_sweep", "infer_shard", "infer_noise", "import_published", "score_task", "train_tiny_reader"}


def profile(root: Path, name: str) -> dict:
    return yaml.safe_load((root / f"profiles/{name}/config.yaml").read_text())


def rules(root: Path) -> dict[str, str]:
    """Name -> text of every rule that does something."""
    text = "\n".join(file.read_text() for file in sorted((root / "rules").glob("*.smk")))
    parts = re.split(r"^ *rule (\w+):$", text, flags=re.MULTILINE)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return {name: body for name, body in pairs if re.search(r"^ *script:$", body, re.MULTILINE)}


def test_snakemake_finds_the_profile_slurm_from_the_repository(root: Path) -> None:
    assert os.readlink(root / "slurm") == "profiles/slurm"
    assert profile(root, "slurm")["executor"] == "slurm"


def test_the_default_profile_which_comes_on_top_leaves_the_slurm_profile_as_it_is(root: Path) -> None:
    assert not profile(root, "default").keys() & profile(root, "slurm").keys()


def test_every_key_of_the_slurm_profile_is_explained(root: Path) -> None:
    readme = (root / "profiles/README.md").read_text()
    keys = profile(root, "slurm")
    assert all(f"`{key}" in readme for key in [*keys, "groups", "group-components"])


def test_jobs_are_tried_again_by_the_profile_and_not_by_rules(root: Path) -> None:
    assert profile(root, "slurm")["retries"] > 0
    assert not [name for name, body in rules(root).items() if "retries:" in body]


def test_what_is_cheap_runs_beside_snakemake(root: Path) -> None:
    local = {name for name, body in rules(root).items() if "localrule: True" in body}
    assert rules(root).keys() - local == JOBS
