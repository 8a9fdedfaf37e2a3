"""Seeds of random tests: new ones in each run by hand, in CI always the same, shown with a test that failed."""

from __future__ import annotations

import os
import random
import zlib

VARIABLE = "PGWAL_SEED"


def new_seed() -> int:
    """Return what the random choices of the test that runs are made from, and print it; PGWAL_SEED repeats a run.

    In CI a change is judged by what it changes: each test has a seed of its own there, which stays.
    """
    if VARIABLE in os.environ:
        seed = int(os.environ[VARIABLE])
    elif "CI" in os.environ:
        seed = zlib.crc32(os.environ["PYTEST_CURRENT_TEST"].partition(" (")[0].encode())
    else:
        seed = random.SystemRandom().randrange(1 << 32)
    print(f"{VARIABLE}={seed}")
    return seed
