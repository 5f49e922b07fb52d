"""The command line: check a configuration, and build one stage of the workflow."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence

from kv_transition import __version__, preflight
from kv_transition.errors import UserError
from kv_transition.files import sha256_text, write_text
from kv_transition.paths import DEFAULT_CONFIG
from kv_transition.settings import config_yaml, deep_merge, from_mapping, load_settings, parse_override

#: Stage command -> (target rule, what it makes).
STAGES = {
    "prepare": ("all_manifests", "examples and manifests"),
    "run": ("all_responses", "every answer"),
    "score": ("all_scores", "scores and failure labels"),
    "analyze": ("all_analysis", "tables and figures"),
    "report": ("all_reports", "report and database"),
}


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(prog="kv-transition", description=__doc__)
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument(
            "-c", "--configfile", default=str(DEFAULT_CONFIG), metavar="FILE", help="experiment's YAML file"
        )
        command.add_argument(
            "--override", action="append", default=[], metavar="a.b=v", help="change one key; may be repeated"
        )
        return command

    validate = add("validate", "Check a configuration and the files it names.")
    validate.add_argument("--print-config", action="store_true", help="print the resolved configuration")
    add("resolve", "Print the resolved configuration as YAML.")
    for name, (_, text) in STAGES.items():
        add(name, f"Build {text} with Snakemake; further options go to Snakemake (default: --cores all).")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 is success, 2 a mistake in usage or configuration, else Snakemake's exit code."""
    known, rest = parser().parse_known_args(arguments)
    if rest and known.command not in STAGES:
        parser().error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        resolved = load_settings(known.configfile, known.override)
        if known.command == "resolve":
            sys.stdout.write(config_yaml(resolved))
            return 0
        settings = from_mapping(resolved)
        preflight.check_inputs(settings)
        preflight.check_contents(settings)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if known.command == "validate":
        sys.stdout.write(config_yaml(resolved) if known.print_config else f"{known.configfile}: valid\n")
        return 0
    return _build(STAGES[known.command][0], known.configfile, known.override, rest)


def _build(target: str, config: str, overrides: Sequence[str], options: Sequence[str]) -> int:
    """Call Snakemake for a target; overrides become a small configuration file over the experiment's."""
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
    command = [sys.executable, "-m", "snakemake", target, *cores, *options, "--configfile", *files]
    return subprocess.run(command, check=False).returncode
