"""Shell completion: what a real bash completes, and that the other shells' scripts are there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pgwal_cli.main import COMMANDS


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    """An environment in which ``pgwal`` is this pgwal, and a configuration file is broken."""
    program = tmp_path / "pgwal"
    program.write_text(f"#!{sys.executable}\nfrom pgwal_cli.start import main\nmain()\n")
    program.chmod(0o755)
    (tmp_path / "pgwal.toml").write_text("[cluster.main\n")
    path = f"{tmp_path}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PGWAL_CONFIG": str(tmp_path / "pgwal.toml")}


def completed_by_bash(line: str, variables: dict[str, str]) -> list[str]:
    """Return what bash would offer behind ``line``, by the script that docs/completion.md installs."""
    words = line.split(" ")
    script = f"""
        eval "$(_PGWAL_COMPLETE=source_bash pgwal)"
        COMP_WORDS=({line}) COMP_CWORD={len(words) - 1}
        _pgwal_completion pgwal
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    ran = subprocess.run(["bash", "-c", script], env=variables, capture_output=True, text=True, check=True)
    assert ran.stderr == ""
    return ran.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_options_and_values(variables: dict[str, str]) -> None:
    assert completed_by_bash("pgwal st", variables) == [name for name in COMMANDS if name.startswith("st")]
    assert completed_by_bash("pgwal -C main key gen", variables) == ["generate"]
    assert completed_by_bash("pgwal full --check", variables) == ["--checkpoint", "--checksum-failure"]
    assert completed_by_bash("pgwal full --checkpoint f", variables) == ["fast"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script_and_get_commands(shell: str, variables: dict[str, str]) -> None:
    def run(**more: str) -> str:
        return subprocess.check_output(["pgwal"], env=variables | more, text=True)

    script = run(_PGWAL_COMPLETE=f"source_{shell}")
    assert f"_PGWAL_COMPLETE=complete_{shell}" in script
    asked = {"_TYPER_COMPLETE_ARGS": "pgwal summ", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    assert "summarize" in run(_PGWAL_COMPLETE=f"complete_{shell}", **asked)
