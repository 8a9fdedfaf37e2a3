"""Errors for programs: one line of JSON on stderr under ``--json``, with the facts that the message tells in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pgwal_process import Outcome, run_pgwal

import pgwal.errors
from pgwal.datadir.reader import LocalDataDirectory
from pgwal.disk.new_file import GrowingFile, refused
from pgwal.errors import (
    ChecksumMismatch,
    PgwalError,
    ReceivedByBackup,
    ServerError,
    StorageFull,
    TargetError,
    WalRemoved,
)
from pgwal.lsn import Lsn
from pgwal.repository.layout import BACKUP_LOCK_NAME, RepositoryIdentity
from pgwal.repository.repository import Repository
from pgwal_cli.output import print_error


def error_of(outcome: Outcome) -> dict[str, Any]:
    """Return the error that a command ended with; nothing else on stderr looks like it."""
    *others, last = outcome.stderr.splitlines()
    assert not any(line.startswith("{") for line in others)
    document: dict[str, Any] = json.loads(last)["error"]
    assert document["exit_code"] == outcome.code
    return document


def test_an_object_that_is_not_there(tmp_path: Path) -> None:
    error = error_of(run_pgwal("list", "--json", "--repo", tmp_path / "absent"))
    assert error["message"] in run_pgwal("list", "--repo", tmp_path / "absent").stderr
    assert error["exit_code"] == 1
    assert not error["transient"]


def test_misuse() -> None:
    error = error_of(run_pgwal("list", "--json"))
    assert (error["kind"], error["exit_code"], error["facts"]) == ("UsageError", 2, {})
    assert "--repo" in error["message"]


def test_a_lock_that_is_held(tmp_path: Path) -> None:
    path = tmp_path / "repo"
    repository = Repository.open_or_create(path, RepositoryIdentity(7_000_000_000_000_000_001, 16 << 20, 18))
    with repository.place.leases.lock(BACKUP_LOCK_NAME, "a test"):
        error = error_of(run_pgwal("expire", "--json", "--repo", path, "--keep-full", "1"))
    assert (error["kind"], error["exit_code"]) == ("RepositoryLocked", 6)
    assert error["facts"]["path"] == str(path / BACKUP_LOCK_NAME)
    assert error["facts"]["holder"].startswith("a test, process ")


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    error = error_of(run_pgwal("full", "--json", "-h", tmp_path, "--repo", tmp_path / "repo"))
    assert (error["kind"], error["exit_code"], error["transient"]) == ("ConnectionFailed", 3, True)


def test_positions_are_text_as_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(WalRemoved("gone", hint="Look.", timeline_id=2, lsn=Lsn(0x1_0000_0028)), as_json=True)
    error = json.loads(capsys.readouterr().err)["error"]
    assert error == {
        "kind": "WalRemoved",
        "message": "gone",
        "hint": "Look.",
        "exit_code": 4,
        "transient": False,
        "facts": {"timeline": 2, "lsn": "1/28"},
    }


def test_kinds_have_what_their_parents_have_unless_they_say_so() -> None:
    kinds = [kind for kind in vars(pgwal.errors).values() if isinstance(kind, type) and issubclass(kind, PgwalError)]
    assert {kind.exit_code for kind in kinds} == {1, 3, 4, 5, 6}
    assert ReceivedByBackup("").exit_code == 6
    assert StorageFull.is_transient
    assert not ChecksumMismatch.is_transient


def test_what_the_file_system_refuses(tmp_path: Path) -> None:
    absent = tmp_path / "absent" / "file"
    with pytest.raises(TargetError) as refusal:
        GrowingFile(absent, 0o600, refused)
    assert refusal.value.facts == {"path": str(absent), "errno": "ENOENT"}
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(ServerError) as unreadable:
        LocalDataDirectory(tmp_path).read_file("link", 1)
    assert unreadable.value.facts == {"path": str(tmp_path / "link"), "errno": "ELOOP"}


def test_a_restated_error_keeps_its_kind_and_its_facts() -> None:
    error = ChecksumMismatch("wrong", hint="Look.", offset_bytes=8)
    error.restate("wrong, of a file", path="file")
    assert str(error) == "wrong, of a file"
    assert error.facts == {"offset_bytes": 8, "path": "file"}
    assert error.hint == "Look."
