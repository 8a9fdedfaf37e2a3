"""A backup by the beginning of its ID, or as the latest, in every command that takes one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from keeping.stored_repository import FIRST, FULL, THIRD_FULL, build_chains
from pgwal_process import assert_failed, run_pgwal, succeed

from pgwal_cli.exit_codes import FAILED, USAGE


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return build_chains(tmp_path / "repo").root


def test_the_beginning_of_an_id_and_the_latest(root: Path, tmp_path: Path) -> None:
    for name, meant in ((FIRST[:-5], FIRST), (FULL[:-1], FULL), ("latest", THIRD_FULL)):
        assert json.loads(succeed("show", name, "--repo", root, "--json"))["id"] == meant
        assert json.loads(succeed("pin", name, "--repo", root, "--json"))["backup"] == meant
        assert json.loads(succeed("unpin", name, "--repo", root, "--json"))["backup"] == meant
        assert meant in succeed("export", name, "--repo", root, "-o", tmp_path / f"exported-{meant}")
        assert meant in succeed("combine", name, "--repo", root, "-o", tmp_path / f"combined-{meant}")
    assert "of 1 backups;" in run_pgwal("verify", "latest", "--repo", root).stdout
    assert FIRST in succeed("merge", FIRST[:-1], "--repo", root)
    assert f"copied backup {THIRD_FULL}" in succeed("copy", "latest", "--to", tmp_path / "second", "--repo", root)
    restored = run_pgwal("restore", THIRD_FULL[:-1], "--repo", root, "-D", tmp_path / "restored", "--dry-run")
    assert THIRD_FULL in restored.stdout + restored.stderr


def test_what_begins_several_ids_or_none_is_refused(root: Path) -> None:
    for command in ("show", "pin", "verify"):
        several = run_pgwal(command, "2026", "--repo", root)
        assert_failed(several, USAGE, r"'2026' is the beginning of \d IDs: .* and \d more", "more of the ID")
    assert_failed(run_pgwal("show", "1999", "--repo", root), FAILED, "there is no backup 1999", "pgwal list")


def test_the_latest_of_none(tmp_path: Path) -> None:
    empty = build_chains(tmp_path / "repo").root
    for backup in (empty / "backups").iterdir():
        backup.rename(tmp_path / backup.name)
    assert_failed(run_pgwal("show", "latest", "--repo", empty), FAILED, "no backup yet", "pgwal full")
