"""Damage of a packed repository is found and named, and nothing is made of it that is wrong.

The number of flips is set by PGWAL_VERIFY_FLIPS; the seed is printed, and given by PGWAL_SEED.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

import pytest
from keeping.stored_repository import FIRST, FULL, SECOND, Stored, build_repository
from keeping.test_verify import FLIPS, damaged, flipped, verified
from pgwal_process import assert_failed, run_pgwal, succeed
from repository.test_packs import small_frames
from seeds import new_seed

from pgwal.backup.entry_document import decode_contents
from pgwal.backup.exclusion import INCOMPLETE_NAME
from pgwal.backup.pack_table import PACK_HEADER_SIZE, Frame, Pack
from pgwal.backup.retention_rules import RetentionRules
from pgwal.checksum import content_digest
from pgwal.engine.combine import CombineRequest, combine_backups
from pgwal.engine.expire import ExpireRequest, expire
from pgwal.engine.export import ExportRequest, export_backup
from pgwal.engine.initialise import initialise
from pgwal.engine.rebuild import RebuildOptions
from pgwal.engine.restore import RestoreRequest, restore_backup
from pgwal.errors import FormatError, PgwalError
from pgwal.repository.compression import Compression
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.repository import Repository
from pgwal.repository.storage_format import FileFormat, StorageFormat
from pgwal_cli.exit_codes import FAILED, VERIFICATION_FAILED

IDS = (FULL, FIRST, SECOND)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """Three backups, with some packs of some frames each."""
    path = tmp_path_factory.mktemp("packed") / "repo"
    initialise(LocalPlace(path), StorageFormat(FileFormat.PACKED, Compression.parse("zstd:1")))
    with small_frames(8192, 20_000):
        return build_repository(path)


@pytest.fixture
def stored(built: Stored, tmp_path: Path) -> Stored:
    """A copy that the test may damage."""
    shutil.copytree(built.root, tmp_path / "repo")
    return Stored(Repository.open(tmp_path / "repo"), built.records)


@pytest.fixture
def random() -> Random:
    return Random(new_seed())


class Places:
    """Where the files of a backup lie."""

    def __init__(self, stored: Stored, backup_id: str) -> None:
        self.backup_id = backup_id
        self._root = stored.root
        lines = (stored.root / "backups" / backup_id / "backup.json").read_bytes().splitlines(keepends=True)
        _, contents, files = decode_contents(lines)
        self.packs = contents.packs
        self._files = list(files)

    def path(self, pack: Pack) -> Path:
        return self._root / self.name(pack)

    def name(self, pack: Pack) -> str:
        return f"packs/{pack.name[:2]}/{pack.name}"

    def files_in(self, pack: Pack, number: int) -> set[str]:
        """Return what verify calls the files of which something lies in a frame."""
        found = set()
        start, end = pack.position(number), pack.position(number) + pack[number].size_bytes
        for file in self._files:
            for extent in file.extents:
                if self.packs[extent.pack] is pack:
                    first = pack.position(extent.frame) + extent.offset
                    if first < end and start < first + extent.length:
                        found.add(f"backups/{self.backup_id}/data/{file.stored_path}")
        return found


def every_pack(stored: Stored) -> list[tuple[Places, Pack]]:
    return [(places, pack) for places in (Places(stored, each) for each in IDS) for pack in places.packs]


def test_what_is_whole_has_packs_of_some_frames(stored: Stored) -> None:
    report = verified(stored, jobs=4)
    assert report.problems == []
    assert [len(Places(stored, each).packs) for each in IDS] == [2, 2, 1]
    assert sum(len(pack) for _, pack in every_pack(stored)) > 12


def test_a_flipped_bit_of_a_pack_is_found_and_named(stored: Stored, random: Random) -> None:
    packs = every_pack(stored)
    for number in range(FLIPS):
        places, pack = random.choice(packs)
        offset = number % PACK_HEADER_SIZE if number % 5 == 0 else random.randrange(pack.size_bytes)
        with flipped(places.path(pack), offset, 1 << random.randrange(8)):
            problems = verified(stored).problems
        assert {problem.backup_id for problem in problems} == {places.backup_id}
        if offset < PACK_HEADER_SIZE:
            assert [problem.path for problem in problems] == [places.name(pack)]
            continue
        (hit,) = [at for at, frame in enumerate(pack) if 0 <= offset - frame.offset < frame.stored_size_bytes]
        assert {problem.path for problem in problems} == places.files_in(pack, hit)
        for problem in problems:
            assert f"frame {hit} of {places.path(pack)} is damaged" in problem.message
    assert damaged(stored) == set()


def test_a_flipped_bit_of_a_frame_that_no_file_is_in_is_found(tmp_path: Path) -> None:
    """Such a frame was read twice, or is of a file that vanished; a digest tells of it as of any other."""
    initialise(LocalPlace(tmp_path / "repo"), StorageFormat(FileFormat.PACKED))
    with small_frames(8192, 1 << 20):
        stored = build_repository(tmp_path / "repo")
        with stored.repository.catalogue.stage("20261130T101530Z_full") as staged:
            for path in ("base/1", "base/2"):
                staged.data.write(path, [bytes(8192)])
            staged.data.sync()
            contents = staged.data.contents()
            assert contents is not None
            pack = contents.packs[0]
            frames = list(pack)
            where = tmp_path / "repo" / "packs" / pack.name[:2] / pack.name
            content = where.read_bytes()
    assert (len(frames), len(content)) == (2, PACK_HEADER_SIZE + 2 * 8192)
    # Another backup takes the second of the frames over, with the pack that holds both.
    places = Places(stored, FULL)
    entry_path = tmp_path / "repo" / "backups" / FULL / "backup.json"
    where.parent.mkdir(exist_ok=True)
    where.write_bytes(content)
    entry_path.write_bytes(with_pack(entry_path.read_bytes(), pack.name, len(content), frames[1]))
    assert damaged(stored) == set()
    with flipped(where, frames[1].offset + 5, 1):
        assert damaged(stored) == {places.name(pack)}
    with flipped(where, frames[0].offset + 5, 1):
        assert damaged(stored) == set(), "of what nobody needs"


def with_pack(entry: bytes, name: str, size_bytes: int, frame: Frame) -> bytes:
    """Return an entry that has one pack more, in whose only frame nothing of its files lies."""
    lines = entry.splitlines(keepends=True)[:-1]
    at = next(number for number, line in enumerate(lines) if line.startswith(b"], "))
    lines[at - 1] = lines[at - 1].replace(b"\n", b",\n")
    pack = json.dumps({"pack": name, "size": size_bytes, "frames": 1})
    numbers = f'[{frame.offset}, {frame.stored_size_bytes}, {frame.size_bytes}, "{frame.digest.hex()}"]'
    lines[at:at] = [f"{pack},\n".encode(), f"{numbers}\n".encode()]
    packed = re.search(rb'"packed_size": (\d+)', lines[0])
    assert packed is not None
    lines[0] = lines[0].replace(packed[0], f'"packed_size": {int(packed[1]) + size_bytes}'.encode())
    content = b"".join(lines)
    return content + f'"digest": "xxh3-128:{content_digest(content)}"}}\n'.encode()


# ---- packs


def cut(places: Places, pack: Pack, other: Path) -> None:  # noqa: ARG001
    places.path(pack).write_bytes(places.path(pack).read_bytes()[:-1])


def emptied(places: Places, pack: Pack, other: Path) -> None:  # noqa: ARG001
    places.path(pack).write_bytes(b"")


def extended(places: Places, pack: Pack, other: Path) -> None:  # noqa: ARG001
    places.path(pack).write_bytes(places.path(pack).read_bytes() + b"\0")


def missing(places: Places, pack: Pack, other: Path) -> None:  # noqa: ARG001
    places.path(pack).unlink()


def frames_swapped(places: Places, pack: Pack, other: Path) -> None:  # noqa: ARG001
    """The first frame and the last one change places, as far as both reach."""
    content = bytearray(places.path(pack).read_bytes())
    first, last = pack[0], pack[len(pack) - 1]
    size = min(first.stored_size_bytes, last.stored_size_bytes)
    one, two = (bytes(content[frame.offset : frame.offset + size]) for frame in (first, last))
    content[first.offset : first.offset + size], content[last.offset : last.offset + size] = two, one
    places.path(pack).write_bytes(content)


def exchanged(places: Places, pack: Pack, other: Path) -> None:
    places.path(pack).write_bytes(other.read_bytes())


@pytest.mark.parametrize("damage", [cut, emptied, extended, missing, frames_swapped, exchanged])
def test_a_pack_that_is_not_what_was_stored(
    stored: Stored, tmp_path: Path, damage: Callable[[Places, Pack, Path], None]
) -> None:
    places = Places(stored, FULL)
    pack, other = places.packs[0], places.path(places.packs[1])
    assert len(pack) > 1
    damage(places, pack, other)
    problems = verified(stored).problems
    assert {problem.backup_id for problem in problems} == {FULL}
    found = {problem.path for problem in problems}
    if damage is not frames_swapped:
        assert places.name(pack) in found
    if damage is not extended:
        assert found & places.files_in(pack, len(pack) - 1)
        # As people meet it: the command, its exit code, and which pack it is.
        repo = stored.root
        for number, words in enumerate((("restore", FULL, "-D"), ("export", FULL, "-o"), ("combine", FULL, "-o"))):
            target = tmp_path / f"target{number}"
            assert_failed(run_pgwal(*words, target, "--repo", repo), FAILED, pack.name, "another backup")
            assert is_unusable(target)
    assert_found(stored.root, pack.name)


def is_unusable(target: Path) -> bool:
    """Tell whether a directory says that it is not whole; an export does so by having no manifest."""
    return (target / INCOMPLETE_NAME).exists() or not (target / "backup_manifest").exists()


def assert_found(repo: Path, name: str) -> None:
    outcome = run_pgwal("verify", "--repo", repo)
    assert outcome.code == VERIFICATION_FAILED
    assert name in outcome.stdout


# ---- what is made of it


def tree(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def outcomes(repo: Path, scratch: Path) -> dict[str, dict[str, bytes] | None]:
    """Return what restore, combine and export make of the newest backup; None where they fail."""
    place, options = LocalPlace(repo), RebuildOptions(sync=False)
    acts: dict[str, Callable[[Path], object]] = {
        "restore": lambda target: restore_backup(
            RestoreRequest(place, SECOND, target, "false", wal_is_here=False, options=options)
        ),
        "combine": lambda target: combine_backups(CombineRequest(place, SECOND, target, options=options)),
        "export": lambda target: export_backup(ExportRequest(place, FIRST, target, jobs=2, sync=False)),
    }
    found: dict[str, dict[str, bytes] | None] = {}
    for name, act in acts.items():
        target = scratch / name
        try:
            act(target)
            found[name] = tree(target)
            if name == "combine":
                # That tells when it was made.
                del found[name]["backup_manifest"]
        except PgwalError:
            found[name] = None
            assert is_unusable(target)
        shutil.rmtree(target, ignore_errors=True)
    return found


def files_of(repo: Path, folders: Iterable[str]) -> list[Path]:
    return sorted(path for folder in folders for path in (repo / folder).rglob("*") if path.is_file())


def test_what_is_made_of_damage_is_right_or_nothing(stored: Stored, tmp_path: Path, random: Random) -> None:
    right = outcomes(stored.root, tmp_path)
    assert None not in right.values()
    files, failed = files_of(stored.root, ("packs", "backups")), set()
    for _ in range(FLIPS // 2):
        path = random.choice(files)
        if path.name == "backup_manifest":
            continue  # No digest is of it but its own, which verify checks.
        with flipped(path, random.randrange(path.stat().st_size), 1 << random.randrange(8)):
            for name, found in outcomes(stored.root, tmp_path).items():
                assert found in (None, right[name]), f"{name} with {path} damaged"
                if found is None:
                    failed.add(name)
    assert failed == set(right)


# ---- entries and format.json


def test_each_byte_of_an_entry_counts(stored: Stored, random: Random) -> None:
    """It is named, and once: not for each of the files that cannot be found without it."""
    path = stored.root / "backups" / SECOND / "backup.json"
    before = tree(stored.root / "packs")
    size = path.stat().st_size
    for offset in sorted({*range(40), *range(size - 60, size), *random.sample(range(size), min(size, FLIPS))}):
        with flipped(path, offset, 1 << random.randrange(8)):
            problems = [problem for problem in verified(stored).problems if problem.backup_id == SECOND]
            assert {problem.path for problem in problems} == {f"backups/{SECOND}/backup.json"}, offset
            if offset % 7 == 0:
                # Nobody knows which packs are needed.
                assert expire(ExpireRequest(LocalPlace(stored.root), dry_run=True)).packs == []
    expire(ExpireRequest(LocalPlace(stored.root), RetentionRules(keep_full=1)))
    assert tree(stored.root / "packs") == before


@pytest.mark.parametrize("jobs", [1, 4])
def test_an_entry_that_is_missing_or_cut(stored: Stored, jobs: int) -> None:
    path = stored.root / "backups" / FULL / "backup.json"
    content = path.read_bytes()
    for damage in (lambda: path.unlink(), lambda: path.write_bytes(content[:-20]), lambda: path.write_bytes(b"")):
        damage()
        report = verified(stored, jobs=jobs)
        assert f"backups/{FULL}/backup.json" in {problem.path for problem in report.problems}
        assert len(report.problems) < 10


def test_each_byte_of_format_json_counts(stored: Stored, random: Random) -> None:
    """It says how the next backup is stored; those that are there say that themselves."""
    path = stored.root / "format.json"
    same = 0
    for offset in range(path.stat().st_size):
        mask = 1 << random.randrange(7)
        with flipped(path, offset, mask):
            try:
                found = StorageFormat.decode(path.read_bytes())
                is_spelled_so = found.encode() == path.read_bytes()
            except FormatError:
                is_spelled_so = False
                with pytest.raises(FormatError, match=r"format\.json"):
                    stored.repository.catalogue.stage("20261130T101530Z_full")
            # Another level is a format like any other.
            same += is_spelled_so
            assert damaged(stored) == (set() if is_spelled_so else {"format.json"}), offset
    assert same <= 1
    path.write_bytes(b"nothing")
    succeed("list", "--repo", stored.root)
    assert_found(stored.root, "format.json: cannot be read")
