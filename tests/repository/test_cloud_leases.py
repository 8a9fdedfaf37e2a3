"""Leases in an object store, among processes that stand still, lose answers, or have other clocks."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.exceptions import PermissionDeniedError
from repository.places import IN_STORES, PLACES
from support.shared_bucket import shared_bucket

from pgwal.backup.retention_rules import RetentionRules
from pgwal.engine.expire import ExpireRequest, expire
from pgwal.engine.verify import VerifyRequest, verify
from pgwal.errors import (
    LeaseLost,
    ObjectNotFound,
    ReceivedByBackup,
    RepositoryError,
    RepositoryLocked,
    StoreUnavailable,
)
from pgwal.repository import cloud_lease_object
from pgwal.repository.cloud_lease_object import LEASE_FOLDER, LeaseObject, LeaseTimes
from pgwal.repository.cloud_leases import CloudLeases
from pgwal.repository.cloud_place import CloudPlace
from pgwal.repository.cloud_store import CloudStore
from pgwal.repository.layout import BACKUP_LOCK_NAME, RepositoryIdentity
from pgwal.repository.lease_process import has_ended, this_process
from pgwal.repository.repository import Repository

TESTS = Path(__file__).parent.parent

SHORT = LeaseTimes(valid_s=1.0, grace_s=1.2, renewed_every_s=0.3)
"""Stores tell times in whole seconds: that much is the least of grace."""
NEVER = SHORT._replace(renewed_every_s=1000.0)
"""Of a process whose thread does not run, as that of one that was stopped."""


@pytest.fixture(params=IN_STORES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> CloudPlace:
    made = PLACES[request.param](tmp_path)
    assert isinstance(made, CloudPlace)
    return made


class Party:
    """A process of its own, as far as a store can tell."""

    def __init__(self, place: CloudPlace, times: LeaseTimes = SHORT) -> None:
        self.leases = CloudLeases(place.client, place.address, times)
        self.store = CloudStore(place.client, place.address, self.leases.require)


def await_true(condition: Callable[[], bool], within_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def takes(context: contextlib.AbstractContextManager[None]) -> bool:
    try:
        with context:
            return True
    except RepositoryLocked:
        return False


def test_a_lock_is_kept_as_long_as_its_holder_lives(place: CloudPlace) -> None:
    one, other = Party(place), Party(place)
    with one.leases.lock("lock", "one"):
        until_s = time.monotonic() + 2 * sum(SHORT[:2])
        while time.monotonic() < until_s:
            assert not takes(other.leases.lock("lock", "other"))
            assert other.leases.is_locked("lock")
        one.store.put("object", b"1")
    assert not other.leases.is_locked("lock")
    assert takes(other.leases.lock("lock", "other"))


def test_who_stood_still_changes_nothing_when_another_has_come(place: CloudPlace) -> None:
    still, other = Party(place, NEVER), Party(place)
    still.store.put("before", b"1")
    with still.leases.lock("lock", "the first"):
        await_true(lambda: takes(other.leases.lock("lock", "the other")))
        for change in (
            lambda: still.store.put("after", b"1"),
            lambda: still.store.put("after", iter([b"1"])),
            lambda: still.store.delete("before"),
            still.leases.confirm,
        ):
            with pytest.raises(LeaseLost, match="lock was lost"):
                change()
        with other.leases.lock("lock", "the other"):
            pass
    assert [name for name, _ in still.store.list() if not name.startswith(LEASE_FOLDER)] == ["before", "lock"]
    # What it gave back was not its own any more.
    with other.leases.lock("lock", "the other"):
        still.leases.confirm()
        assert other.leases.is_locked("lock")


def test_a_large_object_is_not_deleted_folder_by_folder_either(place: CloudPlace) -> None:
    still, other = Party(place, NEVER), Party(place)
    still.store.put("folder/before", b"1")
    with still.leases.lock("lock", "the first"):
        await_true(lambda: takes(other.leases.lock("lock", "the other")))
        with pytest.raises(LeaseLost):
            still.store.delete_all("folder")
    assert still.store.exists("folder/before")


def test_who_stood_still_goes_on_when_nobody_has_come(place: CloudPlace) -> None:
    still, other = Party(place, NEVER), Party(place)
    with still.leases.lock("lock", "the first"):
        await_true(lambda: not other.leases.is_locked("lock"))
        still.store.put("after", b"1")
        assert other.leases.is_locked("lock")
        assert not takes(other.leases.lock("lock", "the other"))


def test_confirming_asks_the_store_whatever_the_clock_says(place: CloudPlace) -> None:
    # A clock of a machine that was suspended may have stood still with it.
    still, other = Party(place, LeaseTimes(1000.0, 0.0, 1000.0)), Party(place)
    with still.leases.lock("lock", "the first"):
        await_true(lambda: takes(other.leases.lock("lock", "the other")))
        still.store.put("object", b"1")
        with pytest.raises(LeaseLost):
            still.leases.confirm()
        with pytest.raises(LeaseLost):
            still.leases.confirm()


def test_of_many_that_want_what_expired_one_gets_it(place: CloudPlace) -> None:
    still = Party(place, NEVER)
    parties = [Party(place) for _ in range(4)]
    barrier, winners = threading.Barrier(4), []
    with still.leases.lock("lock", "the first"):
        await_true(lambda: not parties[0].leases.is_locked("lock"))

        def want(party: Party) -> None:
            barrier.wait()
            with contextlib.suppress(RepositoryLocked), party.leases.lock("lock", "a party"):
                winners.append(party)
                all_tried.wait()

        all_tried = threading.Event()
        threads = [threading.Thread(target=want, args=(party,)) for party in parties]
        for thread in threads:
            thread.start()
        await_true(lambda: sum(thread.is_alive() for thread in threads) == 1)
        all_tried.set()
        for thread in threads:
            thread.join()
    assert len(winners) == 1


def test_readers_and_who_removes_never_both(place: CloudPlace) -> None:
    """Many times at once: of the two at least one is told."""
    reader, remover = Party(place), Party(place)
    reader.store.put("folder/object", b"1")
    both, barrier = [], threading.Barrier(2)
    inside = {"reader": False, "remover": False}

    def work(party: Party, name: str, exclusive: bool) -> None:
        for _ in range(20):
            barrier.wait()
            with contextlib.suppress(RepositoryLocked), party.leases.hold("folder/object", exclusive=exclusive):
                inside[name] = True
                both.append(all(inside.values()))
                time.sleep(0.01)
                both.append(all(inside.values()))
                inside[name] = False

    threads = [
        threading.Thread(target=work, args=(reader, "reader", False)),
        threading.Thread(target=work, args=(remover, "remover", True)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert both
    assert not any(both)


def test_a_reader_that_died_does_not_stand_in_the_way_for_ever(place: CloudPlace) -> None:
    dead, remover = Party(place, NEVER), Party(place)
    dead.store.put("folder/object", b"1")
    with dead.leases.hold("folder/object"):
        assert not takes(remover.leases.hold("folder/object", exclusive=True))
        await_true(lambda: takes(remover.leases.hold("folder/object", exclusive=True)))
        with pytest.raises(LeaseLost):
            dead.leases.confirm()


def test_who_stood_still_removes_nothing_that_somebody_reads(place: CloudPlace) -> None:
    still, reader, another = Party(place, NEVER), Party(place), Party(place)
    still.store.put("folder/object", b"1")
    with still.leases.hold("folder/object", exclusive=True):
        await_true(lambda: takes(reader.leases.hold("folder/object")))
        with reader.leases.hold("folder/object"), another.leases.hold("folder/object"):
            for remove in (still.leases.confirm, lambda: still.store.delete("folder/object")):
                with pytest.raises(LeaseLost):
                    remove()
    assert takes(another.leases.hold("folder/object", exclusive=True))


def test_a_reader_goes_on_where_it_cannot_tell_who_stood_still(
    place: CloudPlace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    still, reader = Party(place, NEVER), Party(place)
    still.store.put("folder/object", b"1")
    with still.leases.hold("folder/object", exclusive=True):
        refuse(monkeypatch, "put", f"{LEASE_FOLDER}/folder/object/remover")
        await_true(lambda: takes(reader.leases.hold("folder/object")))
    assert f"nothing keeps {place.address}/" in caplog.text


def test_nothing_stays_of_leases_on_what_is_gone(place: CloudPlace) -> None:
    one = Party(place)
    one.store.put("folder/object", b"1")
    with one.leases.hold("folder/object"):
        pass
    with one.leases.hold("folder/object", exclusive=True):
        one.store.delete("folder/object")
    assert list(one.store.list()) == []
    with pytest.raises(ObjectNotFound), one.leases.hold("folder/object"):
        pytest.fail("it is gone")
    assert list(one.store.list()) == []


@pytest.mark.parametrize("mode", ["create", "swap"])
def test_a_lease_whose_answer_was_lost_is_had(place: CloudPlace, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """The library asks again, and is told that its own is there."""
    put, lost = obstore.put, []

    def put_twice(client: Any, name: str, content: bytes, **options: Any) -> Any:
        if name == "lock" and (options.get("mode") == "create") == (mode == "create") and not lost:
            lost.append(put(client, name, content, **options))
        return put(client, name, content, **options)

    party = Party(place, NEVER)
    monkeypatch.setattr(obstore, "put", put_twice)
    with party.leases.lock("lock", "one"):
        party.leases.confirm()
        party.leases.confirm()
        assert lost


def test_a_renewal_that_failed_though_it_was_stored_is_no_loss(
    place: CloudPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, failing = obstore.put, [True]

    def put_and_fail(client: Any, name: str, content: bytes, **options: Any) -> Any:
        answer = put(client, name, content, **options)
        if name == "lock" and failing[0] and options.get("mode") != "create":
            raise StoreUnavailable("no answer came")
        return answer

    party, other = Party(place, NEVER), Party(place)
    monkeypatch.setattr(obstore, "put", put_and_fail)
    with party.leases.lock("lock", "one"):
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                party.leases.confirm()
        failing[0] = False
        party.leases.confirm()
        party.leases.confirm()
    assert takes(other.leases.lock("lock", "other"))


def test_whatever_goes_wrong_with_a_renewal_others_follow(place: CloudPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    renew, failed = LeaseObject.renew, []

    def renew_or_panic(lease: LeaseObject) -> None:
        if lease.name == "first" and not failed:
            failed.append(lease)
            raise BaseException("a panic")
        renew(lease)

    party, other = Party(place), Party(place)
    monkeypatch.setattr(LeaseObject, "renew", renew_or_panic)
    with party.leases.lock("first", "one"), party.leases.lock("second", "one"):
        await_true(lambda: bool(failed))
        until_s = time.monotonic() + 2 * sum(SHORT[:2])
        while time.monotonic() < until_s:
            assert not takes(other.leases.lock("second", "other"))


def test_what_cannot_be_read_is_somebodys(place: CloudPlace) -> None:
    party = Party(place, NEVER)
    party.store.put("lock", b"{")
    with pytest.raises(RepositoryLocked, match="something else"), party.leases.lock("lock", "one"):
        pytest.fail("it is not free")


# ---- clocks


class TwoMinutesAhead(datetime):
    """What a machine with a wrong clock takes for the time."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> TwoMinutesAhead:
        return super().now(tz) + timedelta(minutes=2)


def refuse(monkeypatch: pytest.MonkeyPatch, operation: str, folder: str) -> None:
    asked = getattr(obstore, operation)

    def ask(client: Any, name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith(folder):
            raise PermissionDeniedError("status code: 403 Forbidden: <Code>AccessDenied</Code>")
        return asked(client, name, *arguments, **options)

    monkeypatch.setattr(obstore, operation, ask)


@pytest.mark.parametrize("operation", ["put", "delete"])
def test_no_clock_but_the_stores_gives_a_lease_to_another(
    place: CloudPlace, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """Neither where nothing may be deleted, nor where the store cannot be asked for its time."""
    one, other = Party(place, LeaseTimes()), Party(place, LeaseTimes())
    one.store.put("folder/object", b"1")
    refuse(monkeypatch, operation, f"{LEASE_FOLDER}/clock/")
    monkeypatch.setattr(cloud_lease_object, "datetime", TwoMinutesAhead)
    with one.leases.lock("lock", "one"), one.leases.hold("folder/object"):
        # Who only looks may go by another clock.
        assert other.leases.is_locked("lock") == (operation == "delete")
        for context in (other.leases.lock("lock", "other"), other.leases.hold("folder/object", exclusive=True)):
            with pytest.raises(RepositoryError) as raised, context:
                pytest.fail("two have it")
            assert operation == "put" or isinstance(raised.value, RepositoryLocked)


# ---- who may not be there together


def opened(place: CloudPlace) -> Repository:
    """Open a repository as a process of its own does."""
    other = CloudPlace(place.address, place.client)
    return Repository.open_or_create(other, RepositoryIdentity(7_000_000_000_000_000_001, 16 << 20, 18))


def test_what_stands_against_what(place: CloudPlace) -> None:
    one, other = opened(place), opened(place)
    with one.lock_receiver():
        assert other.receiver_is_running()
        with pytest.raises(RepositoryLocked, match="held by a receiver, process"), other.lock_receiver():
            pytest.fail("two receive")
        with other.lock_backups(), pytest.raises(RepositoryLocked), one.lock_backups():
            pytest.fail("two change backups")
    assert not other.receiver_is_running()
    with one.lock_receiver(for_backup=True), pytest.raises(ReceivedByBackup), other.lock_receiver():
        pytest.fail("two receive")
    with one.lock_backups(), pytest.raises(RepositoryLocked, match="held by a backup"):
        expire(ExpireRequest(other.place, RetentionRules(keep_full=1)))
    with one.hold_all_backups(), other.hold_all_backups(), pytest.raises(RepositoryLocked, match="being read"):
        expire(ExpireRequest(other.place, RetentionRules(keep_full=1)))
    with one.lock_backups(), one.hold_all_backups(exclusive=True), pytest.raises(RepositoryLocked, match="removed"):
        verify(VerifyRequest(other.place))
    expire(ExpireRequest(other.place, RetentionRules(keep_full=1)))


# ---- a process that is stopped


STOPPED = """
import sys
from pgwal.repository.address import place_at
from pgwal.repository.cloud_leases import CloudLeases
from pgwal.repository.cloud_lease_object import LeaseTimes
from pgwal.repository.repository import Repository
from keeping.stored_repository import entry_of
from pgwal.backup.entry import BackupTotals
from pgwal.lsn import Lsn

address, backup_id, is_blind = sys.argv[1], sys.argv[2], sys.argv[3] == "blind"
place = place_at(address)
place.__dict__["leases"] = CloudLeases(place.client, address, LeaseTimes(1.0, 1.2, 0.3))
if is_blind:
    # As if it were stopped between the last look at its leases and what it asks of the store.
    CloudLeases.require = CloudLeases.confirm = lambda self: None
repository = Repository.open(place)
with repository.lock_backups(), repository.catalogue.stage(backup_id) as staged:
    staged.data.write("backup_label", [b"label"])
    staged.data.write("base/1/1", [b"content"])
    staged.data.sync()
    packed = staged.data.contents()
    print("ready", flush=True)
    sys.stdin.readline()
    staged.publish(entry_of(backup_id, None, Lsn(1), Lsn(2), BackupTotals(), packed.size_bytes))
"""


@contextlib.contextmanager
def stopped(place: CloudPlace, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Give a process that is stopped before it publishes a backup."""
    environment = os.environ | shared_bucket().server.environment() | {"PYTHONPATH": str(TESTS)}
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED, place.address, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", process.communicate()[1]
            process.send_signal(signal.SIGSTOP)
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("sight", ["seeing", "blind"])
def test_a_process_that_was_stopped_does_not_publish_what_was_removed_meanwhile(sight: str) -> None:
    place = shared_bucket().place()
    place.__dict__["leases"] = CloudLeases(place.client, place.address, SHORT)
    repository = Repository.open_or_create(place, RepositoryIdentity(7_000_000_000_000_000_001, 16 << 20, 18))
    with stopped(place, "20261130T101530Z_full", sight) as process:
        with pytest.raises(RepositoryLocked, match="a backup, process"), repository.lock_backups():
            pytest.fail("it is held")
        assert repository.catalogue.unfinished() == ["20261130T101530Z_full"]

        def removes() -> bool:
            with contextlib.suppress(RepositoryLocked), repository.lock_backups():
                assert repository.catalogue.clear_unfinished() == ["20261130T101530Z_full"]
                return True
            return False

        await_true(removes)
        process.send_signal(signal.SIGCONT)
        _, errors = process.communicate("\n", timeout=60)
    assert process.returncode == 1
    assert "LeaseLost" in errors
    assert ("took it for abandoned" if sight == "blind" else "was lost") in errors
    assert repository.catalogue.ids() == []
    assert repository.catalogue.unfinished() == []


def test_a_process_that_was_stopped_goes_on_when_nobody_came() -> None:
    place = shared_bucket().place()
    repository = Repository.open_or_create(place, RepositoryIdentity(7_000_000_000_000_000_001, 16 << 20, 18))
    looking = Party(place)
    with stopped(place, "20261130T101530Z_full", "seeing") as process:
        await_true(lambda: not looking.leases.is_locked(BACKUP_LOCK_NAME))
        process.send_signal(signal.SIGCONT)
        _, errors = process.communicate("\n", timeout=60)
    assert process.returncode == 0, errors
    assert repository.catalogue.ids() == ["20261130T101530Z_full"]


def test_nobody_waits_for_a_process_that_was_killed() -> None:
    place = shared_bucket().place()
    repository = Repository.open_or_create(place, RepositoryIdentity(7_000_000_000_000_000_001, 16 << 20, 18))
    with stopped(place, "20261130T101530Z_full", "seeing") as process:
        # By the leases of long times that everybody has.
        assert repository.backup_is_running()
        process.kill()
        # Its parent has not heard of it yet.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not repository.backup_is_running()
        process.wait()
        assert not repository.backup_is_running()
        with repository.lock_backups():
            assert repository.catalogue.clear_unfinished() == ["20261130T101530Z_full"]


@pytest.mark.skipif(this_process() is None, reason="the system does not tell")
def test_only_what_is_known_to_have_ended_has() -> None:
    mine = this_process()
    assert mine is not None
    assert not has_ended(mine)
    with subprocess.Popen(["true"]) as process:
        process.wait()
    ended = mine | {"pid": process.pid}
    assert has_ended(ended)
    assert has_ended(mine | {"started": 1})
    for other in ({"host": "other"}, {"boot": "other"}, {"pids": "pid:[1]"}, {"pid": 0}, {"pid": -1}, {"pid": "1"}):
        assert not has_ended(ended | other)
    for nothing in (None, {}, [], "text", {"pid": 1}):
        assert not has_ended(nothing)
