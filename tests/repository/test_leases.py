"""What leases promise, of each place."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from repository.places import PLACES

from pgwal.errors import ObjectNotFound, RepositoryLocked
from pgwal.repository.place import Place


@pytest.fixture(params=list(PLACES))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    made = PLACES[request.param](tmp_path)
    made.store.put("folder/object", b"held")
    return made


def test_one_has_a_lock_and_others_are_told_who(place: Place) -> None:
    assert not place.leases.is_locked("lock")
    for holder in ("a backup", "another"):
        with place.leases.lock("lock", holder), place.leases.lock("other", holder):
            assert place.leases.is_locked("lock")
            with pytest.raises(RepositoryLocked, match=f"lock is held by {holder}"), place.leases.lock("lock", "me"):
                pytest.fail("two have it")
    assert not place.leases.is_locked("lock")


def test_a_lock_ends_with_an_error(place: Place) -> None:
    with pytest.raises(ZeroDivisionError), place.leases.lock("lock", "a backup"):
        _ = 1 / 0
    with place.leases.lock("lock", "another"):
        pass


def test_many_read_and_one_removes(place: Place) -> None:
    hold = place.leases.hold
    with ExitStack() as readers:
        for _ in range(3):
            readers.enter_context(hold("folder/object"))
        with pytest.raises(RepositoryLocked, match="being read"), hold("folder/object", exclusive=True):
            pytest.fail("it is read")
    with (
        hold("folder/object", exclusive=True),
        pytest.raises(RepositoryLocked, match="being removed"),
        hold("folder/object"),
    ):
        pytest.fail("it is being removed")
    with hold("folder/object"):
        pass


def test_what_is_gone_cannot_be_held(place: Place) -> None:
    place.store.delete("folder/object")
    for exclusive in (False, True):
        with pytest.raises(ObjectNotFound), place.leases.hold("folder/object", exclusive=exclusive):
            pytest.fail("it is gone")
