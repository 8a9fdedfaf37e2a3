"""What docs/encryption.md says for an emergency: the program there, age, and nothing of pgwal."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from encryption.golden_objects import DIRECTORY, FILES, OBJECTS
from keeping.stored_repository import FIRST

from pgwal.encryption.key_files import identities_of
from pgwal.encryption.key_sources import KeySources

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "encryption.md"


def opened(tmp_path: Path, *wanted: str) -> bytes:
    (program,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert "pgwal." not in program.replace("pgwal.json", "")
    (tmp_path / "emergency.py").write_text(program)
    identity = tmp_path / "identity.txt"
    shutil.copyfile(DIRECTORY / "identity.txt", identity)
    # In isolation: nothing of this project can be imported.
    command = [sys.executable, "-I", str(tmp_path / "emergency.py"), str(DIRECTORY), str(identity), *wanted]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60).stdout


@pytest.mark.skipif(shutil.which("age") is None, reason="age is not installed: apt-get install age")
@pytest.mark.parametrize("name", [name for name in OBJECTS if name.startswith("wal/")])
def test_objects_are_opened(tmp_path: Path, name: str) -> None:
    assert opened(tmp_path, name) == OBJECTS[name]


@pytest.mark.skipif(shutil.which("age") is None, reason="age is not installed: apt-get install age")
@pytest.mark.parametrize("path", [path for path in FILES if path != "backup_label"])
def test_files_are_opened(tmp_path: Path, path: str) -> None:
    assert opened(tmp_path, FIRST, path) == FILES[path]


@pytest.mark.skipif(shutil.which("age-keygen") is None, reason="age is not installed: apt-get install age")
def test_an_identity_that_age_made_is_one(tmp_path: Path) -> None:
    path = tmp_path / "identity.txt"
    made = subprocess.run(["age-keygen", "-o", str(path)], check=True, capture_output=True, text=True)
    (identity,) = identities_of(KeySources(path))
    assert identity.recipient == made.stderr.split()[-1]
