"""The command reference names every command and every option, and the README every document."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from obstore.exceptions import BaseError, UnknownConfigurationKeyError
from obstore.store import AzureStore, GCSStore, S3Store
from pgwal_process import succeed
from typer.main import get_command

from pgwal.repository.cloud_place import _CLIENT_OPTIONS
from pgwal_cli.main import make_app

ROOT = Path(__file__).parent.parent
OBJECT_STORAGE = ROOT / "docs" / "object-storage.md"
KEY_OPTIONS = {"--identity", "--identity-command", "--metadata-key"}
OF_ALL_COMMANDS = {"--config", "-C", "--cluster", "-q", "--quiet", "--log-times"}


def commands() -> dict[str, Any]:
    """Return the commands by name, those of a group below its name."""
    found = {}
    for name, command in get_command(make_app()).commands.items():  # type: ignore[attr-defined]
        below = getattr(command, "commands", None)
        found |= {name: command} if below is None else {f"{name} {each}": below[each] for each in below}
    return found


COMMANDS = commands()
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
    expected = {spelling for spellings in options for spelling in spellings} - {"-?", "--help"} - OF_ALL_COMMANDS
    if expected >= CONNECTION_OPTIONS:
        assert "connection options" in section
        expected -= {s for spellings in options if CONNECTION_OPTIONS & set(spellings) for s in spellings}
    if expected >= KEY_OPTIONS:
        assert "key options" in section
        expected -= KEY_OPTIONS
    assert documented == expected


def test_readme_links_lead_somewhere() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


STORES_OF_VARIABLES = {"AWS": S3Store, "GOOGLE": GCSStore, "AZURE": AzureStore}
NEEDED = {"AZURE": {"azure_storage_account_name": "account"}}
NOT_READ = {"AWS_PROFILE", "AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_KEY"}


def object_store_variables() -> set[str]:
    return set(re.findall(r"\b(?:AWS|GOOGLE|AZURE)_[A-Z0-9_]*[A-Z0-9]\b", OBJECT_STORAGE.read_text()))


@pytest.mark.parametrize("name", sorted(object_store_variables()))
def test_variables_of_object_stores_are_read(name: str) -> None:
    """The library takes each name, in small letters, as an option; what it does not know it refuses."""
    provider, _, rest = name.partition("_")
    if rest.lower() in _CLIENT_OPTIONS:
        return  # It is for all three.
    config = {**NEEDED.get(provider, {}), name.lower(): "name"}
    try:
        STORES_OF_VARIABLES[provider]("bucket", config=config)  # type: ignore[arg-type]
    except UnknownConfigurationKeyError:
        assert name in NOT_READ
    except BaseError:
        pass  # It knows the name, and does not like the value.
    else:
        assert name not in NOT_READ


def test_policies_are_json() -> None:
    blocks = re.findall(r"```json\n(.*?)```", OBJECT_STORAGE.read_text(), re.DOTALL)
    assert [next(iter(json.loads(block))) for block in blocks] == ["Version", "Version", "Rules"]


def test_the_configuration_in_the_documentation_is_understood(tmp_path: Path) -> None:
    for number, document in enumerate((ROOT / "docs" / "configuration.md", ROOT / "README.md")):
        (text,) = re.findall(r"```toml\n(.*?)```", document.read_text(), re.DOTALL)
        file = tmp_path / f"{number}.toml"
        file.write_text(text)
        file.chmod(0o644)
        assert "nothing is wrong" in succeed("config", "check", "--config", file)
