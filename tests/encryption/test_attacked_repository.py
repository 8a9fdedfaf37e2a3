"""Whatever somebody does to the objects of an encrypted repository, verify finds it, and nothing is read of it.

He may read all that is stored, and keep it: so he has objects of other names, of another repository for the same
recipient, and those that had the same names before.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from core.wal_builder import RM_HEAP, BlockSpec, RecordSpec, WalBuilder
from keeping.stored_repository import MAJOR, MB, SECOND, SYSTEM_IDENTIFIER, build_repository, checkpoint

from pgwal.encryption.age import Identity
from pgwal.encryption.container import MAGIC
from pgwal.encryption.key_files import write_identity
from pgwal.encryption.key_sources import KeySources
from pgwal.engine.initialise import initialise
from pgwal.engine.merge import MergeRequest, merge_backup
from pgwal.engine.verify import VerifyRequest, verify
from pgwal.errors import KeyRequired, PgwalError
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.layout import WAL_DIRECTORY
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.repository import Repository
from pgwal.repository.storage_format import DEFAULT_PACKED_FORMAT
from pgwal.segment import WalGeometry
from pgwal.summary.codec import encode_summary, summary_file_name
from pgwal.summary.summarizer import Summarizer
from pgwal.wal import layout
from pgwal.wal.page_magic import wal_format_of_major

SECOND_SEGMENT, LAST_SEGMENT = (f"{WAL_DIRECTORY}/{WalGeometry(MB).file_name(1, number)}" for number in (2, 3))
LAST_SUMMARY = f"summaries/{summary_file_name(LsnRange(1, Lsn(3 * MB), Lsn(4 * MB)))}"
NEEDED_BY_NONE = (LAST_SEGMENT, LAST_SUMMARY)


class Attacked:
    """A repository whose recipient looks at it, and what others can do to its objects."""

    def __init__(self, directory: Path, identity: Path) -> None:
        self.root = directory / "repo"
        self.keys = KeySources(identity, None, directory / "metadata.key")
        self.place = LocalPlace(self.root, self.keys)

    def names(self) -> list[str]:
        """Return the names of all that is sealed, or has keys."""
        found = (str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file())
        return sorted(name for name in found if self.stored(name).startswith(MAGIC) or name.startswith("keys/"))

    def stored(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def replace(self, name: str, content: bytes) -> None:
        (self.root / name).write_bytes(content)

    def is_found(self, name: str | None = None, *, has_identity: bool = True) -> bool:
        """Tell whether verify says that something is wrong, in whatever way.

        Of an object that no backup needs, or not to its end, whether it cannot be read.
        """
        place = self.place.with_keys(self.keys if has_identity else self.keys._replace(identity_file=None))
        try:
            if name in NEEDED_BY_NONE:
                Repository.open(place).store.get(name)
            return bool(verify(VerifyRequest(place)).problems)
        except PgwalError:
            return True


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("identity") / "identity.txt"
    write_identity(path, Identity.generate())
    return path


def build(directory: Path, identity: Path) -> Attacked:
    attacked = Attacked(directory, identity)
    recipient = identity.read_text().split()[3]
    initialise(attacked.place, DEFAULT_PACKED_FORMAT, [recipient])
    build_repository(attacked.place)
    return attacked


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, identity: Path) -> Attacked:
    return build(tmp_path_factory.mktemp("attacked"), identity)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, identity: Path) -> Attacked:
    """Another repository of the same server, for the same recipient."""
    return build(tmp_path_factory.mktemp("other"), identity)


@pytest.fixture
def attacked(built: Attacked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attacked:
    """A copy, to a machine that has stored nothing itself."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    shutil.copytree(built.root, tmp_path / "repo")
    shutil.copy(built.root.parent / "metadata.key", tmp_path)
    assert built.keys.identity_file is not None
    return Attacked(tmp_path, built.keys.identity_file)


CHANGES: dict[str, Callable[[bytes, Random], bytes]] = {
    "flip in the header": lambda stored, random: flipped(stored, random.randrange(min(32, len(stored)))),
    "flip": lambda stored, random: flipped(stored, random.randrange(len(stored))),
    "cut": lambda stored, random: stored[: random.randrange(len(stored))],
    "cut by a byte": lambda stored, _: stored[:-1],
    "extended": lambda stored, _: stored + b"\0",
    "empty": lambda *_: b"",
}


def flipped(stored: bytes, at: int) -> bytes:
    return stored[:at] + bytes([stored[at] ^ 1 << at % 8]) + stored[at + 1 :]


def test_nothing_is_wrong_with_what_nobody_has_touched(attacked: Attacked) -> None:
    folders = {name.partition("/")[0] for name in attacked.names()}
    assert folders == {"backups", "keys", "packs", "summaries", "wal"}
    assert not attacked.is_found()
    assert not attacked.is_found(has_identity=False)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_object_is_found(attacked: Attacked, change: str) -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    for name in attacked.names():
        stored, changed = attacked.stored(name), CHANGES[change](attacked.stored(name), Random(seed))
        # An entry of nothing is none: the backup is gone, as an expired one is.
        if not changed and name.endswith("backup.json"):
            continue
        attacked.replace(name, changed)
        assert attacked.is_found(name), name
        # Of segments there are no digests: what holds them is read with an identity alone.
        if change in ("flip", "cut") and not name.startswith("wal/"):
            assert attacked.is_found(name, has_identity=False), name
        attacked.replace(name, stored)
    assert not attacked.is_found()


def test_an_object_under_another_ones_name_is_found(attacked: Attacked) -> None:
    for name, another in pairs(attacked):
        stored = attacked.stored(name)
        attacked.replace(name, attacked.stored(another))
        assert attacked.is_found(name), f"{another} as {name}"
        attacked.replace(name, stored)
    assert not attacked.is_found()


def pairs(attacked: Attacked) -> Iterator[tuple[str, str]]:
    """Yield each object with the next one of its kind, and each with one of another kind."""
    names = attacked.names()
    for number, name in enumerate(names):
        alike = [another for another in names if another.partition("/")[0] == name.partition("/")[0]]
        another = alike[(alike.index(name) + 1) % len(alike)]
        if another != name:
            yield name, another
        others = [another for another in names if another not in alike]
        yield name, others[number % len(others)]


def test_an_object_of_another_repository_is_found(attacked: Attacked, other: Attacked) -> None:
    """What has the same name there; or for packs, whose names are random, any one."""
    for name in attacked.names():
        names = [found for found in other.names() if found.partition("/")[0] == name.partition("/")[0]]
        stored = attacked.stored(name)
        attacked.replace(name, other.stored(name if name in names else names[0]))
        assert attacked.is_found(name), name
        attacked.replace(name, stored)
    assert not attacked.is_found()


def test_a_removed_object_is_found(attacked: Attacked) -> None:
    for name in attacked.names():
        # A backup that is gone is one that was expired; WAL that no summary speaks of is read.
        if name.endswith("backup.json") or name.startswith("summaries/"):
            continue
        stored = attacked.stored(name)
        (attacked.root / name).unlink()
        assert attacked.is_found(name), name
        attacked.replace(name, stored)
    assert not attacked.is_found()


def test_who_has_no_identity_begins_nothing(attacked: Attacked) -> None:
    place, before = attacked.place.with_keys(attacked.keys._replace(identity_file=None)), attacked.names()
    with pytest.raises(KeyRequired, match=r"keys/00000001\.json cannot be opened"):
        merge_backup(MergeRequest(place, SECOND))
    assert attacked.names() == before
    assert not list(attacked.root.glob("backups/*.unfinished"))


@pytest.mark.parametrize("kind", ["wal", "summaries"])
def test_an_object_that_had_this_name_in_another_history_is_found(attacked: Attacked, kind: str) -> None:
    """It is whole, and of this repository and name: what the WAL around it says stands against it."""
    repository = Repository.open(attacked.place)
    present = {name: repository.store.get(name) for name in attacked.names() if name.startswith(f"{kind}/")}
    before = another_history(repository)
    names = [name for name in present.keys() & before.keys() if present[name] != before[name]]
    assert names
    for name in names:
        if name in NEEDED_BY_NONE:
            continue
        repository.store.put(name, before[name], replace=True)
        assert attacked.is_found(name), name
        repository.store.put(name, present[name], replace=True)
    assert not attacked.is_found()


def another_history(repository: Repository) -> dict[str, bytes]:
    """Return the second segment, and its summary, as a server wrote them that was put back to the first one's end."""
    wal = WalBuilder(MAJOR, start_lsn=MB, system_identifier=SYSTEM_IDENTIFIER)
    for segment in range(3):
        shutdown = layout.XLOG_CHECKPOINT_SHUTDOWN
        wal.append(RecordSpec(layout.RM_XLOG, shutdown, main_data=checkpoint(Lsn((segment + 1) * MB + 40))))
        # As in the first segment of stored_repository, and otherwise after that.
        for number in range(60):
            block_no = number % 7 + segment if segment == 0 else 99
            size = number * 5 if segment == 0 else number * 4
            block = BlockSpec(0, block_no=block_no, data=bytes([number]) * 30)
            wal.append(RecordSpec(RM_HEAP, 0, 700, (block,), bytes(size)))
        wal.append_switch()
    content = wal.wal_to_segment_end()
    found = {SECOND_SEGMENT: content[MB : 2 * MB]}
    summarizer = Summarizer(1, wal_format_of_major(MAJOR), repository.geometry, Lsn(MB))
    summarizer.feed(content)
    for summary in summarizer.take_finished():
        name = f"summaries/{summary_file_name(summary.range)}"
        found[name] = encode_summary(summary.block_map, summary.link, name)
    return found
