"""A restore into what is there gives what a fresh one gives, byte for byte, and fetches no more than it has to.

PGWAL_DELTA_ROUNDS is how many directories are damaged in each format; with PGWAL_LARGE_TESTS=1 there are more.
"""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from core.test_control_file import build
from fix_formats import PACKED_FORMAT
from pgwal_process import assert_failed, run_pgwal, succeed
from restore.damaged_directory import Damage, Tree, tree
from restore.made_repository import Blocks, Content, MadeRepository
from seeds import new_seed

from pgwal.backup.exclusion import INCOMPLETE_NAME
from pgwal.backup.pack_table import FRAME_SIZE
from pgwal.control_file import CONTROL_FILE_PATH
from pgwal.engine.overwritten import Overwriting
from pgwal.engine.rebuild_options import RebuildOptions
from pgwal.engine.rebuild_report import RebuildReport
from pgwal.engine.restore import RestoreRequest, restore_backup
from pgwal.errors import TargetError
from pgwal.relation import BLOCK_SIZE
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.storage_format import StorageFormat

ROUNDS = int(os.environ.get("PGWAL_DELTA_ROUNDS", "150" if "PGWAL_LARGE_TESTS" in os.environ else "10"))
OID, LOCATION = 16400, "/where/it/was"
IN_TABLESPACE = f"pg_tblspc/{OID}/PG_18_202506291/5"
LARGE = "base/5/16384"
SIZES = {LARGE: 600, "base/5/16385": 40, "base/5/16386": 3, f"{IN_TABLESPACE}/17000": 200, f"{IN_TABLESPACE}/17001": 5}
"""In blocks, of the files that change block by block."""
CONTROL = build(18)


def random_block(rng: random.Random) -> bytes:
    """Return a block that compresses to a third, of zeros now and then."""
    return bytes(BLOCK_SIZE) if rng.random() < 0.1 else rng.randbytes(BLOCK_SIZE // 3).ljust(BLOCK_SIZE, b"\1")


@dataclass
class Chain:
    """A repository with a full backup and incrementals, and the place to which its tablespace is restored."""

    scratch: Path
    made: MadeRepository
    count: int = 0
    places: dict[Path, str] = field(default_factory=dict)

    def tablespace(self, target: Path) -> Path:
        place = target.with_name(f"{target.name}.tablespace")
        self.places[place] = LOCATION
        return place

    def restore(self, target: Path, backup: str, *, delta: bool, jobs: int = 2) -> RebuildReport:
        self.count += 1
        request = RestoreRequest(
            LocalPlace(self.made.path),
            backup,
            target,
            "false",
            tablespaces={LOCATION: str(self.tablespace(target))},
            options=RebuildOptions(jobs=jobs, sync=self.count % 4 == 0),
            warns=False,
            delta=delta,
        )
        return restore_backup(request)

    def tree(self, target: Path) -> tuple[Tree, Tree]:
        return tree(target, self.places), tree(self.tablespace(target))


def build_chain(scratch: Path, storage_format: StorageFormat, seed: int = 1) -> Chain:
    """Make a chain of four backups, in which files grow, are truncated, appear, and go."""
    rng = random.Random(seed)
    made = MadeRepository(scratch / "repo", storage_format=storage_format)
    state = {path: [random_block(rng) for _ in range(count)] for path, count in SIZES.items()}
    whole = {f"base/5/{number}": rng.randbytes(rng.randrange(20_000)) for number in range(18_000, 18_020)}
    for number in range(4):
        files: dict[str, Content] = {
            **whole,
            CONTROL_FILE_PATH: CONTROL,
            "global/1262": rng.randbytes(8192),
            "base/5/16386_fsm": b"" if number % 2 else rng.randbytes(24576),
            "postgresql.conf": b"# as of %d\n" % number,
            "postgresql.auto.conf": b"work_mem = 4MB\n",
            f"pg_xact/000{number}": rng.randbytes(8192),
        }
        for path, blocks in state.items():
            before = len(blocks)
            if number and rng.random() < 0.5:
                del blocks[max(1, before - rng.randrange(80)) :]
            kept = len(blocks)
            changed = set(rng.sample(range(kept), rng.choice((0, 1, kept // 10)))) if number else set[int]()
            blocks += [random_block(rng) for _ in range(rng.choice((0, 0, 2, 150)))] if number else []
            for block in changed:
                blocks[block] = random_block(rng)
            listed = {block: blocks[block] for block in sorted({*changed, *range(kept, len(blocks))})}
            files[path] = Blocks(kept, listed) if number else b"".join(blocks)
        made.add(files, tablespaces={OID: LOCATION})
        del whole[f"base/5/{18_000 + number}"]
        whole[f"base/5/{19_000 + number}"] = rng.randbytes(5000)
    return Chain(scratch, made)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, storage_format: StorageFormat) -> Chain:
    return build_chain(tmp_path_factory.mktemp("chain"), storage_format)


def clear(chain: Chain, *targets: Path) -> None:
    for target in targets:
        os.system(f"chmod -R u+rwx {target} 2>/dev/null")
        shutil.rmtree(target, ignore_errors=True)
        shutil.rmtree(chain.tablespace(target), ignore_errors=True)


@pytest.mark.parametrize("number", range(ROUNDS))
def test_what_is_there_becomes_what_a_fresh_restore_is(chain: Chain, tmp_path: Path, number: int) -> None:
    rng = random.Random(new_seed() + number)
    target, fresh = tmp_path / "target", tmp_path / "fresh"
    before, after = rng.choices(chain.made.ids, k=2)
    chain.restore(fresh, after, delta=False)
    chain.restore(target, before, delta=False)
    damage = Damage(target, tmp_path / "outside", rng)
    done = damage.do(rng.choice((0, 1, 3, 10)))
    print(f"{before} to {after}: {done}")
    report = chain.restore(target, after, delta=True, jobs=rng.choice((1, 3)))
    assert chain.tree(target) == chain.tree(fresh)
    damage.require_outside_unchanged()
    if before == after and not done:
        # postgresql.auto.conf, backup_label and pg_control alone come anew.
        assert report.bytes_written < 20_000
    again = chain.restore(target, after, delta=True)
    assert chain.tree(target) == chain.tree(fresh)
    assert again.bytes_written == 0
    clear(chain, target, fresh)


def test_an_empty_directory_and_none(chain: Chain, tmp_path: Path) -> None:
    fresh, empty, absent = tmp_path / "fresh", tmp_path / "empty", tmp_path / "absent"
    chain.restore(fresh, chain.made.ids[-1], delta=False)
    empty.mkdir(mode=0o755)
    for target in (empty, absent):
        report = chain.restore(target, chain.made.ids[-1], delta=True)
        assert chain.tree(target) == chain.tree(fresh)
        assert report.bytes_kept == 0
    clear(chain, fresh, empty, absent)


def flip(path: Path, *offsets: int) -> None:
    with path.open("r+b") as file:
        for offset in offsets:
            file.seek(offset)
            byte = file.read(1)
            file.seek(offset)
            file.write(bytes([byte[0] ^ 1]))


def test_only_what_differs_is_fetched(tmp_path: Path) -> None:
    """Of packs a frame is fetched where one bit of it differs, of the headers of incremental files the first one."""
    chain = build_chain(tmp_path, PACKED_FORMAT)
    target = tmp_path / "target"
    full, latest = chain.made.ids[0], chain.made.ids[-1]
    fresh = chain.restore(target, full, delta=False)
    assert fresh.bytes_fetched > 2 << 20
    small = chain.restore(target, full, delta=True)
    assert small.bytes_fetched < 300_000, "pg_control, the label and settings, in frames that they share"
    flip(target / LARGE, 5)
    one = chain.restore(target, full, delta=True)
    assert one.bytes_written == BLOCK_SIZE
    assert one.bytes_fetched <= small.bytes_fetched + FRAME_SIZE
    assert one.bytes_fetched < fresh.bytes_fetched / 2
    # What follows them is not read ahead.
    flip(target / LARGE, 5, FRAME_SIZE + 5)
    two = chain.restore(target, full, delta=True)
    assert two.bytes_fetched - small.bytes_fetched < 2.5 * (one.bytes_fetched - small.bytes_fetched)
    before = chain.restore(target, latest, delta=True)
    unchanged = chain.restore(target, latest, delta=True)
    assert (unchanged.bytes_written, before.bytes_written > 0) == (0, True)


def test_a_backup_whose_frames_have_no_digests_of_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those that were taken before: files that differ are fetched whole."""
    from pgwal.repository import frame_codec

    encode = frame_codec.FrameEncoder.encode
    with monkeypatch.context() as patched:
        patched.setattr(frame_codec.FrameEncoder, "encode", lambda *args: encode(*args)._replace(content_digest=None))
        chain = build_chain(tmp_path, PACKED_FORMAT)
    assert b'"frames"' in (chain.made.path / f"backups/{chain.made.ids[0]}/backup.json").read_bytes()
    target, fresh = tmp_path / "target", tmp_path / "fresh"
    chain.restore(fresh, chain.made.ids[-1], delta=False)
    chain.restore(target, chain.made.ids[0], delta=False)
    flip(target / LARGE, 3, 3 << 20)
    report = chain.restore(target, chain.made.ids[-1], delta=True)
    assert chain.tree(target) == chain.tree(fresh)
    assert report.bytes_kept > report.bytes_written


@pytest.mark.only_format("plain")
def test_files_of_a_repository_that_were_linked_are_not_written_to(chain: Chain, tmp_path: Path) -> None:
    target, fresh = tmp_path / "target", tmp_path / "fresh"
    words = ["--repo", chain.made.path, "-T", f"{LOCATION}={chain.tablespace(target)}", "-N"]
    stored = tree(chain.made.path)
    succeed("restore", chain.made.ids[0], *words, "-D", target, "--link")
    assert (target / LARGE).stat().st_nlink == 2
    report = chain.restore(target, chain.made.ids[2], delta=True)
    chain.restore(fresh, chain.made.ids[2], delta=False)
    assert chain.tree(target) == chain.tree(fresh)
    assert (target / LARGE).stat().st_nlink == 1
    assert tree(chain.made.path) == stored
    assert report.bytes_written > 0
    clear(chain, target, fresh)


class Scene:
    """A directory to restore into, and what the command line says of it."""

    def __init__(self, chain: Chain, target: Path) -> None:
        self.chain = chain
        self.target = target
        self.words: list[str | Path] = ["--repo", chain.made.path, "-D", target, "--delta", "-N"]
        self.words += ["-T", f"{LOCATION}={chain.tablespace(target)}"]

    def refused(self, *said: str) -> None:
        """See that a restore is refused, and has changed nothing."""
        before = self.chain.tree(self.target)
        outcome = run_pgwal("restore", *self.words)
        assert_failed(outcome, 1, *said)
        assert self.chain.tree(self.target) == before


@pytest.fixture
def scene(chain: Chain, tmp_path: Path) -> Scene:
    found = Scene(chain, tmp_path / "target")
    chain.restore(found.target, chain.made.ids[1], delta=False)
    return found


@pytest.mark.only_format("packed")
def test_what_is_no_data_directory_of_the_cluster_is_refused(scene: Scene) -> None:
    control = scene.target / CONTROL_FILE_PATH
    content = control.read_bytes()
    control.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    scene.refused("is of the cluster with system identifier")
    control.unlink()
    scene.refused("no data directory", "empty this one")
    # What an older pgwal, or somebody else, left there proves nothing.
    for mark in (b"", b"pgwal: backup 20261122T101530Z_full is not all here\n", b"x" * 8192, content[:4000]):
        (scene.target / INCOMPLETE_NAME).write_bytes(mark)
        scene.refused("no data directory")
    mark = b'pgwal: x\n{"system_identifier": "%d", "tablespaces": {}}\n'
    (scene.target / INCOMPLETE_NAME).write_bytes(mark % 7)
    scene.refused("system identifier 7")
    control.write_bytes(content)
    scene.refused("system identifier 7")
    control.unlink()
    for right in (mark % 7_000_000_000_000_000_001, content):
        (scene.target / INCOMPLETE_NAME).write_bytes(right)
        succeed("restore", *scene.words)
        assert not (scene.target / INCOMPLETE_NAME).exists()
        control.unlink()


@pytest.mark.only_format("plain")
def test_places_that_are_somebody_elses_are_refused(scene: Scene, tmp_path: Path) -> None:
    tablespace, link = scene.chain.tablespace(scene.target), scene.target / f"pg_tblspc/{OID}"
    link.unlink()
    scene.refused("is not empty, and no tablespace of", "-T")
    link.symlink_to(tablespace)
    data = tmp_path / "copy/backups/20270101T000000Z_full/data"
    data.parent.mkdir(parents=True)
    scene.target.rename(data)
    (data.parent / "backup.json").touch()
    scene.target.symlink_to(data)
    scene.refused("is a backup in a repository")
    (data.parent / "backup.json").unlink()
    inside = Scene(Chain(tmp_path, scene.chain.made), scene.target)
    scene.chain.made.path.rename(data / "repo")
    try:
        inside.words[1] = data / "repo"
        outcome = run_pgwal("restore", *inside.words)
        assert_failed(outcome, 1, "the repository .* lies in")
    finally:
        (data / "repo").rename(scene.chain.made.path)
    other_version = tablespace / "PG_17_202406281/5"
    other_version.mkdir(parents=True)
    (other_version / "1").write_bytes(b"of another cluster")
    succeed("restore", *scene.words)
    assert (other_version / "1").read_bytes() == b"of another cluster"


@pytest.mark.only_format("packed")
def test_nothing_is_changed_before_it_is_confirmed(scene: Scene, tmp_path: Path) -> None:
    (scene.target / "foreign").write_bytes(b"x" * 1000)
    (scene.target / "pg_stat").symlink_to(tmp_path)
    before = scene.chain.tree(scene.target)
    seen: list[Overwriting] = []

    def refuse(overwriting: Overwriting) -> None:
        seen.append(overwriting)
        raise TargetError("no")

    request = RestoreRequest(
        LocalPlace(scene.chain.made.path),
        None,
        scene.target,
        "false",
        tablespaces={LOCATION: str(scene.chain.tablespace(scene.target))},
        delta=True,
        confirm=refuse,
    )
    with pytest.raises(TargetError, match="no"):
        restore_backup(request)
    assert scene.chain.tree(scene.target) == before
    (overwriting,) = seen
    assert overwriting.unwanted.links == {"pg_stat": str(tmp_path)}
    assert "foreign" in overwriting.unwanted.some
    assert "PostgreSQL 18" in overwriting.description
    outcome = run_pgwal("restore", *scene.words, "--json")
    assert outcome.code == 0, outcome.stderr
    assert "is a cluster of PostgreSQL 18" in outcome.stderr
    assert str(tmp_path) in outcome.stderr


@pytest.mark.only_format("packed")
def test_one_at_a_time(scene: Scene) -> None:
    from pgwal.disk.directory_lock import DirectoryLock

    with DirectoryLock(scene.target):
        scene.refused("another process is restoring into")
    assert (scene.target / CONTROL_FILE_PATH).exists()


def test_ways_that_exclude_each_other(tmp_path: Path) -> None:
    outcome = run_pgwal("restore", "--repo", tmp_path, "-D", tmp_path / "x", "--delta", "--link")
    assert_failed(outcome, 2, "--delta and --link exclude each other")
