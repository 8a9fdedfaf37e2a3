"""One history in an object store: as ``test_model``, through a spool that may be lost, into a store that may fail.

What is reported is in the store at that moment, whatever becomes of this machine.  PGWAL_MODEL_EXAMPLES makes more.
"""

from __future__ import annotations

import shutil
from random import Random

import pytest
from hypothesis import Phase, event, settings
from receiver.archive_meaning import ArchiveMeaning, stored_copies
from receiver.model_server import GEOMETRY, SLOT, ModelSender, ModelServer, Traffic
from receiver.test_model import OneHistory
from support.fate import Died, Fate
from support.faulty_store import FaultyPlace

from pgwal.engine.stop import StopRequest
from pgwal.engine.stream import Receiver
from pgwal.engine.stream_options import SpoolOptions, StreamOptions
from pgwal.errors import PgwalError
from pgwal.lsn import Lsn
from pgwal.postgres.connection import ConnectionParameters
from pgwal.repository.compression import Compression, CompressionMethod
from pgwal.repository.layout import IDENTITY_NAME, WAL_DIRECTORY
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.memory import MemoryPlace, MemoryStore
from pgwal.repository.repository import Repository
from pgwal.repository.store import objects_in
from pgwal.repository.wal_file_name import split_segment_name

_COMPRESSIONS = (Compression(), Compression(CompressionMethod.NONE, 0))


class StorePlace(FaultyPlace):
    """A store that is reached over a network, as far as a receiver sees it."""

    is_remote = True


class OneHistoryInAStore(OneHistory):
    """Receivers run on this machine, or on others that have no spool."""

    place_of_store = StorePlace

    def __init__(self) -> None:
        super().__init__()
        self._memory = MemoryPlace()
        self._repo.mkdir()

    def compress(self, _number: int, _other: int, random: Random, *, is_so: bool) -> None:
        """Lose the spool, as with the machine that it is on; what a directory compresses later a store never has."""
        if is_so or random.random() < 0.5:
            self._lose_spool()

    def _lose_spool(self) -> None:
        event("spool lost")
        shutil.rmtree(self._repo)
        self._repo.mkdir()
        self._disk.settle()

    def kill_receiver(self, number: int, other: int, random: Random, *, is_so: bool) -> None:
        if other % 2:
            super().kill_receiver(number, other, random, is_so=is_so)
            return
        traffic = Traffic(random, self._acknowledge)
        try:
            error = self._run(self._cluster.server(number), traffic, False, fate=Fate(dies_at=random.randint(0, 12)))
            event(f"did not die: {type(error).__name__}")
        except Died:
            event("died")
            if is_so:
                self._lose_spool()

    def _run(
        self,
        server: ModelServer,
        traffic: Traffic,
        accepts: bool,
        kill_after: int | None = None,
        fate: Fate | None = None,
    ) -> PgwalError | None:
        random = traffic.random
        with_slot = random.random() < 0.7
        options = StreamOptions(
            slot=SLOT if with_slot else None,
            create_slot=with_slot,
            if_not_exists=True,
            reconnect=False,
            once=True,
            accept_new_history=accepts,
            compression=random.choice(_COMPRESSIONS),
            spool=SpoolOptions(self._repo, partial_interval_s=random.choice((0.0, 10.0))),
        )
        stop = StopRequest()
        traffic.stop = stop.set
        receiver = Receiver(
            self.place_of_store(self._memory, fate or Fate()),
            ConnectionParameters(""),
            options,
            stop,
            opener=lambda *_: ModelSender(server, traffic),
        )
        self._has_changed = True
        try:
            with self._disk.process(kill_after):
                receiver.run()
        except PgwalError as error:
            return error
        finally:
            stop.close()
        assert not receiver.progress.metrics.errors["summary"]
        return None

    def _acknowledge(self, server: ModelServer, timeline_id: int, start: Lsn, data: bytes) -> None:
        super()._acknowledge(server, timeline_id, start, data)
        # At this moment, not only at last.
        self.all_that_was_reported_is_in_the_store()

    def all_that_was_reported_is_in_the_store(self) -> None:
        copies = self._stored_copies()
        for key, reported in self._acknowledged.items():
            for passed, content in reported:
                found = [copy[passed : len(content)] for copy in copies.get(key, [])]
                name = GEOMETRY.file_name(*key)
                assert content[passed:] in found, f"of {name} bytes {passed} to {len(content)} were reported"

    def _stored_copies(self) -> dict[tuple[int, int], list[bytes]]:
        # Of one moment: another thread stores and deletes.
        store = MemoryStore()
        store.__dict__["_objects"] = dict(self._memory.store.__dict__["_objects"])
        return stored_copies(store)

    def _has_whole_segment(self, number: int) -> bool:
        names = (split_segment_name(name) for name, _ in objects_in(self._memory.store, WAL_DIRECTORY))
        return any(base[8:24] == GEOMETRY.file_name(0, number)[8:] and complete for base, _, complete in names)

    def _is_right(self, server: ModelServer, meaning: ArchiveMeaning | None) -> bool:
        """As for a directory, and what waits in the spool goes on with the server as well."""
        waits = [path.parent for path in self._repo.glob("*/spool.json")]
        if meaning is not None and waits:
            spool = ArchiveMeaning(Repository(LocalPlace(waits[0]), meaning.repository.identity))
            if not super()._is_right(server, spool):
                return False
        # What begins within a record may hold nothing but the middle of it, and counts up to there.
        parts = [] if meaning is None else meaning.along(server.history)
        if any(
            GEOMETRY.segment_start(part.number) + len(part.content.rstrip(b"\0")) > server.flush_lsn for part in parts
        ):
            return False
        return super()._is_right(server, meaning)

    def _meaning(self) -> ArchiveMeaning | None:
        if not self._memory.store.exists(IDENTITY_NAME):
            return None
        return ArchiveMeaning(Repository.open(self._memory))


# Threads have a part in what happens: nothing is made smaller by trying it again.
OneHistoryInAStore.TestCase.settings = settings(OneHistory.TestCase.settings, phases=[Phase.generate])


# The other threads of a process die with it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
class TestOneHistoryInAStore(OneHistoryInAStore.TestCase):
    """The machine as a test."""
