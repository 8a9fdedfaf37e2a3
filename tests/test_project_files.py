"""Workflows and hooks say what the project says: one list of Pythons, one list of checks, .ci/run."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CI = (ROOT / ".ci" / "run").read_text()


def load(file: Path) -> Any:
    return YAML(typ="safe", pure=True).load(file.read_text())


def supported_pythons() -> list[str]:
    found = (re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", c) for c in PROJECT["project"]["classifiers"])
    return [match[1] for match in found if match]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_fit_the_schema(workflow: Path) -> None:
    checker = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    checked = subprocess.run([*checker, workflow], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_each_python_is_tested_on_both_processors() -> None:
    pythons = supported_pythons()
    assert PROJECT["project"]["requires-python"] == f">={pythons[0]}"
    jobs = load(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]
    assert jobs["linux"]["strategy"]["matrix"] == {"python": pythons, "runner": ["ubuntu-24.04", "ubuntu-24.04-arm"]}
    assert {pythons[0], pythons[-1]} == set(jobs["macos"]["strategy"]["matrix"]["python"])
    for job in jobs.values():
        assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]


def test_wheels_are_built_of_each_python() -> None:
    built = PROJECT["tool"]["cibuildwheel"]["build"].split()
    assert built == [f"cp{python.replace('.', '')}-*" for python in supported_pythons()]


def test_hooks_are_the_checks_of_ci() -> None:
    (repository,) = load(ROOT / ".pre-commit-config.yaml")["repos"]
    for hook in repository["hooks"]:
        assert f"\n{hook['entry']}" in CI, f"{hook['id']} is no check of .ci/run"


def test_the_version_is_said_once() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "pgwal.__version__"}
