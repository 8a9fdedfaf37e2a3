"""What is reported as flushed would survive a power cut at that moment: bytes, and the names that lead to them.

No power is cut here.  What the receiver asks of the operating system is followed instead: written bytes count when
their file was synced after it, names when their directory was; and every report is held against what counts.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from receiver.oracle import flush_lsn, keeping_server, one_lsn, wait_for
from test_main_job import prepare, run_load

from pgwal.engine.stop import StopRequest
from pgwal.engine.stream import Receiver
from pgwal.engine.stream_options import StreamOptions
from pgwal.errors import PgwalError, StorageFull
from pgwal.lsn import Lsn
from pgwal.postgres.connection import ConnectionParameters
from pgwal.postgres.walsender import WalSender
from pgwal.replication.messages import decode_status_update
from pgwal.repository.compression import Compression, CompressionMethod
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.repository import Repository
from pgwal.repository.wal_writer import WalWriter
from pgwal.segment import WalGeometry
from pgwal_cli.throwaway_server import ThrowawayServer

GEOMETRY = WalGeometry(1 << 20)
SYNCED = bytes(range(256)).replace(b"\1", b"\2")
"""A translation that makes 2, durable, of each 1, written."""


class Disk:
    """What of a WAL directory a power cut would leave; at first nothing, whatever is there.

    ``begin`` is from where reports are held against it.  ``failing`` is an error for the next sync of a file.
    """

    def __init__(self, directory: Path, begin: Lsn, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begin = begin
        self.reports: list[Lsn] = []
        self.lies: list[str] = []
        self.failing: OSError | None = None
        self._directory = directory
        self._contents: dict[int, bytearray] = {}
        self._names: dict[str, int] = {}
        self._pwrite, self._fsync, self._send = os.pwrite, os.fsync, WalSender.send
        monkeypatch.setattr(os, "pwrite", self._noted_pwrite)
        monkeypatch.setattr(os, "fsync", self._noted_fsync)
        monkeypatch.setattr(WalSender, "send", lambda sender, payload: self._noted_send(sender, payload))

    def _noted_pwrite(self, descriptor: int, data: bytes | memoryview, offset: int) -> int:
        count = self._pwrite(descriptor, data, offset)
        content = self._contents.setdefault(os.fstat(descriptor).st_ino, bytearray(GEOMETRY.segment_size))
        content[offset : offset + count] = b"\1" * count
        return count

    def _noted_fsync(self, descriptor: int) -> None:
        inode = os.fstat(descriptor).st_ino
        if self.failing is not None and inode in self._contents:
            # As Linux has it: what could not be written counts as clean after that, and the next sync succeeds.
            error, self.failing = self.failing, None
            self._contents[inode] = self._contents[inode].replace(b"\1", b"\0")
            raise error
        self._fsync(descriptor)
        if inode in self._contents:
            self._contents[inode] = self._contents[inode].translate(SYNCED)
        elif self._directory.exists() and inode == self._directory.stat().st_ino:
            with os.scandir(self._directory) as entries:
                self._names = {entry.name: entry.inode() for entry in entries}

    def _noted_send(self, sender: WalSender, payload: bytes) -> None:
        flushed = Lsn(decode_status_update(payload).flushed_lsn)
        if flushed:
            self.reports.append(flushed)
            self.lies += self.missing(flushed)
        self._send(sender, payload)

    def missing(self, flushed: Lsn) -> list[str]:
        """Return what is not durable of what lies before a position."""
        position, found = self.begin, []
        if not self._names:
            found.append(f"{flushed}: the names in the directory are not durable")
        while position < flushed:
            number = GEOMETRY.segment_no(position)
            name, length = GEOMETRY.file_name(1, number), min(flushed - GEOMETRY.segment_start(number), 1 << 20)
            inode = self._names.get(name, self._names.get(f"{name}.partial", 0))
            if self._contents.get(inode, b"")[:length] != b"\2" * length:
                found.append(f"{flushed}: {name} is not durable")
            position = GEOMETRY.segment_start(number + 1)
        return found


@contextmanager
def receiving(
    server: ThrowawayServer, repo: Path, *, synchronous: bool, errors: list[PgwalError] | None = None
) -> Iterator[Receiver]:
    """Run a receiver in this process; what ends it goes to ``errors``, or is none."""
    stop, found = StopRequest(), [] if errors is None else errors
    options = StreamOptions(
        slot="pgwal",
        create_slot=True,
        if_not_exists=True,
        status_interval_s=0.1,
        synchronous=synchronous,
        compression=Compression(CompressionMethod.NONE, 0),
    )
    receiver = Receiver(LocalPlace(repo), ConnectionParameters(server.conninfo), options, stop)

    def run() -> None:
        try:
            receiver.run()
        except PgwalError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_for(lambda: receiver.progress.streaming.is_set() or not thread.is_alive(), "the stream")
        yield receiver
    finally:
        stop.set()
        thread.join()
        stop.close()
    assert errors is not None or not found


def create_slot(server: ThrowawayServer) -> None:
    with server.connect() as connection:
        connection.execute("SELECT pg_create_physical_replication_slot('pgwal', true)")


def switch_wal(server: ThrowawayServer) -> None:
    with server.connect() as connection:
        connection.execute("SELECT pg_switch_wal()")


def slot_lsn(server: ThrowawayServer) -> Lsn:
    return one_lsn(server, "(SELECT restart_lsn FROM pg_replication_slots)")


@pytest.mark.postgres(18)
@pytest.mark.parametrize("synchronous", [False, True], ids=["lazy", "synchronous"])
def test_what_is_reported_is_durable(
    make_server: ServerFactory, scratch: Path, monkeypatch: pytest.MonkeyPatch, synchronous: bool
) -> None:
    server, repo = keeping_server(make_server), scratch / "repo"
    prepare(server)
    create_slot(server)
    # The second one finds a segment of full size, and whole ones, that count as not durable.
    for number in range(3):
        with monkeypatch.context() as patched:
            resume = Repository.open(repo).wal.resume_point() if number else None
            begin = resume[1] if resume else GEOMETRY.segment_start(GEOMETRY.segment_no(slot_lsn(server)))
            disk = Disk(repo / "wal", begin, patched)
            with receiving(server, repo, synchronous=synchronous) as receiver:
                run_load(server, 2 * number)
                switch_wal(server)
                if number != 1:
                    # The third one begins behind a whole segment.
                    run_load(server, 2 * number + 1)
                end = flush_lsn(server)
                wait_for(lambda lsn=end: slot_lsn(server) >= lsn, "the report")
                assert receiver.progress.metrics.segments_completed
        assert disk.lies == []
        assert disk.reports == sorted(disk.reports)


@pytest.mark.postgres(18)
def test_a_sync_that_failed_is_not_taken_back_by_the_next_one(
    make_server: ServerFactory, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, repo = keeping_server(make_server), scratch / "repo"
    prepare(server)
    create_slot(server)
    begin = GEOMETRY.segment_start(GEOMETRY.segment_no(slot_lsn(server)))
    disk = Disk(repo / "wal", begin, monkeypatch)
    errors: list[PgwalError] = []
    with receiving(server, repo, synchronous=False, errors=errors):
        run_load(server, 1)
        wait_for(lambda: slot_lsn(server) >= flush_lsn(server), "the report")
        disk.failing = OSError(errno.EIO, "the disk is broken")
        with server.connect() as connection:
            connection.execute("CREATE TABLE written ()")
        wait_for(lambda: disk.failing is None, "the sync")
        wait_for(lambda: errors, "the end")
    assert str(errors[0]).endswith(": Input/output error")
    state = Repository.open(repo).receiver_state()
    assert state is not None
    assert disk.missing(state.flushed_lsn) == []
    assert disk.lies == []
    # The next one receives that segment again from its start.
    with receiving(server, repo, synchronous=False):
        end = flush_lsn(server)
        wait_for(lambda: slot_lsn(server) >= end, "the report")
    assert disk.lies == []


def test_what_was_renamed_by_a_writer_that_failed_is_durable_before_the_next_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one begins behind it, and reports it as flushed."""
    place = LocalPlace(tmp_path)
    place.make(["wal"])
    observer = Unobserving()
    writer = WalWriter(place, GEOMETRY, 1, Lsn(0x300000), observer, synchronous=False, is_read_soon=False)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse_directories)
        writer.write(bytes(GEOMETRY.segment_size))
        with pytest.raises(StorageFull):
            writer.sync()
        assert writer.flushed_lsn == 0x300000
        writer.close()
    assert [path.name for path in (tmp_path / "wal").iterdir()] == [GEOMETRY.file_name(1, 3)]
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_ino), fsync(descriptor)))
    WalWriter(place, GEOMETRY, 1, Lsn(0x400000), observer, synchronous=False, is_read_soon=False).close()
    assert synced == [(tmp_path / "wal").stat().st_ino]


@pytest.mark.parametrize("is_read_soon", [False, True])
def test_the_cache_is_told_of_what_nobody_reads_soon_when_it_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_read_soon: bool
) -> None:
    place = LocalPlace(tmp_path)
    place.make(["wal"])
    calls: list[tuple[str, int]] = []
    fsync, advise = os.fsync, os.posix_fadvise

    def noted_fsync(descriptor: int) -> None:
        calls.append(("fsync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def noted_advise(descriptor: int, offset: int, length: int, advice: int) -> None:
        assert (offset, length, advice) == (0, 0, os.POSIX_FADV_DONTNEED)
        calls.append(("advise", os.fstat(descriptor).st_ino))
        advise(descriptor, offset, length, advice)
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "posix_fadvise", noted_advise)
    writer = WalWriter(place, GEOMETRY, 1, Lsn(0x300000), Unobserving(), synchronous=False, is_read_soon=is_read_soon)
    writer.write(bytes(GEOMETRY.segment_size))
    writer.sync()
    writer.close()
    assert writer.flushed_lsn == 0x400000
    segment = (tmp_path / "wal" / GEOMETRY.file_name(1, 3)).stat().st_ino
    kinds = [kind for kind, inode in calls if inode == segment]
    assert kinds == ["fsync"] if is_read_soon else kinds == ["fsync", "advise"]


class Unobserving:
    """An observer that does not look."""

    def segment_completed(self, name: str) -> None: ...

    def wal_synced(self, seconds: float) -> None: ...


def refuse_directories(descriptor: int, fsync: Callable[[int], None] = os.fsync) -> None:
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise OSError(errno.ENOSPC, "full")
    fsync(descriptor)


@pytest.mark.parametrize("brought", ["before it is begun", "before it is whole"])
def test_a_segment_that_was_brought_counts_when_its_name_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brought: str
) -> None:
    """An archive_command has stored it, and may not have come to sync the directory."""
    place = LocalPlace(tmp_path)
    place.make(["wal"])
    name = GEOMETRY.file_name(1, 3)
    content = bytes(range(256)) * (GEOMETRY.segment_size // 256)
    writer = WalWriter(place, GEOMETRY, 1, Lsn(0x300000), Unobserving(), synchronous=False, is_read_soon=False)
    if brought == "before it is whole":
        writer.write(content[:1000])
        writer.sync()
        content_left = content[1000:]
    else:
        content_left = content
    place.store.put(f"wal/{name}", content, durable=False)
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_ino), fsync(descriptor)))
    writer.write(content_left)
    writer.sync()
    assert writer.flushed_lsn == 0x400000
    assert (tmp_path / "wal").stat().st_ino in synced
    writer.close()
    assert [path.name for path in (tmp_path / "wal").iterdir()] == [name]
