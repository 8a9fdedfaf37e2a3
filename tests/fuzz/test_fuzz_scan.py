"""The fuzzer of the scanner, for a short time; PGWAL_FUZZ_SECONDS and PGWAL_FUZZ_SEED make it longer and different."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz_scan.py")
SKIPPED = 77


@pytest.mark.parametrize("options", [[], ["--sanitize"]], ids=["plain", "sanitized"])
def test_fuzz_scan(options: list[str]) -> None:
    seconds, seed = os.environ.get("PGWAL_FUZZ_SECONDS", "8"), os.environ.get("PGWAL_FUZZ_SEED", "1")
    command = [sys.executable, str(SCRIPT), "--seconds", seconds, "--seed", seed, *options]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode == SKIPPED:
        pytest.skip(finished.stderr.strip())
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert " cases of seed " in finished.stdout
