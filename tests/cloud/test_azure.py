"""What Azure's emulator takes and refuses; for these tests PGWAL_AZURITE names its program, see support/azurite.py."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cloud.test_object_lock import THIRD_FULL, build
from pgwal_process import run_pgwal, succeed
from support.azurite import ACCOUNT, CONTAINER, KEY, PROGRAM, shared_azurite

from pgwal.repository.address import place_at

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="PGWAL_AZURITE names no program")


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> str:
    """A place in the container, which the variables of this process lead to."""
    for name, value in {
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": KEY,
        "AZURE_STORAGE_ENDPOINT": shared_azurite().endpoint,
        "AZURE_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(name, value)
    return shared_azurite().place().address


def test_what_is_stored_there_is_restored(address: str, tmp_path: Path) -> None:
    build(place_at(address))
    assert THIRD_FULL in succeed("list", "--repo", address)
    succeed("verify", "--repo", address)
    succeed("restore", THIRD_FULL, "--repo", address, "-D", tmp_path / "restored")
    assert (tmp_path / "restored" / "PG_VERSION").exists()
    succeed("expire", "--keep-full", "1", "--repo", address)
    assert [entry["id"] for entry in json.loads(succeed("list", "--repo", address, "--json"))["backups"]] == [
        THIRD_FULL
    ]


@pytest.mark.parametrize("command", ["list", "init"])
def test_the_wrong_key(address: str, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    other = base64.b64encode(b"another-secret").decode()
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", other)
    outcome = run_pgwal(command, "--repo", address)
    assert outcome.code == 1
    assert "AuthorizationFailure" in outcome.errors[0]
    assert "key" in outcome.hints[0]
    assert other not in outcome.stderr
    assert KEY not in outcome.stderr


@pytest.mark.parametrize("command", ["list", "init"])
def test_a_container_that_is_not_there(address: str, command: str) -> None:
    outcome = run_pgwal(command, "--repo", address.replace(CONTAINER, "no-container"))
    assert outcome.code == 1
    assert "ContainerNotFound" in outcome.errors[0]
    assert "Make the container first" in outcome.hints[0]
