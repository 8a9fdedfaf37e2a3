"""How many requests a store is asked for what people do often: each takes time, and is paid for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support import packed_load
from support.packed_load import ZeroPacks, ZeroPlace, write_files
from support.shared_bucket import shared_bucket
from support.store_proxy import StoreProxy
from test_main_job import pgwal, prepare, streaming

from pgwal.repository import cloud_store
from pgwal.repository.store import ObjectStore
from pgwal_cli.throwaway_server import ThrowawayServer

_MOST_OF_NO_CHANGE = 60
"""It is some fifty: how often it is looked for WAL that has not arrived differs."""
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
        pgwal("full", *source)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        backup = json.loads(pgwal("incremental", *source))
    assert backup["copied_blocks"] < backup["blocks"] // 2
    assert 0 < len(proxy.asked) < _MOST_OF_NO_CHANGE, "\n".join(proxy.asked)


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
        parts = -(-size_bytes // cloud_store._PART_SIZE) + 2
        self.sent.append((name, 1 if size_bytes <= cloud_store._MOST_BYTES_AT_ONCE else parts))


def test_a_hundred_thousand_small_files_take_few_puts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_load, "FILE_SIZE", 8192)
    place = ZeroPlace(tmp_path / "repo")
    place.make()
    place.store = counted = _CountedPuts(place.store)
    write_files(place, 100_000)
    packs = sum(count for name, count in counted.sent if name.startswith("packs/"))
    assert 100_000 * 8192 // cloud_store._PART_SIZE <= packs < _MOST_PUTS
    assert sum(count for _, count in counted.sent) < _MOST_PUTS
