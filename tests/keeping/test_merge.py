"""Merging chains of files that change at random, in each format and place: bytes, digests, kills, and what is read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest
from keeping.growing_chain import GrowingChain, tiny_frames
from keeping.stored_repository import FIRST, FULL, SECOND, build_chains
from pgwal_process import assert_failed, run_pgwal
from repository.places import PLACES, cloud_memory, memory
from repository.test_crashes import Site, dying
from support.faulty_store import Fate, FaultyPlace

from pgwal.backup.backup_id import merged_ids
from pgwal.backup.chain import choose_prior, resolve_chain
from pgwal.backup.entry_document import decode_packs
from pgwal.backup.manifest_reader import read_manifest
from pgwal.backup.retention_rules import Period, RetentionRules
from pgwal.engine.combine import CombineRequest, combine_backups
from pgwal.engine.expire import ExpireRequest, expire
from pgwal.engine.export import ExportRequest, export_backup
from pgwal.engine.merge import MergeRequest, merge_backup
from pgwal.engine.pinning import pin_backup
from pgwal.engine.verify import VerifyRequest, verify
from pgwal.errors import ChecksumMismatch, ObjectExists, RepositoryError, RepositoryLocked
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.pack_pool import list_packs
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository
from pgwal.repository.storage_format import DEFAULT_PACKED_FORMAT, PLAIN_FORMAT, StorageFormat
from pgwal.timeline import TimelineHistory
from pgwal_cli.exit_codes import FAILED

FORMATS = {"plain": PLAIN_FORMAT, "packed": DEFAULT_PACKED_FORMAT}
WHERE = [("local", "plain"), ("local", "packed"), ("cloud_memory", "plain"), ("cloud_memory", "packed")]


@pytest.fixture(
    params=[*((*where, 4) for where in WHERE), ("local", "packed", 0)], ids=lambda each: "-".join(map(str, each))
)
def chain(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[GrowingChain]:
    kind, storage_format, dense = request.param
    with tiny_frames(dense):
        made = GrowingChain(PLACES[kind](tmp_path), FORMATS[storage_format], Random(4))
        made.full()
        yield made


def stored_problems(place: Place) -> list[str]:
    """Return what is wrong with the backups; these have no WAL."""
    return [f"{each.path}: {each.message}" for each in verify(VerifyRequest(place)).problems if each.backup_id]


def manifest_files(target: Path) -> dict[str, tuple[int, str | None]]:
    files = read_manifest((target / "backup_manifest").read_bytes()).files
    return {file.path: (file.size, file.checksum_hex) for file in files if file.path != "backup_label"}


def test_a_merged_backup_holds_what_its_chain_makes_of_it(chain: GrowingChain, tmp_path: Path) -> None:
    ids = [chain.incremental() for _ in range(4)]
    report = merge_backup(MergeRequest(chain.place, ids[2]))
    assert (report.entry.backup_id, report.chain_length) == (merged_ids(ids[2])[0], 4)
    assert (report.entry.prior_id, report.entry.totals.incremental_file_count) == (None, 0)
    assert chain.exported(report.entry.backup_id, tmp_path / "exported") == chain.expected(ids[2])
    # The manifest is that of a chain whose files were all read; and the label is that of a full backup.
    with_chain = Repository.open(chain.place).catalogue
    with_chain.entry(ids[2])
    combine_backups(CombineRequest(chain.place, ids[2], tmp_path / "combined"))
    assert manifest_files(tmp_path / "exported") == manifest_files(tmp_path / "combined")
    labels = [(tmp_path / name / "backup_label").read_bytes() for name in ("exported", "combined")]
    assert labels[0] == labels[1]
    assert stored_problems(chain.place) == []
    # What was built on it is built on the full one now, and the older ones go.
    entries = chain.repository.catalogue.entries()
    assert [e.backup_id for e in resolve_chain(entries, ids[3])] == [ids[3], report.entry.backup_id]
    expire(ExpireRequest(chain.place, RetentionRules(keep_full=1)))
    assert chain.repository.catalogue.ids() == [report.entry.backup_id, ids[3]]
    assert stored_problems(chain.place) == []
    assert chain.combined(ids[3], tmp_path / "last") == chain.expected(ids[3])
    # And so is the next one.
    prior = choose_prior(chain.repository.catalogue.entries(), ids[2].replace("incr", "full"), TimelineHistory(1))
    last = chain.incremental(prior.backup_id)
    assert chain.combined(last, tmp_path / "next") == chain.expected(last)


def test_thirty_merges_in_a_row(chain: GrowingChain, tmp_path: Path) -> None:
    for number in range(30):
        last = chain.incremental()
        merged = merge_backup(MergeRequest(chain.place)).entry.backup_id
        if number % 7 == 0:
            # On the one that was merged, or on what it was merged into.
            chain.incremental(merged if number % 2 else last)
        expire(ExpireRequest(chain.place, RetentionRules(keep_full=1)))
        assert merged in chain.repository.catalogue.ids()
        if number % 5 == 4:
            assert chain.exported(merged, tmp_path / str(number)) == chain.expected(merged)
            assert stored_problems(chain.place) == []
    packs = [pack.name for pack in list_packs(chain.place.store)]
    assert chain.repository.catalogue.pack_garbage().packs == []
    assert len(packs) == len(set(packs))
    if chain.repository.catalogue.entries()[-1].packed_size_bytes is not None:
        lengths = {len(file.digest) for file in chain.repository.catalogue.files(merged)}
        assert len(lengths) > 1, "some are made of parts"


@pytest.mark.parametrize("seed", range(6))
def test_random_chains_merged_anywhere(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    with tiny_frames(seed % 2 * 4):
        chain = GrowingChain(memory(tmp_path), FORMATS["packed" if seed % 3 else "plain"], random)
        points = [chain.full()]
        for number in range(12):
            points.append(chain.incremental(random.choice([None, None, points[-1], random.choice(points)])))
            if random.random() < 0.4:
                wanted = random.choice(points)
                try:
                    merge_backup(MergeRequest(chain.place, wanted))
                except ObjectExists:
                    assert wanted.endswith("full") or merged_ids(wanted)[0] in chain.repository.catalogue.ids()
            if random.random() < 0.3:
                rules = RetentionRules(periods={Period.HOURLY: 1}, keep_full=random.choice([None, 1, 2]))
                expire(ExpireRequest(chain.place, rules, merge=random.random() < 0.5))
            assert stored_problems(chain.place) == []
            entries = chain.repository.catalogue.entries()
            points = [entry.backup_id for entry in entries]
            for entry in random.sample(entries, min(2, len(entries))):
                target = tmp_path / f"{number}-{entry.backup_id}"
                assert chain.combined(entry.backup_id, target) == chain.expected(entry.backup_id)
                shutil.rmtree(target)


# ---- expire --merge


def test_rules_are_kept_by_merging(chain: GrowingChain, tmp_path: Path) -> None:
    ids = [chain.incremental() for _ in range(5)]
    pin_backup(chain.place, ids[1])
    rules = RetentionRules(periods={Period.DAILY: 1})
    dry = expire(ExpireRequest(chain.place, rules, dry_run=True, merge=True))
    assert [entry.backup_id for entry in dry.merged] == [ids[1], ids[4]]
    before = set(chain.repository.catalogue.ids())
    report = expire(ExpireRequest(chain.place, rules, merge=True))
    wanted = [merged_ids(ids[1])[0], merged_ids(ids[4])[0]]
    assert chain.repository.catalogue.ids() == wanted == [entry.backup_id for entry in report.kept]
    assert {entry.backup_id for entry in report.expired} == before
    assert [entry.backup_id for entry in dry.expired] == [entry.backup_id for entry in report.expired]
    assert stored_problems(chain.place) == []
    for backup_id in wanted:
        assert chain.exported(backup_id, tmp_path / backup_id) == chain.expected(backup_id)
    again = expire(ExpireRequest(chain.place, rules, merge=True))
    assert (again.merged, again.expired) == ([], [])
    # The pin is that of the full one now.
    chain.incremental()
    expire(ExpireRequest(chain.place, RetentionRules(keep_full=1)))
    assert wanted[0] in chain.repository.catalogue.ids()


def test_what_is_read_through_a_merged_backup_keeps_expire_from_removing_it(
    chain: GrowingChain, tmp_path: Path
) -> None:
    """Whoever began before the merge reads the chain that was then."""
    ids = [chain.incremental() for _ in range(3)]
    merged, held = [], []

    def merge_meanwhile(_: int, __: int) -> None:
        if not merged:
            merged.append(merge_backup(MergeRequest(chain.place, ids[1])).entry.backup_id)
        with pytest.raises(RepositoryLocked, match=ids[2]):
            expire(ExpireRequest(chain.place, RetentionRules(keep_full=1)))
        held.append(True)

    combine_backups(CombineRequest(chain.place, ids[2], tmp_path / "target"), merge_meanwhile)
    assert held
    expire(ExpireRequest(chain.place, RetentionRules(keep_full=1)))
    assert chain.repository.catalogue.ids() == [merged[0], ids[2]]


# ---- interruptions


@pytest.mark.parametrize(
    ("kind", "files"),
    [("local", "packed"), ("cloud_memory", "plain"), ("cloud_memory", "packed"), ("memory", "packed")],
)
def test_a_merge_that_dies_leaves_what_counted_and_can_be_done_again(tmp_path: Path, kind: str, files: str) -> None:
    site = Site(kind, tmp_path)
    with tiny_frames():
        chain = GrowingChain(site.origin, FORMATS[files], Random(7))
        ids = [chain.full(), *(chain.incremental() for _ in range(3))]
        seen = []
        for number, place in enumerate(dying(site, lambda place: merge_backup(MergeRequest(place, ids[2], jobs=1)))):
            there = set(Repository.open(place).catalogue.ids())
            assert set(ids) <= there
            seen.append(len(there) > len(ids))
            if number % 4 and not seen[-1]:
                continue
            assert stored_problems(place) == []
            if not seen[-1]:
                merge_backup(MergeRequest(place, ids[2]))
            expire(ExpireRequest(place, RetentionRules(keep_full=1)))
            left = Repository.open(place)
            assert [e.prior_id is None for e in left.catalogue.entries()] == [True, False]
            assert left.catalogue.pack_garbage().packs == []
            assert stored_problems(place) == []
            target = tmp_path / f"after{number}"
            combine_backups(CombineRequest(place, ids[3], target))
            shutil.rmtree(target)
    assert seen == sorted(seen)
    assert len(seen) - sum(seen) > 8


# Runs a merge again and again on copies of a repository, killed at its first, second, ... change of a file or a name.
KILLING = """
import os, shutil, signal, sys
from pathlib import Path
from pgwal.engine.merge import MergeRequest, merge_backup
from pgwal.repository.local_place import LocalPlace

source, work, backup_id = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
step = 0
while True:
    step += 1
    target = work / str(step)
    shutil.copytree(source, target, copy_function=os.link)
    child = os.fork()
    if child == 0:
        left = step
        def count(event, args):
            global left
            if event in ("os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "shutil.rmtree"):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)
        merge_backup(MergeRequest(LocalPlace(target), backup_id, jobs=1))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        break
    assert os.WTERMSIG(status) == signal.SIGKILL
print(step)
"""


def test_a_kill_at_any_link_leaves_what_counted(tmp_path: Path) -> None:
    chain = GrowingChain(PLACES["local"](tmp_path), PLAIN_FORMAT, Random(7))
    ids = [chain.full(), *(chain.incremental() for _ in range(3))]
    command = [sys.executable, "-P", "-c", KILLING, str(chain.place.directory), str(tmp_path), ids[2]]
    steps = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert steps > 30
    for step in sorted({*range(1, steps, 6), steps - 1, steps}):
        place = LocalPlace(tmp_path / str(step))
        assert set(ids) <= set(Repository.open(place).catalogue.ids())
        assert stored_problems(place) == []
        if merged_ids(ids[2])[0] not in Repository.open(place).catalogue.ids():
            merge_backup(MergeRequest(place, ids[2]))
        expire(ExpireRequest(place, RetentionRules(keep_full=1)))
        assert Repository.open(place).catalogue.ids() == [merged_ids(ids[2])[0], ids[3]]
        assert stored_problems(place) == []


@pytest.mark.parametrize("files", FORMATS)
def test_a_merge_that_fails_says_so_and_leaves_nothing(tmp_path: Path, files: str) -> None:
    site = Site("cloud_memory", tmp_path)
    with tiny_frames():
        chain = GrowingChain(site.origin, FORMATS[files], Random(9))
        ids = [chain.full(), *(chain.incremental() for _ in range(2))]
        packs = {pack.name for pack in list_packs(site.origin.store)}
        number, is_over = 0, False
        while not is_over:
            place, fate = site.copy(), Fate(fails_at=number)
            try:
                merge_backup(MergeRequest(FaultyPlace(place, fate), ids[1], jobs=1))
                is_over = True
            except RepositoryError:
                # No pack of the older backups goes with what was given up.
                assert packs <= {pack.name for pack in list_packs(place.store)}
            assert set(ids) <= set(Repository.open(place).catalogue.ids())
            if not number % 5:
                assert stored_problems(place) == []
            number += 1
    assert number > 8


# ---- damage


def test_a_digest_that_is_carried_over_wrongly_is_found(tmp_path: Path) -> None:
    """A frame that is right, and another's: only the checksum of the file tells."""
    with tiny_frames():
        chain = GrowingChain(memory(tmp_path), FORMATS["packed"], Random(4))
        chain.full()
        patched = None
        while patched is None:
            chain.incremental()
            entry = merge_backup(MergeRequest(chain.place)).entry
            files = chain.repository.catalogue.files(entry.backup_id)
            patched = next((file for file in files if len(file.digest) == 8 and len(file.extents) > 2), None)
    name = f"backups/{entry.backup_id}/backup.json"
    store = chain.place.store
    lines = store.get(name).splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if json.dumps(patched.path).encode() in line)
    document = json.loads(lines[at].rstrip(b",\n"))
    same_size = [e for e in document["extents"] if e[3] == document["extents"][0][3]]
    assert len(same_size) > 1
    document["extents"][document["extents"].index(same_size[1])] = same_size[0]
    lines[at] = json.dumps(document).encode() + (b",\n" if lines[at].endswith(b",\n") else b"\n")
    from pgwal.checksum import content_digest

    lines[-1] = f'"digest": "xxh3-128:{content_digest(b"".join(lines[:-1]))}"}}\n'.encode()
    store.put(name, b"".join(lines), replace=True)
    problems = stored_problems(chain.place)
    assert any(patched.path in problem and "digest does not match" in problem for problem in problems)
    with pytest.raises(ChecksumMismatch):
        chain.exported(entry.backup_id, tmp_path / "exported")
    with pytest.raises(ChecksumMismatch):
        chain.combined(entry.backup_id, tmp_path / "combined")


@pytest.mark.parametrize("files", FORMATS)
def test_a_damaged_chain_is_not_merged(tmp_path: Path, files: str) -> None:
    with tiny_frames():
        chain = GrowingChain(PLACES["local"](tmp_path), FORMATS[files], Random(3))
        chain.full()
        last = chain.incremental()
        root = chain.place.directory
        assert root is not None
        pattern = "packs/*/*" if files == "packed" else f"backups/{last}/data/base/5/INCREMENTAL.*"
        damaged = 0
        for path in root.glob(pattern):
            content = bytearray(path.read_bytes())
            if len(content) > 5000:
                content[len(content) // 2] ^= 1
                path.write_bytes(content)
                damaged += 1
        assert damaged
        if files == "packed":
            merge_and_expect_damage(chain, last)
        else:
            with pytest.raises(ChecksumMismatch):
                merge_backup(MergeRequest(chain.place, last))
        assert merged_ids(last)[0] not in chain.repository.catalogue.ids()


def merge_and_expect_damage(chain: GrowingChain, last: str) -> None:
    """Frames that are carried over are not read: verify finds what is wrong with them, a merge what it reads."""
    try:
        merge_backup(MergeRequest(chain.place, last))
    except ChecksumMismatch:
        return
    assert stored_problems(chain.place)
    root = chain.place.directory
    assert root is not None
    shutil.rmtree(root / "backups" / merged_ids(last)[0])


# ---- the command


def test_the_command_says_what_it_merged(tmp_path: Path) -> None:
    root = build_chains(tmp_path / "repo").root
    found = run_pgwal("merge", FIRST, "--repo", root)
    assert found.stdout.startswith(f"merged 2 backups into {merged_ids(FIRST)[0]}, a full backup as of {FIRST}: 48 kB")
    assert_failed(run_pgwal("merge", FIRST, "--repo", root), FAILED, "has been merged into a full backup already")
    assert_failed(run_pgwal("merge", FULL, "--repo", root), FAILED, "is a full backup already")
    listed = json.loads(run_pgwal("list", "--repo", root, "--json").stdout)["backups"]
    by_id = {each["id"]: each for each in listed}
    assert by_id[SECOND]["chain"] == [SECOND, merged_ids(FIRST)[0]]
    merged = by_id.pop(merged_ids(FIRST)[0])
    assert merged["merged_backups"] == [FIRST, FULL]
    assert datetime.now(UTC) - datetime.fromisoformat(merged["merged_at"]) < timedelta(hours=1)
    assert {(each["merged_at"], tuple(each["merged_backups"])) for each in by_id.values()} == {(None, ())}
    lines = {line.split()[0]: line for line in run_pgwal("list", "--repo", root).stdout.splitlines()}
    assert lines[merged["id"]].split()[-1] == merged["merged_at"]
    assert lines[FULL].split()[-1] == "-"
    shown = run_pgwal("show", merged["id"], "--repo", root).stdout
    assert f"merged           {merged['merged_at']}, of {FIRST}, {FULL}\n" in shown
    assert json.loads(run_pgwal("show", merged["id"], "--repo", root, "--json").stdout)["merged_backups"] == [
        FIRST,
        FULL,
    ]
    document = json.loads(run_pgwal("merge", SECOND, "--repo", root, "--json").stdout)
    assert (document["backup"], document["backup_count"]) == (SECOND, 2)
    text = run_pgwal("expire", "--repo", root, "--keep-daily", "1", "--merge", "--dry-run").stdout
    assert "would remove backup" in text


def test_after_one_that_was_given_up_another_name_is_taken(tmp_path: Path) -> None:
    """An object store keeps the name of a backup that was given up, so that nobody can put it there any more."""
    with tiny_frames():
        chain = GrowingChain(cloud_memory(tmp_path), FORMATS["packed"], Random(5))
        chain.full()
        last = chain.incremental()
        first, second = merged_ids(last)[:2]
        with chain.repository.lock_backups(), chain.repository.catalogue.stage(first):
            chain.repository.catalogue.give_up_unfinished()
        assert merge_backup(MergeRequest(chain.place, last)).entry.backup_id == second
        after = chain.incremental(last)
        expire(ExpireRequest(chain.place, RetentionRules(keep_full=1)))
        assert chain.repository.catalogue.ids() == [second, after]
        assert chain.combined(after, tmp_path / "combined") == chain.expected(after)


def test_an_export_of_a_merged_backup_is_one_of_any_other(tmp_path: Path, storage_format: StorageFormat) -> None:
    place = PLACES["local"](tmp_path)
    build_chains(place, storage_format)
    backup_id = merge_backup(MergeRequest(place, SECOND)).entry.backup_id
    export_backup(ExportRequest(place, backup_id, tmp_path / "exported"))
    combine_backups(CombineRequest(place, SECOND, tmp_path / "combined"))
    assert manifest_files(tmp_path / "exported") == manifest_files(tmp_path / "combined")


# ---- garbage


def sizes(chain: GrowingChain) -> tuple[int, int]:
    """Return the bytes of all packs, and those of the frames that some entry needs of them."""
    repository, needed = chain.repository, dict[tuple[str, int], int]()
    for backup_id in repository.catalogue.ids():
        for pack in decode_packs(repository.store.get(f"backups/{backup_id}/backup.json").splitlines(keepends=True)):
            needed |= {(pack.name, frame.offset): frame.stored_size_bytes for frame in pack}
    return sum(pack.size_bytes for pack in list_packs(chain.place.store)), sum(needed.values())


@pytest.mark.parametrize("dense", [4, 0])
def test_a_year_of_backups_stays_bounded(tmp_path: Path, dense: int) -> None:
    days = 365 if "PGWAL_RANDOM_ROUNDS" in os.environ else 40
    rules = RetentionRules(periods={Period.DAILY: 7, Period.WEEKLY: 4, Period.MONTHLY: 12})
    with tiny_frames(dense):
        chain = GrowingChain(memory(tmp_path), FORMATS["packed"], Random(2), step_s=86400)
        chain.full()
        for day in range(days):
            last = chain.incremental()
            expire(ExpireRequest(chain.place, rules, merge=True))
            stored, needed = sizes(chain)
            assert stored < 2.5 * needed, day
        assert len(chain.repository.catalogue.ids()) <= 7 + 4 + 12 + 1
        assert stored_problems(chain.place) == []
        backup_id = chain.repository.catalogue.ids()[-1]
        assert backup_id.partition("_")[0] == last.partition("_")[0]
        assert chain.combined(backup_id, tmp_path / "combined") == chain.expected(last)
