"""What ``restore --delta --dry-run`` says of a directory, the restore then does; it changes no byte of it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from fix_formats import PACKED_FORMAT
from pgwal_process import assert_failed, run_pgwal, succeed
from restore.damaged_directory import Damage, tree
from restore.test_delta import LARGE, LOCATION, OID, Chain, build_chain, flip
from seeds import new_seed

from pgwal.backup.pack_table import FRAME_SIZE
from pgwal.relation import BLOCK_SIZE


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return build_chain(tmp_path_factory.mktemp("chain"), PACKED_FORMAT)


def state(directory: Path) -> list[tuple[object, ...]]:
    """Return all that could change: of each path what ``tree`` has, and inode, owner and times."""
    found = []
    for path, what in sorted(tree(directory).items()):
        status = (directory / path).lstat()
        found.append((path, what, status.st_ino, status.st_uid, status.st_mtime_ns, status.st_ctime_ns))
    return found


def words(chain: Chain, target: Path) -> list[str | Path]:
    mapping = f"{LOCATION}={chain.tablespace(target)}"
    return ["--repo", chain.made.path, "-D", target, "-T", mapping, "-N", "--delta"]


def forecast(chain: Chain, target: Path, backup: str) -> dict[str, Any]:
    """Forecast, and see that nothing has changed."""
    before = [state(place) for place in (target, chain.tablespace(target))]
    document = json.loads(succeed("restore", backup, *words(chain, target), "--dry-run", "--json"))
    succeed("restore", backup, *words(chain, target), "--dry-run")
    assert [state(place) for place in (target, chain.tablespace(target))] == before
    found: dict[str, Any] = document["overwriting"]
    return found


def test_what_is_kept_written_and_removed(chain: Chain, tmp_path: Path) -> None:
    target, backup = tmp_path / "target", chain.made.ids[0]
    chain.restore(target, backup, delta=False)
    as_it_is = forecast(chain, target, backup)
    assert (as_it_is["new_file_count"], as_it_is["removed_file_count"], as_it_is["removed_bytes"]) == (0, 0, 0)
    printed = succeed("restore", backup, *words(chain, target), "--dry-run")
    assert "Removed" not in printed
    anew = "backup_label, global/pg_control, postgresql.auto.conf, recovery.signal"
    assert f"Made anew in any case: {anew}.\n" in printed
    flip(target / LARGE, 5)
    (target / "base/5/16385").unlink()
    (target / "foreign").write_bytes(b"x" * 1000)
    (target / "pg_stat").symlink_to(tmp_path)
    # Of a standby, and of a recovery that has read its label: there is none of them in what is restored.
    (target / "standby.signal").touch()
    (target / "backup_label").unlink()
    (target / "tablespace_map").mkdir()
    found = forecast(chain, target, backup)
    assert found["kept_file_count"] == as_it_is["kept_file_count"] - 2
    # The one with another bit in the place of the label.
    assert found["changed_file_count"] == as_it_is["changed_file_count"]
    assert (found["new_file_count"], found["removed_link_count"], found["removed_directory_count"]) == (2, 1, 1)
    assert (found["removed_file_count"], found["removed_bytes"]) == (2, 1000)
    # A frame, the end of that file, whose frame has other files, too, and proves nothing alone, and what is gone.
    end_bytes = 600 * BLOCK_SIZE % FRAME_SIZE
    assert found["written_bytes"] == as_it_is["written_bytes"] + FRAME_SIZE + end_bytes + 40 * BLOCK_SIZE
    printed = succeed("restore", backup, *words(chain, target), "--dry-run")
    assert "is a cluster of PostgreSQL 18" in printed
    assert "Removed are 2 files (1000 bytes), 1 directories and 1 links" in printed
    named = printed.partition("does not have: ")[2].partition("\n")[0]
    assert set(named.split(", ")) == {"foreign", "pg_stat", "standby.signal", "tablespace_map"}
    assert "Made anew in any case: global/pg_control, postgresql.auto.conf, recovery.signal.\n" in printed
    assert "2 are new" in printed


@pytest.mark.parametrize("number", range(6))
def test_of_random_damage(chain: Chain, tmp_path: Path, number: int) -> None:
    rng = random.Random(new_seed() + number)
    target = tmp_path / "target"
    before, after = rng.choices(chain.made.ids, k=2)
    chain.restore(target, before, delta=False)
    damage = Damage(target, tmp_path / "outside", rng)
    done = damage.do(rng.choice((1, 4)))
    print(f"{before} to {after}: {done}")
    found = forecast(chain, target, after)
    report = json.loads(succeed("restore", after, *words(chain, target), "--json"))
    damage.require_outside_unchanged()
    # What no digest proves may turn out to be right; of settings and the label there is no forecast to the byte.
    assert found["kept_bytes"] <= report["kept_bytes"]
    assert report["written_bytes"] <= found["written_bytes"] + BLOCK_SIZE


def test_what_is_refused_is_refused_before(chain: Chain, tmp_path: Path) -> None:
    target = tmp_path / "target"
    chain.restore(target, chain.made.ids[0], delta=False)
    (target / "global/pg_control").write_bytes(b"\1" * 8192)
    assert_failed(run_pgwal("restore", *words(chain, target), "--dry-run"), 1, "is of the cluster with system")
    empty = json.loads(succeed("restore", *words(chain, tmp_path / "none"), "--dry-run", "--json"))
    assert empty["overwriting"] is None
    assert not (tmp_path / "none").exists()
    assert (target / f"pg_tblspc/{OID}").is_symlink()
