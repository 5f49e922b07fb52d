"""The written report: tables, figures and sentences of one experiment on one page, from finished files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kv_transition.analysis.figures.draw import TITLES
from kv_transition.errors import UserError
from kv_transition.files import write_text
from kv_transition.report import costs, findings, macro
from kv_transition.report import tables as page_tables
from kv_transition.report.answer import answer, length_findings, reference_words
from kv_transition.report.claims import lossless_table
from kv_transition.report.comparisons import comparison_table, comparison_words, steps_table
from kv_transition.report.curve_shape import shape_table
from kv_transition.report.length_law import law_conf, length_law_table, no_law_words
from kv_transition.report.markdown import name_text, relative_link, table
from kv_transition.report.method_card import method_card
from kv_transition.report.noise import floor_reminder, noise_over_tasks, noise_words
from kv_transition.report.official import official_scores
from kv_transition.report.per_method import method_summary
from kv_transition.report.study import Study, read_study
from kv_transition.report.wording import looked_at, percent

TEMPLATES = Path(__file__).parent / "templates"
FIGURE_KEYS = ("name", "title", "svg", "png", "csv", "caption")


def build_report(
    *,
    settings: Mapping[str, Any],
    provenance: Mapping[str, Any],
    manifests: Sequence[str | Path],
    scores: Sequence[str | Path],
    tables: Mapping[str, str | Path],
    figures: Sequence[Mapping[str, Any]],
    out: str | Path,
    notes: Sequence[str] = (),
) -> None:
    """Write the report of an experiment as Markdown; the same inputs give the same bytes.

    Parameters
    ----------
    settings : the resolved configuration.
    provenance : what `provenance.collect` gives; `configfile` among it, if any, is named in the command.
    manifests, scores : one file a task.
    tables : the analysis tables by name.
    figures : {name, title, svg, png, csv, caption} each; a name `<figure>__<task>` places it with its task, and the
        files are linked relative to the report.
    notes : further sentences that change how the numbers have to be read.

    Raises
    ------
    UserError
        When a figure lacks one of its keys or its file with numbers.
    """
    study = read_study(settings, manifests, scores, tables)
    page = _template().render(context(study, provenance, figures, out, notes))
    write_text(out, re.sub(r"\n{3,}", "\n\n", page).rstrip() + "\n")


def context(
    study: Study,
    provenance: Mapping[str, Any],
    figures: Sequence[Mapping[str, Any]],
    out: str | Path,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything the template places, as finished Markdown."""
    settings = study.settings
    shown = [(str(figure["name"]).partition("__")[2], _figure(figure, out)) for figure in figures]
    return {
        "id": name_text(settings["experiment"]["id"]),
        "title": name_text(settings["experiment"]["title"]),
        "tau": percent(study.taus[0]),
        "conf": percent(study.conf),
        "delta": f"{study.delta:g}",
        "min_active": percent(study.min_active_share),
        "max_failures": percent(study.max_failures),
        "tested": findings.tested(study),
        "answer": answer(study),
        "read_first": [*findings.read_first(study), *(name_text(note) for note in notes)],
        "tasks": [
            _task(study, task, [drawn for name, drawn in shown if name == task]) for task in study.tasks
        ],
        "figures": [drawn for name, drawn in shown if name not in study.tasks],
        "published": settings["engine"]["kind"] == "published",
        "policy": study.policy,
        "protocols": " and ".join(sorted({study.protocol(task) for task in study.tasks})),
        "failures": page_tables.failure_table(study),
        "failure_examples": page_tables.failure_examples(study, int(settings["output"]["failure_examples"])),
        "not_shown": findings.not_shown(study),
        "sensitivity": page_tables.sensitivity_table(study),
        "kept": page_tables.kept_table(study),
        "text_methods": bool(study.text_methods),
        "methods": [
            {
                "name": name_text(method),
                "summary": method_summary(study, method),
                "card": _card(study, method),
            }
            for method in study.methods
        ],
        "macro": {
            "mean": macro.macro_table(study),
            "retention": macro.macro_table(study, "R"),
            "full": macro.macro_reference(study),
            "noise": noise_over_tasks(study),
        },
        "law_conf": law_conf(study),
        "fit_replicates": f"{int(settings['analysis']['fit_replicates']):,}",
        "provenance": provenance_table(provenance, settings),
        "citation": citation(settings, provenance),
        "command": command(str(settings["experiment"]["id"]), provenance.get("configfile")),
    }


def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    return environment.get_template("report.md.jinja")


def _task(study: Study, task: str, figures: list[dict[str, str]]) -> dict[str, Any]:
    curves = len(study.curves(task, study.taus[0]))
    return {
        "name": name_text(task),
        "reference": reference_words(study, task),
        "lengths": length_findings(study, task, study.taus[0]),
        "shape": shape_table(study, task),
        "law": length_law_table(study, task),
        "no_law": no_law_words(study, task),
        "comparison": comparison_table(study, task),
        "comparison_words": comparison_words(study, task),
        "steps": steps_table(study, task),
        "bounds": page_tables.bounds_table(study, task),
        "costs": costs.cost_table(study, task),
        "timed": costs.timed(study, task),
        "transitions": [(percent(tau), page_tables.transition_table(study, task, tau)) for tau in study.taus],
        "scores": page_tables.score_table(study, task),
        "metric": study.metric(task),
        "protocol": study.protocol(task),
        "official": official_scores(study, task),
        "figures": figures,
        "retention": page_tables.retention_table(study, task),
        "floor_retention": page_tables.floor_retention_table(study, task),
        "noise": noise_words(study, task),
        "noise_reminder": floor_reminder(study, task),
        "lossless": lossless_table(study, task),
        "looked_at": looked_at(curves, study.conf),
    }


def drawn_figures(captions: Sequence[str | Path]) -> list[dict[str, Any]]:
    """The figures whose caption files (`<figure>__<task>.txt`) these are, as :func:`build_report` takes them."""
    rank = {kind: index for index, kind in enumerate(TITLES)}
    figures = []
    for path in sorted(
        map(Path, captions), key=lambda path: rank.get(path.stem.partition("__")[0], len(rank))
    ):
        kind, _, task = path.stem.partition("__")
        figure = {suffix: path.with_suffix(f".{suffix}") for suffix in ("svg", "png", "csv")}
        title = f"{TITLES.get(kind, kind)}: {task}"
        caption = path.read_text(encoding="utf-8").strip()
        figures.append({"name": path.stem, "title": title, "caption": caption, **figure})
    return figures


def _figure(figure: Mapping[str, Any], out: str | Path) -> dict[str, str]:
    absent = [key for key in FIGURE_KEYS if key not in figure]
    if absent:
        raise UserError(
            f"figure {figure.get('name', '?')}: {absent[0]!r} is missing; give {', '.join(FIGURE_KEYS)}"
        )
    for key in ("svg", "png", "csv"):
        if not Path(figure[key]).is_file():
            raise UserError(f"figure {figure['name']}: {figure[key]} does not exist; draw the figure again")
    links = {key: relative_link(figure[key], out) for key in ("svg", "png", "csv")}
    return {"title": name_text(figure["title"]), "caption": name_text(figure["caption"]), **links}


def _card(study: Study, method: str) -> str:
    stats = study.bin_stats[
        (study.bin_stats["method"] == method) & (study.bin_stats["policy"] == study.policy)
    ]
    rows = method_card(method, study.settings, study.pooled(stats))
    return table(["", name_text(method)], [[what, name_text(text)] for what, text in rows], 2)


def command(experiment_id: str, configfile: object = None) -> str:
    """The command that makes the report again; the target stands before the options."""
    line = f"snakemake --cores all results/{experiment_id}/report.md"
    return f"{line} --configfile {configfile}" if configfile else line


def citation(settings: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """A BibTeX entry that names code and configuration; braces of the title cannot end it."""
    experiment = settings["experiment"]
    commit = (provenance.get("git") or {}).get("commit")
    code = f"kv-transition {provenance.get('kv_transition') or 'of unknown version'}"
    note = [
        code,
        *([f"commit {commit}"] if commit else []),
        f"configuration sha256 {provenance.get('config_hash')}",
    ]
    key = re.sub(r"[^A-Za-z0-9_-]", "-", str(experiment["id"]))
    title = re.sub(r"[{}\\`\s]+", " ", str(experiment["title"])).strip()
    return "\n".join(
        [
            f"@misc{{kv-transition-{key},",
            f"  title = {{{title}}},",
            f"  howpublished = {{Report of experiment {experiment['id']}}},",
            f"  note = {{{', '.join(note)}}},",
            "}",
        ]
    )


def provenance_table(provenance: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Code, configuration, model, packages and machine as a table; what is unknown is called unknown."""
    git = provenance.get("git") or {}
    state = {True: ", with uncommitted changes", False: "", None: ""}[git.get("dirty")]
    packages = provenance.get("packages") or {}
    model = settings["model"]
    known = {
        "git",
        "packages",
        "settings",
        "config_hash",
        "kv_transition",
        "python",
        "platform",
        "host",
        "configfile",
    }
    rows = [
        ("configuration (sha256)", provenance.get("config_hash")),
        ("configuration file", provenance.get("configfile") or "none: the default configuration"),
        ("kv-transition", provenance.get("kv_transition")),
        ("git commit", f"{git['commit']}{state}" if git.get("commit") else "not a git checkout"),
        ("model", f"{model['name']}, revision {model.get('revision') or 'not given'}"),
        *(
            (key.replace("_", " "), _value(value))
            for key, value in sorted(provenance.items())
            if key not in known
        ),
        ("Python", provenance.get("python")),
        ("packages", ", ".join(f"{name} {version}" for name, version in sorted(packages.items())) or None),
        ("platform", provenance.get("platform")),
        ("host", provenance.get("host")),
    ]
    return table(
        ["", "value"], [[what, name_text("unknown" if value is None else value)] for what, value in rows], 2
    )


def _value(value: object) -> object:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {item}" for key, item in sorted(value.items()))
    return ", ".join(str(item) for item in value) if isinstance(value, list | tuple) else value
