# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False, cdivision=True
"""The blocks that WAL refers to, and what it shortens, by relation fork, until they are taken.

One of the modules of the scanner, which run in two forms: ``scan.py`` says how.  The loop over records crosses into
this one once for many of them, because a call from one compiled module into another is not cheap beside a record:
references wait in ``found_at`` for ``push``.
"""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import TYPE_CHECKING

try:
    import cython  # type: ignore[import-untyped]
except ImportError:
    # Cython is needed to compile this file, not to run it; this is all that it uses.
    cython = SimpleNamespace(compiled=False)

if not cython.compiled:
    from pgwal.wal.scan_types import *

if TYPE_CHECKING:
    from pgwal.wal.scan_types import RelationFork

COMPILED: bool = cython.compiled

# What one record can add before its references are pushed: map blocks of two of them, or what a truncation shortens.
_MAX_ADDED = 3

_INITIAL_RELATIONS = 512
# With those that the shortenings of some megabytes of WAL add: where there is no room, Python decodes a record.
_INITIAL_RELATIONS_SHORTENED = 1 << 13
_INITIAL_LOG = 1 << 16
_INITIAL_DERIVED = 1 << 10

# Beyond it a take gives the memory back.
_LARGE_LOG = 1 << 20

# Recently seen blocks: 32 KB, so that it stays in the processor's first cache or nearly so.
_SEEN_SIZE = 1 << 12

# In an entry of the log the relation stands above the block number; this bit marks a derived map block.
_DERIVED_BIT = 1 << 31
_LOW_HALF = (1 << 32) - 1

# The limit of a fork that was not shortened: INVALID_BLOCK_NUMBER.
_NO_LIMIT = (1 << 32) - 1

# Of no relation fork: the last relation that was looked up, when there is none.
_NO_NUMBER = 1 << 40

# What stands above a relation's number for its visibility map.
_OF_MAP = 2 << 32


class ReferenceLog:
    """Numbers relation forks, from 1 on, and keeps the blocks of each; ``takes_shortenings`` says of whom.

    A fork is given as its place, the tablespace with the database above it, and its number, the relation with the
    fork above it.  References are put into ``found_at`` as place, number and block, and count in ``found_count``.
    When ``is_full``, grow() is due before the next record.

    log_count         how many blocks, some more than once, take() would return
    reference_count   how many references were pushed, repetitions included
    """

    def __init__(self, *, takes_shortenings: bool) -> None:
        self._takes_shortenings = takes_shortenings
        self._found = array("Q", bytes(8 * 3 * MAX_FOUND))
        self.found_at = double_words_of(self._found)
        self.found_count = 0
        self.reference_count = 0
        self._derived_blocks: dict[RelationFork, set[int]] = {}
        self._log = array("Q", bytes(8 * _INITIAL_LOG))
        self._derived = array("Q", bytes(8 * _INITIAL_DERIVED))
        self.log_count = 0
        self._derived_count = 0
        self._forget_seen()
        self._start_relations()

    def _start_relations(self) -> None:
        count = _INITIAL_RELATIONS_SHORTENED if self._takes_shortenings else _INITIAL_RELATIONS
        self._places = array("Q", bytes(8 * count))
        self._numbers = array("Q", bytes(8 * count))
        self._limits = array("I", bytes(4 * count))
        self._slots = array("I", bytes(4 * 2 * count))
        self._relation_count: int = 0
        self._is_shortened = False
        self._forget_last_relation()
        self._bind_tables()

    def _forget_last_relation(self) -> None:
        self._last_place: int = 0
        self._last_number: int = _NO_NUMBER
        self._last_relation: int = 0

    def _bind_tables(self) -> None:
        """Tell the loop where the tables are and up to where they are free."""
        self._log_at = double_words_of(self._log)
        self._log_limit = len(self._log) - MAX_FOUND
        self._derived_at = double_words_of(self._derived)
        self._derived_limit = len(self._derived) - _MAX_ADDED
        self._places_at = double_words_of(self._places)
        self._numbers_at = double_words_of(self._numbers)
        self._limits_at = words_of(self._limits)
        # Relation 0 is none.
        self._relation_limit = len(self._places) - 1 - MAX_FOUND - _MAX_ADDED
        self._slots_at = words_of(self._slots)
        self._slot_mask = len(self._slots) - 1
        self.is_full = False

    # -- what the loop calls: no Python object is touched when compiled ---------------------------------------

    def push(self, count: int) -> None:
        """Add the first ``count`` references that were found, leaving out what was added a moment ago.

        Those behind them are the first ones then.
        """
        found = self.found_at
        log = self._log_at
        logged = self.log_count
        last_place = relation = 0
        last_number = _NO_NUMBER
        for index in range(0, 3 * count, 3):
            place = found[index]
            number = found[index + 1]
            if place != last_place or number != last_number:
                relation = self._relation(place, number)
                last_place = place
                last_number = number
            key = relation << 32 | found[index + 2]
            if self._is_new(key):
                log[logged] = key
                logged += 1
        self.log_count = logged
        self.reference_count += count
        self.found_count -= count
        for index in range(3 * self.found_count):
            found[index] = found[3 * count + index]
        if logged > self._log_limit:
            self.is_full = True

    def shorten(self, place: int, number: int, limit: int) -> None:
        """Note that a fork was shortened: what comes after is logged under another number, which has this limit.

        So the blocks before and after stay apart, and those after count as new.  A limit that is no lower than an
        earlier one makes nothing void (BlockRefTableSetLimitBlock).
        """
        slot = self._slot(place, number)
        relation = self._slots_at[slot]
        if relation == 0 or limit < self._limits_at[relation]:
            self._add_relation(slot, place, number, limit)
            self._is_shortened = True

    def has_room(self, count: int) -> bool:
        """Tell whether there is room for so many relation forks, beside those of the references that may come."""
        return self._relation_count + count <= self._relation_limit

    def derive_map_block(self, place: int, number: int, map_block: int) -> None:
        """Note a block of the visibility map of the relation that a fork is of, whichever that is."""
        relation = self._relation(place, number & _LOW_HALF | _OF_MAP)
        key = (relation | _DERIVED_BIT) << 32 | map_block
        if self._is_new(key):
            self._derived_at[self._derived_count] = key
            self._derived_count += 1
            if self._derived_count > self._derived_limit:
                self.is_full = True

    def _relation(self, place: int, number: int) -> int:
        """Return the number that stands for a relation fork until the next take."""
        if place == self._last_place and number == self._last_number:
            return self._last_relation
        slot = self._slot(place, number)
        relation = self._slots_at[slot]
        if relation == 0:
            return self._add_relation(slot, place, number, _NO_LIMIT)
        self._last_place = place
        self._last_number = number
        self._last_relation = relation
        return relation

    def _slot(self, place: int, number: int) -> int:
        """Return the slot that holds the newest number of a relation fork, or an empty one for it."""
        relation = 0
        slot = (number & _LOW_HALF) * 0x5E3779B1 ^ (number >> 32) * 0x15EBCA77
        slot ^= (place & _LOW_HALF) * 0x27D4EB2F ^ (place >> 32) * 0x165667B1
        slot = (slot ^ slot >> 23) & self._slot_mask
        while True:
            relation = self._slots_at[slot]
            if relation == 0 or (self._places_at[relation] == place and self._numbers_at[relation] == number):
                return slot
            slot = slot + 1 & self._slot_mask

    def _add_relation(self, slot: int, place: int, number: int, limit: int) -> int:
        """Give a relation fork, which has this slot, its next number, and return that."""
        relation = self._relation_count + 1
        self._relation_count = relation
        self._slots_at[slot] = relation
        self._places_at[relation] = place
        self._numbers_at[relation] = number
        self._limits_at[relation] = limit
        self._last_place = place
        self._last_number = number
        self._last_relation = relation
        if relation > self._relation_limit:
            self.is_full = True
        return relation

    def _is_new(self, key: int) -> bool:
        """Note that a block was seen; False when it surely was already since the last take."""
        slot = (key & _LOW_HALF) * 0x5E3779B1 ^ (key >> 32) * 0x15EBCA77
        slot = (slot >> 13) & _SEEN_SIZE - 1
        if self._seen_at[slot] == key:
            return False
        self._seen_at[slot] = key
        return True

    # -- memory ----------------------------------------------------------------------------------------------

    def grow(self) -> None:
        """Make room; whoever takes often never gets here."""
        if self._derived_count > self._derived_limit:
            self._settle_derived()
        if self.log_count > self._log_limit:
            self._log.frombytes(bytes(8 * len(self._log)))
        if self._relation_count > self._relation_limit:
            self._places.frombytes(bytes(8 * len(self._places)))
            self._numbers.frombytes(bytes(8 * len(self._numbers)))
            self._limits.frombytes(bytes(4 * len(self._limits)))
            self._slots = array("I", bytes(4 * 2 * len(self._slots)))
            self._bind_tables()
            self._fill_slots()
        self._bind_tables()

    def _fill_slots(self) -> None:
        """Enter all relations into empty slots, each fork under its newest number."""
        self._forget_last_relation()
        for relation in range(1, self._relation_count + 1):
            self._slots_at[self._slot(self._places_at[relation], self._numbers_at[relation])] = relation

    def _clear(self) -> None:
        self.log_count = 0
        self._forget_seen()
        if len(self._log) > _LARGE_LOG:
            self._log = array("Q", bytes(8 * _INITIAL_LOG))
        self._start_relations()

    def _forget_seen(self) -> None:
        self._seen = array("Q", bytes(8 * _SEEN_SIZE))
        self._seen_at = double_words_of(self._seen)

    # -- taking ----------------------------------------------------------------------------------------------

    def take(self) -> list[tuple[RelationFork, int, array[int]]]:
        """Return and forget each fork with its limit and its blocks, as WalScanner.take_changes says."""
        if self.log_count == 0 and not self._is_shortened:
            return []
        self._settle_derived()
        log, ends = self._sort_log()
        ends_at = words_of(ends)
        nothing = array("I")
        taken: list[tuple[RelationFork, int, array[int]]] = []
        start = 0
        for relation in range(1, self._relation_count + 1):
            end = ends_at[relation]
            limit = self._limits_at[relation]
            is_left_out = self._takes_shortenings and self._numbers_at[relation] >> 32 == FSM_FORK
            if (end > start or limit != _NO_LIMIT) and not is_left_out:
                taken.append((self._fork(relation), limit, log[start:end] if end > start else nothing))
            start = end
        self._clear()
        return taken

    def take_derived(self) -> list[tuple[RelationFork, array[int]]]:
        """Return and forget the visibility maps' blocks that were derived."""
        self._settle_derived()
        taken = [(fork, array("I", sorted(blocks))) for fork, blocks in self._derived_blocks.items()]
        self._derived_blocks = {}
        self._forget_seen()
        return taken

    def _fork(self, relation: int) -> RelationFork:
        place = self._places_at[relation]
        number = self._numbers_at[relation]
        return place & _LOW_HALF, place >> 32, number & _LOW_HALF, number >> 32

    def _settle_derived(self) -> None:
        """Move derived map blocks, where each can be many times, into sets."""
        for key in self._derived[: self._derived_count]:
            fork = self._fork(key >> 32 & ~_DERIVED_BIT)
            self._derived_blocks.setdefault(fork, set()).add(key & _LOW_HALF)
        self._derived_count = 0

    def _sort_log(self) -> tuple[array[int], array[int]]:
        """Return the log's block numbers by relation, and where those of each relation end."""
        ends = array("I", bytes(4 * (self._relation_count + 1)))
        blocks = array("I", bytes(4 * self.log_count))
        if self.log_count:
            self._fill_sorted(words_of(blocks), words_of(ends))
        return blocks, ends

    def _fill_sorted(self, blocks: array[int], ends: array[int]) -> None:
        for index in range(self.log_count):
            ends[self._log_at[index] >> 32] += 1
        start = 0
        for relation in range(self._relation_count + 1):
            count = ends[relation]
            ends[relation] = start
            start += count
        # Each start moves to its end as the relation's blocks are entered.
        for index in range(self.log_count):
            key = self._log_at[index]
            relation = key >> 32
            blocks[ends[relation]] = key & _LOW_HALF
            ends[relation] += 1
