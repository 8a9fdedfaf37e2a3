"""How many requests a store is asked for what people do often: each takes time, and is paid for."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import obstore
import pytest
import zstandard
from repository.places import cloud_memory
from restore.made_repository import SEGMENT_SIZE, SYSTEM_IDENTIFIER
from restore.test_fetch_wal import ServerInRecovery, segment, segment_name
from support import packed_load
from support.packed_load import ZeroPacks, ZeroPlace, write_files
from support.shared_bucket import shared_bucket
from support.store_proxy import StoreProxy
from test_main_job import pgwal, prepare, streaming

from pgwal.engine import receiving
from pgwal.repository import cloud_store
from pgwal.repository.cloud_place import CloudPlace
from pgwal.repository.layout import RepositoryIdentity
from pgwal.repository.repository import Repository
from pgwal.repository.store import ObjectStore
from pgwal_cli.throwaway_server import ThrowawayServer

_MOST_OF_NO_CHANGE = 30
_MOST_BESIDE_LOOKS = 24
"""What is asked besides how far the receiver is, which on a busy machine takes longer."""
_SEGMENTS = range(3, 43)
_MOST_BESIDE = 8
"""Of replaying those: who it is, asked for by two processes, and listings, among them that of what is not there."""
_MOST_PUTS = 1000


@pytest.fixture
def proxy() -> Iterator[StoreProxy]:
    port = urlsplit(shared_bucket().server.endpoint).port
    assert port is not None
    with StoreProxy(port) as proxy:
        yield proxy


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a place in a bucket, which commands reach by the variables of this process."""
    for name, value in shared_bucket().server.environment().items():
        monkeypatch.setenv(name, value)
    return shared_bucket().place().address


@pytest.mark.postgres(18)
def test_an_incremental_backup_without_changes_takes_few_requests(
    server: ThrowawayServer, address: str, proxy: StoreProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ["--repo", address, "-d", server.conninfo, "-c", "fast", "--json"]
    prepare(server)
    with streaming(server, address, "--slot", "pgwal", "--create-slot", "--if-not-exists"):
        assert re.search(r"\d+ requests to the store: \d+ get, ", pgwal("full", *source[:-1]))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        backup = json.loads(pgwal("incremental", *source))
    assert backup["copied_block_count"] < backup["block_count"] // 2
    asked = "\n".join(proxy.asked)
    assert backup["requests"] == _kinds(proxy.asked), asked
    assert sum(backup["requests"].values()) == len(proxy.asked)
    looks = sum(line.endswith("receiver.json") for line in proxy.asked)
    waited_s = backup["phase_seconds"]["wait for the window's WAL"] + backup["phase_seconds"]["wait for WAL"]
    assert len(proxy.asked) - looks <= _MOST_BESIDE_LOOKS, asked
    # The first wait is as long as the second one, and then they double: fewer than so many of the first, in two places.
    assert looks < _MOST_OF_NO_CHANGE - _MOST_BESIDE_LOOKS or looks <= 2 + waited_s / receiving.REMOTE_POLL_S, asked


def _kinds(asked: Iterable[str]) -> dict[str, int]:
    """Return how often a store was asked, by the kinds that a backup tells of."""
    found = Counter[str]()
    for line in asked:
        method, address = line.split(" ")
        is_list = "list-type=2" in address
        kinds = {"GET": "list" if is_list else "get", "POST": "delete" if address.endswith("?delete") else "put"}
        found[kinds.get(method, method.lower())] += 1
    return {kind: found[kind] for kind in ("get", "head", "list", "put", "delete")}


class _CountedPuts(ZeroPacks):
    """Counts the requests in which an object store is sent the objects."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store)
        self.sent: list[tuple[str, int]] = []
        """The name, and the requests, of each object."""

    def put(self, name: str, content: bytes | Iterable[bytes], *, replace: bool = False, durable: bool = True) -> None:
        size_bytes = 0

        def passing() -> Iterator[bytes]:
            nonlocal size_bytes
            for piece in (content,) if isinstance(content, bytes) else content:
                size_bytes += len(piece)
                yield piece

        super().put(name, passing(), replace=replace, durable=durable)
        # Larger ones take a request to begin, and one to end.
        parts = -(-size_bytes // cloud_store.UPLOADED_PART_BYTES) + 2
        self.sent.append((name, 1 if size_bytes <= cloud_store.PUT_AT_ONCE_BYTES else parts))


def test_a_hundred_thousand_small_files_take_few_puts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_load, "FILE_SIZE", 8192)
    place = ZeroPlace(tmp_path / "repo")
    place.make()
    place.store = counted = _CountedPuts(place.store)
    write_files(place, 100_000)
    packs = sum(count for name, count in counted.sent if name.startswith("packs/"))
    assert 100_000 * 8192 // cloud_store.UPLOADED_PART_BYTES <= packs < _MOST_PUTS
    assert sum(count for _, count in counted.sent) < _MOST_PUTS


def test_replay_takes_a_request_for_each_segment(
    tmp_path: Path, address: str, proxy: StoreProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = CloudPlace.parse(address)
    repository = Repository.open_or_create(place, RepositoryIdentity(SYSTEM_IDENTIFIER, SEGMENT_SIZE, 18))
    for number in _SEGMENTS:
        content = segment(number=number)
        if number % 2:
            repository.store.put(f"wal/{segment_name(number)}", content)
        else:
            repository.store.put(f"wal/{segment_name(number)}.zst", zstandard.ZstdCompressor().compress(content))
    # What is not asked for.
    for number in range(0x300, 0x320):
        repository.store.put(f"wal/{segment_name(number)}", b"")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    server = ServerInRecovery(tmp_path / "repo", address)
    assert server.ask(segment_name(_SEGMENTS[0])) == (0, segment(number=_SEGMENTS[0]))
    for number in _SEGMENTS[1:]:
        server.wait_until(lambda number=number: segment_name(number) in server.waiting())  # type: ignore[misc]
        assert server.ask(segment_name(number), without_python=True) == (0, segment(number=number))
    server.wait_until(lambda: not server.spool.exists())
    for number in _SEGMENTS:
        assert sum(segment_name(number) in line and "list-type" not in line for line in proxy.asked) == 1
    assert len(proxy.asked) <= len(_SEGMENTS) + _MOST_BESIDE, "\n".join(proxy.asked)


def test_a_listing_ends_behind_its_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud_store, "LISTED_AT_ONCE", 10)
    listed: list[str] = []

    real = obstore.list

    def counting(*args: object, **options: object) -> Iterator[object]:
        for some in real(*args, **options):  # type: ignore[call-overload]
            listed.extend(each["path"] for each in some)
            yield some

    monkeypatch.setattr(obstore, "list", counting)
    store = cloud_memory(tmp_path).store
    names = [f"wal/{segment_name(number)}" for number in range(300)]
    for name in names:
        obstore.put(store.client, name, b"")
    for prefix in ("", "wal/", "wal/0", names[7], names[7][:-1], names[299], names[0x10][:-1], f"{names[9]}.none"):
        listed.clear()
        assert sorted(name for name, _ in store.list(prefix)) == [name for name in names if name.startswith(prefix)]
        assert len(listed) <= 40 or len(prefix) < len(names[0]) - 1
