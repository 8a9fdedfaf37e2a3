"""What each store promises: one suite, which every implementation and every wrapper runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from repository.places import STORES, local
from support.fate import Died, Fate
from support.faulty_store import FaultyStore

from pgwal.errors import ObjectExists, ObjectNotFound, RepositoryError
from pgwal.repository.memory import MemoryStore
from pgwal.repository.object_reader import open_buffered, open_object
from pgwal.repository.store import (
    ByteRange,
    Child,
    ObjectStore,
    StoredObject,
    as_files,
    as_renaming,
    folders_in,
    move,
    names_in,
    objects_in,
)
from pgwal.repository.store_wrapper import CountingStore, ThrottlingStore

CONTENT = bytes(range(256)) * 40


@pytest.fixture(params=list(STORES))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    return STORES[request.param](tmp_path)


# ---- put, get, delete


@pytest.mark.parametrize("name", ["object", "a/b/c/object", "wal/00000001000000000000000A.partial", "ü", ".hidden"])
def test_what_is_put_is_got(store: ObjectStore, name: str) -> None:
    assert not store.exists(name)
    store.put(name, CONTENT)
    assert store.get(name) == CONTENT
    assert store.size(name) == len(CONTENT)
    assert store.exists(name)
    store.delete(name)
    assert not store.exists(name)
    assert list(store.list()) == []


def test_an_object_is_put_from_pieces(store: ObjectStore) -> None:
    store.put("pieces", (bytes([number]) * number for number in range(50)))
    assert store.get("pieces") == b"".join(bytes([number]) * number for number in range(50))
    store.put("nothing", iter(()))
    assert store.get("nothing") == b""
    assert store.size("nothing") == 0


def test_nothing_is_put_over_what_is_there(store: ObjectStore) -> None:
    store.put("object", b"first")
    with pytest.raises(ObjectExists):
        store.put("object", b"second")
    assert store.get("object") == b"first"
    store.put("object", b"third", replace=True)
    assert store.get("object") == b"third"
    store.put("other", b"new", replace=True, durable=False)
    assert store.get("other") == b"new"


def test_a_put_that_fails_changes_nothing(store: ObjectStore) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"some of it"
        raise ValueError("no more")

    for name in ("new", "old"):
        store.put("old", b"old", replace=True)
        with pytest.raises(ValueError, match="no more"):
            store.put(name, pieces(), replace=True)
    assert objects_in(store, "") == [StoredObject("old", 3)]
    assert store.get("old") == b"old"


def test_what_is_not_there(store: ObjectStore) -> None:
    store.put("there", b"")
    for name in ("nothing", "folder/nothing", "the"):
        assert not store.exists(name)
        for act in (store.get, store.size, lambda name: store.get_ranges(name, [ByteRange(0, 1)])):
            with pytest.raises(ObjectNotFound, match=name):
                act(name)
        with suppress(ObjectNotFound):
            store.delete(name)
        with pytest.raises(ObjectNotFound):
            open_object(store, name)
    assert list(store.children("nothing")) == []
    assert list(store.list("nothing/")) == []
    store.delete_all("nothing")


@given(st.data())
def test_ranges_are_those_of_the_bytes(data: st.DataObject) -> None:
    store = MemoryStore()
    check_ranges(store, data.draw(st.binary(max_size=20)), data.draw(st.lists(byte_ranges(), max_size=5)))


def byte_ranges() -> st.SearchStrategy[ByteRange]:
    return st.builds(ByteRange, st.integers(-25, 25), st.none() | st.integers(0, 25))


def check_ranges(store: ObjectStore, content: bytes, ranges: list[ByteRange]) -> None:
    store.put("object", content, replace=True)
    assert store.get_ranges("object", ranges) == [content[start:end] for start, end in ranges]


def test_several_ranges_at_once(store: ObjectStore) -> None:
    some = [(0, 10), (5, 5), (7, 3), (100, None), (-16, None), (-99999, 4), (len(CONTENT) - 5, len(CONTENT) + 5)]
    check_ranges(store, CONTENT, [ByteRange(*each) for each in [*some, (len(CONTENT) + 1, None), (0, None)]])


# ---- names


def test_lists_are_of_what_begins_so(store: ObjectStore) -> None:
    names = ["a", "ab/c", "ab/d/e", "ab/d/f", "abc", "b/a"]
    for name in names:
        store.put(name, name.encode())
    everything = {StoredObject(name, len(name)) for name in names}
    assert set(store.list()) == everything
    for prefix in ("a", "ab", "ab/", "ab/d/", "ab/d/e", "x", "ab/x"):
        listed = {found for found in everything if found.name.startswith(prefix)}
        assert set(store.list(prefix)) == listed
        for after in (*names, "", "ab/cc", "ab/d/ee", "x"):
            assert set(store.list(prefix, after=after)) == {found for found in listed if found.name > after}


def test_children_are_what_is_directly_in_a_folder(store: ObjectStore) -> None:
    for name in ("a", "folder/one", "folder/two", "folder/deep/three", "other/four"):
        store.put(name, b"1234")
    assert set(store.children()) == {Child("a", 4), Child("folder", None, True), Child("other", None, True)}
    assert names_in(store, "folder") == ["deep", "one", "two"]
    assert objects_in(store, "folder") == [StoredObject("one", 4), StoredObject("two", 4)]
    assert folders_in(store, "folder") == ["deep"]
    assert store.exists("folder/deep")
    assert not store.exists("fold")


def test_a_folder_is_removed_with_all_in_it(store: ObjectStore) -> None:
    for name in ("folder/one", "folder/deep/er/two", "folder2/three"):
        store.put(name, CONTENT)
    assert not store.remove_folder("folder")
    store.delete_all("folder")
    assert [found.name for found in store.list()] == ["folder2/three"]
    assert not store.exists("folder")
    store.delete("folder2/three")
    assert store.remove_folder("folder2")
    # Some object stores show folders for a while in which nothing is.
    assert not any(store.exists(name) for name in names_in(store, ""))


@pytest.mark.parametrize("old", ["object", "folder"])
def test_names_are_changed_over_nothing(store: ObjectStore, old: str) -> None:
    names = ["object"] if old == "object" else ["folder/one", "folder/deep/two"]
    for name in names:
        store.put(name, name.encode())
    store.put("taken/object", b"taken")
    move(store, old, "new/place")
    assert {found.name for found in store.list("new/")} == {name.replace(old, "new/place", 1) for name in names}
    assert not store.exists(old)
    with pytest.raises(ObjectExists):
        move(store, "taken/object", f"new/place{names[0].removeprefix(old)}")
    assert store.get("taken/object") == b"taken"
    with pytest.raises(ObjectNotFound):
        move(store, "nothing", "else")


def test_who_takes_over_changes_nothing_that_is_whole(store: ObjectStore) -> None:
    store.put("folder/object", CONTENT)
    store.recover("folder", lambda _: True)
    store.recover("nothing", lambda _: True)
    assert store.get("folder/object") == CONTENT


# ---- several at once


def test_of_two_writers_of_a_name_one_is_first(store: ObjectStore) -> None:
    barrier = threading.Barrier(4)

    def put(content: bytes) -> bool:
        barrier.wait()
        try:
            store.put("object", (content[at : at + 100] for at in range(0, len(content), 100)))
        except ObjectExists:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            contents = [bytes([number]) * 1000 for number in range(4)]
            is_first = list(pool.map(put, contents))
            assert is_first.count(True) == 1
            assert store.get("object") == contents[is_first.index(True)]
            store.delete("object")


def test_readers_see_what_was_whole_before_or_after(store: ObjectStore) -> None:
    contents = [bytes([number]) * (1000 + number) for number in range(50)]
    store.put("object", contents[0])
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            assert store.get("object") in contents
            (whole,) = store.get_ranges("object", [ByteRange(0)])
            assert whole in contents

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        for content in contents:
            store.put("object", content, replace=True)
        is_over.set()
        for reader in readers:
            reader.result()


def test_lists_have_what_nobody_touches_and_nothing_by_halves(store: ObjectStore) -> None:
    steady = {f"folder/steady-{number}" for number in range(20)}
    for name in steady:
        store.put(name, CONTENT)

    def names() -> Iterator[tuple[set[str], set[str]]]:
        yield {name for name, size in store.list("folder/") if size == len(CONTENT)}, set(names_in(store, "folder"))

    def pieces() -> Iterator[bytes]:
        for at in range(0, len(CONTENT), 1000):
            yield CONTENT[at : at + 1000]
            listed, children = next(names())
            assert listed >= steady
            assert listed - steady <= put
            assert {f"folder/{name}" for name in children} == listed

    put: set[str] = set()
    for number in range(5):
        store.put(f"folder/new-{number}", pieces())
        put.add(f"folder/new-{number}")


# ---- reading


def test_an_object_is_read_from_front_to_back_and_at_any_place(store: ObjectStore) -> None:
    store.put("object", CONTENT * 200)
    with open_object(store, "object") as file:
        assert file.read(10) == CONTENT[:10]
        file.seek(-300, os.SEEK_END)
        assert file.read(1000) == CONTENT[-300:]
        assert file.read(1) == b""
        file.seek(5)
        file.seek(2, os.SEEK_CUR)
        assert file.tell() == 7
        assert file.read(9) == CONTENT[7:16]
    with open_buffered(store, "object") as file:
        assert b"".join(iter(lambda: file.read(70_001), b"")) == CONTENT * 200


# ---- dying


STEPS = [
    lambda store: store.put("folder/new", [CONTENT, CONTENT]),
    lambda store: store.put("folder/old", [CONTENT, CONTENT], replace=True),
    lambda store: store.delete("folder/gone"),
    lambda store: move(store, "folder/old", "moved/old"),
    lambda store: store.delete_all("doomed"),
]


@pytest.mark.parametrize("name", ["local", "memory"])
def test_a_crash_at_any_operation_leaves_whole_objects(tmp_path: Path, name: str) -> None:
    whole = {"folder/new": {CONTENT * 2}, "folder/old": {CONTENT * 2, b"old"}, "moved/old": {CONTENT * 2}}
    number = 0
    while True:
        (tmp_path / str(number)).mkdir()
        inner = STORES[name](tmp_path / str(number))
        for there in ("folder/old", "folder/gone", "doomed/one"):
            inner.put(there, b"old")
        fate = Fate(dies_at=number)
        store = FaultyStore(inner, fate)
        try:
            for step in STEPS:
                step(store)
        except Died:
            with pytest.raises(Died):
                store.get("folder/old")
        inner.recover("folder", lambda _: True)
        for found, _ in inner.list():
            assert inner.get(found) in whole.get(found, {b"old"})
        assert inner.exists("folder/old") or inner.exists("moved/old")
        if number >= len(fate.operations):
            break
        number += 1
    assert number >= len(STEPS)
    assert names_in(inner, "") == ["folder", "moved"]


def test_an_operation_fails_that_is_to(tmp_path: Path) -> None:
    fate = Fate(fails_at=1)
    store = FaultyStore(STORES["local"](tmp_path), fate)
    store.put("one", b"1")
    with pytest.raises(RepositoryError, match="cannot put two"):
        store.put("two", b"2")
    store.put("two", b"2")
    assert fate.operations == ["put one", "put two", "put two"]


# ---- features and wrappers


def test_wrappers_offer_no_way_past_them(tmp_path: Path) -> None:
    files = local(tmp_path).store
    assert as_files(files) is files
    assert as_renaming(files) is files
    for wrapper in (CountingStore(files), ThrottlingStore(files, 1)):
        assert as_files(wrapper) is None
        assert as_renaming(wrapper) is None
    assert as_files(FaultyStore(files, Fate())) is None


def test_operations_and_bytes_are_counted() -> None:
    store = CountingStore(MemoryStore())
    store.put("object", b"12345")
    store.put("pieces", [b"12", b"3"])
    assert store.get("object") == b"12345"
    assert store.get_ranges("object", [ByteRange(0, 2), ByteRange(3)]) == [b"12", b"45"]
    assert names_in(store, "") == ["object", "pieces"]
    assert store.counts == {"put": 2, "get": 1, "get_ranges": 1, "children": 1}
    assert (store.bytes_put, store.bytes_got) == (8, 9)


def test_bytes_wait_for_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, slept_s = 100.0, []

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds
        slept_s.append(seconds)

    monkeypatch.setattr("pgwal.repository.store_wrapper.time.monotonic", lambda: now_s)
    monkeypatch.setattr("pgwal.repository.store_wrapper.time.sleep", sleep)
    store = ThrottlingStore(MemoryStore(), 100)
    store.put("object", [bytes(50), bytes(100)])
    store.get("object")
    assert slept_s == [0.0, 0.5, 1.0]
