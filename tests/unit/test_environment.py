"""The pins agree wherever they stand."""

import re
import tomllib
from pathlib import Path

import yaml


def pins(lines: list[str]) -> dict[str, str]:
    return {
        name.lower(): version
        for name, version in re.findall(r"^([\w.-]+)==([\w.]+)", "\n".join(lines), re.MULTILINE)
    }


def test_the_conda_environment_has_the_pins_of_the_constraints(root: Path) -> None:
    constraints = pins((root / "constraints.txt").read_text().splitlines())
    environment = yaml.safe_load((root / "envs/kv-transition.yaml").read_text())
    conda = pins(next(part["pip"] for part in environment["dependencies"] if isinstance(part, dict)))
    assert conda
    assert conda == {name: constraints[name] for name in conda}


def test_every_dependency_is_pinned(root: Path) -> None:
    constraints = pins((root / "constraints.txt").read_text().splitlines())
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = [requirement for group in groups for requirement in group]
    names = {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in wanted}  # type: ignore[index]
    assert {name.replace("_", "-") for name in names} <= {name.replace("_", "-") for name in constraints}
    conda = (root / "envs/kv-transition.yaml").read_text()
    base = {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in project["dependencies"]}  # type: ignore[index]
    assert all(f"- {name}==" in conda for name in base)


def test_torch_is_the_one_build_that_installs_without_gpu_packages(root: Path) -> None:
    assert "torch==2.13.0\n" in (root / "constraints.txt").read_text()
    assert pins((root / "constraints.txt").read_text().splitlines())["pandas"] < "3"


def test_every_rule_with_a_script_names_the_environment(root: Path) -> None:
    """Snakemake fails at the end of a job whose environment file is missing, even where no conda is asked for."""
    assert (root / "envs/kv-transition.yaml").is_file()
    for file in root.glob("rules/*.smk"):
        text = file.read_text()
        named = re.findall(r'conda:\s+"../envs/kv-transition\.yaml"', text)
        assert len(named) == len(re.findall(r"^\s*script:", text, re.MULTILINE)), file.name


def test_every_rule_with_a_script_keeps_what_its_jobs_took_beside_its_log(root: Path) -> None:
    for file in root.glob("rules/*.smk"):
        text = file.read_text()
        logs = re.findall(r"log:\s+FILES\.log\((.*)\)", text)
        assert re.findall(r"benchmark:\s+FILES\.benchmark\((.*)\)", text) == logs, file.name
        assert len(re.findall(r"^\s*benchmark:", text, re.MULTILINE)) == len(
            re.findall(r"^\s*script:", text, re.MULTILINE)
        ), file.name


def test_the_image_has_this_python_and_all_that_a_run_needs(root: Path) -> None:
    image = (root / "Dockerfile").read_text()
    environment = yaml.safe_load((root / "envs/kv-transition.yaml").read_text())
    assert f"FROM {environment['dependencies'][0].replace('=', ':')}-slim" in image
    copied = {part for line in re.findall(r"^COPY (.*) \S+$", image, re.MULTILINE) for part in line.split()}
    needed = {
        "Snakefile",
        "rules",
        "scripts",
        "config",
        "profiles",
        "envs",
        "resources",
        "src",
        "constraints.txt",
    }
    assert needed <= copied
    assert all((root / part).exists() for part in copied)
    left_out = (root / ".dockerignore").read_text().split()
    assert not needed & set(left_out)
    assert re.search(r"^USER [1-9]", image, re.MULTILINE), "a run does not need root"
