"""Copies to a second repository: between places and formats, what is missing alone, damage, kills, and retention."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from pathlib import Path
from random import Random

import pytest
from core.wal_builder import RM_HEAP, BlockSpec, RecordSpec, WalBuilder
from keeping.growing_chain import GrowingChain, tiny_frames
from keeping.stored_repository import (
    FIRST,
    FULL,
    MAJOR,
    MB,
    ON_SECOND,
    SECOND,
    SECOND_FULL,
    SYSTEM_IDENTIFIER,
    THIRD_FULL,
    Stored,
    build_chains,
    build_wal,
)
from keeping.test_verify import FLIPS, flipped
from pgwal_process import assert_failed, run_pgwal, succeed
from repository.places import PLACES, local
from repository.test_dying_backup import deaths
from seeds import new_seed
from support.fate import Died, Fate
from support.faulty_store import FaultyPlace

from pgwal.backup.backup_id import merged_ids
from pgwal.backup.pack_table import PACK_HEADER_SIZE
from pgwal.backup.retention_rules import RetentionRules
from pgwal.engine import copied_backup
from pgwal.engine.combine import CombineRequest, combine_backups
from pgwal.engine.copied_wal import WalCopier, find_missing_wal
from pgwal.engine.copy_repository import CopyReport, CopyRequest, copy_repository
from pgwal.engine.expire import ExpireRequest, expire
from pgwal.engine.fleet import crew
from pgwal.engine.initialise import initialise
from pgwal.engine.merge import MergeRequest, merge_backup
from pgwal.engine.pinning import pin_backup
from pgwal.engine.verify import VerifyRequest, verify
from pgwal.errors import (
    HistoryMismatch,
    MissingPriorBackup,
    ObjectNotFound,
    PgwalError,
    RepositoryError,
    RepositoryLocked,
    WrongCluster,
)
from pgwal.lsn import Lsn
from pgwal.repository.backup_marks import BackupMarks
from pgwal.repository.compression import Compression
from pgwal.repository.layout import IDENTITY_NAME, RepositoryIdentity
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.pack_pool import list_packs
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository
from pgwal.repository.storage_format import DEFAULT_PACKED_FORMAT, PLAIN_FORMAT
from pgwal.repository.wal_compressor import compress_segment
from pgwal.repository.wal_file_name import partial_end
from pgwal_cli.exit_codes import VERIFICATION_FAILED

ALL = [FULL, FIRST, SECOND, SECOND_FULL, ON_SECOND, THIRD_FULL]
FORMATS = {"plain": PLAIN_FORMAT, "packed": DEFAULT_PACKED_FORMAT}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stored]:
    """Three chains of each format, with packs of a few frames."""
    with tiny_frames():
        return {
            name: build_chains(tmp_path_factory.mktemp(name) / "repo", storage_format)
            for name, storage_format in FORMATS.items()
        }


@pytest.fixture(params=FORMATS)
def source(request: pytest.FixtureRequest, built: dict[str, Stored], tmp_path: Path) -> LocalPlace:
    """A copy of it that the test may change."""
    return _copied(built[request.param], tmp_path)


@pytest.fixture
def packed(built: dict[str, Stored], tmp_path: Path) -> LocalPlace:
    return _copied(built["packed"], tmp_path)


def _copied(stored: Stored, tmp_path: Path) -> LocalPlace:
    shutil.copytree(stored.root, tmp_path / "source" / "repo")
    return LocalPlace(tmp_path / "source" / "repo")


def copy(source: Place, to: Place, *backups: str, with_wal: bool = False, jobs: int = 2) -> CopyReport:
    return copy_repository(CopyRequest(source, to, backups, with_wal, jobs=jobs))


def ids(place: Place) -> list[str]:
    return Repository.open(place).catalogue.ids()


def copied_ids(report: CopyReport) -> list[str]:
    return [entry.backup_id for entry in report.backups]


def problems(place: Place) -> list[str]:
    return [f"{problem.path}: {problem.message}" for problem in verify(VerifyRequest(place)).problems]


def packs_of(place: Place, backup_ids: Iterable[str]) -> set[str]:
    catalogue = Repository.open(place).catalogue
    return {pack.name for backup_id in backup_ids for pack in catalogue.contents(backup_id).packs}


def content(place: Place, backup_id: str, target: Path) -> dict[str, bytes]:
    combine_backups(CombineRequest(place, backup_id, target))
    files = {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    files.pop("backup_manifest")
    return files


@pytest.mark.parametrize("to_format", FORMATS)
@pytest.mark.parametrize("kind", ["local", "cloud_memory"])
def test_a_copy_holds_what_the_source_does(source: LocalPlace, tmp_path: Path, kind: str, to_format: str) -> None:
    to = PLACES[kind](tmp_path)
    initialise(to, FORMATS[to_format])
    report = copy(source, to, with_wal=True)
    assert (report.problems, copied_ids(report), ids(to)) == ([], ALL, ALL)
    shutil.move(source.root, tmp_path / "away")
    assert problems(to) == []
    for backup_id in (SECOND, ON_SECOND):
        expected = content(LocalPlace(tmp_path / "away"), backup_id, tmp_path / f"{backup_id}_expected")
        assert content(to, backup_id, tmp_path / backup_id) == expected
    # A second time there is nothing to do, and nothing is written.
    again = copy(LocalPlace(tmp_path / "away"), to, with_wal=True)
    assert (again.backups, again.segment_count, again.summary_count, again.backup_bytes) == ([], 0, 0, 0)
    assert problems(to) == []


def test_only_what_is_new_is_copied(packed: LocalPlace, tmp_path: Path) -> None:
    to = local(tmp_path)
    first = copy(packed, to, FULL)
    assert copied_ids(first) == [FULL]
    second = copy(packed, to, SECOND)
    assert copied_ids(second) == [FIRST, SECOND]
    assert second.pack_count == len(packs_of(packed, [FIRST, SECOND]))
    assert copied_ids(copy(packed, to)) == [SECOND_FULL, ON_SECOND, THIRD_FULL]
    own = {pack.name for pack in list_packs(packed.store)}
    assert {pack.name for pack in list_packs(to.store)} == own


def test_without_wal_each_backup_has_its_own(source: LocalPlace, tmp_path: Path) -> None:
    to = local(tmp_path)
    report = copy(source, to, THIRD_FULL, FIRST)
    assert copied_ids(report) == [FULL, FIRST, THIRD_FULL]
    target = Repository.open(to)
    assert BackupMarks(target.store).long_term_ids(target.catalogue.entries()) == set(ids(to))
    assert [segment.segment_no for segment in target.wal.segments()] == [1, 2, 7]
    assert problems(to) == []
    # With WAL, what comes goes on to the end; what is there stays what it is, unless it is named.
    copy(source, to, with_wal=True)
    target = Repository.open(to)
    long_term = BackupMarks(target.store).long_term_ids(target.catalogue.entries())
    assert long_term == {FULL, FIRST, THIRD_FULL}
    assert [segment.segment_no for segment in target.wal.segments()] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    copy(source, to, THIRD_FULL, with_wal=True)
    assert BackupMarks(target.store).long_term_ids(target.catalogue.entries()) == {FULL, FIRST}
    assert problems(to) == []


def test_wal_that_goes_along_stays_without_a_hole(packed: LocalPlace, tmp_path: Path) -> None:
    to = local(tmp_path)
    _without_wal_from(packed, 4, tmp_path)
    copy(packed, to, SECOND, with_wal=True)
    _with_wal_again(packed, tmp_path)
    copy(packed, to, ON_SECOND)
    target = Repository.open(to)
    assert [segment.segment_no for segment in target.wal.segments()] == [1, 2, 3, 4, 5, 6]
    assert BackupMarks(target.store).long_term_ids(target.catalogue.entries()) == set()
    assert problems(to) == []


def _without_wal_from(place: LocalPlace, number: int, tmp_path: Path) -> None:
    """Have an archive end before a segment, as it did some time ago."""
    (tmp_path / "later").mkdir()
    for path in (place.root / "wal").iterdir():
        if int(path.name[-1], 16) >= number:
            path.rename(tmp_path / "later" / path.name)


def _with_wal_again(place: LocalPlace, tmp_path: Path) -> None:
    for path in (tmp_path / "later").iterdir():
        path.rename(place.root / "wal" / path.name)


def test_long_term_backups_of_the_source_stay_such(packed: LocalPlace, tmp_path: Path) -> None:
    expire(ExpireRequest(packed, RetentionRules(keep_full=3, keep_wal_for=1)))
    to = local(tmp_path)
    report = copy(packed, to, with_wal=True)
    assert copied_ids(report) == ALL
    target = Repository.open(to)
    assert BackupMarks(target.store).long_term_ids(target.catalogue.entries()) == set(ALL) - {THIRD_FULL}
    assert problems(to) == []


def test_what_expired_there_does_not_come_again(packed: LocalPlace, tmp_path: Path) -> None:
    to = local(tmp_path)
    pin_backup(packed, FULL)
    copy(packed, to, with_wal=True)
    expire(ExpireRequest(to, RetentionRules(keep_full=1)))
    assert ids(to) == [THIRD_FULL]
    there = [segment.name for segment in Repository.open(to).wal.segments()]
    report = copy(packed, to, with_wal=True)
    assert (report.backups, report.segment_count) == ([], 0)
    assert [entry.backup_id for entry in report.expired] == ALL[:-1]
    assert [segment.name for segment in Repository.open(to).wal.segments()] == there
    assert copied_ids(copy(packed, to, ON_SECOND, with_wal=True)) == [SECOND_FULL, ON_SECOND]
    assert problems(to) == []
    # What is noted of a copy goes when the source has the backup no more.
    Repository.open(packed).store.delete(f"pins/{FULL.partition('_')[0]}")
    expire(ExpireRequest(packed, RetentionRules(keep_full=2)))
    copy(packed, to)
    names = {name for name, _ in to.store.list("copied/")}
    assert {name.removeprefix("copied/").partition("_")[0] for name in names} == {
        backup_id.partition("_")[0] for backup_id in (SECOND_FULL, ON_SECOND, THIRD_FULL)
    }


def test_a_chain_comes_whole_or_its_missing_prior_is_named(packed: LocalPlace, tmp_path: Path) -> None:
    shutil.move(packed.root / "backups" / FIRST, tmp_path / "moved")
    to = local(tmp_path)
    with pytest.raises(MissingPriorBackup, match=f"{SECOND} builds on {FIRST}, which is in neither") as caught:
        copy(packed, to, SECOND)
    assert caught.value.exit_code == 4
    with pytest.raises(ObjectNotFound, match="no backup 20200101T000000Z_full"):
        copy(packed, to, "20200101T000000Z_full")
    report = copy(packed, to)
    assert [problem.backup_id for problem in report.problems] == [SECOND]
    assert copied_ids(report) == [FULL, SECOND_FULL, ON_SECOND, THIRD_FULL]
    # When the prior is there, the source need not have it.
    shutil.move(tmp_path / "moved", packed.root / "backups" / FIRST)
    copy(packed, to, FIRST, with_wal=True)
    shutil.rmtree(packed.root / "backups" / FIRST)
    assert copied_ids(copy(packed, to, SECOND, with_wal=True)) == [SECOND]
    assert problems(to) == []


def test_merged_backups_bring_each_pack_once(tmp_path: Path) -> None:
    with tiny_frames():
        chain = GrowingChain(LocalPlace(tmp_path / "source"), DEFAULT_PACKED_FORMAT, Random(7))
        chain.full()
        on = [chain.incremental() for _ in range(4)]
        build_wal(chain.repository, 8)
        to = PLACES["cloud_memory"](tmp_path)
        copy(chain.place, to)
        merge_backup(MergeRequest(chain.place, on[-1]))
        last = chain.incremental()
        report = copy(chain.place, to, with_wal=True)
        merged = on[-1].replace("incr", "full")
        # It builds on the full one, which shares packs with the chain that is there.
        assert copied_ids(report) == [merged, last]
        old = packs_of(chain.place, [each for each in ids(chain.place) if each not in (merged, last)])
        assert report.pack_count == len(packs_of(chain.place, [merged, last]) - old)
        for backup_id in (merged, last):
            expected = chain.combined(backup_id, tmp_path / f"{backup_id}_expected")
            assert content(to, backup_id, tmp_path / backup_id).items() >= expected.items()
        # What only a damaged entry could tell of the rest of a pack keeps that from being copied.
        other = local(tmp_path)
        (chain.place.store.path(f"backups/{on[0]}/backup.json")).write_bytes(b"damaged")
        assert any(
            "only an entry that cannot be read" in problem.message for problem in copy(chain.place, other).problems
        )


# ---- damage


@pytest.mark.parametrize("to_format", FORMATS)
def test_a_flipped_bit_is_named_and_never_lands(source: LocalPlace, tmp_path: Path, to_format: str) -> None:
    """Wherever it is: what counts there is whole, and what does not is named; with the bit put right, all comes."""
    random = Random(new_seed())
    paths = [path for name in ("packs", "backups", "wal") for path in (source.root / name).rglob("*")]
    paths = [path for path in paths if path.is_file() and path.stat().st_size]
    for number in range(max(1, FLIPS // 50)):
        path, to = random.choice(paths), local(tmp_path / str(number))
        initialise(to, FORMATS[to_format])
        offset = random.randrange(path.stat().st_size)
        what = f"{path.relative_to(source.root)} byte {offset}"
        with flipped(path, offset, 1 << random.randrange(8)):
            report = copy(source, to)
            if path.name != "backup.json" and report.problems:
                assert any(path.name in f"{each.path} {each.message}" for each in report.problems), what
            if not report.problems:
                # Of WAL but what the backups need; of a pack whose files are stored anew its header.
                assert path.parent.name == "wal" or (to_format == "plain" and offset < PACK_HEADER_SIZE), what
        assert problems(to) == [], what
        assert set(ids(to)) | {problem.backup_id for problem in report.problems} >= set(ALL), what
        copy(source, to)
        assert ids(to) == ALL
    assert problems(to) == []


def test_damaged_wal_is_named_and_what_needs_it_does_not_come(packed: LocalPlace, tmp_path: Path) -> None:
    to = local(tmp_path)
    segment = packed.root / "wal" / "000000010000000000000002"
    with flipped(segment, 3000, 1):
        report = copy(packed, to, with_wal=True)
    assert [(problem.backup_id, problem.path) for problem in report.problems] == [
        (None, "wal/000000010000000000000002"),
        (FIRST, f"backups/{FIRST}"),
        (SECOND, f"backups/{SECOND}"),
    ]
    assert ids(to) == [FULL, SECOND_FULL, ON_SECOND, THIRD_FULL]
    assert segment.name not in {each.name for each in Repository.open(to).wal.segments()}
    assert copied_ids(copy(packed, to, with_wal=True)) == [FIRST, SECOND]
    assert problems(to) == []


def test_a_record_that_reaches_into_the_next_segment_is_proven_before_the_first_one_lands(tmp_path: Path) -> None:
    wal = WalBuilder(MAJOR, start_lsn=MB, system_identifier=SYSTEM_IDENTIFIER)
    for _ in range(400):
        wal.append(RecordSpec(RM_HEAP, 0, 700, (BlockSpec(0, block_no=1, data=bytes(5000)),), b"x" * 1300))
    wal.append_switch()
    identity = RepositoryIdentity(SYSTEM_IDENTIFIER, MB, MAJOR)
    source = Repository.open_or_create(LocalPlace(tmp_path / "source"), identity)
    reaching = [r for r in wal.records if r.lsn // MB < (r.lsn + r.total_length) // MB]
    assert reaching
    content = wal.wal_to_segment_end()
    for number in range(len(content) // MB):
        name = source.geometry.file_name(1, number + 1)
        source.store.put(f"wal/{name}", content[number * MB : (number + 1) * MB])
    everything = find_missing_wal(source, None, lambda _: True)
    assert len(everything.segments) == 3
    # In either half of it: nobody can tell which one is as it was.
    at = reaching[0].lsn - MB
    for count, (name, offset) in enumerate(((1, at + 30), (2, 100), (None, 0))):
        target = Repository.open_or_create(LocalPlace(tmp_path / f"target{count}"), identity)
        copier = WalCopier(source, target, as_stored=True, opens=True)
        path = tmp_path / "source" / "wal" / source.geometry.file_name(1, name or 1)
        with (
            flipped(path, offset, 4) if name else nullcontext(),
            target.lock_receiver(),
            crew(source, lambda _: None, 1, target=target) as workers,
        ):
            copier.copy(everything, workers)
        assert [each.segment_no for each in target.wal.segments()] == ([3] if name else [1, 2, 3])
        assert [each[-1] for each, _ in copier.problems] == (["1", "2"] if name else [])


# ---- what is of another cluster, or another history


def test_other_clusters_and_histories_are_refused(packed: LocalPlace, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="is the repository itself"):
        copy(packed, LocalPlace(packed.root))
    other = local(tmp_path / "other")
    Repository.open_or_create(other, RepositoryIdentity(1234, MB, MAJOR))
    with pytest.raises(WrongCluster, match="belongs to the cluster with system identifier 1234"):
        copy(packed, other)
    # The same cluster, and the same names, after it was rolled back.
    to = local(tmp_path)
    copy(packed, to, FULL)
    segment = to.root / "wal" / "000000010000000000000001"
    content = bytearray(segment.read_bytes())
    content[5000] ^= 1
    segment.write_bytes(content)
    before = sorted(path for path in to.root.rglob("*"))
    with pytest.raises(HistoryMismatch, match="is not the WAL that it is in"):
        copy(packed, to, with_wal=True)
    assert segment.read_bytes() == content
    assert sorted(path for path in to.root.rglob("*")) == before


def test_a_history_file_of_another_timeline_is_refused(packed: LocalPlace, tmp_path: Path) -> None:
    to = local(tmp_path)
    copy(packed, to, FULL)
    Repository.open(packed).wal.write_history(2, b"1\t0/900000\tno recovery target specified\n")
    copy(packed, to)
    assert [history.timeline_id for history in Repository.open(to).wal.histories()] == [2]
    (to.root / "wal" / "00000002.history").write_bytes(b"1\t0/800000\tno recovery target specified\n")
    with pytest.raises(HistoryMismatch, match=r"00000002\.history"):
        copy(packed, to)


def test_the_segment_that_is_being_received_comes_as_far_as_its_records_go(
    built: dict[str, Stored], packed: LocalPlace, tmp_path: Path
) -> None:
    to, kinds = local(tmp_path), [PLACES["cloud_memory"](tmp_path), local(tmp_path / "onwards")]
    name = "000000010000000000000009"
    whole = (packed.root / "wal" / name).read_bytes()
    (packed.root / "wal" / name).unlink()
    inside = [lsn for lsn, _ in built["packed"].records if lsn // MB == 9]
    for lsn in (inside[3], inside[20]):
        # With the header of a record that is not whole.
        (packed.root / "wal" / f"{name}.partial").write_bytes(whole[: lsn % MB + 24].ljust(MB, b"\0"))
        copy(packed, to, with_wal=True)
        (found,) = [path.name for path in (to.root / "wal").iterdir() if path.name.startswith(name)]
        assert partial_end(found) == lsn
        for onwards, place in zip(kinds, (to, kinds[0]), strict=True):
            copy(place, onwards, with_wal=True)
            read = Repository.open(onwards).wal.read(1, Lsn(9 * MB))
            assert b"".join(read)[:MB] == whole[: lsn % MB].ljust(MB, b"\0")
    (packed.root / "wal" / f"{name}.partial").rename(packed.root / "wal" / name)
    (packed.root / "wal" / name).write_bytes(whole)
    for place, onwards in ((packed, to), (to, kinds[0]), (kinds[0], kinds[1])):
        copy(place, onwards, with_wal=True)
        (found,) = [path for path, _ in onwards.store.list("wal/") if name in path]
        assert not found.endswith(".partial")


# ---- others at work


def test_a_segment_that_is_compressed_meanwhile_comes_all_the_same(packed: LocalPlace, tmp_path: Path) -> None:
    source = Repository.open(packed)
    missing = find_missing_wal(source, None, lambda _: True)
    for segment in missing.segments[2:5]:
        compress_segment(packed.store, source.geometry, segment.name, Compression())
    target = Repository.open_or_create(local(tmp_path), source.identity)
    copier = WalCopier(source, target, as_stored=True, opens=True)
    with target.lock_receiver(), crew(source, lambda _: None, 2, target=target) as workers:
        copier.copy(missing, workers)
    assert (copier.problems, copier.segment_count) == ([], 9)


def test_what_is_damaged_there_and_what_was_given_up_is_named(packed: LocalPlace, tmp_path: Path) -> None:
    to = PLACES["cloud_memory"](tmp_path)
    copy(packed, to, FULL, with_wal=True)
    to.store.put(f"backups/{FULL}/backup.json", b"damaged", replace=True)
    to.store.put(f"backups/{THIRD_FULL}/backup.json", b"")
    report = copy(packed, to, with_wal=True)
    assert [problem.backup_id for problem in report.problems] == [FULL, FIRST, SECOND, THIRD_FULL]
    assert "its entry is there, and damaged" in report.problems[0].message
    assert "was begun there, and given up" in report.problems[3].message
    assert copied_ids(report) == [SECOND_FULL, ON_SECOND]
    assert Repository.open(to).catalogue.folders().arriving == []
    to.store.delete_all(f"backups/{FULL}")
    assert copied_ids(copy(packed, to, with_wal=True)) == [FULL, FIRST, SECOND]


def test_a_part_of_another_backup_of_the_same_id_does_not_count(
    source: LocalPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a cluster that was rolled back: same names, same sizes, same times."""
    monkeypatch.setattr(copied_backup, "COPIED_PART_FILES", 2)
    to = _initialised(local(tmp_path), "plain")
    fate = Fate()
    copy(source, FaultyPlace(_initialised(local(tmp_path / "whole"), "plain"), fate), FULL, jobs=1)
    last = max(n for n, each in enumerate(fate.operations) if "arriving/part-" in each)
    with pytest.raises(Died):
        copy(source, FaultyPlace(to, Fate(dies_at=last + 1)), FULL, jobs=1)
    with tiny_frames():
        other = build_chains(tmp_path / "other", seed=2)
    copy(LocalPlace(other.root), to, FULL)
    expected = content(LocalPlace(other.root), FULL, tmp_path / "expected")
    assert content(to, FULL, tmp_path / "found") == expected
    assert expected != content(source, FULL, tmp_path / "first")


def test_who_expires_or_copies_at_the_same_time_is_told(packed: LocalPlace, tmp_path: Path) -> None:
    to = local(tmp_path)
    rules = RetentionRules(keep_full=1)
    copy(packed, to, FULL)
    target = Repository.open(to)
    with target.lock_backups(), pytest.raises(RepositoryLocked):
        copy(packed, to)
    with target.lock_receiver(), pytest.raises(RepositoryLocked):
        copy(packed, to)
    with Repository.open(packed).hold_all_backups(exclusive=True), pytest.raises(RepositoryLocked):
        copy(packed, to)
    tried = []

    class Watching(FaultyPlace):
        def make(self, folders: Iterable[str] = ()) -> None:
            super().make(folders)
            if not tried:
                tried.append(True)
                with pytest.raises(RepositoryLocked):
                    expire(ExpireRequest(packed, rules))

    assert copied_ids(copy(packed, Watching(to, Fate()))) == ALL[1:]
    assert tried
    expire(ExpireRequest(packed, rules))
    assert problems(to) == []


# ---- kills


IS_EXHAUSTIVE = "PGWAL_LARGE_TESTS" in os.environ
FEW_DEATHS = 4


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copied_backup, "COPIED_PART_FILES", 2)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("to_format", FORMATS)
@pytest.mark.parametrize("kind", ["local", "cloud_memory"])
def test_a_copy_dies_at_any_operation(source: LocalPlace, tmp_path: Path, kind: str, to_format: str) -> None:
    """What counted before counts, what counts is whole, and the next run goes on from what was there."""
    wanted = (SECOND, THIRD_FULL)
    make = PLACES[kind]
    whole = Fate()
    copy(source, FaultyPlace(_initialised(make(tmp_path / "whole"), to_format), whole), *wanted, jobs=1)
    numbers = deaths(whole.operations, kind)
    if not IS_EXHAUSTIVE:
        numbers = sorted(Random(new_seed()).sample(numbers, min(len(numbers), FEW_DEATHS)))
    for number in numbers:
        to = _initialised(make(tmp_path / str(number)), to_format)
        fate = Fate(dies_at=number)
        with pytest.raises((Died, PgwalError)):
            copy(source, FaultyPlace(to, fate), *wanted, jobs=1)
        assert fate.is_dying
        what = fate.operations[number]
        if to.store.exists(IDENTITY_NAME):
            assert problems(to) == [], what
            # Whoever clears away what was abandoned leaves what is on its way.
            arriving = Repository.open(to).catalogue.folders().arriving
            expire(ExpireRequest(to, RetentionRules(keep_full=9)))
            assert Repository.open(to).catalogue.folders().arriving == arriving, what
        again = Fate()
        report = copy(source, FaultyPlace(to, again), *wanted, jobs=1)
        assert report.problems == []
        assert ids(to) == [FULL, FIRST, SECOND, THIRD_FULL], what
        assert problems(to) == [], what
        assert Repository.open(to).catalogue.folders().arriving == [], what
        done = {each for each in fate.operations[:number] if each.startswith(("put packs", "put wal"))}
        if to_format == "packed" and source.store.exists("packs"):
            assert not done & set(again.operations), what
        assert len(again.operations) <= len(whole.operations) + 9
        shutil.rmtree(tmp_path / str(number), ignore_errors=True)


def _initialised(place: Place, name: str) -> Place:
    initialise(place, FORMATS[name])
    return place


ROUNDS = int(os.environ.get("PGWAL_RANDOM_ROUNDS", "0"))


@pytest.mark.usefixtures("small_parts")
def test_random_copies_hold_what_was_backed_up(tmp_path: Path) -> None:
    """Beside merges, expirations of either side, and deaths: what counts there restores, and is all verified."""
    seed = new_seed()
    for number in range(max(1, ROUNDS)):
        random = Random(seed + number)
        where, dense = tmp_path / str(number), random.choice([0, 4])
        kinds = [random.choice(["local", "cloud_memory"]) for _ in range(2)]
        formats = [random.choice([*FORMATS.values()]) for _ in range(2)]
        print(f"round {number}: {kinds} {[str(each) for each in formats]} {dense}")
        with tiny_frames(dense):
            chain = GrowingChain(PLACES[kinds[0]](where / "source"), formats[0], random)
            build_wal(chain.repository, 16 if ROUNDS else 8)
            to = PLACES[kinds[1]](where / "to")
            initialise(to, formats[1])
            chain.full()
            for step in range(12 if ROUNDS else 5):
                _change(chain, random)
                if step and random.random() < 0.3 and to.store.exists(IDENTITY_NAME):
                    expire(
                        ExpireRequest(to, RetentionRules(keep_full=random.randrange(1, 3)), merge=random.random() < 0.5)
                    )
                fate = Fate(dies_at=random.randrange(60) if random.random() < 0.4 else None)
                wanted = random.sample(chain.repository.catalogue.ids(), random.choice([0, 0, 1]))
                with suppress(Died):
                    report = copy(chain.place, FaultyPlace(to, fate), *wanted, with_wal=random.random() < 0.7, jobs=1)
                    assert report.problems == []
                if to.store.exists(IDENTITY_NAME):
                    _assert_holds(to, chain, where / str(step))


def _change(chain: GrowingChain, random: Random) -> None:
    ids = chain.repository.catalogue.ids()
    kind = random.choice(["incremental", "incremental", "incremental", "full", "merge", "expire"])
    mergeable = [each for each in ids if each.endswith("incr") and not set(merged_ids(each)) & set(ids)]
    if kind == "merge" and mergeable:
        merge_backup(MergeRequest(chain.place, random.choice(mergeable)))
    elif kind == "expire":
        expire(ExpireRequest(chain.place, RetentionRules(keep_full=random.randrange(1, 3))))
    elif kind == "full":
        chain.full()
    else:
        chain.incremental()


def _assert_holds(to: Place, chain: GrowingChain, target: Path) -> None:
    assert problems(to) == []
    target.mkdir(parents=True)
    for backup_id in ids(to):
        found = content(to, backup_id, target / backup_id)
        expected = chain.expected(backup_id)
        assert {path: found.get(path) for path in expected} == expected, backup_id
    shutil.rmtree(target, ignore_errors=True)


def test_what_an_interrupted_copy_left_of_a_backup_that_is_gone_is_cleared(packed: LocalPlace, tmp_path: Path) -> None:
    to, fate = local(tmp_path), Fate(dies_at=45)
    with pytest.raises(Died):
        copy(packed, FaultyPlace(to, fate), jobs=1)
    (name,) = Repository.open(to).catalogue.folders().arriving
    gone = name.removesuffix(".unfinished")
    before = len(list(list_packs(to.store)))
    assert expire(ExpireRequest(to, RetentionRules(keep_full=1))).packs == []
    assert len(list(list_packs(to.store))) == before
    shutil.rmtree(packed.root / "backups" / gone)
    copy(packed, to)
    assert Repository.open(to).catalogue.folders().arriving == []
    assert gone not in ids(to)
    assert problems(to) == []


# ---- the command


def test_the_command_says_what_it_would_do_and_what_it_did(packed: LocalPlace, tmp_path: Path) -> None:
    to = tmp_path / "to"
    command = ["copy", "--repo", packed.root, "--to", to, "--with-wal"]
    foreseen = json.loads(succeed(*command, "--dry-run", "--json"))
    assert not to.exists()
    done = json.loads(succeed(*command, "--json", "-j", "2"))
    for name in ("copied_backups", "backup_bytes", "segment_count", "wal_bytes", "summary_count"):
        assert foreseen[name] == done[name]
    assert done["copied_backups"] == ALL
    assert (done["problems"], done["requests"], done["segment_count"]) == ([], None, 9)
    assert succeed(*command).strip() == f"{to} has it all"
    assert succeed(*command, "--dry-run").strip() == f"{to} has it all"
    pack = next(path for path in (packed.root / "packs").rglob("*") if path.is_file())
    shutil.rmtree(to)
    with flipped(pack, 500, 1):
        outcome = run_pgwal(*command)
    assert outcome.code == VERIFICATION_FAILED
    assert "is damaged" in outcome.stdout
    assert_failed(run_pgwal("copy", "--repo", packed.root, "--to", packed.root), 1, "is the repository itself", "--to")
