"""A repository of a round, and how its WAL compares with a server's: byte by byte, and not as pgwal does it.

Trailing zeros of a segment do not count: that is how the unwritten rest of one looks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from randomised.lives import Life, Moment

from pgwal.lsn import Lsn
from pgwal.repository.repository import Repository
from pgwal.repository.wal_directory import WalDirectory
from pgwal.timeline import TimelineHistory, history_file_name
from pgwal_cli.throwaway_server import ThrowawayServer

ALIGNMENT = 64
"""More than a record's end may be cut by taking the zeros away."""


@dataclass(frozen=True)
class Backup:
    """A backup that was taken; ``state`` is what the cluster held, where it was taken while the load paused."""

    backup_id: str
    prior_id: str | None
    start_lsn: Lsn
    stop_lsn: Lsn
    state: dict[str, dict[str, str]] | None
    moment: Moment
    is_merged: bool = False

    @property
    def is_incremental(self) -> bool:
        return self.prior_id is not None


@dataclass
class Archive:
    """A repository, and whose life is in it.

    ``doubt`` is what was done since it was made, after which pgwal may refuse to go on with it.
    """

    repo: Path
    life: Life
    backups: dict[str, Backup] = field(default_factory=dict)
    doubt: str | None = None
    recycled: bool = False
    """Whether WAL that it lacks may be gone from the server: from the first time that WAL was recycled on."""
    is_left: bool = False
    """Whether another one has taken its place."""
    has_lost_backups: bool = False
    """Whether there are backups of another life than the one that goes on: nothing builds on them."""
    received: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    """Length and digest of each segment when that was last asked for."""

    @property
    def exists(self) -> bool:
        return (self.repo / "pgwal.json").exists()

    def segments(self) -> Iterator[tuple[int, Lsn, bytes]]:
        """Yield timeline, start and content of each segment."""
        if not self.exists:
            return
        repository = Repository.open(self.repo)
        geometry = repository.geometry
        for segment in repository.wal.segments():
            name = geometry.file_name(segment.timeline_id, segment.segment_no)
            content = repository.wal.read_segment(name).rstrip(b"\0")
            yield segment.timeline_id, geometry.segment_start(segment.segment_no), content

    def end(self) -> Lsn:
        """Return the end of the newest timeline's WAL, a few bytes less at times."""
        ends = [(timeline, Lsn(start + len(content))) for timeline, start, content in self.segments()]
        return max(ends, default=(0, Lsn(0)))[1]

    def has_wal(self, start: Lsn, end: Lsn | None) -> bool:
        """Tell whether there is a segment for each position, of whatever timeline; None is the end of all.

        One that is not whole is a gap, but for the last.
        """
        repository = Repository.open(self.repo)
        segments = list(repository.wal.segments())
        last_of_all = max((segment.segment_no for segment in segments), default=0)
        numbers = {each.segment_no for each in segments if each.complete or each.segment_no == last_of_all}
        last = last_of_all if end is None else repository.geometry.segment_no(Lsn(end - 1))
        return numbers >= set(range(repository.geometry.segment_no(start), last + 1))

    # -- nothing that was acknowledged is lost

    def note_received(self) -> None:
        """Remember what is here: from now on it must stay."""
        self.received |= {
            history_file_name(timeline) + f" {start}": (len(content), sha256(content).digest())
            for timeline, start, content in self.segments()
        }

    def overwritten(self) -> list[str]:
        """Say which WAL is no longer here that was, not even in what was set aside."""
        if not self.received:
            return []
        found: dict[str, list[bytes]] = {}
        for timeline, start, content in [*self.segments(), *self._set_aside()]:
            found.setdefault(history_file_name(timeline) + f" {start}", []).append(content)
        return [
            f"what was received of {name} up to {length} bytes is no longer there"
            for name, (length, digest) in self.received.items()
            if all(sha256(content[:length]).digest() != digest for content in found.get(name, []))
        ]

    def _set_aside(self) -> Iterator[tuple[int, Lsn, bytes]]:
        repository = Repository.open(self.repo)
        for directory in sorted(self.repo.glob("set_aside/*/wal")):
            wal = WalDirectory(repository.store, str(directory.relative_to(self.repo)), repository.geometry)
            for segment in wal.segments():
                name = wal.geometry.file_name(segment.timeline_id, segment.segment_no)
                content = wal.read_segment(name).rstrip(b"\0")
                yield segment.timeline_id, wal.geometry.segment_start(segment.segment_no), content

    # -- comparison with a server

    def difference_from(self, server: ThrowawayServer) -> str | None:
        """Return where the WAL that is here is not the server's; it goes on for the server meanwhile."""
        ours = list(self.segments())
        with server.connect() as connection:
            row = connection.execute(
                "SELECT pg_walfile_name(pg_current_wal_lsn()), pg_current_wal_flush_lsn()::text"
            ).fetchone()
        assert row is not None
        timeline_id, flush_lsn = int(row[0][:8], 16), Lsn.parse(row[1])
        directory = server.data_directory / "pg_wal"
        content = b"" if timeline_id == 1 else (directory / history_file_name(timeline_id)).read_bytes()
        stored = self.repo / "wal" / history_file_name(timeline_id)
        if stored.exists() and stored.read_bytes() != content:
            return f"timeline {timeline_id} has another history here: {stored.read_bytes()!r}, {content!r}"
        history = TimelineHistory.decode(timeline_id, content)
        for of_timeline, start, mine in ours:
            found = self._segment_difference(history, directory, flush_lsn, of_timeline, start, mine)
            if found is not None:
                return found
        return None

    def _segment_difference(
        self, history: TimelineHistory, directory: Path, flush_lsn: Lsn, timeline_id: int, start: Lsn, mine: bytes
    ) -> str | None:
        geometry = Repository.open(self.repo).geometry
        file_name = geometry.file_name(timeline_id, geometry.segment_no(start))
        if timeline_id > history.timeline_id:
            return f"{file_name} is of a newer timeline than the server's {history.timeline_id}"
        end = history.end_of(timeline_id)
        if end is None and start + len(mine) > flush_lsn:
            return f"WAL reaches to {Lsn(start + len(mine))}, the server's to {flush_lsn}"
        if end == 0:
            return None  # of a timeline that the server's history passes by
        mine = mine if end is None else mine[: max(0, end - start)]
        theirs = _read_steadily(directory / file_name)
        if theirs is None or theirs[: len(mine)] == mine:
            return None
        position = next(index for index, pair in enumerate(zip(mine, theirs, strict=False)) if pair[0] != pair[1])
        return f"{file_name} differs from the server's at {Lsn(start + position)}"


def _read_steadily(path: Path) -> bytes | None:
    """Read a segment, unless the server has it no longer, or gives its file another name meanwhile."""
    try:
        before = path.stat().st_ino
        content = path.read_bytes()
        return content if path.stat().st_ino == before else None
    except FileNotFoundError:
        return None
