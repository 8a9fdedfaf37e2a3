"""What a failure means to the shell: exit codes, by kind of error."""

from __future__ import annotations

from pgwal.errors import ChainError, ConnectionFailed, PgwalError, RepositoryLocked, VerificationFailed

FAILED = 1
USAGE = 2
NO_CONNECTION = 3
CHAIN_BROKEN = 4
VERIFICATION_FAILED = 5
LOCKED = 6

_BY_KIND: tuple[tuple[type[PgwalError], int], ...] = (
    (ConnectionFailed, NO_CONNECTION),
    (ChainError, CHAIN_BROKEN),
    (RepositoryLocked, LOCKED),
    (VerificationFailed, VERIFICATION_FAILED),
)


def exit_code_of(error: PgwalError) -> int:
    """Return the exit code for an error."""
    return next((code for kind, code in _BY_KIND if isinstance(error, kind)), FAILED)
