"""Play rounds by hand, as many as wanted: ``python tests/randomised/run_rounds.py --rounds 100 --seed 1000 -j 2``.

Each round has the seed after that of the one before.  One round plays here, says what it does, and leaves its directory
behind when it fails, with what it did in events.log.  Several play in processes of their own, with a line for each; of
those that fail a log is kept in the directory of ``--logs``.  The same seed with ``--rounds 1`` plays a round again.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from fix_servers import MAJORS, find_installation
from randomised.rounds import Round, major_of, round_directory

from pgwal_cli.server_installation import make_reachable

LONGEST_SILENCE_S = 600
"""More than anything in a round waits for; how long all of it takes depends on what else the machine does."""
LOOK_S = 1.0
END_S = 60


@dataclass(frozen=True)
class Result:
    """How a round ended, and all that it said."""

    seed: int
    passed: bool
    seconds: float
    output: str

    def __str__(self) -> str:
        steps = re.findall(r"^ *[0-9.]+ (\w+) \.\.\.$", self.output, re.MULTILINE)
        ways = re.findall(r"^ *[0-9.]+ way out: (.*)$", self.output, re.MULTILINE)
        ended = "passed" if self.passed else "FAILED"
        text = f"seed {self.seed} on {major_of(self.seed)}: {ended} in {self.seconds:.1f} s"
        text += "".join(f", {step}" for step in steps) + "".join(f"; way out: {way}" for way in ways)
        if self.passed:
            return text
        reasons = re.findall(r"^(?:\w+(?:\.\w+)*(?:Error|Expired|Exception)).*$", self.output, re.MULTILINE)
        return f"{text}\n    {reasons[-1] if reasons else 'no reason was given'}"


def play_here(seed: int, restore_count: int, *, keep: bool) -> bool:
    """Play one round and tell whether it was played to its end; says why when not."""
    found = find_installation(major_of(seed))
    if found.installation is None:
        print(f"== seed {seed}: not played: PostgreSQL {major_of(seed)}: {found.origin}", flush=True)
        return True
    start_s = time.monotonic()
    try:
        with round_directory(seed, keep=keep) as directory:
            Round(seed, make_reachable(found.installation, directory), directory, restore_count).play()
    except (Exception, KeyboardInterrupt):
        traceback.print_exc(file=sys.stdout)
        print(f"== seed {seed}: FAILED; play it again with --seed {seed}", flush=True)
        return False
    print(f"== seed {seed}: passed in {time.monotonic() - start_s:.1f} s", flush=True)
    return True


def wait_while_it_speaks(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for the end of a process, or until its log has not grown for LONGEST_SILENCE_S."""
    size_bytes, grown_at_s = 0, time.monotonic()
    while process.poll() is None and time.monotonic() - grown_at_s < LONGEST_SILENCE_S:
        with suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_S)
        if log.stat().st_size > size_bytes:
            size_bytes, grown_at_s = log.stat().st_size, time.monotonic()


def play_apart(seed: int, restore_count: int, logs: Path) -> Result:
    """Play one round in a process of its own; keep what it says when it fails."""
    log = logs / f"round-{seed}.log"
    arguments = ["--seed", str(seed), "--restores", str(restore_count), "--discard"]
    start_s = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen([sys.executable, __file__, *arguments], stdout=output, stderr=subprocess.STDOUT)
        wait_while_it_speaks(process, log)
        is_silent = process.poll() is None
        if is_silent:
            # It discards its servers.
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
            process.kill()
    ended = process.wait()
    if is_silent:
        with log.open("a") as output:
            output.write(f"TimeoutError: it said nothing for {LONGEST_SILENCE_S} s; above is where it was ended\n")
    result = Result(seed, ended == 0, time.monotonic() - start_s, log.read_text(errors="replace"))
    if result.passed:
        log.unlink()
    print(result, flush=True)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-j", "--jobs", type=int, default=1, help="how many rounds play at a time")
    parser.add_argument("--restores", type=int, default=2, help="how many restores end a round")
    parser.add_argument("--majors", type=int, nargs="*", default=MAJORS, help="only rounds for these versions")
    parser.add_argument("--logs", type=Path, help="where logs of rounds that fail go; a new directory by default")
    parser.add_argument("--discard", action="store_true", help="leave nothing of a single round that fails")
    arguments = parser.parse_args()
    seeds = range(arguments.seed, arguments.seed + arguments.rounds)
    chosen = [seed for seed in seeds if major_of(seed) in arguments.majors]
    if arguments.rounds == 1:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        return 0 if all(play_here(seed, arguments.restores, keep=not arguments.discard) for seed in chosen) else 1
    logs: Path = arguments.logs or Path(tempfile.mkdtemp(prefix="pgwal-rounds-"))
    logs.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(lambda seed: play_apart(seed, arguments.restores, logs), chosen))
    failed = [result.seed for result in results if not result.passed]
    print(f"{len(chosen)} rounds, {len(failed)} failed{': ' if failed else ''}{', '.join(map(str, failed))}")
    if failed:
        print(f"logs: {logs}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
