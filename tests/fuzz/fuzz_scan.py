"""Fuzz the WAL scanner: whatever bytes it is fed, it ends in a declared way, soon, and says what its oracles say.

    python tests/fuzz/fuzz_scan.py --seconds 60 --seed 1
    python tests/fuzz/fuzz_scan.py --seconds 60 --seed 1 --sanitize    builds the scanner with ASan and UBSan first
    python tests/fuzz/fuzz_scan.py --seed 1 --case 4711                one case again

A case is WAL, built or real, damaged in some places: bits, fields, pages, or the body of a record with its CRC put
right, so that what lies behind the CRC is reached.  The invariants:

* the scanner asks for more data, stops where it was told to, reports the end of WAL with a reason, or raises a
  FormatError; nothing else;
* it does so in a time, and with results, that the size of the input bounds;
* how the bytes are cut into chunks makes no difference;
* on a sample, the interpreted form says the same to the last value, and so does the decoder that construct declares.

Exits with 0, with 1 and the seed of the case that failed, or with 77 when the sanitizers are not to be had.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.machinery
import importlib.util
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

SKIPPED = 77
SANITIZED_VARIABLE = "PGWAL_FUZZ_SANITIZED"

CASE_TIMEOUT_S = 60
SLOW_S = 5.0
WAL_MAX_BYTES = 1 << 18
MEMORY_MAX_MB = 600
SAMPLE = 16
"""One case in so many is held to the interpreted form and to the decoder, which are slow."""


def _load(name: str, directory: Path) -> None:
    """Load a module of the scanner as it was built into a directory."""
    (path,) = directory.glob(f"{name.rpartition('.')[2]}.*.so")
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader.exec_module(module)


if SANITIZED_VARIABLE in os.environ:
    from pgwal.scan_choice import MODULES

    # Before anything imports the ordinary ones.
    for name in MODULES[: MODULES.index("pgwal.wal.scan") + 1]:
        _load(name, Path(os.environ[SANITIZED_VARIABLE]))

import zstandard  # noqa: E402
from core.wal_builder import PAGE_SIZE, BlockSpec, ImageSpec, RecordSpec, WalBuilder  # noqa: E402
from google_crc32c import extend  # noqa: E402
from module_forms import interpreted  # noqa: E402

import pgwal.wal.scan as scanned_form  # noqa: E402
from pgwal.errors import FormatError  # noqa: E402
from pgwal.segment import LONG_PAGE_HEADER_SIZE, is_segment_name  # noqa: E402
from pgwal.wal import page_magic  # noqa: E402
from pgwal.wal.decoder import NEED_DATA as DECODER_NEEDS_DATA  # noqa: E402
from pgwal.wal.decoder import WalDecoder  # noqa: E402
from pgwal.wal.page_magic import WAL_FORMATS  # noqa: E402
from pgwal.wal.record import EndOfWal, WalRecord  # noqa: E402
from pgwal.wal.scan import END_OF_WAL, NEED_DATA, SPECIAL, STOP  # noqa: E402

INTERPRETED = interpreted("pgwal.wal.scan")

Blocks = dict[tuple[int, int, int, int], set[int]]


# --- inputs -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Input:
    """WAL from a page boundary on, and how to read it."""

    wal: bytes
    start_lsn: int
    segment_size: int
    magic: int = 0
    stop_lsn: int | None = None
    first_lsn: int | None = None


def random_block(rng: random.Random, block_id: int, major: int) -> BlockSpec:
    compression = rng.choice(["pglz"] if major < 15 else ["pglz", "lz4", "zstd"])
    image = rng.choice(
        [
            None,
            None,
            ImageSpec(),
            ImageSpec.with_hole(rng.randint(1, 4000), rng.randint(1, 4000)),
            ImageSpec(rng.randint(0, 500), compression=compression),
            ImageSpec(rng.randint(0, 500), rng.randint(1, 4000), rng.randint(1, 4000), compression),
        ]
    )
    return BlockSpec(
        block_id,
        locator=rng.choice([(1663, 5, 16384), (1664, 0, 1262), (rng.getrandbits(32), 5, rng.getrandbits(32))]),
        fork=rng.choice([0, 0, 0, 1, 2, 3]),
        block_no=rng.choice([rng.randint(0, 9), 32671, 32672, 0xFFFFFFFE, rng.getrandbits(32)]),
        data=rng.randbytes(rng.choice([0, 3, 30])),
        image=image,
        will_init=rng.random() < 0.3,
        may_be_same=rng.random() < 0.7,
    )


def random_spec(rng: random.Random, major: int) -> RecordSpec:
    """A record of any kind; its payload need not fit its kind."""
    ids = sorted(rng.sample(range(33), rng.choice([0, 1, 1, 2, 3, 33 if rng.random() < 0.1 else 4])))
    blocks = tuple(random_block(rng, block_id, major) for block_id in ids)
    if len(blocks) > 4:
        blocks = tuple(replace(block, image=None) for block in blocks)
    rmid = rng.choice([0, 1, 2, 4, 9, 10, 10, 10, 11, rng.randint(0, 21), rng.randint(128, 255) if major >= 15 else 0])
    info = rng.randrange(0, 256, 16)
    if rmid == 0 and info in (0x40, 0xD0):
        info = 0x20
    if rmid in (1, 2, 4):
        info |= rng.randint(0, 1)
    size = rng.choice([0, 3, 8, 12, 16, 20, 28, 88, rng.randint(0, 300), rng.randint(0, 20000)])
    return RecordSpec(
        rmid,
        info,
        xid=rng.getrandbits(32),
        blocks=blocks,
        main_data=bytes(rng.choices(range(4), k=size)) if rng.random() < 0.5 else rng.randbytes(size),
        origin=rng.choice([None, None, 1]),
        top_level_xid=7 if major >= 14 and rng.random() < 0.1 else None,
    )


def damaged_body(rng: random.Random, spec: RecordSpec, major: int) -> RecordSpec:
    """The record with a wrong body under a right CRC."""
    body = bytearray(spec.encode_body(page_magic.wal_format_of_major(major)))
    for _ in range(rng.randint(1, 3)) if body else ():
        at = rng.randrange(min(len(body), rng.choice([8, 60, len(body)])))
        body[at] = rng.choice([0, 1, 0x20, 0x7F, 0x80, 0xFF, 252, 253, 254, 255, body[at] ^ 1 << rng.randint(0, 7)])
    if rng.random() < 0.3:
        del body[rng.randint(0, len(body)) :]
    return replace(spec, body=bytes(body))


def built_input(rng: random.Random) -> Input:
    """WAL that is right but for bodies: all kinds of records, page ends, switches, cut-off records, timelines."""
    major = rng.randint(13, 18)
    start = rng.choice([1 << 20, (1 << 20) + 3 * PAGE_SIZE, (2 << 20) - 2 * PAGE_SIZE])
    builder = WalBuilder(major, start_lsn=start, timeline_id=rng.randint(1, 3))
    for _ in range(rng.randint(1, 25)):
        step = rng.random()
        spec = random_spec(rng, major)
        if step < 0.75:
            builder.append(damaged_body(rng, spec, major) if rng.random() < 0.1 else spec)
        elif step < 0.87:
            builder.append_filler(rng.randint(0, 6) * 8)
        elif step < 0.92:
            left = PAGE_SIZE - builder.next_lsn % PAGE_SIZE
            builder.append_cut_off(RecordSpec(main_data=bytes(left + 3 * PAGE_SIZE)), rng.randint(1, 3))
            builder.append(spec)
        elif step < 0.94:
            builder.append_switch()
        else:
            builder.timeline_id += 1
    wal = builder.wal()
    return Input(wal[: 5 * WAL_MAX_BYTES], start, builder.segment_size)


@cache
def real_inputs() -> tuple[Input, ...]:
    """Pieces of the recorded WAL among the fixtures, as far as there is any."""
    found: list[Input] = []
    for path in sorted((ROOT / "fixtures").rglob("*")):
        is_sealed = "encrypted" in path.parts
        if is_segment_name(path.name[:24]) and path.suffix in ("", ".zst") and not is_sealed:
            with path.open("rb") as file:
                reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
                found += pieces_of(reader.read() if path.suffix else file.read())
    return tuple(found)


def pieces_of(segment: bytes) -> Iterator[Input]:
    if len(segment) < LONG_PAGE_HEADER_SIZE:
        return
    magic, start, segment_size = struct.unpack_from("<H6xQ16xI", segment)
    if magic in WAL_FORMATS and start % PAGE_SIZE == 0 and 1 << 20 <= segment_size <= 1 << 30:
        for at in range(0, len(segment), WAL_MAX_BYTES):
            if any(segment[at : at + 2]):
                yield Input(segment[at : at + WAL_MAX_BYTES], start + at, segment_size)


# --- damage -----------------------------------------------------------------------------------------------


def records_in(case: Input) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of the records that lie on one page."""
    decoder = WalDecoder(case.segment_size, case.start_lsn)
    decoder.feed(case.wal[: 4 * PAGE_SIZE])
    while True:
        try:
            record = decoder.next_record()
        except FormatError:
            return
        if not isinstance(record, WalRecord):
            return
        offset = record.lsn - case.start_lsn
        if offset // PAGE_SIZE == (offset + record.total_length - 1) // PAGE_SIZE:
            yield offset, record.total_length


def damage_record(rng: random.Random, case: Input, wal: bytearray) -> None:
    """Change a record and put its CRC right."""
    records = list(records_in(case))
    if not records:
        return
    offset, length = rng.choice(records)
    if length == 24 or offset + length > len(wal):
        return
    for _ in range(rng.randint(1, 3)):
        at = offset + rng.choice([16, 17, rng.randrange(24, min(length, 80)), rng.randrange(24, length)])
        wal[at] = rng.choice([0, 0xFF, rng.getrandbits(8), wal[at] ^ 1 << rng.randint(0, 7)])
    crc = extend(extend(0, bytes(wal[offset + 24 : offset + length])), bytes(wal[offset : offset + 20]))
    struct.pack_into("<I", wal, offset + 20, crc)


def damage_bytes(rng: random.Random, case: Input, wal: bytearray) -> None:  # noqa: ARG001
    at = rng.randrange(len(wal))
    if rng.random() < 0.5:
        at = at // PAGE_SIZE * PAGE_SIZE + rng.randrange(64)
    at = min(at, len(wal) - 1)
    wal[at] = rng.choice([0, 0xFF, rng.getrandbits(8), wal[at] ^ 1 << rng.randint(0, 7)])


def damage_field(rng: random.Random, case: Input, wal: bytearray) -> None:  # noqa: ARG001
    """Put a number that is at some edge where one may be read."""
    at = rng.randrange(len(wal)) & ~3
    value = rng.choice([0, 1, 23, 24, 25, 8191, 8192, 8193, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, len(wal)])
    if at + 4 <= len(wal):
        struct.pack_into("<I", wal, at, value)


def damage_page(rng: random.Random, case: Input, wal: bytearray) -> None:  # noqa: ARG001
    """Put zeros, noise or another page in place of a page."""
    pages = -(-len(wal) // PAGE_SIZE)
    at, other = (rng.randrange(pages) * PAGE_SIZE for _ in range(2))
    size = min(PAGE_SIZE, len(wal) - at)
    content = rng.choice([bytes(size), rng.randbytes(size), bytes(wal[other : other + size])])
    wal[at : at + len(content)] = content


def damage_length(rng: random.Random, case: Input, wal: bytearray) -> None:  # noqa: ARG001
    del wal[rng.randrange(len(wal)) :]


DAMAGES = [damage_record] * 4 + [damage_bytes] * 3 + [damage_field] * 2 + [damage_page, damage_length]


def make_case(seed: int, number: int) -> Input:
    rng = random.Random(f"{seed}:{number}")
    real = real_inputs()
    case = rng.choice(real) if real and rng.random() < 0.4 else built_input(rng)
    wal = bytearray(case.wal)
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        if wal:
            rng.choice(DAMAGES)(rng, case, wal)
    magic = int.from_bytes(wal[:2], "little")
    magic = magic if magic in WAL_FORMATS and rng.random() < 0.4 else 0
    end = case.start_lsn + len(wal)
    return replace(
        case,
        wal=bytes(wal),
        magic=magic,
        stop_lsn=rng.choice([None, None, rng.randint(case.start_lsn, end + 100)]),
        first_lsn=rng.choice([None, None, rng.randint(case.start_lsn, case.start_lsn + PAGE_SIZE - 1)]),
    )


# --- what comes of it -------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """All that a scanner says of some WAL."""

    result: int
    error: tuple[str, str] | None
    reason: int
    position: int
    timeline_id: int
    record_count: int
    reference_count: int
    last_record_lsn: int
    first_record_lsn: int
    first_prev_lsn: int
    blocks: Blocks
    derived: Blocks
    specials: list[tuple[object, ...]]


def chunks(rng: random.Random, wal: bytes) -> Iterator[bytes]:
    at = 0
    step = rng.choice([len(wal) or 1, 1 << 16, PAGE_SIZE, 1000, 37, 1 if len(wal) < 20000 else 100])
    while at < len(wal):
        size = rng.randint(1, step)
        yield wal[at : at + size]
        at += size


def scan(form: ModuleType, case: Input, pieces: Iterator[bytes]) -> Outcome:
    """Scan a case; raises what is not declared."""
    first = case.start_lsn if case.first_lsn is None else case.first_lsn
    scanner = form.WalScanner(case.segment_size, first, magic=case.magic)
    if case.stop_lsn is not None:
        scanner.stop_lsn = case.stop_lsn
    outcome = Outcome(NEED_DATA, None, 0, 0, 0, 0, 0, 0, 0, 0, {}, {}, [])
    try:
        for piece in pieces:
            scanner.feed(piece)
            while (result := scanner.scan()) == SPECIAL:
                outcome.specials.append(
                    (
                        scanner.special_lsn, scanner.special_end_lsn, scanner.special_prev_lsn, scanner.special_xid,
                        scanner.special_rmid, scanner.special_info, scanner.special_main,
                    )
                )  # fmt: skip
            outcome.result = result
            if result != NEED_DATA:
                break
    except FormatError as error:
        outcome.error = type(error).__name__, str(error)
    else:
        for relation, numbers in scanner.take_blocks():
            outcome.blocks.setdefault(relation, set()).update(numbers)
        for relation, numbers in scanner.take_derived_blocks():
            outcome.derived.setdefault(relation, set()).update(numbers)
    outcome.reason = int(scanner.end_reason or 0)
    outcome.position, outcome.timeline_id = scanner.position, scanner.timeline_id
    outcome.record_count, outcome.reference_count = scanner.record_count, scanner.block_reference_count
    outcome.last_record_lsn = scanner.last_record_lsn
    outcome.first_record_lsn, outcome.first_prev_lsn = scanner.first_record_lsn, scanner.first_prev_lsn
    return outcome


def check_bounds(case: Input, outcome: Outcome) -> None:
    """Hold an outcome to what the size of the input allows."""
    size = len(case.wal)
    assert outcome.result in (NEED_DATA, STOP, END_OF_WAL), outcome.result
    assert (outcome.result == END_OF_WAL) == (outcome.reason != 0)
    assert outcome.record_count <= size // 24
    assert outcome.reference_count <= size // 8
    assert sum(map(len, outcome.blocks.values())) <= outcome.reference_count
    assert sum(map(len, outcome.derived.values())) <= 2 * outcome.record_count
    assert sum(len(main) for *_, main in outcome.specials if isinstance(main, bytes)) <= size
    assert len(outcome.specials) <= outcome.record_count
    # Behind a switch, or a length that is not there yet, it may lie beyond what was fed: by a segment at most.
    first_page = case.start_lsn
    assert first_page <= outcome.position <= first_page + size + case.segment_size


def check_decoder(case: Input, outcome: Outcome) -> None:
    """Hold an outcome to what the declarations of construct give."""
    first = case.start_lsn if case.first_lsn is None else case.first_lsn
    decoder = WalDecoder(case.segment_size, first, wal_format=WAL_FORMATS[case.magic] if case.magic else None)
    decoder.feed(case.wal)
    count = references = 0
    first_record = (0, 0)
    blocks: Blocks = {}
    error: str | None = None
    event: object = None
    while error is None:
        try:
            event = decoder.next_record()
        except FormatError as caught:
            error = type(caught).__name__
            break
        if isinstance(event, EndOfWal) or event is DECODER_NEEDS_DATA:
            break
        assert isinstance(event, WalRecord)
        if case.stop_lsn is not None and event.lsn >= case.stop_lsn:
            break
        if count == 0:
            first_record = (event.lsn, event.prev_lsn)
        count += 1
        for block in event.blocks:
            references += 1
            blocks.setdefault((*block.locator, int(block.fork)), set()).add(block.block_no)
    assert (outcome.first_record_lsn, outcome.first_prev_lsn) == first_record
    if outcome.result == STOP and outcome.error is None:
        # The scanner stops without reading on; what the decoder meets there is no matter.
        assert (outcome.record_count, outcome.reference_count, outcome.blocks) == (count, references, blocks)
        return
    assert (outcome.error[0] if outcome.error else None) == error, (outcome.error, error)
    assert outcome.record_count == count
    if error is None:
        assert (outcome.reference_count, outcome.blocks) == (references, blocks)
    if isinstance(event, EndOfWal) and error is None:
        assert (outcome.result, outcome.position, outcome.reason) == (END_OF_WAL, event.lsn, event.reason)


def run_case(seed: int, number: int) -> Outcome:
    """Make a case and hold the scanner to it."""
    case = make_case(seed, number)
    rng = random.Random(f"{seed}:{number}:chunks")
    begin = time.perf_counter()
    whole = scan(scanned_form, case, iter([case.wal] if case.wal else []))
    in_pieces = scan(scanned_form, case, chunks(rng, case.wal))
    assert time.perf_counter() - begin < SLOW_S, "slow"
    check_bounds(case, whole)
    assert whole == in_pieces, f"{whole}\n{in_pieces}"
    if number % SAMPLE == 0:
        interpreted = scan(INTERPRETED, case, iter([case.wal] if case.wal else []))
        assert whole == interpreted, f"{whole}\n{interpreted}"
        check_decoder(case, whole)
    return whole


def memory_mb() -> float:
    """Return the most memory that this process has had, 0 where that is not known."""
    status = Path("/proc/self/status")
    if not status.exists() or SANITIZED_VARIABLE in os.environ:
        return 0
    return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024


def fuzz(seed: int, seconds: float) -> int:
    """Run cases for some time; returns the exit code."""
    deadline = time.monotonic() + seconds
    kinds: dict[str, int] = {}
    number = 0
    while time.monotonic() < deadline:
        # An endless loop in the compiled form heeds no signal handler of Python's.
        faulthandler.dump_traceback_later(CASE_TIMEOUT_S, exit=True)
        try:
            outcome = run_case(seed, number)
        except Exception:
            print(f"failed: --seed {seed} --case {number}", file=sys.stderr, flush=True)
            raise
        kind = outcome.error[0] if outcome.error else {NEED_DATA: "more data", STOP: "stop"}.get(outcome.result, "end")
        kinds[kind] = kinds.get(kind, 0) + 1
        number += 1
    faulthandler.cancel_dump_traceback_later()
    assert memory_mb() < MEMORY_MAX_MB, f"{memory_mb():.0f} MB"
    form = "compiled" if scanned_form.COMPILED else "interpreted"
    sanitized = " with sanitizers" if SANITIZED_VARIABLE in os.environ else ""
    print(f"{number} cases of seed {seed}, {len(real_inputs())} real inputs, {form}{sanitized}: {kinds}")
    return 0


# --- sanitizers -------------------------------------------------------------------------------------------


def sanitizer_libraries(compiler: str) -> list[str]:
    """Return the runtime libraries to be loaded first, or none when the compiler lacks them."""
    found = []
    for name in ("libasan.so", "libubsan.so"):
        path = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        if not Path(path).is_absolute() or not Path(path).exists():
            return []
        found.append(str(Path(path).resolve()))
    return found


def build_sanitized(directory: Path) -> Path:
    """Build the extensions from a copy of the sources; returns where those of the scanner are."""
    ignore = shutil.ignore_patterns("*.so", "*.c", "__pycache__")
    for name in ("pgwal", "cli"):
        shutil.copytree(ROOT / name, directory / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, directory)
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
    environment = os.environ | {"CFLAGS": flags, "LDFLAGS": flags, "PGWAL_REQUIRE_COMPILED": "1"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=directory, env=environment, check=True, stdout=subprocess.DEVNULL)
    return directory / "pgwal" / "wal"


def run_sanitized(arguments: list[str]) -> int:
    """Run this script with extensions built with AddressSanitizer and UndefinedBehaviorSanitizer."""
    compiler = os.environ.get("CC") or shutil.which("gcc")
    libraries = sanitizer_libraries(compiler) if compiler and sys.platform == "linux" else []
    if not libraries or importlib.util.find_spec("setuptools") is None:
        print("skipped: needs Linux, gcc with libasan and libubsan, and setuptools", file=sys.stderr)
        return SKIPPED
    with tempfile.TemporaryDirectory(prefix="pgwal-fuzz-") as directory:
        variables = {
            SANITIZED_VARIABLE: str(build_sanitized(Path(directory))),
            "LD_PRELOAD": " ".join(libraries),
            # Python leaks on purpose, and its own allocator would hide what runs over the end of an object.
            "ASAN_OPTIONS": "detect_leaks=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "PYTHONMALLOC": "malloc",
        }
        command = [sys.executable, __file__, *arguments]
        return subprocess.run(command, env=os.environ | variables).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--case", type=int, help="run this case only")
    parser.add_argument("--sanitize", action="store_true", help="with AddressSanitizer and UndefinedBehaviorSanitizer")
    options = parser.parse_args()
    if options.sanitize:
        return run_sanitized([argument for argument in sys.argv[1:] if argument != "--sanitize"])
    if options.case is not None:
        print(run_case(options.seed, options.case))
        return 0
    return fuzz(options.seed, options.seconds)


if __name__ == "__main__":
    sys.exit(main())
