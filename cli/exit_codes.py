"""Exit codes of commands that end without an error of their own kind; the others are on the classes of errors."""

from __future__ import annotations

from pgwal.errors import ChainError, ConnectionFailed, PgwalError, RepositoryLocked, VerificationFailed

FAILED = PgwalError.exit_code
USAGE = 2
NO_CONNECTION = ConnectionFailed.exit_code
CHAIN_BROKEN = ChainError.exit_code
VERIFICATION_FAILED = VerificationFailed.exit_code
LOCKED = RepositoryLocked.exit_code
INTERRUPTED = 130
"""As typer has it; the process ends as its signal says."""


class UsageError(PgwalError):
    """The command line is not understood."""

    exit_code = USAGE
