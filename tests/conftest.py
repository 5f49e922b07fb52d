"""Where the tests find what they need, and what they do when it is absent."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

# As Snakemake does for its jobs, and before numpy is loaded: on a busy machine more threads make small matrices slower.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]

#: With this variable set (as in CI) a test group whose requirement is missing fails instead of being skipped.
REQUIRE_ALL = bool(os.environ.get("KV_TRANSITION_REQUIRE_ALL"))


def missing(reason: str) -> None:
    """Skip with the reason, or fail where every group has to run."""
    if REQUIRE_ALL:
        pytest.fail(f"required here, but {reason}", pytrace=False)
    pytest.skip(reason)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("kvpress") and importlib.util.find_spec("kvpress") is None:
        missing("kvpress is not installed (make setup-full)")
    if item.get_closest_marker("browser") and not (shutil.which("chromium") and shutil.which("chromedriver")):
        missing("Chromium and its driver are not installed (Debian packages chromium and chromium-driver)")


@pytest.fixture(scope="session", name="missing")
def call_for_a_missing_requirement() -> Callable[[str], None]:
    """Ends a test whose requirement is not there."""
    return missing


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real LongBench material and worked statistics, which is not part of the project."""
    folder = Path(os.environ.get("KV_TRANSITION_SHARED") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        missing(f"there is no shared test data at {folder} (KV_TRANSITION_SHARED names its folder)")
    return folder
