"""Every exception that pgwal raises on purpose, and its one warning; imports nothing of pgwal.

The first split is by whose fault it is: the bytes, the chain of backups, the repository, the server, the
target.  Mistakes of the programmer are assertions, never a ``PgwalError``.
"""

from __future__ import annotations

from typing import ClassVar, TypedDict, Unpack


class ErrorFacts(TypedDict, total=False):
    """What an error is about, for programs; the message says it in words.

    ``path`` is of a file or directory, ``offset_bytes`` a place in it, ``size_bytes`` how long it is and not
    ``expected_size_bytes``, ``errno`` the name of what the operating system said of it; ``lsn`` and ``end_lsn`` a
    position or range of WAL on ``timeline_id``; ``holder`` who holds a lock; ``setting``, ``slot`` and ``role`` are
    names on the server; ``store_code`` is what an object store calls its refusal.
    """

    path: str
    offset_bytes: int
    size_bytes: int
    expected_size_bytes: int
    errno: str
    timeline_id: int
    lsn: int
    end_lsn: int
    backup_id: str
    holder: str
    setting: str
    slot: str
    role: str
    store_code: str


class PgwalError(Exception):
    """The root: a message that names cause and position, a hint that names the way out, and facts for programs.

    ``exit_code`` is what a command ends with.  What ``is_transient`` may go away by itself: it is worth another try.
    """

    exit_code: ClassVar[int] = 1
    is_transient: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str | None = None, **facts: Unpack[ErrorFacts]) -> None:
        super().__init__(message)
        self.hint = hint
        self.facts = facts

    def restate(self, message: str, *, hint: str | None = None, **facts: Unpack[ErrorFacts]) -> None:
        """Give it another message, where somebody knows more of it; its kind and its facts stay."""
        self.args = (message,)
        self.hint = hint or self.hint
        self.facts.update(facts)


class SlowScanner(RuntimeWarning):
    """Much WAL is scanned, and the scanner is not compiled: a warning of Python's, given once."""

    def __init__(self) -> None:
        super().__init__(
            "the WAL scanner is interpreted, which is about 28 times slower (4 MB/s):"
            " install pgwal again where there is a C compiler"
        )


class FormatError(PgwalError):
    """The bytes are not what their format says; the message carries the source and the position."""


class UnsupportedVersion(FormatError):
    """A page magic, control file version or file version that this pgwal does not know."""


class TruncatedInput(FormatError):
    """The input ends inside a structure."""


class ChecksumMismatch(FormatError):
    """A stored checksum and the bytes it covers disagree."""


class LimitExceeded(FormatError):
    """What was read would take more memory or room than pgwal gives to such a thing."""


class UnknownRecord(FormatError):
    """A WAL record announces a change of relation files that this pgwal does not understand."""


class ChainError(PgwalError):
    """Each piece is valid, together they do not make an incremental backup: a full backup is needed."""

    exit_code = 4


class WalGap(ChainError):
    """WAL of a range is neither summarised nor in the archive."""


class WalLevelMinimal(ChainError):
    """WAL of the range was written with wal_level = minimal, which does not log every change."""


class TimelineMismatch(ChainError):
    """A backup or position does not lie on the history of the timeline that is wanted."""


class HistoryMismatch(TimelineMismatch):
    """The server and the archive hold different WAL of one timeline.

    ``lsn`` is where the two part, as far as that is known: 0 when nothing of the timeline may be common.
    """

    def __init__(self, message: str, *, timeline_id: int, lsn: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, timeline_id=timeline_id, lsn=lsn)
        self.timeline_id = timeline_id
        self.lsn = lsn


class MissingPriorBackup(ChainError):
    """No backup that an incremental could build on."""


class RepositoryError(PgwalError):
    """The repository cannot do what is asked of it."""


class StorageFull(RepositoryError):
    """There is no room left where the repository is."""

    is_transient = True


class StoreUnavailable(RepositoryError):
    """The object store where the repository is cannot be reached, or does not answer as one that works."""

    exit_code = 3
    is_transient = True


class RepositoryLocked(RepositoryError):
    """Another process holds the lock that this one needs."""

    exit_code = 6


class ReceivedByBackup(RepositoryLocked):
    """A backup's own receiver holds the lock, and gives it back when the backup ends."""

    is_transient = True


class LeaseLost(RepositoryLocked):
    """Another process has taken over what this one had: it stood still, or was cut off, for too long."""


class BrokenInvariant(PgwalError):
    """pgwal itself has gone wrong: what always holds does not.  To go on could do harm."""


class SchedulerUnavailable(PgwalError):
    """The scheduler that hands work to other machines cannot be reached, or has nobody to hand it to."""

    exit_code = 3
    is_transient = True


class WorkerMismatch(PgwalError):
    """A worker of a fleet is of another version than the process that asks it for work."""


class ObjectNotFound(RepositoryError):
    """The repository does not hold what was asked for."""


class ObjectExists(RepositoryError):
    """The repository holds something under a name that was to be given to something else."""


class ObjectRetained(RepositoryError):
    """The storage keeps an object from being removed until the time of its retention is over."""


class ForeignObject(RepositoryError):
    """Something in the repository is of a kind that pgwal does not store."""


class KeyRequired(RepositoryError):
    """What is wanted is encrypted, and the key to it was not given."""


class WrongKey(RepositoryError):
    """A key was given that does not belong to the repository, or that others may have seen."""


class WrongCluster(RepositoryError):
    """The repository belongs to another cluster than the server or data directory at hand."""


class VerificationFailed(PgwalError):
    """What was read is not what its checksums say."""

    exit_code = 5


class TargetError(PgwalError):
    """The place to restore into cannot be used."""


class RecoveryTargetError(PgwalError):
    """The recovery target cannot be understood, or no backup leads there."""


class ServerError(PgwalError):
    """The server refused or failed."""


class DataAbsent(ServerError):
    """Something that belongs to the cluster is not in its data directory, and nothing says that it was dropped."""


class FileReplaced(ServerError):
    """A file was replaced, or written over, while it was read: what was read is none of its contents."""


class ConnectionFailed(ServerError):
    """No connection to the server: not there, not accepting, or the login was refused."""

    exit_code = 3
    is_transient = True


class PasswordRequired(ConnectionFailed):
    """The server wants a password and none was given; ask for one and try again."""


class PrivilegeMissing(ServerError):
    """The role lacks a privilege; the hint says which SQL gives it."""


class SettingRequired(ServerError):
    """A server setting makes the operation impossible."""


class SlotUnavailable(ServerError):
    """The replication slot is missing, in use, or of the wrong kind."""


class SlotInUse(SlotUnavailable):
    """The replication slot serves another receiver, or still one whose connection has broken."""

    is_transient = True


class ReplicationInterrupted(ServerError):
    """The replication stream ended before it was asked to; it may be started again."""

    is_transient = True


class NoAnswer(ReplicationInterrupted):
    """The server did not answer in time."""


class StandbyBehind(ReplicationInterrupted):
    """A standby has not replayed yet what was received from it before it restarted; it may be asked again."""


class OlderTimeline(ServerError):
    """The server is on an older timeline than the archive's newest WAL, ``timeline_id``."""

    def __init__(self, message: str, *, timeline_id: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, timeline_id=timeline_id)
        self.timeline_id = timeline_id


class WalRemoved(ChainError):
    """The server no longer has WAL that the receiver still needs."""


class SlotDropped(ChainError):
    """The replication slot retained more WAL than it may, and was dropped: WAL may be missing from now on."""
