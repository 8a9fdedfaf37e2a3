"""The man pages that contrib/make_man_pages.py makes: one for each command, with each option, as groff likes them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_docs import COMMANDS

MAKE = Path(__file__).parent.parent / "contrib" / "make_man_pages.py"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The pages' text by the names of the commands."""
    directory = tmp_path_factory.mktemp("man") / "man1"
    subprocess.run([sys.executable, MAKE, directory], check=True)
    return {page.stem: page.read_text() for page in directory.iterdir()}


def test_each_command_has_one(pages: dict[str, str]) -> None:
    expected = {f"pgwal-{name.replace(' ', '-')}" for name in COMMANDS}
    groups = {f"pgwal-{name.split()[0]}" for name in COMMANDS if " " in name}
    assert set(pages) == expected | groups | {"pgwal"}


@pytest.mark.parametrize("name", COMMANDS)
def test_each_option_is_in_it(name: str, pages: dict[str, str]) -> None:
    text = pages[f"pgwal-{name.replace(' ', '-')}"].replace("\\-", "-").replace("\\fB", "").replace("\\fP", "")
    options: list[Any] = [each for each in COMMANDS[name].params if each.param_type_name == "option"]
    documented = set(re.findall(r"(?m)^(?:.*, )?(--?[\w?-]+)", text.partition(".SH OPTIONS")[2]))
    assert {option.opts[-1] for option in options} <= documented


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff")
def test_groff_warns_of_nothing(pages: dict[str, str]) -> None:
    for text in pages.values():
        command = ["groff", "-man", "-Tutf8", "-Kutf8", "-ww", "-z"]
        ran = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
        assert ran.stderr == "", text
