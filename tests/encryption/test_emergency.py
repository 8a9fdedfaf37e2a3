"""What docs/encryption.md says for an emergency: the program there, age, and nothing of pgwal."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from encryption.golden_objects import DIRECTORY, FILES, OBJECTS, golden
from keeping.stored_repository import FIRST

from pgwal.backup.entry_document import decode_packs
from pgwal.backup.pack_use import WornPack
from pgwal.encryption.key_files import identities_of
from pgwal.encryption.key_sources import KeySources
from pgwal.repository.frame_tables import FrameTables
from pgwal.repository.pack_rewriting import rewrite_packs
from pgwal.repository.repository import Repository

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "encryption.md"


def opened(tmp_path: Path, *wanted: str, repository: Path = DIRECTORY) -> bytes:
    (program,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert "pgwal." not in program.replace("pgwal.json", "")
    (tmp_path / "emergency.py").write_text(program)
    identity = tmp_path / "identity.txt"
    shutil.copyfile(DIRECTORY / "identity.txt", identity)
    # In isolation: nothing of this project can be imported.
    command = [sys.executable, "-I", str(tmp_path / "emergency.py"), str(repository), str(identity), *wanted]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60).stdout


@pytest.mark.skipif(shutil.which("age") is None, reason="age is not installed: apt-get install age")
@pytest.mark.parametrize("name", [name for name in OBJECTS if name.startswith("wal/")])
def test_objects_are_opened(tmp_path: Path, name: str) -> None:
    assert opened(tmp_path, name) == OBJECTS[name]


@pytest.mark.skipif(shutil.which("age") is None, reason="age is not installed: apt-get install age")
@pytest.mark.parametrize("path", [path for path in FILES if path != "backup_label"])
def test_files_are_opened(tmp_path: Path, path: str) -> None:
    assert opened(tmp_path, FIRST, path) == FILES[path]


@pytest.mark.skipif(shutil.which("age") is None, reason="age is not installed: apt-get install age")
def test_files_are_opened_whose_frames_were_moved(tmp_path: Path) -> None:
    """Twice, by who has no identity."""
    place = golden(identity=False)
    repository = Repository.open(place)
    packs = decode_packs(repository.store.get(f"backups/{FIRST}/backup.json").splitlines(keepends=True))
    for _ in range(2):
        with repository.lock_backups():
            worn = [WornPack(pack.name, pack.size_bytes, list(pack)) for pack in packs]
            gone = rewrite_packs(repository.place, worn, lambda _: None)
            repository.catalogue.remove_packs([pack.name for pack in gone])
        tables = FrameTables(repository.store)
        packs = [pack for name in tables.names() if (pack := tables.read().pack(name)) and pack not in packs]
    for name, _ in place.store.list():
        path = tmp_path / "repository" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(place.store.get(name))
    assert len(list((tmp_path / "repository" / "packs").glob("*/*"))) == 1
    for path in FILES.keys() - {"backup_label"}:
        assert opened(tmp_path, FIRST, path, repository=tmp_path / "repository") == FILES[path]


@pytest.mark.skipif(shutil.which("age-keygen") is None, reason="age is not installed: apt-get install age")
def test_an_identity_that_age_made_is_one(tmp_path: Path) -> None:
    path = tmp_path / "identity.txt"
    made = subprocess.run(["age-keygen", "-o", str(path)], check=True, capture_output=True, text=True)
    (identity,) = identities_of(KeySources(path))
    assert identity.recipient == made.stderr.split()[-1]
