"""Which errors a receiver outlasts, and how long it waits."""

from __future__ import annotations

import pytest

from pgwal.engine.reconnection import is_worth_retrying, wait_s
from pgwal.engine.stream_options import StreamOptions
from pgwal.errors import (
    ConnectionFailed,
    PgwalError,
    ReceivedByBackup,
    ReplicationInterrupted,
    RepositoryLocked,
    ServerError,
    SlotInUse,
    SlotUnavailable,
    StandbyBehind,
    StorageFull,
    WrongCluster,
)

STAYS, ONCE, OF_A_BACKUP = (
    StreamOptions(wait_for_room=True),
    StreamOptions(reconnect=False),
    StreamOptions(for_backup=True),
)

NEVER, ALWAYS = (False, False, False), (True, True, True)


@pytest.mark.parametrize(
    ("kind", "stays", "once", "of_a_backup"),
    [
        # At the first connection, after one that did not come to stream, after one that did.
        (ConnectionFailed, (False, True, True), NEVER, (False, True, True)),
        (ReplicationInterrupted, (False, True, True), NEVER, (False, True, True)),
        (SlotInUse, (False, False, True), NEVER, (False, False, True)),
        (StorageFull, (False, True, True), NEVER, NEVER),
        (StandbyBehind, ALWAYS, NEVER, NEVER),
        (ReceivedByBackup, ALWAYS, ALWAYS, NEVER),
        (RepositoryLocked, NEVER, NEVER, NEVER),
        (SlotUnavailable, NEVER, NEVER, NEVER),
        (WrongCluster, NEVER, NEVER, NEVER),
        (ServerError, NEVER, NEVER, NEVER),
    ],
)
def test_what_is_worth_another_attempt(
    kind: type[PgwalError],
    stays: tuple[bool, bool, bool],
    once: tuple[bool, bool, bool],
    of_a_backup: tuple[bool, bool, bool],
) -> None:
    for options, expected in ((STAYS, stays), (ONCE, once), (OF_A_BACKUP, of_a_backup)):
        found = tuple(
            is_worth_retrying(kind("so it is"), options, connected_before=connected, streamed_before=streamed)
            for connected, streamed in ((False, False), (True, False), (True, True))
        )
        assert found == expected


def test_a_fault_of_the_program_ends_it() -> None:
    assert not is_worth_retrying(AssertionError(), STAYS, connected_before=True, streamed_before=True)


def test_each_wait_is_longer_up_to_some_seconds() -> None:
    waits = [wait_s(failures) for failures in range(1, 2000)]
    assert waits == sorted(waits)
    assert waits[0] == pytest.approx(0.2)
    assert waits[-1] == 5
