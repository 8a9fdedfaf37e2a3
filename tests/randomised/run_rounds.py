"""Play rounds by hand, as many as wanted: ``python tests/randomised/run_rounds.py --rounds 100 --seed 1000``.

Each round has the seed after that of the one before.  A round that fails leaves its directory behind, with what it did
in events.log; the same seed with ``--rounds 1`` plays it again.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from fix_servers import find_installation
from randomised.rounds import Round, major_of, round_directory

from pgwal_cli.throwaway_server import make_reachable


def play(seed: int, restore_count: int) -> bool:
    """Play one round and tell whether it was played to its end; says why when not."""
    found = find_installation(major_of(seed))
    if found.installation is None:
        print(f"== seed {seed}: not played: PostgreSQL {major_of(seed)}: {found.origin}", flush=True)
        return True
    start_s = time.monotonic()
    try:
        with round_directory(seed) as directory:
            Round(seed, make_reachable(found.installation, directory), directory, restore_count).play()
    except Exception:
        traceback.print_exc()
        print(f"== seed {seed}: FAILED; play it again with --seed {seed}", flush=True)
        return False
    print(f"== seed {seed}: passed in {time.monotonic() - start_s:.1f} s", flush=True)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--restores", type=int, default=2, help="how many restores end a round")
    parser.add_argument("--majors", type=int, nargs="*", help="only rounds for these versions")
    arguments = parser.parse_args()
    seeds = range(arguments.seed, arguments.seed + arguments.rounds)
    chosen = [seed for seed in seeds if not arguments.majors or major_of(seed) in arguments.majors]
    failed = [seed for seed in chosen if not play(seed, arguments.restores)]
    print(f"{len(chosen)} rounds, {len(failed)} failed{': ' if failed else ''}{', '.join(map(str, failed))}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
