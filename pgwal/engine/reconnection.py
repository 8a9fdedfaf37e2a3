"""Take an interrupted stream up again: which errors are worth it, and how long to wait before."""

from __future__ import annotations

from collections.abc import Callable

import tenacity

from pgwal.budget import RECONNECT_MAX_S, RECONNECT_MIN_S
from pgwal.engine.receiver_progress import ReceiverProgress
from pgwal.engine.stop import StopRequest
from pgwal.engine.stream_options import StreamOptions
from pgwal.errors import PgwalError, ReceivedByBackup, SlotInUse, StandbyBehind, StorageFull


def is_worth_retrying(
    error: BaseException, options: StreamOptions, *, connected_before: bool, streamed_before: bool
) -> bool:
    """Tell whether a stream that has ended with an error is to be taken up again.

    An error of the first connection is not: it is told to whoever has begun.
    """
    if not isinstance(error, PgwalError) or not error.is_transient:
        return False
    if isinstance(error, ReceivedByBackup):
        return not options.for_backup
    if isinstance(error, StandbyBehind):
        return not options.for_backup and options.reconnect
    if isinstance(error, StorageFull):
        return connected_before and options.wait_for_room
    if isinstance(error, SlotInUse) and not streamed_before:
        # Another receiver's: only after the connection broke may the server hold the slot for this one yet.
        return False
    return connected_before and options.reconnect


def wait_s(failures: int) -> float:
    """Return how long to wait after so many attempts that brought nothing new: longer with each."""
    return float(min(RECONNECT_MAX_S, RECONNECT_MIN_S * 2 ** min(failures, 10)))


def reconnecting(
    receive: Callable[[], None], options: StreamOptions, stop: StopRequest, progress: ReceiverProgress
) -> None:
    """Receive, again after each error that is worth it, until that ends; the last error is raised."""

    def is_worth_it(error: BaseException) -> bool:
        connected, streamed = progress.is_connected, progress.streaming.is_set()
        return is_worth_retrying(error, options, connected_before=connected, streamed_before=streamed)

    def note(state: tenacity.RetryCallState) -> None:
        progress.interrupted(state.outcome.exception() if state.outcome else None)

    def next_wait_s(_: tenacity.RetryCallState) -> float:
        progress.failures += 1
        return wait_s(progress.failures)

    def pause(seconds: float) -> None:
        progress.alive()
        stop.wait(seconds)
        progress.alive()

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_worth_it),
        wait=next_wait_s,
        stop=lambda _: stop.is_set(),
        sleep=pause,
        before_sleep=note,
        reraise=True,
    )
    retrying(receive)
