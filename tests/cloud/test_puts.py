"""What is put over nothing: that holds for large objects as for small ones, whatever comes in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import obstore
import pytest

from pgwal.errors import ObjectExists
from pgwal.repository.cloud_place import CloudPlace

LARGE = bytes(9 << 20)


@pytest.fixture
def place() -> CloudPlace:
    return CloudPlace("s3://memory/repo", obstore.store.MemoryStore())


def before_the_first_put(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Have ``action`` done when the first object is put, as by another process."""
    put, done = obstore.put, []

    def put_after(*arguments: Any, **options: Any) -> Any:
        if not done:
            done.append(True)
            action()
        return put(*arguments, **options)

    monkeypatch.setattr(obstore, "put", put_after)


def test_bytes_are_put_over_nothing_however_many(place: CloudPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an entry is, which another may keep from being stored meanwhile."""
    before_the_first_put(monkeypatch, lambda: obstore.put(place.client, "entry", b"", mode="create"))
    with pytest.raises(ObjectExists):
        place.store.put("entry", LARGE)
    assert place.store.size("entry") == 0
    place.store.put("other", LARGE)
    assert place.store.get("other") == LARGE
    place.store.put("other", LARGE)
