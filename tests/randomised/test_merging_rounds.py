"""Merges in a row under load, in each kind of repository; PGWAL_RANDOM_ROUNDS has all kinds, and thirty merges each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fix_servers import REQUIRED_MAJOR, find_installation
from randomised.merging_rounds import KINDS, MergingRound
from randomised.rounds import major_of, round_directory

from pgwal_cli.server_installation import make_reachable

IS_LONG = "PGWAL_RANDOM_ROUNDS" in os.environ
FIRST_SEED = int(os.environ.get("PGWAL_RANDOM_SEED") or 1)


@pytest.mark.parametrize("kind", KINDS if IS_LONG else ["packed"])
def test_merges_in_a_row(kind: str, module_scratch: Path) -> None:
    seed = FIRST_SEED + KINDS.index(kind)
    found = find_installation(major_of(seed) if IS_LONG else REQUIRED_MAJOR)
    if found.installation is None:
        pytest.skip(found.origin)
    installation = make_reachable(found.installation, module_scratch)
    with round_directory(seed) as directory:
        MergingRound(seed, kind, installation, directory, merges=30 if IS_LONG else 3).play()
