"""Rounds of random load, backups and restores; PGWAL_RANDOM_ROUNDS and PGWAL_RANDOM_SEED make them more and others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fix_servers import REQUIRED_MAJOR, find_installation
from randomised.rounds import Round, major_of, round_directory

from pgwal_cli.server_installation import make_reachable

ROUNDS = int(os.environ.get("PGWAL_RANDOM_ROUNDS") or 20)
FIRST_SEED = int(os.environ.get("PGWAL_RANDOM_SEED") or 1)


def name_of(seed: int) -> str:
    # What is before the colons is the scope by which pytest-xdist spreads tests with --dist loadscope.
    return f"pg{major_of(seed)}::{seed}"


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + ROUNDS), ids=name_of)
def test_round(seed: int, module_scratch: Path) -> None:
    major = major_of(seed)
    found = find_installation(major)
    if found.installation is None and major == REQUIRED_MAJOR:
        pytest.fail(f"PostgreSQL {major} must be there: {found.origin}", pytrace=False)
    if found.installation is None:
        pytest.skip(f"PostgreSQL {major}: {found.origin}")
    installation = make_reachable(found.installation, module_scratch)
    with round_directory(seed) as directory:
        print(f"again: python tests/randomised/run_rounds.py --seed {seed}; kept if this fails: {directory}")
        Round(seed, installation, directory).play()
