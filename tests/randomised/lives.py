"""Lives of a cluster: one life goes on from a copy of an earlier one, and shares with it what came before the copy.

A life is known by its marks: rows of one table, with numbers that no other life uses again.  What is restored holds the
first so many marks of one life; anything else is a mixture of two, or a loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

MARKS = "marks"
"""The table of marks."""


@dataclass(eq=False)
class Life:
    """What one server, or several after each other, made of a cluster; ``shared_count`` marks are its parent's."""

    parent: Life | None = None
    shared_count: int = 0
    own: list[int] = field(default_factory=list)

    @property
    def marks(self) -> list[int]:
        """All marks, in the order in which they were made."""
        return [*(self.parent.marks[: self.shared_count] if self.parent else ()), *self.own]

    def now(self) -> Moment:
        return Moment(self, len(self.marks))

    def holds(self, moment: Moment) -> bool:
        """Tell whether a moment belongs to the past of this life, or to this life itself."""
        life: Life | None = self
        last_count = len(self.marks)
        while life is not None:
            if life is moment.life:
                return moment.mark_count <= last_count
            life, last_count = life.parent, min(last_count, life.shared_count)
        return False


@dataclass(frozen=True)
class Moment:
    """A moment of a life, by how many marks had been made."""

    life: Life
    mark_count: int

    def branch(self) -> Life:
        """Begin another life at this moment."""
        return Life(self.life, self.mark_count)


def wrong_marks(life: Life, found: Sequence[int], *, least: int, exactly: int | None = None) -> str | None:
    """Say what is wrong with the marks that were restored of a life, if anything is."""
    expected = life.marks
    if list(found) != expected[: len(found)]:
        foreign = sorted(set(found) - set(expected))
        missing = sorted(set(expected[: len(found)]) - set(found))
        return f"marks {list(found)} are not of one life: {foreign} are of another, {missing} are missing"
    if exactly is not None and len(found) != exactly:
        return f"{len(found)} marks were restored, there were {exactly}"
    if len(found) < least:
        return f"{len(found)} marks were restored, the backup alone had {least}"
    return None
