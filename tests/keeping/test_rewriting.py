"""Packs of which little is needed: expire stores that anew, and who reads, or dies, meanwhile loses none of it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from secrets import token_hex

import pytest
from cloud.test_object_lock import RetainingPlace
from keeping.growing_chain import GrowingChain, tiny_frames
from keeping.stored_repository import SECOND, build_repository, build_wal
from keeping.test_merge import sizes, stored_problems
from pgwal_process import run_pgwal
from repository.places import PLACES, memory
from repository.test_crashes import Site, dying
from support.fate import Fate
from support.faulty_store import FaultyPlace

from pgwal.backup.entry_document import decode_packs
from pgwal.backup.pack_use import WornPack
from pgwal.backup.retention_rules import RetentionRules
from pgwal.budget import WORN_SHARE
from pgwal.encryption.age import Identity
from pgwal.encryption.key_files import write_identity
from pgwal.encryption.key_sources import KeySources
from pgwal.engine.combine import CombineRequest, combine_backups
from pgwal.engine.copy_repository import CopyRequest, copy_repository
from pgwal.engine.expire import ExpireRequest, expire
from pgwal.engine.expire_plan import ExpireReport
from pgwal.engine.initialise import initialise
from pgwal.engine.merge import MergeRequest, merge_backup
from pgwal.engine.pinning import pin_backup
from pgwal.engine.rebuild_options import RebuildOptions
from pgwal.engine.verify import VerifyRequest, verify
from pgwal.errors import FormatError, KeyRequired, RepositoryError
from pgwal.repository import frame_tables, pack_pool, pack_rewriting
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.memory import MemoryPlace
from pgwal.repository.pack_pool import list_packs, pack_object, table_object
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository
from pgwal.repository.storage_format import DEFAULT_PACKED_FORMAT

RULES = RetentionRules(keep_full=1)
ALL = 1 << 40


@pytest.fixture(autouse=True)
def small_packs() -> Iterator[None]:
    with tiny_frames():
        yield


@pytest.fixture(params=["local", "memory", "cloud_memory"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    return Site(request.param, tmp_path)


def worn_chain(place: Place, seed: int = 11, *, pins: int = 1) -> GrowingChain:
    """Return merged backups, some of them pinned, and an incremental one, with packs of which little is needed."""
    chain = GrowingChain(place, DEFAULT_PACKED_FORMAT, Random(seed))
    chain.full()
    wear(chain, pins)
    return chain


def wear(chain: GrowingChain, pins: int = 0) -> None:
    """Merge until there are worn packs, of which nothing is stored anew yet."""
    for number in range(40):
        chain.incremental()
        merged = merge_backup(MergeRequest(chain.place)).entry.backup_id
        if number < pins:
            pin_backup(chain.place, merged)
        report = expire(ExpireRequest(chain.place, RULES, max_rewrite_bytes=0))
        assert report.rewritten == []
        if len(report.waiting) > 2:
            chain.incremental()
            return
    raise AssertionError("no pack is worn")


def worn_packs(place: Place) -> Sequence[WornPack]:
    return Repository.open(place).catalogue.pack_garbage().use.worn


def packs(place: Place) -> dict[str, int]:
    return dict(list_packs(place.store))


def entries_of(place: Place) -> dict[str, bytes]:
    return {name: content for name, content in _objects(place, "backups/") if name.endswith("/backup.json")}


def _objects(place: Place, *folders: str) -> list[tuple[str, bytes]]:
    return [(name, place.store.get(name)) for folder in folders for name, _ in place.store.list(folder)]


def tables(place: Place) -> list[str]:
    return frame_tables.FrameTables(Repository.open(place).store).names()


def how_often_moved(place: Place) -> int:
    """Return how often a frame was moved at most which a backup needs."""
    moves, found = frame_tables.FrameTables(Repository.open(place).store).read(), {0}
    for content in entries_of(place).values():
        for pack in decode_packs(content.splitlines(keepends=True)):
            found |= {len(list(moves.places(pack.name, frame.offset))) - 1 for frame in pack}
    return max(found)


def assert_whole(chain: GrowingChain, tmp_path: Path, place: Place | None = None) -> None:
    """Check that each backup that is left can be read, and holds what it held."""
    place = chain.place if place is None else place
    assert stored_problems(place) == []
    for backup_id in Repository.open(place).catalogue.ids():
        target = tmp_path / "whole"
        combine_backups(CombineRequest(place, backup_id, target))
        files = (path for path in target.rglob("*") if path.is_file())
        found = {str(path.relative_to(target)): path.read_bytes() for path in files}
        assert {path: found[path] for path in chain.expected(backup_id)} == chain.expected(backup_id)
        shutil.rmtree(target)


def combine_all(chain: GrowingChain, tmp_path: Path) -> None:
    """Read each backup: which of them needs what was moved, the names of packs decide."""
    for backup_id in chain.repository.catalogue.ids():
        combine_backups(CombineRequest(chain.place, backup_id, tmp_path / backup_id))


def rewrite(place: Place, most_bytes: int = ALL) -> ExpireReport:
    return expire(ExpireRequest(place, RULES, max_rewrite_bytes=most_bytes))


def test_what_is_needed_of_worn_packs_is_stored_anew_and_they_go(site: Site, tmp_path: Path) -> None:
    chain = worn_chain(site.origin)
    place, worn, before = chain.place, worn_packs(chain.place), packs(chain.place)
    entries = entries_of(place)
    assert all(pack.needed_bytes * WORN_SHARE < before[pack.name] for pack in worn)
    dry = expire(ExpireRequest(place, RULES, dry_run=True, max_rewrite_bytes=ALL))
    assert packs(place) == before
    report = rewrite(place)
    assert list(report.rewritten) == list(dry.rewritten) == list(worn)
    after = packs(place)
    assert before.keys() - after.keys() == {pack.name for pack in worn}
    assert sum(after.values()) < sum(before.values())
    assert sorted(after.keys() - before.keys()) == tables(place)
    # Entries stay as they were: they are written once.
    assert entries == entries_of(place)
    assert_whole(chain, tmp_path)
    again = rewrite(place)
    assert (list(again.rewritten), again.packs, again.garbage.tables) == ([], [], [])
    assert packs(place) == after


def test_frames_are_moved_on_and_what_nothing_needs_goes_with_its_tables(site: Site, tmp_path: Path) -> None:
    chain, most_tables, deepest = worn_chain(site.origin), 0, 0
    for number in range(25):
        rewrite(chain.place)
        assert sum(packs(chain.place).values()) <= WORN_SHARE * sizes(chain)[1]
        most_tables = max(most_tables, len(tables(chain.place)))
        deepest = max(deepest, how_often_moved(chain.place))
        if number % 3 == 2:
            # Sooner than they are worn.
            move_again(chain.place, tables(chain.place))
        if number % 6 == 5:
            assert_whole(chain, tmp_path)
        chain.incremental()
        # Of what was merged in packs that were rewritten, parts are referred to as of any other.
        merge_backup(MergeRequest(chain.place))
    assert deepest > 1, "moved on from where they were moved to"
    assert most_tables > 2
    chain.full()
    for mark in list(chain.place.store.list("pins/")):
        chain.place.store.delete(mark.name)
    rewrite(chain.place)
    assert tables(chain.place) == []
    assert sum(packs(chain.place).values()) < 2 * sizes(chain)[1]
    assert_whole(chain, tmp_path)


def test_no_more_is_stored_anew_than_is_allowed(tmp_path: Path) -> None:
    chain = worn_chain(memory(tmp_path))
    worn = worn_packs(chain.place)
    assert [pack.needed_bytes for pack in worn] == sorted(pack.needed_bytes for pack in worn)
    most_bytes = worn[0].needed_bytes + worn[1].needed_bytes
    assert list(rewrite(chain.place, worn[0].needed_bytes - 1).rewritten) == []
    report = rewrite(chain.place, most_bytes)
    assert (list(report.rewritten), list(report.waiting)) == (list(worn[:2]), list(worn[2:]))
    assert list(rewrite(chain.place).rewritten) == list(worn[2:])
    assert_whole(chain, tmp_path)


def test_new_packs_are_as_full_as_others_and_their_tables_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = worn_chain(memory(tmp_path))
    worn = worn_packs(chain.place)
    frames = sum(len(pack.frames) for pack in worn)
    assert frames > 3
    monkeypatch.setattr(pack_rewriting, "FRAMES_MOVED", 1)
    rewrite(chain.place)
    assert len(tables(chain.place)) == frames
    assert_whole(chain, tmp_path)
    wear(chain)
    monkeypatch.setattr(pack_rewriting, "FRAMES_MOVED", 1 << 16)
    monkeypatch.setattr(pack_rewriting, "PACK_SIZE", 1)
    before, worn = len(tables(chain.place)), worn_packs(chain.place)
    report = rewrite(chain.place)
    assert len(tables(chain.place)) == before + len(worn) - len(report.garbage.tables)
    assert_whole(chain, tmp_path)


def test_what_costs_many_requests_is_read_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = worn_chain(memory(tmp_path))
    monkeypatch.setattr(pack_rewriting, "REWRITTEN_READ_BYTES", 1)
    rewrite(chain.place)
    assert_whole(chain, tmp_path)


# ---- interruptions


@pytest.mark.parametrize("site", ["local", "cloud_memory"], indirect=True)
def test_who_dies_meanwhile_leaves_whole_backups_and_the_next_one_goes_on(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = worn_chain(site.origin)
    # In one folder: each that there is means an operation.
    monkeypatch.setattr(pack_pool, "new_pack_name", lambda: f"ff{token_hex(15)}")
    worn = {pack.name for pack in worn_packs(site.origin)}
    seen, was = list[tuple[int, int]](), dict[str, int]()
    for number, place in enumerate(dying(site, lambda place: rewrite(place))):
        there = packs(place)
        seen.append((len(worn - there.keys()), len(tables(place))))
        if there == was and number % 16:
            continue
        was = there
        assert_whole(chain, tmp_path, place)
        rewrite(place)
        left = packs(place)
        assert not worn & left.keys()
        assert list(worn_packs(place)) == []
        garbage = Repository.open(place).catalogue.pack_garbage()
        assert (garbage.packs, garbage.tables) == ([], [])
        # One new pack, whoever made it: what another had begun is garbage.
        assert len(left.keys() - packs(site.origin).keys()) == len(tables(place)) == 1
        assert_whole(chain, tmp_path, place)
    gone = [number for number, _ in seen]
    assert gone == sorted(gone)
    assert len(set(gone)) > 2
    # No pack goes before the table that tells where its frames are.
    assert all(table for number, table in seen if number)
    assert (0, 0) in seen
    assert (0, 1) in seen


@pytest.mark.parametrize("site", ["memory"], indirect=True)
def test_what_fails_meanwhile_leaves_whole_backups(site: Site, tmp_path: Path) -> None:
    chain = worn_chain(site.origin)
    number, is_over, was = 0, False, dict[str, int]()
    while not is_over:
        place, fate = site.copy(), Fate(fails_at=number)
        try:
            rewrite(FaultyPlace(place, fate))
            is_over = len(fate.operations) <= number
        except RepositoryError:
            pass
        number += 1
        there = packs(place)
        if there == was and number % 16 and not is_over:
            continue
        was = there
        assert_whole(chain, tmp_path, place)
        rewrite(place)
        assert list(worn_packs(place)) == []
    assert number > 5


def test_who_stood_still_and_lost_the_lock_removes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process takes the new pack for garbage, for no table tells of it yet; then the table comes."""
    chain = worn_chain(memory(tmp_path))
    before = packs(chain.place)

    def store_table(store: object, moved: object) -> None:
        garbage = chain.repository.catalogue.pack_garbage()
        (new,) = (pack for pack in garbage.packs if pack.name not in before)
        chain.place.store.delete(pack_object(new.name))
        frame_tables.store_table(store, moved)  # type: ignore[arg-type]
        raise RepositoryError("the lease is another's")

    with monkeypatch.context() as patched:
        patched.setattr(pack_rewriting, "store_table", store_table)
        with pytest.raises(RepositoryError, match="another's"):
            rewrite(chain.place)
    assert len(tables(chain.place)) == 1
    assert packs(chain.place) == before
    assert_whole(chain, tmp_path)
    rewrite(chain.place)
    assert len(tables(chain.place)) == 1
    assert_whole(chain, tmp_path)


# ---- beside others


@pytest.mark.parametrize("jobs", [1, 3])
def test_who_reads_meanwhile_goes_on(site: Site, tmp_path: Path, jobs: int) -> None:
    """Packs go away under its hands, more than once."""
    chain = worn_chain(site.origin)
    latest = chain.repository.catalogue.ids()[-1]
    rewritten = []

    def rewrite_meanwhile(done: int, total: int) -> None:  # noqa: ARG001
        if not rewritten:
            rewritten.extend(rewrite(chain.place).rewritten)
        else:
            # Even what was moved is moved on.
            move_again(chain.place, tables(chain.place))

    combine_backups(
        CombineRequest(chain.place, latest, tmp_path / "read", options=RebuildOptions(jobs=jobs)), rewrite_meanwhile
    )
    assert rewritten
    found = {path: (tmp_path / "read" / path).read_bytes() for path in chain.expected(latest)}
    assert found == chain.expected(latest)
    assert_whole(chain, tmp_path)


def move_again(place: Place, names: list[str]) -> None:
    """Move all that is in some packs into new ones."""
    repository = Repository.open(place)
    moves, there = frame_tables.FrameTables(repository.store).read(), packs(place)
    found = [pack for name in names if name in there and (pack := moves.pack(name)) is not None]
    moved = [WornPack(pack.name, pack.size_bytes, list(pack)) for pack in found]
    with repository.lock_backups():
        gone = pack_rewriting.rewrite_packs(place, moved, lambda _: None)
        repository.catalogue.remove_packs([pack.name for pack in gone])


def test_who_verifies_meanwhile_finds_nothing_wrong(tmp_path: Path) -> None:
    chain = worn_chain(memory(tmp_path))
    rewritten = []

    def rewrite_meanwhile(done: int, total: int) -> None:  # noqa: ARG001
        if not rewritten:
            worn = worn_packs(chain.place)
            # An expire waits for those who verify all; what it does once it has removed others is done here.
            with chain.repository.lock_backups():
                rewritten.extend(pack_rewriting.rewrite_packs(chain.place, worn, lambda _: None))
                chain.repository.catalogue.remove_packs([pack.name for pack in worn])

    report = verify(VerifyRequest(chain.place), rewrite_meanwhile)
    assert rewritten
    assert [problem for problem in report.problems if problem.backup_id] == []


def test_what_the_storage_does_not_let_go_yet_goes_the_next_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chain = worn_chain(memory(tmp_path))
    worn = {pack.name for pack in worn_packs(chain.place)}
    report = expire(ExpireRequest(RetainingPlace(chain.place, ("packs/",)), RULES, max_rewrite_bytes=ALL))
    assert {pack.name for pack in report.rewritten} == worn
    assert "until 2027-01-01" in caplog.text
    assert worn <= packs(chain.place).keys()
    assert_whole(chain, tmp_path)
    # Nothing is stored twice meanwhile.
    before = packs(chain.place)
    again = expire(ExpireRequest(RetainingPlace(chain.place, ("packs/",)), RULES, max_rewrite_bytes=ALL))
    assert (list(again.rewritten), packs(chain.place)) == ([], before)
    report = rewrite(chain.place)
    assert {pack.name for pack in report.packs} == worn
    assert not worn & packs(chain.place).keys()
    assert_whole(chain, tmp_path)


# ---- damage


def flip(place: Place, name: str, at: int) -> None:
    content = bytearray(place.store.get(name))
    content[at] ^= 1
    place.store.put(name, bytes(content), replace=True)


def test_a_pack_with_a_damaged_frame_stays_and_the_others_go(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chain = worn_chain(memory(tmp_path))
    worn = worn_packs(chain.place)
    damaged = worn[1]
    flip(chain.place, pack_object(damaged.name), damaged.frames[0].offset)
    report = rewrite(chain.place)
    assert list(report.rewritten) == [pack for pack in worn if pack != damaged]
    assert damaged.name in packs(chain.place)
    assert f"{damaged.name} is not rewritten, for a frame of it is damaged" in caplog.text
    assert any(damaged.name in problem or "damaged" in problem for problem in stored_problems(chain.place))


def test_a_damaged_table_is_named_and_nothing_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chain = worn_chain(memory(tmp_path))
    rewrite(chain.place)
    (name,) = tables(chain.place)
    content = chain.place.store.get(table_object(name))
    flip(chain.place, table_object(name), len(content) // 2)
    before = packs(chain.place)
    assert any(f"moved_frames/{name} is damaged" in problem for problem in stored_problems(chain.place))
    with pytest.raises(FormatError, match=f"moved_frames/{name} is damaged"):
        combine_all(chain, tmp_path)
    with caplog.at_level(logging.WARNING):
        report = rewrite(chain.place)
    assert "no pack is removed" in caplog.text
    assert (report.packs, report.garbage.tables, list(report.rewritten)) == ([], [], [])
    assert packs(chain.place) == before
    chain.place.store.put(table_object(name), content, replace=True)
    assert_whole(chain, tmp_path)
    # One under another's name tells nothing of that.
    chain.place.store.delete(table_object(name))
    other = "f" * 32
    chain.place.store.put(table_object(other), content)
    assert any("it is that of pack" in problem for problem in stored_problems(chain.place))


@pytest.mark.parametrize("change", ["missing", "cut", "changed"])
def test_a_damaged_new_pack_is_found(tmp_path: Path, change: str) -> None:
    chain = worn_chain(memory(tmp_path))
    rewrite(chain.place)
    (name,) = tables(chain.place)
    content = chain.place.store.get(pack_object(name))
    chain.place.store.delete(pack_object(name))
    if change != "missing":
        kept = content[:-1] if change == "cut" else content[:-1] + bytes([content[-1] ^ 1])
        chain.place.store.put(pack_object(name), kept)
    problems = stored_problems(chain.place)
    expected = {"missing": "missing", "cut": f"{name}, to which frames of it were moved", "changed": "damaged"}[change]
    assert any(expected in problem for problem in problems)


# ---- encrypted


@pytest.fixture
def keys(tmp_path: Path) -> KeySources:
    identity = Identity.generate()
    write_identity(tmp_path / "identity.txt", identity)
    return KeySources(identity_file=tmp_path / "identity.txt", metadata_key_file=tmp_path / "metadata.key")


def test_who_cannot_open_what_is_encrypted_moves_it_all_the_same(
    tmp_path: Path, keys: KeySources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert keys.identity_file is not None
    recipient = Identity(keys.identity_file.read_text().split()[-1]).recipient
    place = MemoryPlace(keys)
    initialise(place, DEFAULT_PACKED_FORMAT, [recipient])
    chain = GrowingChain(place, place.default_format, Random(11))
    chain.full()
    wear(chain, pins=1)
    host = place.with_keys(keys._replace(identity_file=None))
    with pytest.raises(KeyRequired):
        combine_backups(CombineRequest(host, chain.repository.catalogue.ids()[-1], tmp_path / "refused"))
    for is_last in (False, True):
        worn = worn_packs(host)
        assert {pack.name for pack in rewrite(host).rewritten} == {pack.name for pack in worn} != set()
        assert [p for p in verify(VerifyRequest(host)).problems if p.backup_id] == []
        assert_whole(chain, tmp_path)
        # Nothing of it is stored in clear, and each pack looks like any other.
        assert all(content.startswith(b"pgwalenc") for _, content in _objects(place, "packs/", "moved_frames/"))
        if not is_last:
            wear(chain)
    (name, *_) = tables(host)
    flip(place, pack_object(name), len(place.store.get(pack_object(name))) - 1)
    assert any("does not end as the pack" in p.message for p in verify(VerifyRequest(host)).problems)


# ---- the command


@pytest.fixture
def worn_repository(tmp_path: Path) -> LocalPlace:
    place = PLACES["local"](tmp_path)
    assert isinstance(place, LocalPlace)
    worn_chain(place)
    return place


def test_the_command_says_what_it_rewrites_and_why(worn_repository: LocalPlace) -> None:
    place, command = worn_repository, ["expire", "--repo", worn_repository.root, "--keep-full", "1"]
    worn = worn_packs(place)
    shown = run_pgwal(*command, "--dry-run").stdout
    assert f"would rewrite {len(worn)} packs, " in shown
    assert "less than a quarter of each is needed" in shown
    document = json.loads(run_pgwal(*command, "--max-rewrite", "0", "--json").stdout)
    assert document["rewritten_packs"] == []
    assert document["waiting_packs"] == [
        {"name": pack.name, "stored_bytes": pack.size_bytes, "needed_bytes": pack.needed_bytes} for pack in worn
    ]
    assert "left for the next run, for --max-rewrite is reached" in run_pgwal(*command, "--max-rewrite", "0").stdout
    assert f"rewrote {len(worn)} packs" in run_pgwal(*command).stdout
    assert "rewrote" not in run_pgwal(*command).stdout


def test_a_plain_repository_has_nothing_to_rewrite(tmp_path: Path) -> None:
    place = build_repository(tmp_path / "repo").repository.place
    merge_backup(MergeRequest(place, SECOND))
    report = expire(ExpireRequest(place, RULES, max_rewrite_bytes=ALL))
    assert (report.packs, list(report.rewritten)) == ([], [])


def test_frames_that_were_moved_are_copied_with_what_leads_to_them(tmp_path: Path) -> None:
    """Also when what was copied before is worn there, too."""
    chain = worn_chain(LocalPlace(tmp_path / "source"))
    build_wal(chain.repository, 100)
    copied = PLACES["cloud_memory"](tmp_path)
    rewrite(chain.place)
    assert how_often_moved(chain.place) == 1
    report = copy_repository(CopyRequest(chain.place, copied))
    assert not report.problems
    assert Repository.open(copied).catalogue.ids() == chain.repository.catalogue.ids()
    assert_whole(chain, tmp_path, copied)
    rewrite(copied)
    assert_whole(chain, tmp_path, copied)
    wear(chain)
    rewrite(chain.place)
    report = copy_repository(CopyRequest(chain.place, copied))
    assert not report.problems
    assert_whole(chain, tmp_path, copied)
    # Nothing is left to do.
    assert copy_repository(CopyRequest(chain.place, copied)).pack_count == 0
