"""What a script of the workflow, or a command, imports before it does anything: packages and CPU seconds."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: Packages that take from a third of a second to some seconds to import.
HEAVY = (
    "pandas",
    "pyarrow",
    "scipy.special",
    "scipy.stats",
    "statsmodels",
    "matplotlib.pyplot",
    "datasets",
    "torch",
    "transformers",
    "tokenizers",
    "requests",
)
#: Scripts whose every run needs some of them; the others import them, if at all, where they use them.
USES: Mapping[str, frozenset[str]] = {
    "assemble_database": frozenset({"pyarrow"}),
    "build_report": frozenset({"pandas", "pyarrow"}),
    "costs": frozenset({"pyarrow"}),
    "effect_models": frozenset({"scipy.special"}),
    "noise_floor": frozenset({"pyarrow"}),
    "paired_tests": frozenset({"scipy.special"}),
    "plot_figures": frozenset({"pandas", "pyarrow"}),
    "score_task": frozenset({"pyarrow"}),
    "train_tiny_reader": frozenset({"torch"}),
}


def scripts() -> list[Path]:
    """The scripts of the workflow."""
    return sorted((ROOT / "scripts").glob("*.py"))


def imports_of(script: Path) -> str:
    """The import statements at the top of a script."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    return "\n".join(ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))


def imported(code: str) -> tuple[frozenset[str], float]:
    """(heavy packages that are loaded after some code in a new Python, CPU seconds that it took from its start)."""
    told = (
        "import json as _json, sys as _sys, time as _time\n"
        f"_found = [name for name in {HEAVY!r} if name in _sys.modules]\n"
        "_sys.stderr.write('\\n' + _json.dumps([_found, _time.process_time()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{told}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{code}:\n{done.stderr[-2000:]}")
    loaded, seconds = json.loads(done.stderr.rpartition("\n")[2])
    return frozenset(loaded), float(seconds)
