"""A relation fork in a few integers: random histories of it, backups at random points, and what they restore.

A page is a number, 0 the page of zeros.  Files hold eight blocks instead of 131072, so that histories cross from
one to the next.  The map of a window is honest: exactly what the WAL of the model says, no more.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple
from unittest.mock import patch

from hypothesis import strategies as st

from pgwal.backup.incremental_file import IncrementalHeader
from pgwal.backup.plan import IncrementalFile, WholeFile, plan_file
from pgwal.backup.reconstruct import StoredWhole, reconstruct_file
from pgwal.relation import BLOCK_SIZE, INVALID_BLOCK_NUMBER

BLOCKS_PER_SMALL_FILE = 8
PATH = "base/5/16384"

Plan = Callable[[str, int, int | None, "WindowChanges"], WholeFile | IncrementalFile]


@contextmanager
def small_files() -> Iterator[None]:
    """Make relation files hold few blocks."""
    with (
        patch("pgwal.relation.BLOCKS_PER_FILE", BLOCKS_PER_SMALL_FILE),
        patch("pgwal.backup.plan.BLOCKS_PER_FILE", BLOCKS_PER_SMALL_FILE),
    ):
        yield


class Step(NamedTuple):
    """One thing that happens to the relation; what ``amount`` means depends on it."""

    kind: str
    amount: int = 0


class Logged(NamedTuple):
    """What WAL says: the fork was shortened to ``block`` blocks (page None), or ``block`` got a page."""

    block: int
    page: int | None = None


_KINDS = ("write",) * 4 + ("extend", "extend unlogged", "truncate", "truncate", "drop", "create")


def steps() -> st.SearchStrategy[list[Step]]:
    """Draw a history that begins with growth over two or three files and goes on at random."""
    grown = st.lists(st.just(Step("extend", BLOCKS_PER_SMALL_FILE)), min_size=2, max_size=3)
    # Two kinds that leave little behind are the rarest, or most relations would stay empty.
    later = st.lists(st.builds(Step, st.sampled_from(_KINDS), st.integers(0, 30)), min_size=4, max_size=16)
    return st.builds(list.__add__, grown, later)


@dataclass
class Relation:
    """The state of the relation; ``file_count`` 0 means that it does not exist."""

    pages: list[int] = field(default_factory=list)
    file_count: int = 0
    last_page: int = 0

    def files(self) -> dict[str, tuple[int, ...]]:
        """Return the contents of each file; files that a truncation emptied stay."""
        size = BLOCKS_PER_SMALL_FILE
        return {
            PATH + (f".{number}" if number else ""): tuple(self.pages[number * size : (number + 1) * size])
            for number in range(self.file_count)
        }

    def apply(self, step: Step) -> list[Logged]:
        """Do one step and return what WAL says of it."""
        if step.kind in ("drop", "create"):
            self.pages.clear()
            self.file_count = int(step.kind == "create")
            return [Logged(0)]
        logged = [] if self.file_count else [Logged(0)]
        self.file_count = max(self.file_count, 1)
        length = len(self.pages)
        if step.kind == "truncate":
            del self.pages[step.amount % (length + 1) :]
            return [*logged, Logged(len(self.pages))]
        if step.kind == "write":
            return [*logged, self._write(step.amount * 7 % length)] if length else logged
        count = step.amount % (BLOCKS_PER_SMALL_FILE + 3)
        self.pages += [0] * count
        self.file_count = max(self.file_count, -(-len(self.pages) // BLOCKS_PER_SMALL_FILE))
        if step.kind == "extend":
            logged += [self._write(block) for block in range(length, length + count)]
        return logged

    def _write(self, block: int) -> Logged:
        self.last_page += 1
        self.pages[block] = self.last_page
        return Logged(block, self.last_page)


class WindowChanges:
    """The block map of a window, as plain as can be."""

    def __init__(self, logged: Sequence[Logged] = ()) -> None:
        self.limit = INVALID_BLOCK_NUMBER
        self.blocks: set[int] = set()
        for block, page in logged:
            if page is not None:
                self.blocks.add(block)
            elif block < self.limit:
                self.limit = block
                self.blocks = {changed for changed in self.blocks if changed < block}

    def limit_block(self, _spc: int, _db: int, _rel: int, _fork: int, /) -> int:
        return self.limit

    def blocks_between(self, _spc: int, _db: int, _rel: int, _fork: int, start: int, stop: int, /) -> array[int]:
        return array("I", sorted(block for block in self.blocks if start <= block < stop))

    def database_copied(self, _spc: int, _db: int, /) -> bool:
        return False


class StoredFile(NamedTuple):
    """What a backup holds of a file: its plan and the pages that the plan copies."""

    plan: WholeFile | IncrementalFile
    pages: tuple[int, ...]
    block_count: int

    def source(self) -> IncrementalHeader | StoredWhole:
        if isinstance(self.plan, WholeFile):
            return StoredWhole(len(self.pages) * BLOCK_SIZE)
        return IncrementalHeader(self.plan.truncation_block_length, self.plan.block_numbers)

    def page_at(self, offset: int) -> int:
        source = self.source()
        begin = source.header_size if isinstance(source, IncrementalHeader) else 0
        block, rest = divmod(offset - begin, BLOCK_SIZE)
        assert rest == 0
        assert block >= 0
        return self.pages[block]


class TakenBackup(NamedTuple):
    """A backup of the model: where its window ends, the files as they were when copied, and what it stored."""

    start: int
    truth: dict[str, tuple[int, ...]]
    stored: dict[str, StoredFile]


def take_backups(
    history: Sequence[Step], points: Sequence[tuple[int, int]], plan: Plan = plan_file
) -> tuple[list[TakenBackup], list[list[Logged]]]:
    """Run a history and take a backup at each (start, copy) point, the first one full.

    A backup's window ends at its start; files are read at its copy, when later steps may have happened.  Returns
    the backups and the WAL of each step.
    """
    relation = Relation()
    states = [relation.files()]
    wal: list[list[Logged]] = []
    for step in history:
        wal.append(relation.apply(step))
        states.append(relation.files())
    backups: list[TakenBackup] = []
    for start, copy in points:
        truth = states[copy]
        if not backups:
            stored = {path: _store(pages, None, pages) for path, pages in truth.items()}
        else:
            changes = WindowChanges([item for logged in wal[backups[-1].start : start] for item in logged])
            prior = backups[-1].stored
            stored = {path: _plan_and_store(path, pages, prior, changes, plan) for path, pages in truth.items()}
        backups.append(TakenBackup(start, truth, stored))
    return backups, wal


def _plan_and_store(
    path: str, pages: tuple[int, ...], prior: dict[str, StoredFile], changes: WindowChanges, plan: Plan
) -> StoredFile:
    prior_size = prior[path].block_count * BLOCK_SIZE if path in prior else None
    decision = plan(path, len(pages) * BLOCK_SIZE, prior_size, changes)
    if isinstance(decision, WholeFile):
        return _store(pages, decision, pages)
    # A block that the file does not have (any more) is stored as zeros.
    copied = tuple(pages[block] if block < len(pages) else 0 for block in decision.block_numbers)
    return _store(pages, decision, copied)


def _store(pages: tuple[int, ...], decision: WholeFile | IncrementalFile | None, copied: tuple[int, ...]) -> StoredFile:
    return StoredFile(plan_file(PATH, 0, None, None) if decision is None else decision, copied, len(pages))


def reconstruct(backups: Sequence[TakenBackup]) -> dict[str, tuple[int, ...]]:
    """Return the files that a chain, oldest first, restores to by pgwal.backup.reconstruct."""
    return {path: reconstruct_stored(chain_of(backups, path)) for path in backups[-1].stored}


def chain_of(backups: Sequence[TakenBackup], path: str) -> list[StoredFile]:
    """Return what is stored of a file, newest first, down to its first whole copy."""
    chain: list[StoredFile] = []
    for backup in reversed(backups):
        chain.append(backup.stored[path])
        if isinstance(chain[-1].plan, WholeFile):
            break
    return chain


def reconstruct_stored(chain: Sequence[StoredFile]) -> tuple[int, ...]:
    result = reconstruct_file([stored.source() for stored in chain])
    pages: list[int] = []
    for run in result.runs:
        assert run.offset == len(pages) * BLOCK_SIZE, "runs leave no gap and do not overlap"
        for at in range(0, run.length, BLOCK_SIZE):
            pages.append(0 if run.source is None else chain[run.source].page_at(run.source_offset + at))
    assert len(pages) * BLOCK_SIZE == result.size_bytes
    return tuple(pages)


def combine_as_server(chain: Sequence[StoredFile]) -> tuple[int, ...]:
    """Reconstruct as pg_combinebackup 17 and 18 do, block by block: only the newest length counts."""
    newest = chain[0].source()
    if isinstance(newest, StoredWhole):
        return chain[0].pages
    return tuple(
        _page_as_server(chain, block, newest.truncation_block_length)
        for block in range(newest.reconstructed_block_count)
    )


def _page_as_server(chain: Sequence[StoredFile], block: int, truncation_block_length: int) -> int:
    for depth, stored in enumerate(chain):
        if isinstance(stored.plan, WholeFile):
            return stored.pages[block] if block < len(stored.pages) else 0
        if block in stored.plan.block_numbers:
            return stored.pages[stored.plan.block_numbers.index(block)]
        if depth == 0 and block >= truncation_block_length:
            return 0
    raise AssertionError("a chain ends with a whole copy")


def plan_as_server(
    path: str, size_bytes: int, prior_size_bytes: int | None, changes: WindowChanges
) -> WholeFile | IncrementalFile:
    """Plan as PostgreSQL 17 and 18 do: T = max(size, limit), and only listed blocks are copied."""
    ours = plan_file(path, size_bytes, prior_size_bytes, changes)
    number = int(path.partition(".")[2] or 0)
    first_block, block_count = number * BLOCKS_PER_SMALL_FILE, size_bytes // BLOCK_SIZE
    changed = changes.blocks_between(0, 0, 0, 0, first_block, first_block + block_count)
    if isinstance(ours, WholeFile) and (ours.reason != "more than nine tenths of it changed"):
        return ours
    if len(changed) * 10 > block_count * 9:
        return ours
    limit = changes.limit - first_block
    kept = block_count if changes.limit == INVALID_BLOCK_NUMBER else max(block_count, limit)
    return IncrementalFile(min(kept, BLOCKS_PER_SMALL_FILE), array("I", [block - first_block for block in changed]))


def replay(files: dict[str, tuple[int, ...]], wal: Sequence[list[Logged]]) -> list[int]:
    """Recover: apply WAL to restored files and return the pages, without zeros at the end.

    Recovery creates what is missing and ignores what is gone.  Unlogged extension is not repeated, so trailing
    zero pages may differ from the server's.
    """
    pages = [page for path in sorted(files) for page in files[path]]
    for logged in wal:
        for block, page in logged:
            if page is None:
                del pages[block:]
            else:
                pages += [0] * (block + 1 - len(pages))
                pages[block] = page
    while pages and pages[-1] == 0:
        pages.pop()
    return pages
