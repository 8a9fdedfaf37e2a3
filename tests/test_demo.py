"""``pgwal demo``: it ends with equal tables, and leaves nothing behind, interrupted or not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from pgwal_process import PGWAL
from support.json_documents import validate

SMALL = ["demo", "--pgdata-size", "10", "--rounds", "1"]


def start_demo(directory: Path, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PGWAL, *SMALL, *args],
        env={**os.environ, "TMPDIR": str(directory)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_below(directory: Path) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if str(directory) in line]


@pytest.mark.parametrize("options", [["--format", "plain"], ["--format", "packed"], ["--repo", "s3"]], ids=" ".join)
def test_the_restored_server_equals_the_source(guarded_scratch: Path, options: list[str]) -> None:
    demo = start_demo(guarded_scratch, "--json", *options)
    output, messages = demo.communicate(timeout=300)
    assert demo.returncode == 0, messages
    report = json.loads(output)
    validate("demo", report)
    assert report["equal"]
    backups = [step for step in report["steps"] if step["copied_block_count"] is not None]
    assert [step["step"].split(",")[0] for step in backups] == ["full backup", "incremental 1", "incremental 2"]
    assert all(0 < step["copied_block_count"] < step["block_count"] for step in backups[1:])
    assert list(guarded_scratch.iterdir()) == []
    assert processes_below(guarded_scratch) == []


@pytest.mark.parametrize("kind", ["directory", "s3"])
def test_an_interrupted_demo_cleans_up(guarded_scratch: Path, kind: str) -> None:
    demo = start_demo(guarded_scratch, "--repo", kind)
    assert demo.stdout is not None
    for line in demo.stdout:
        if "incremental 1" in line:
            break
    time.sleep(0.5)
    demo.send_signal(signal.SIGTERM)
    _, messages = demo.communicate(timeout=120)
    assert demo.returncode == 128 + signal.SIGTERM
    assert messages.endswith("pgwal: interrupted\n")
    assert list(guarded_scratch.iterdir()) == []
    assert processes_below(guarded_scratch) == []
