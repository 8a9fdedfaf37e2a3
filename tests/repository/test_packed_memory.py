"""Packed backups are written and read in bounded memory, however many files they have, and however long these are.

PGWAL_PACKED_FILES and PGWAL_PACKED_FRAMES say how many there are: 1000000 is a million files, 1048576 frames are those
of a file of a terabyte.  What they are otherwise is a sixteenth of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
FILES = int(os.environ.get("PGWAL_PACKED_FILES", "62500"))
FRAMES = int(os.environ.get("PGWAL_PACKED_FRAMES", "65536"))
BASE_MB = 60.0
FULL_MB = 250.0
"""For a million of either; what is fewer takes the less above the base."""


def peak_mb(directory: Path, kind: str, act: str, count: int) -> float:
    """Run it in a process of its own, and return the most memory that it had."""
    command = [sys.executable, "-m", "support.packed_load", str(directory), kind, act, str(count)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    return float(subprocess.check_output(command, env=environment, text=True))


@pytest.mark.parametrize(("kind", "count"), [("files", FILES), ("frames", FRAMES)])
def test_many_files_and_many_frames(tmp_path: Path, kind: str, count: int) -> None:
    most_mb = BASE_MB + (FULL_MB - BASE_MB) * count / 1_000_000
    assert peak_mb(tmp_path, kind, "write", count) < most_mb
    assert peak_mb(tmp_path, kind, "read", count) < most_mb


def test_frames_on_their_way_are_few(tmp_path: Path) -> None:
    """Four threads that store what cannot be compressed: some frames of 1 MiB each, and no packs."""
    assert peak_mb(tmp_path, "mebibytes", "write", 600) < 100
