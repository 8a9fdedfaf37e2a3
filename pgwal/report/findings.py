"""What is wrong, and how bad that is."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple


class Severity(IntEnum):
    """The worst is the least."""

    CRITICAL = 0
    """Something cannot be recovered, or soon will not be."""
    WARNING = 1
    """Somebody should look at it."""
    NOTICE = 2
    """It is so on purpose, or costs nothing yet."""
    OK = 3

    @property
    def word(self) -> str:
        return self.name.lower()


class Finding(NamedTuple):
    """One thing that was found: what about, what is so, and the way out where there is one."""

    severity: Severity
    subject: str
    message: str
    hint: str | None = None


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings by their severity, those of one in the order in which they came."""
    return sorted(findings, key=lambda finding: finding.severity)
