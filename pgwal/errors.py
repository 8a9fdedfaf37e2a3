"""Every exception that pgwal raises on purpose; imports nothing of pgwal.

The first split is by whose fault it is: the bytes, the chain of backups, the repository, the server, the
target.  Mistakes of the programmer are assertions, never a ``PgwalError``.
"""


class PgwalError(Exception):
    """The root: a message that names cause and position, and a hint that names the way out."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class FormatError(PgwalError):
    """The bytes are not what their format says; the message carries the source and the position."""


class UnsupportedVersion(FormatError):
    """A page magic, control file version or file version that this pgwal does not know."""


class TruncatedInput(FormatError):
    """The input ends inside a structure."""


class ChecksumMismatch(FormatError):
    """A stored checksum and the bytes it covers disagree."""


class UnknownRecord(FormatError):
    """A WAL record announces a change of relation files that this pgwal does not understand."""


class ChainError(PgwalError):
    """Each piece is valid, together they do not make an incremental backup: a full backup is needed."""


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
        super().__init__(message, hint=hint)
        self.timeline_id = timeline_id
        self.lsn = lsn


class MissingPriorBackup(ChainError):
    """No backup that an incremental could build on."""


class RepositoryError(PgwalError):
    """The repository cannot do what is asked of it."""


class StorageFull(RepositoryError):
    """There is no room left where the repository is."""


class RepositoryLocked(RepositoryError):
    """Another process holds the lock that this one needs."""


class ReceivedByBackup(RepositoryLocked):
    """A backup's own receiver holds the lock, and gives it back when the backup ends."""


class BrokenInvariant(PgwalError):
    """pgwal itself has gone wrong: what always holds does not.  To go on could do harm."""


class ObjectNotFound(RepositoryError):
    """The repository does not hold what was asked for."""


class ObjectExists(RepositoryError):
    """The repository holds something under a name that was to be given to something else."""


class ForeignObject(RepositoryError):
    """Something in the repository is of a kind that pgwal does not store."""


class WrongCluster(RepositoryError):
    """The repository belongs to another cluster than the server or data directory at hand."""


class VerificationFailed(PgwalError):
    """What was read is not what its checksums say."""


class TargetError(PgwalError):
    """The place to restore into cannot be used."""


class ServerError(PgwalError):
    """The server refused or failed."""


class DataAbsent(ServerError):
    """Something that belongs to the cluster is not in its data directory, and nothing says that it was dropped."""


class FileReplaced(ServerError):
    """A file was replaced, or written over, while it was read: what was read is none of its contents."""


class ConnectionFailed(ServerError):
    """No connection to the server: not there, not accepting, or the login was refused."""


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


class ReplicationInterrupted(ServerError):
    """The replication stream ended before it was asked to; it may be started again."""


class NoAnswer(ReplicationInterrupted):
    """The server did not answer in time."""


class StandbyBehind(ReplicationInterrupted):
    """A standby has not replayed yet what was received from it before it restarted; it may be asked again."""


class OlderTimeline(ServerError):
    """The server is on an older timeline than the archive's newest WAL, ``timeline_id``."""

    def __init__(self, message: str, *, timeline_id: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.timeline_id = timeline_id


class WalRemoved(ChainError):
    """The server no longer has WAL that the receiver still needs."""
