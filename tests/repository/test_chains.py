"""What a chain holds is the same from any place; what only files can do is asked for, and refused elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from keeping.stored_repository import SECOND, build_repository
from repository.places import PLACES, local
from support.fate import Fate
from support.faulty_store import FaultyPlace

from pgwal.disk.copy_method import CopyMethod
from pgwal.engine.combine import CombineRequest, combine_backups
from pgwal.engine.rebuild_options import RebuildOptions
from pgwal.engine.verify import VerifyRequest, verify
from pgwal.errors import TargetError
from pgwal.repository.memory import MemoryPlace
from pgwal.repository.place import Place


@pytest.fixture(params=[*PLACES, "without files"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "without files":
        return FaultyPlace(local(tmp_path), Fate())
    return PLACES[request.param](tmp_path)


def contents(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
        if path.name != "backup_manifest"
    }


def test_a_chain_is_combined_alike(place: Place, tmp_path: Path) -> None:
    build_repository(place)
    report = combine_backups(CombineRequest(place, SECOND, tmp_path / "combined"))
    files = tmp_path / "files"
    files.mkdir()
    build_repository(local(files))
    expected = combine_backups(CombineRequest(local(files), SECOND, tmp_path / "expected"))
    assert contents(tmp_path / "combined") == contents(tmp_path / "expected")
    assert (report.bytes_read, report.file_count) == (expected.bytes_read, expected.file_count)
    assert verify(VerifyRequest(place)).problems == []


def test_damage_is_found(place: Place) -> None:
    build_repository(place)
    damaged, missing, extra = (f"backups/{SECOND}/data/{name}" for name in ("base/5/16385", "PG_VERSION", "extra"))
    place.store.put(damaged, bytes(8192), replace=True)
    place.store.delete(missing)
    place.store.put(extra, b"")
    found = {problem.path: problem.message for problem in verify(VerifyRequest(place)).problems}
    assert found == {
        damaged: "it is not what was stored: its digest does not match",
        missing: "it is missing",
        extra: "it is in no list of the backup",
    }


@pytest.mark.parametrize("method", [CopyMethod.LINK, CopyMethod.CLONE, CopyMethod.COPY_FILE_RANGE])
def test_what_is_no_file_is_copied_alone(tmp_path: Path, method: CopyMethod) -> None:
    place = MemoryPlace()
    build_repository(place)
    request = CombineRequest(place, SECOND, tmp_path / "combined", options=RebuildOptions(method))
    with pytest.raises(TargetError, match="no files of this machine, which --") as raised:
        combine_backups(request)
    assert raised.value.hint == "Use --copy: it reads what is stored in packs, too."
