"""Snakemake as the commands call it: to build a target, and to say what a run would do and hold."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kv_transition.files import sha256_text, write_text
from kv_transition.settings import config_yaml, deep_merge, parse_override

#: Everything of an experiment.
ALL = "all_reports"


def snakemake_command(
    target: str, config: str, overrides: Sequence[str], options: Sequence[str] = ()
) -> list[str]:
    """The call for a target; overrides become a small configuration file over the experiment's."""
    files = [config]
    if overrides:
        merged: dict[str, object] = {}
        for text in overrides:
            merged = deep_merge(merged, parse_override(text))
        overlay = f".snakemake/overrides/{sha256_text(config_yaml(merged))[:16]}.yaml"
        write_text(overlay, config_yaml(merged))
        files.append(overlay)
    has_cores = any(option.startswith(("--cores", "--jobs", "-j", "--profile")) for option in options)
    cores = [] if has_cores else ["--cores", "all"]
    return [sys.executable, "-m", "snakemake", target, *cores, *options, "--configfile", *files]


@dataclass(frozen=True)
class Preview:
    """What a run would do.

    Attributes
    ----------
    jobs : rule -> jobs that are due.
    reasons : why, in Snakemake's words -> rules.
    files : every file of the configuration -> whether a job that makes it is due.
    problem : why nothing of this is known; None where it is.
    """

    jobs: Mapping[str, int] = field(default_factory=dict)
    reasons: Mapping[str, Sequence[str]] = field(default_factory=dict)
    files: Mapping[str, bool] = field(default_factory=dict)
    problem: str | None = None

    def is_current(self, file: str) -> bool:
        """Whether a file is there and no run would make it anew."""
        return self.files.get(file) is False


def preview(config: str, overrides: Sequence[str]) -> Preview:
    """Ask Snakemake for everything that the configuration's report needs; nothing is run."""
    if not Path("Snakefile").is_file():
        return Preview(problem="there is no Snakefile in this folder")
    forms = (["--dry-run", "--quiet", "rules"], ["--summary"])
    calls = [
        subprocess.Popen(
            snakemake_command(ALL, config, overrides, form),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for form in forms
    ]
    printed = [call.communicate() for call in calls]
    for call, (out, err) in zip(calls, printed, strict=True):
        if call.returncode:
            lines = [line.strip() for line in (out + err).splitlines()]
            told = [line for line in lines if "rror" in line or "xception" in line]
            return Preview(problem=(told or lines or ["Snakemake says nothing"])[-1])
    dry_run = "\n".join(printed[0])
    return Preview(_jobs(dry_run), _reasons(dry_run), _files(printed[1][0]))


def _jobs(text: str) -> dict[str, int]:
    table = text.partition("Job stats:")[2].partition("\ntotal")[0]
    counts = re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE)
    return {rule: int(count) for rule, count in counts if rule != ALL}


def _reasons(text: str) -> dict[str, list[str]]:
    block = text.partition("\nReasons:\n")[2].partition("\n\n")[0]
    pairs = re.findall(r"^    (\S.*):\n {8}(\S.*)$", block, re.MULTILINE)
    named = {reason: [rule for rule in rules.split(", ") if rule != ALL] for reason, rules in pairs}
    return {reason: rules for reason, rules in named.items() if rules}


def _files(text: str) -> dict[str, bool]:
    rows = [line.split("\t") for line in text.splitlines()]
    # The first row names the columns: output_file, date, rule, log-file(s), status, plan.
    return {row[0]: row[-1] != "no update" for row in rows if len(row) >= 5 and row[0] != "output_file"}
