"""Give a restored server the WAL that it asks for.

A server waits for each segment: what takes long to import is not imported here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from pgwal.engine.prefetch_wal import Spool
from pgwal.errors import FormatError, ObjectNotFound, PgwalError, TargetError, WalGap
from pgwal.repository.layout import IDENTITY_NAME, RepositoryIdentity
from pgwal.repository.sealing import sealed_place
from pgwal.repository.wal_archive import WalArchive
from pgwal.segment import is_history_name, is_segment_name
from pgwal.timeline import TimelineHistory
from pgwal.wal.segment_check import SegmentCheck, begins_with_nothing

if TYPE_CHECKING:
    from pgwal.repository.place import Place


def fetch(
    place: Place,
    name: str,
    destination: Path,
    *,
    prefetch: bool = False,
    to_gap: bool = False,
    for_standby: bool = False,
) -> None:
    """Copy a segment or history file to ``destination``, after a look at what it is.

    A segment that is not complete is given as far as it was received: everything received can be recovered.  Not
    ``for_standby``: that may have received more of it, and told its primary so, which the file would replace; and what
    is missing its primary may have.
    With ``prefetch``, the whole ones that follow are put where the caller looks first; see pgwal.engine.prefetch_wal.
    Raises ObjectNotFound when the repository does not hold the file, another PgwalError for failures: WalGap among
    them, unless ``to_gap``, for a segment that is not whole though its timeline goes on behind it in the repository.
    """
    if is_history_name(name):
        if prefetch:
            Spool(destination).clear_leftovers()
        content: Iterable[bytes] = [_Segments(place).history(name)]
    elif is_segment_name(name):
        if prefetch:
            spool = Spool(destination)
            if spool.take(name):
                return
            # First: what speaks to an object store has threads, which are not there behind a fork.
            spool.fill_behind(name, lambda: _Segments(place), is_remote=place.is_remote)
        segments = _Segments(place)
        content = segments.whole_alone(name) if for_standby else segments.whole_or_partial(name, to_gap=to_gap)
    else:
        # Backup history files and the like: the server asks for them and goes on without.
        raise ObjectNotFound(f"{name} is neither a WAL segment nor a history file")
    _place(content, destination)


def _place(content: Iterable[bytes], destination: Path) -> None:
    temporary = destination.with_name(f"{destination.name}.unfinished")
    try:
        # The server takes a file of the right size for whole, so it must not be seen before it is.  Nothing is synced:
        # what was fetched before a crash is fetched again.
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.writelines(content)
        temporary.replace(destination)
    except (OSError, PgwalError) as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, PgwalError):
            raise
        raise TargetError(f"cannot write {destination}: {os.strerror(error.errno or 0)}") from error


class _Segments:
    """The WAL of a repository, checked when it is read."""

    def __init__(self, place: Place) -> None:
        try:
            self._identity = RepositoryIdentity.decode(place.store.get(IDENTITY_NAME))
        except ObjectNotFound as error:
            # Not the same as a segment that is not there, which ends recovery.
            raise PgwalError(f"there is no repository in {place}", hint="Check restore_command.") from error
        place.require_trusted()
        self.geometry = self._identity.geometry
        self._archive = WalArchive(sealed_place(place, self._identity).store, self.geometry)

    def history(self, name: str) -> bytes:
        content = self._archive.read_file(name)
        TimelineHistory.decode(int(name[:8], 16), content)
        return content

    def whole(self, name: str) -> Iterator[bytes] | None:
        """Return a complete segment in pieces, each checked when it is taken; None when there is none."""
        if not self._archive.is_complete(*self.geometry.parse_file_name(name)):
            return None
        return self._checked(name, self._archive.segment_pieces(name), complete=True)

    def whole_alone(self, name: str) -> Iterator[bytes]:
        content = self.whole(name)
        if content is None:
            raise ObjectNotFound(f"there is no whole segment {name}")
        return content

    def whole_or_partial(self, name: str, *, to_gap: bool) -> Iterator[bytes]:
        content = self.whole(name)
        if content is None and not to_gap and self._is_in_gap(name):
            # A receiver may have completed it meanwhile, and gone on.
            content = self.whole(name)
            if content is None:
                raise WalGap(
                    f"WAL segment {name} is missing or not whole, though WAL of its timeline goes on in the repository",
                    hint="Bring the segment back. A restore with --to-gap accepts that recovery ends there.",
                )
        if content is not None:
            return content
        content = _with_wal_of_parent(self._archive, name)
        first = next(content)
        if begins_with_nothing(first):
            raise ObjectNotFound(f"nothing of {name} has been received yet")
        return self._checked(name, chain([first], content), complete=False)

    def _is_in_gap(self, name: str) -> bool:
        # Late: most segments are there.
        from pgwal.engine.recovery_gap import is_in_gap

        wanted = self.geometry.parse_file_name(name)
        return is_in_gap(*self._archive.behind(*wanted), self.geometry, *wanted)

    def _checked(self, name: str, content: Iterable[bytes], *, complete: bool) -> Iterator[bytes]:
        timeline_id, segment_no = self.geometry.parse_file_name(name)
        check = SegmentCheck(
            self.geometry, timeline_id, segment_no, self._identity.system_identifier, complete=complete
        )
        for piece in content:
            try:
                check.feed(piece)
            except FormatError as error:
                raise FormatError(
                    f"WAL segment {name} is damaged: {error}",
                    hint="Replace it by a whole copy, if another archive holds one.",
                ) from error
            yield piece


def _with_wal_of_parent(archive: WalArchive, name: str) -> Iterator[bytes]:
    """Return a segment that is not complete with what was received of it under the timeline before.

    A timeline's first segment begins with WAL of its parent, which is received once more: as long as that lasts, more
    of it is there under the old name.
    """
    geometry, own = archive.geometry, archive.segment_pieces(name)
    timeline_id, segment_no = geometry.parse_file_name(name)
    try:
        switches = archive.history(timeline_id).switches
    except ObjectNotFound:
        return own
    if not switches or geometry.segment_no(switches[-1].switch_lsn) != segment_no:
        return own
    offset = switches[-1].switch_lsn % geometry.segment_size
    parent_name = geometry.file_name(switches[-1].timeline_id, segment_no)
    try:
        if _goes_on(_cut(archive.segment_pieces(parent_name), offset), _cut(own, offset)):
            return _cut(archive.segment_pieces(parent_name), offset)
    except ObjectNotFound:
        # Of the parent; were it this one, the caller meets it now.
        pass
    return archive.segment_pieces(name)


def _cut(pieces: Iterable[bytes], offset: int) -> Iterator[bytes]:
    """Yield pieces with zeros from ``offset`` on."""
    for piece in pieces:
        yield piece[:offset].ljust(len(piece), b"\0")
        offset = max(0, offset - len(piece))


def _goes_on(pieces: Iterable[bytes], received: Iterable[bytes]) -> bool:
    """Tell whether a segment is the same as far as it was received, and has more where zeros follow there."""
    goes_on = False
    for piece, other in zip(pieces, received, strict=True):
        if goes_on:
            if other != bytes(len(other)):
                return False
        elif piece != other:
            if not piece.startswith(other.rstrip(b"\0")):
                return False
            goes_on = True
    return goes_on
