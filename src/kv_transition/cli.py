"""The command line: check a configuration, plan a run, build a stage of the workflow, score, compare and analyse."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence

from kv_transition import __version__
from kv_transition.errors import UserError
from kv_transition.paths import DEFAULT_CONFIG
from kv_transition.serve import command as serve

#: Stage command -> (target rule, what it makes).
STAGES = {
    "prepare": ("all_manifests", "examples and manifests"),
    "run": ("all_responses", "every answer"),
    "score": ("all_scores", "scores and failure labels"),
    "analyze": ("all_analysis", "tables and figures"),
    "report": ("all_reports", "report and database"),
}

#: Options of `analyze --scores`.
ANALYZE_OPTIONS = ("scores", "out", "policy", "seed", "tau", "delta", "conf", "replicates")


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(prog="kv-transition", description=__doc__)
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False)

    def add_configured(name: str, text: str) -> argparse.ArgumentParser:
        command = add(name, text)
        command.add_argument(
            "-c", "--configfile", metavar="FILE", help=f"experiment's YAML file (default: {DEFAULT_CONFIG})"
        )
        command.add_argument(
            "--override", action="append", default=[], metavar="a.b=v", help="change one key; may be repeated"
        )
        return command

    validate = add_configured("validate", "Check a configuration and the files it names.")
    validate.add_argument("--print-config", action="store_true", help="print the resolved configuration")
    add_configured("resolve", "Print the resolved configuration as YAML.")
    plan = add_configured(
        "plan",
        "Say what a run would ask, compute, take and write, and what the journal has already; nothing is run.",
    )
    plan.add_argument("--json", action="store_true", help="print everything as one JSON object")
    for name, (_, text) in STAGES.items():
        stage = add_configured(
            name, f"Build {text} with Snakemake; further options go to Snakemake (default: --cores all)."
        )
        if name == "score":
            _add_scoring_of_predictions(stage)
        if name == "analyze":
            _add_analysis_of_scores(stage)
    compare = add("compare", "Compare two predictions files or folders row by row, B against A.")
    compare.add_argument("a", metavar="A", help="<task>.jsonl, or a folder of such files")
    compare.add_argument("b", metavar="B", help="the same kind")
    compare.add_argument(
        "--task", action="append", default=[], metavar="T", help="only this task; may be repeated"
    )
    compare.add_argument(
        "--conf", type=float, default=0.95, metavar="P", help="confidence level (default: 0.95)"
    )
    compare.add_argument("--out", metavar="FILE.json", help="write the values in full precision")
    tasks = add("tasks", "Print the tasks of a folder, a zip or a dataset on the hub, one a line.")
    tasks.add_argument("source", metavar="SOURCE", help="folder, zip, or owner/name on the hub")
    tasks.add_argument("--revision", metavar="R", help="commit of the dataset on the hub")
    serve.add(commands)
    return top


def _add_scoring_of_predictions(command: argparse.ArgumentParser) -> None:
    """The other form of `score`, `score PATH [options]`, which needs no configuration."""
    command.usage = (
        "kv-transition score [-c FILE] [--override a.b=v] [...]\n       kv-transition score PATH [options]"
    )
    command.description = (
        f"{command.description} Or, with PATH or --predictions: score predictions files as LongBench does."
    )
    group = command.add_argument_group("predictions files in LongBench's format, instead of a configuration")
    group.add_argument(
        "--predictions", metavar="PATH", help="<task>.jsonl, a folder of such files, or a folder of folders"
    )
    group.add_argument("--task", metavar="T", help="task of the file (default: its name)")
    group.add_argument(
        "--out",
        metavar="PATH",
        help="one file: write a JSON line for each row there; folder: write rows and result.json in there. The rows' failure "
        "labels go by the default scoring.refusal_patterns; a configuration's own are not read",
    )
    group.add_argument(
        "--longbench-e", action="store_true", help="score the three length bins of LongBench-E too"
    )
    group.add_argument(
        "--gold", metavar="PATH", help="official records (file or folder) to check the rows against"
    )
    group.add_argument("--overwrite", action="store_true", help="replace a result.json that has other scores")


def _add_analysis_of_scores(command: argparse.ArgumentParser) -> None:
    """The other form of `analyze`, `analyze --scores TABLE`, which needs no configuration."""
    command.usage = (
        "kv-transition analyze [-c FILE] [--override a.b=v] [...]\n"
        "       kv-transition analyze --scores TABLE --out DIR [options]"
    )
    command.description = (
        f"{command.description} Or, with --scores: every table of the analysis from a table of scores."
    )
    group = command.add_argument_group("a table of scores, instead of a configuration")
    group.add_argument(
        "--scores",
        metavar="TABLE",
        help="Parquet or CSV with the columns example_id, cluster_id, bin_idx, token_len, method, budget, score, failure",
    )
    group.add_argument("--out", metavar="DIR", help="folder for the tables and analysis.json")
    group.add_argument(
        "--policy",
        choices=("zero", "exclude"),
        help="failed requests count as 0 (zero, default) or as missing, in analysis.json; the tables hold both",
    )
    group.add_argument("--seed", type=int, metavar="N", help="root seed of the bootstrap (default: 42)")
    group.add_argument(
        "--tau", type=float, nargs="+", metavar="T", help="levels of retention (default: 0.9 0.95)"
    )
    group.add_argument("--delta", type=float, metavar="D", help="margin of 'lossless' (default: 0.05)")
    group.add_argument("--conf", type=float, metavar="P", help="confidence level (default: 0.95)")
    group.add_argument("--replicates", type=int, metavar="B", help="bootstrap replicates (default: 10000)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns
    -------
    0 for success; 1 where scores or rows are not those that they were checked against; 2 for a mistake in usage, input
    or configuration; else Snakemake's exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["score"] and len(given) > 1 and not given[1].startswith("-"):
        given.insert(1, "--predictions")
    known, rest = parser().parse_known_args(given)
    try:
        if known.command == "score" and _is_of_predictions(known):
            return _score(known, rest)
        if known.command == "analyze" and any(getattr(known, name) is not None for name in ANALYZE_OPTIONS):
            return _analyze(known, rest)
        if rest and known.command not in STAGES:
            parser().error(f"unrecognized arguments: {' '.join(rest)}")
        if known.command == "compare":
            from kv_transition.commands.compare import compare

            return compare(known.a, known.b, tasks=known.task, conf=known.conf, out=known.out)
        if known.command == "serve":
            return serve.run(known)
        if known.command == "tasks":
            from kv_transition.data.longbench_loader import list_longbench_tasks

            sys.stdout.writelines(f"{task}\n" for task in list_longbench_tasks(known.source, known.revision))
            return 0
        return _configured(known, rest)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def _is_of_predictions(known: argparse.Namespace) -> bool:
    options = (known.predictions, known.task, known.out, known.longbench_e, known.gold, known.overwrite)
    return any(option not in (None, False) for option in options)


def _score(known: argparse.Namespace, rest: list[str]) -> int:
    """`score` on predictions files; every option of the other form is a mistake here."""
    from kv_transition.commands.score import score

    if known.configfile or known.override:
        parser().error(
            "score: predictions are scored without -c and --override; give either these or the predictions"
        )
    if known.predictions is None and len(rest) == 1 and not rest[0].startswith("-"):
        known.predictions, rest = rest[0], []
    if rest:
        parser().error(f"unrecognized arguments: {' '.join(rest)}")
    if known.predictions is None:
        parser().error("score: name the predictions, a file or a folder")
    return score(
        known.predictions,
        task=known.task,
        out=known.out,
        bins=known.longbench_e,
        gold=known.gold,
        overwrite=known.overwrite,
    )


def _analyze(known: argparse.Namespace, rest: list[str]) -> int:
    """`analyze` on a table of scores; every option of the other form is a mistake here."""
    from kv_transition.commands.analyze import analyze

    if known.configfile or known.override:
        parser().error(
            "analyze: a table of scores is analysed without -c and --override; give either these or --scores"
        )
    if rest:
        parser().error(f"unrecognized arguments: {' '.join(rest)}")
    for name, what in (("scores", "the table of scores"), ("out", "the folder for the results")):
        if getattr(known, name) is None:
            parser().error(f"analyze: name {what} with --{name}")
    return analyze(
        known.scores, **{name: getattr(known, name) for name in ANALYZE_OPTIONS if name != "scores"}
    )


def _configured(known: argparse.Namespace, rest: Sequence[str]) -> int:
    """The commands on an experiment: validate, resolve, plan, and the stages."""
    from kv_transition import preflight
    from kv_transition.settings import config_yaml, from_mapping, load_settings

    config = known.configfile or str(DEFAULT_CONFIG)
    resolved = load_settings(config, known.override)
    if known.command == "resolve":
        sys.stdout.write(config_yaml(resolved))
        return 0
    settings = from_mapping(resolved)
    preflight.check_inputs(settings)
    preflight.check_contents(settings)
    if known.command == "validate":
        sys.stdout.write(config_yaml(resolved) if known.print_config else f"{config}: valid\n")
        return 0
    if known.command == "plan":
        from kv_transition.commands.plan import plan

        return plan(settings, config, known.override, as_json=known.json)
    return _build(STAGES[known.command][0], config, known.override, rest)


def _build(target: str, config: str, overrides: Sequence[str], options: Sequence[str]) -> int:
    """Call Snakemake for a target."""
    from kv_transition.commands.workflow import snakemake_command

    return subprocess.run(snakemake_command(target, config, overrides, options), check=False).returncode
