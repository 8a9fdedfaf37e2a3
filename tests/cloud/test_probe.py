"""A store that cannot hold a repository is refused before anything is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import obstore
import pytest
from pgwal_process import run_pgwal
from support.rclone import serving_s3

from pgwal.errors import RepositoryError
from pgwal.repository.cloud_place import CloudPlace


def test_a_server_that_takes_no_notice_of_conditions_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "served" / "bucket").mkdir(parents=True)
    with serving_s3(tmp_path / "served") as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        outcome = run_pgwal("init", "--repo", "s3://bucket/repo")
        assert outcome.code == 1
        assert "puts an object over one that is there, although told not to" in outcome.errors[0]
        assert "conditional writes" in outcome.hints[0]
    assert [path for path in (tmp_path / "served").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(("kind", "reason"), [("create", "over one that is there"), ("swap", "over another one")])
def test_each_condition_is_tried(monkeypatch: pytest.MonkeyPatch, kind: str, reason: str) -> None:
    put = obstore.put

    def put_blindly(client: Any, name: str, content: bytes, *, mode: Any, **_: Any) -> Any:
        is_blind = (mode == "create") == (kind == "create")
        return put(client, name, content, **({} if is_blind else {"mode": mode}))

    monkeypatch.setattr(obstore, "put", put_blindly)
    client = obstore.store.MemoryStore()
    with pytest.raises(RepositoryError, match=reason):
        CloudPlace("s3://memory/repo", client).probe()
    assert obstore.list(client).collect() == []


def test_a_probe_leaves_nothing() -> None:
    client = obstore.store.MemoryStore()
    CloudPlace("s3://memory/repo", client).probe()
    assert obstore.list(client).collect() == []


@pytest.mark.parametrize("lost", ["first", "second"])
def test_a_probe_whose_answer_was_lost_finds_its_own_object(monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    """The library asks again, and is told that its own is there."""
    put = obstore.put

    def put_twice(client: Any, name: str, content: bytes, **options: Any) -> Any:
        if content == lost.encode():
            put(client, name, content, **options)
        return put(client, name, content, **options)

    monkeypatch.setattr(obstore, "put", put_twice)
    client = obstore.store.MemoryStore()
    CloudPlace("s3://memory/repo", client).probe()
    assert obstore.list(client).collect() == []
