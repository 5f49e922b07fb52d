"""Snakemake's own report: every figure with its caption and category, and the page, in one file without a network."""

from __future__ import annotations

import re

import pytest
from project import Project

pytestmark = pytest.mark.workflow


def test_the_figures_and_the_page_are_in_snakemakes_report(finished: Project) -> None:
    finished.run("--report", "snakemake_report.html")
    page = (finished.folder / "snakemake_report.html").read_text(encoding="utf-8")
    for name in ("score_vs_budget", "transition_vs_length", "forest", "pareto", "failures"):
        assert f"{name}__phrasebook_qa.svg" in page
    assert "report.html" in page
    assert "Figures" in page
    assert "The caption with sample size" in page
    assert not re.search(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', page)
