"""What the report says in sentences beside the answer: what to read first, what was run, what could not be shown."""

from __future__ import annotations

from kv_transition.analysis.figures.canvas import budget_tick, finite
from kv_transition.analysis.figures.cells import POOLED, truncated_bins
from kv_transition.analysis.figures.labels import read_estimate
from kv_transition.report.markdown import name_text
from kv_transition.report.method_card import FIRST_TOKENS, SCOPES
from kv_transition.report.study import Study
from kv_transition.report.wording import (
    join,
    percent,
    range_words,
    status_words,
)

#: Share of contexts in more than one bin above which the report says it.
MAX_STRADDLING = 0.05


def read_first(study: Study) -> list[str]:
    """What changes how every number has to be read; empty when nothing does."""
    notes = []
    stats = study.pooled(study.bin_stats[study.bin_stats["policy"] == study.policy])
    cells = stats[stats["method"].isin(study.methods)]
    known = cells[cells["verified_frac"].notna()]
    total = float(known["n"].sum())
    measured = float((known["verified_frac"] * known["n"]).sum()) / total if total else 0.0
    if study.settings["engine"]["kind"] == "published":
        notes.append(
            "These are published results: answers, budgets and the reference are the word of their source, and no budget was "
            "measured here. Where the source names no contexts, examples count as independent."
        )
    elif measured < 1:
        notes.append(
            f"Only {percent(measured)} of the answers with a budget have a budget that was measured in the cache; "
            "the others may have been given with another one."
        )
    notes += text_methods_words(study)
    for task in study.tasks:
        share = study.one_token_share(task)
        if study.settings["kv"]["first_token"] == "full" and share > 0.5:
            notes.append(
                f"On {name_text(task)}, {percent(share)} of the answers are one token, which comes from the full cache: "
                "its curves cannot show the budget."
            )
        shortened = study.shortened(task)
        if shortened:
            notes.append(
                f"On {name_text(task)}, {shortened} prompts were longer than the limit and lost their middle, before "
                "anything was evicted."
            )
        notes += _bins_words(study, task)
        failed = cells[(cells["task"] == task) & cells["unreliable"].astype(bool)]
        if len(failed):
            names = join([f"{name_text(row['method'])} {row['budget']}" for _, row in failed.iterrows()])
            notes.append(
                f"On {name_text(task)} more than {percent(study.max_failures)} of the requests failed with {names}: marked † in the tables."
            )
        warnings = [name_text(text) for text in study.manifests.get(task, {}).get("warnings", [])]
        if warnings:
            notes.append(f"{name_text(task)}: {'; '.join(warnings)}")
    units = sorted({one.unit for task in study.tasks for one in study.bins(task)} - {"tokens"})
    if units:
        notes.append(
            f"Prompt lengths are in {join(units)}, not in tokens, so it is not known which prompts were longer than a budget, "
            "and no cell is marked for having compressed little."
        )
    missing = [name_text(task) for task in study.tasks if study.reference(task, "no_context") is None]
    if missing:
        notes.append(
            f"The floor without context was not measured on {join(missing)}; retention is not corrected for guessing."
        )
    left_out = stats[stats["method"] == "full"].get("n_reference_failed")
    if left_out is not None and float(left_out.sum()) > 0:
        notes.append(
            f"{int(left_out.sum())} examples left every cell because their reference request failed."
        )
    tokenizers = sorted({str(manifest.get("tokenizer")) for manifest in study.manifests.values()})
    if any("approx" in name for name in tokenizers):
        notes.append(f"Prompt lengths are approximate: they were counted by {name_text(join(tokenizers))}.")
    return notes


def _bins_words(study: Study, task: str) -> list[str]:
    """Bins whose `full` is not the whole document, and contexts that stand in several bins."""
    notes = []
    stats = study.stats(task)
    cut = [one.lengths for one in study.bins(task) if one.bin_idx in truncated_bins(stats)]
    if cut:
        notes.append(
            f"On {name_text(task)}, more than half of the prompts of {join(cut)} were cut: there the full cache is that of the "
            "cut document, uncompressed, and the exponent of prompt length leaves these prompts out."
        )
    pooled = stats[(stats["bin_idx"] == POOLED) & (stats["method"] == "full")]
    if len(pooled) and float(pooled.iloc[0]["n_clusters"]) > 0:
        row = pooled.iloc[0]
        share = float(row["n_straddling_clusters"]) / float(row["n_clusters"])
        if share > MAX_STRADDLING:
            notes.append(
                f"On {name_text(task)}, {int(row['n_straddling_clusters'])} of {int(row['n_clusters'])} contexts have prompts in "
                "more than one length bin; intervals over all lengths resample them as if they were different ones."
            )
    return notes


def text_methods_words(study: Study) -> list[str]:
    """What is to be known where methods that shorten the text stand beside methods that shorten the cache."""
    methods = [name_text(method) for method in study.text_methods]
    if not methods:
        return []
    many = len(methods) > 1
    notes = [
        f"{join(methods)} shorten{'' if many else 's'} the text before the model reads it, so {'their' if many else 'its'} "
        "budget is all tokens of the prompt. A method that compresses the cache read the whole text in its prefill, and "
        f"{'these' if many else 'this one'} did not: equal memory, not equal knowledge of the text."
    ]
    if study.settings["kv"]["first_token"] == "full" and set(study.methods) - set(study.text_methods):
        notes[0] += (
            " Here the first answer token of a compressed cache still comes from the full one, which favours the methods that "
            "compress it; first_token compressed compares them fairly."
        )
    for task in study.tasks:
        if absent := study.not_applicable(task):
            needs = "needs" if len(absent) == 1 else "need"
            names = join([name_text(method) for method in absent])
            notes.append(f"{names} {needs} a question: not applicable on {name_text(task)}.")
        notes += _infeasible(study, task)
    return notes


def _infeasible(study: Study, task: str) -> list[str]:
    """Which budgets leave no room for any context, in how many prompts: a sentence for each budget and number."""
    stats = study.pooled(study.stats(task))
    rows = stats[stats["n_infeasible"] > 0].sort_values("budget_value", kind="stable")
    notes = []
    for (_, budget, _), cells in rows.groupby(["budget_value", "budget", "n_infeasible"], sort=True):
        names = [name_text(method) for method in study.methods if (cells["method"] == method).any()]
        k = int(cells["n_infeasible"].iloc[0])
        n = round(k / float(cells["infeasible_frac"].iloc[0]))
        left_out = (cells["status"] == "infeasible").any()
        notes.append(
            f"On {name_text(task)}, {join(names)} at {budget}: the fixed part of {k} of {n} prompts (template, instruction "
            f"and question) is as long or longer; {'the cell is not shown' if left_out else 'these are left out'}."
        )
    return notes


def not_shown(study: Study) -> list[str]:
    """Gates, censored limits and differences that a sample of this size cannot show."""
    out = []
    tau = study.taus[0]
    for task in study.tasks:
        curves = study.curves(task, tau)
        ok = [curve for curve in curves if curve.ok]
        for status in sorted({curve.status for curve in curves if not curve.ok}):
            count = sum(curve.status == status for curve in curves)
            out.append(
                f"{name_text(task)}: no transition budget for {count} of {len(curves)} curves: {status_words(status)}."
            )
        open_ends = sum(read_estimate(curve.upper).side == "right" for curve in ok)
        if open_ends:
            out.append(
                f"{name_text(task)}: {open_ends} of {len(ok)} intervals {_have(open_ends)} no upper limit among the tested budgets. "
                "More examples per bin, or larger budgets, would be needed to give one."
            )
        low_ends = sum(read_estimate(curve.lower).side == "left" for curve in ok)
        if low_ends:
            out.append(
                f"{name_text(task)}: {low_ends} of {len(ok)} intervals {_have(low_ends)} no lower limit among the tested budgets."
            )
        out.extend(_differences(study, task))
    return out


def _differences(study: Study, task: str) -> list[str]:
    """The smallest difference to the full cache that the sample would find, pooled and in single bins."""
    rows = study.sized(task)
    pooled = study.pooled(rows)["mde"]
    single = rows[rows["bin_idx"] != POOLED]["mde"] if len(study.bins(task)) > 1 else rows["mde"][:0]
    parts = []
    if len(pooled):
        parts.append(f"{range_words(pooled.min(), pooled.max())} with all lengths together")
    if len(single):
        parts.append(f"{range_words(single.min(), single.max())} in single length bins")
    if not parts:
        return []
    return [
        f"{name_text(task)}: the smallest loss of {study.metric(task)} against the full cache that the sample would find "
        f"with 80% power (one-sided 5%) is {join(parts)}, depending on the cell. A smaller one may exist unseen."
    ]


def _have(count: int) -> str:
    return "has" if count == 1 else "have"


def protocol_words(protocol: str) -> str:
    """What a protocol label means for comparisons."""
    if "modified" in protocol:
        return f"{protocol}: LongBench's own prompts, and answers that end otherwise than its own"
    if protocol.startswith("official"):
        return f"{protocol}: LongBench's own prompts and answer lengths"
    if protocol == "published":
        return "published: those of the source"
    return (
        f"{protocol}: this project's own prompts; scores are not comparable with published LongBench tables"
    )


def tested(study: Study) -> list[tuple[str, str]]:
    """What was run, in a few lines."""
    settings = study.settings
    budgets = join([budget_tick(budget) for budget in study.budgets])
    unit = study.budget_unit
    sizes = []
    for task in study.tasks:
        full = study.reference(task, "full")
        bins = [one for one in study.bins(task) if one.n]
        low, high = (
            min((one.token_len_min for one in bins), default=0),
            max((one.token_len_max for one in bins), default=0),
        )
        number = int(full["n"]) if full is not None and finite(full["n"]) else sum(one.n for one in bins)
        unit_of_length = bins[0].unit if bins else "tokens"
        noun = "length bin" if len(bins) == 1 else "length bins"
        sizes.append(
            f"{name_text(task)}: {number} examples of {low:.0f} to {high:.0f} {unit_of_length} in {len(bins)} {noun}"
        )
    references = [
        words
        for method, words in (("full", "the full cache"), ("no_context", "the question without its context"))
        if (study.bin_stats["method"] == method).any()
    ]
    kv = settings["kv"]
    published = settings["engine"]["kind"] == "published"
    protocols = {study.protocol(task) for task in study.tasks}
    lines = [
        ("Model", f"{name_text(settings['model']['name'])}, engine {name_text(settings['engine']['kind'])}"),
        ("Tasks", "; ".join(sizes)),
        ("Methods", join([name_text(method) for method in study.methods])),
        ("Budgets", f"{budgets} {unit}"),
        ("Compared with", join(references) or "nothing"),
        ("Prompts", join([protocol_words(protocol) for protocol in sorted(protocols)])),
    ]
    if published:
        return lines
    lines += [
        ("What may be evicted", SCOPES.get(kv["scope"], kv["scope"])),
        ("First answer token", FIRST_TOKENS.get(kv["first_token"], kv["first_token"])),
    ]
    if kv["first_token"] == "full":
        shares = [f"{name_text(task)} {percent(study.one_token_share(task))}" for task in study.tasks]
        lines.append(("Answers of one token, which cannot feel the budget", join(shares)))
    return lines
