"""The command reference names every command and every option, and the README every document."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from pgwal_cli.main import make_app

ROOT = Path(__file__).parent.parent
COMMANDS = get_command(make_app()).commands  # type: ignore[attr-defined]
CONNECTION_OPTIONS = {"-d", "-h", "-p", "-U", "-w", "-W"}


def sections() -> dict[str, str]:
    parts = re.split(r"^## pgwal (.*)$", (ROOT / "docs" / "commands.md").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_command_has_its_section() -> None:
    assert set(sections()) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_there(name: str) -> None:
    section = sections()[name]
    documented = set(re.findall(r"`(--?[A-Za-z][\w-]*)`", section))
    options = [parameter.opts for parameter in COMMANDS[name].params if parameter.param_type_name == "option"]
    expected = {spelling for spellings in options for spelling in spellings} - {"-?", "--help"}
    if expected >= CONNECTION_OPTIONS:
        assert "connection options" in section
        expected -= {s for spellings in options if CONNECTION_OPTIONS & set(spellings) for s in spellings}
    assert documented == expected


def test_readme_links_lead_somewhere() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
