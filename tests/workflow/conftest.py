"""The small experiment, set up and run once for all workflow tests."""

import shutil
from pathlib import Path

import pytest
from project import Project


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Project:
    """The project as cloned, configured for the small experiment, not run."""
    project = Project(root).copy(tmp_path_factory.mktemp("fresh") / "project", results=False)
    project.configure()
    return project


@pytest.fixture(scope="session")
def finished(fresh: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The small experiment, run to its end. Tests work on copies of it."""
    project = fresh.copy(tmp_path_factory.mktemp("finished") / "project", results=False)
    project.run()
    return project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished experiment with all its dates, as if it had been run here."""
    shutil.copytree(finished.folder, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project")
