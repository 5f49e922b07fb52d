"""Draws the rule graph and the jobs of a small experiment into docs/ (`make dag`)."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from kv_transition.commands.workflow import snakemake_command
from kv_transition.errors import UserError
from kv_transition.files import write_text

SHARDS = "run.shards=2"
CONFIG = "config/experiments/quick.yaml"
PAGE = Path("docs/dag.md")
FIGURES = Path("docs/figures")

#: Option of Snakemake -> what the picture shows.
PICTURES = {
    "rulegraph": "Rules: an arrow leads from a rule to those that take what it makes.",
    "dag": f"Jobs of [{Path(CONFIG).name}](../{CONFIG}) with two shards: a sweep answers all cells of its shard.",
}
HEADINGS = {"rulegraph": "The rule graph", "dag": "The jobs of a small experiment"}


def graph(kind: str, language: str) -> str:
    """Snakemake's graph of everything, in `mermaid-js` or `dot`."""
    command = snakemake_command("results/report.md", CONFIG, [SHARDS], ["--forceall", f"--{kind}", language])
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        raise UserError(f"snakemake --{kind}: {done.stderr.strip().splitlines()[-1]}")
    return re.sub(r"\A---\n.*?^---\n", "", done.stdout, flags=re.DOTALL | re.MULTILINE)


def page() -> str:
    """docs/dag.md."""
    parts = ["# Pictures of the workflow\n\nMade by `make dag`.\n"]
    for kind, text in PICTURES.items():
        parts.append(
            f"## {HEADINGS[kind]}\n\n{text} The same [as SVG](figures/{kind}.svg).\n\n"
            f"```mermaid\n{graph(kind, 'mermaid-js').rstrip()}\n```\n"
        )
    return "\n".join(parts)


def main() -> int:
    """Write the page and, where graphviz is installed, the SVG files."""
    try:
        write_text(PAGE, page())
        if shutil.which("dot") is None:
            raise UserError(
                f"{FIGURES}: the SVG files need the program dot; install graphviz (apt-get install graphviz)"
            )
        for kind in PICTURES:
            svg = subprocess.run(
                ["dot", "-Tsvg"], input=graph(kind, "dot"), capture_output=True, text=True, check=True
            )
            write_text(FIGURES / f"{kind}.svg", svg.stdout)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
