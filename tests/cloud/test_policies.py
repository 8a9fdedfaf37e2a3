"""The policies of docs/object-storage.md are enough for what they are for, and no more, on a server that has them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cloud.test_object_lock import THIRD_FULL, build
from pgwal_process import run_pgwal
from support.seaweedfs import SeaweedFS, running

from pgwal.errors import RepositoryError
from pgwal.repository.address import place_at
from pgwal.repository.repository import Repository

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "object-storage.md"
BUCKET = "example-backups"
ADDRESS = f"s3://{BUCKET}/main"
TAKER, READER, BARE_READER, NO_DELETER = "taker", "reader", "bare-reader", "no-deleter"
LAST_SEGMENT, NO_SEGMENT = "000000010000000000000008", "0000000100000000000000AA"


def policies() -> dict[str, str]:
    """Return those of the document, and what it says of leaving a part of each out."""
    taker, reader = re.findall(r"```json\n(\{\n  \"Version\".*?)```", DOCUMENT.read_text(), re.DOTALL)
    bare = json.loads(reader)
    del bare["Statement"][-1]
    return {
        TAKER: taker,
        READER: reader,
        BARE_READER: json.dumps(bare),
        NO_DELETER: taker.replace('"s3:DeleteObject", ', ""),
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    with running(tmp_path_factory.mktemp("seaweedfs"), policies=policies()) as made:
        made.create_bucket(BUCKET)
        made.create_bucket("another")
        yield made


@pytest.fixture
def become(server: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def variables_of(name: str) -> None:
        for variable, value in server.environment(name, server.policy_secret(name)).items():
            monkeypatch.setenv(variable, value)

    return variables_of


def test_who_takes_backups_reaches_the_repository_alone(become: Callable[[str], None]) -> None:
    become(TAKER)
    place_at(ADDRESS).probe()
    for elsewhere in (f"s3://{BUCKET}/elsewhere", "s3://another/main"):
        with pytest.raises(RepositoryError, match="AccessDenied"):
            place_at(elsewhere).probe()


def test_who_takes_backups_stores_and_expires_them(become: Callable[[str], None]) -> None:
    become(TAKER)
    place = place_at(f"{ADDRESS}/.taken")
    repository = build(place)
    # In parts.
    place.store.put("packs/large", (bytes(1 << 20) for _ in range(20)))
    place.store.delete("packs/large")
    assert run_pgwal("expire", "--keep-full", "1", "--repo", str(place)).code == 0
    assert repository.catalogue.ids() == [THIRD_FULL]


@pytest.mark.parametrize(("reader", "is_warned"), [(READER, False), (BARE_READER, True)])
def test_who_restores_changes_nothing(
    become: Callable[[str], None], tmp_path: Path, reader: str, *, is_warned: bool
) -> None:
    become(TAKER)
    if not place_at(ADDRESS).store.exists("pgwal.json"):
        build(place_at(ADDRESS))
    become(reader)
    for command, code in (
        (["list"], 0),
        (["verify"], 0),
        (["restore", THIRD_FULL, "-D", str(tmp_path / "restored")], 0),
        (["fetch-wal", LAST_SEGMENT, str(tmp_path / "wal")], 0),
        (["fetch-wal", NO_SEGMENT, str(tmp_path / "wal")], 1),
        (["expire", "--keep-full", "1"], 1),
    ):
        outcome = run_pgwal(command[0], "--repo", ADDRESS, *command[1:])
        assert outcome.code == code, outcome.stderr
        assert ("nothing keeps" in outcome.stderr) == (is_warned and command[0] in ("verify", "restore"))


def test_without_deleting_an_abandoned_backup_stays_in_the_way(become: Callable[[str], None]) -> None:
    become(NO_DELETER)
    place = place_at(f"{ADDRESS}/.kept")
    build(place)
    repository = Repository.open(place)
    with repository.lock_backups():
        with repository.catalogue.stage("20261125T101530Z_full") as abandoned:
            abandoned.data.abandon()
        with pytest.raises(RepositoryError, match="AccessDenied"):
            repository.catalogue.clear_unfinished()
