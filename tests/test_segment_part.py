"""Scanning WAL out of files, in both forms: a scanner that reads says what it says of the same bytes that it is fed."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import strategies
from core.wal_builder import PAGE_SIZE, RM_HEAP, BlockSpec, RecordSpec, WalBuilder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from module_forms import interpreted_modules

import pgwal.repository.segment_part
import pgwal.wal.scan
from pgwal.engine import read_ahead, recorded
from pgwal.errors import PgwalError
from pgwal.lsn import Lsn
from pgwal.repository.local import LocalStore
from pgwal.repository.recorded_directory import open_wal_directory
from pgwal.segment import WalGeometry

SEGMENT_SIZE = 1 << 20
SOURCE_BUFFER = 1 << 18
many = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


class Form(NamedTuple):
    """The two modules in one form: parts of segments inherit from what the scanner knows."""

    scan: ModuleType
    segment_part: ModuleType


def interpreted_form() -> Form:
    modules = interpreted_modules("pgwal.repository.segment_part")
    return Form(modules["pgwal.wal.scan"], modules["pgwal.repository.segment_part"])


FORMS = {"interpreted": interpreted_form()}
if pgwal.wal.scan.COMPILED:
    FORMS["compiled"] = Form(pgwal.wal.scan, pgwal.repository.segment_part)
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


def test_both_modules_are_of_one_form() -> None:
    assert pgwal.wal.scan.COMPILED == pgwal.repository.segment_part.COMPILED


@contextmanager
def shared_file(form: Form, content: bytes) -> Iterator[Any]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        yield form.segment_part.SharedFile(file.fileno())


def outcome(scanner: Any) -> tuple[object, ...]:
    """Take all that a scanner says at the end, but for how far it has read: that is its own affair."""
    blocks = sorted((relation, sorted(set(numbers))) for relation, numbers in scanner.take_blocks())
    return scanner.position, scanner.end_reason, scanner.record_count, blocks


def scan(form: Form, scanner: Any, specials: list[tuple[object, ...]]) -> str | int:
    try:
        while (result := scanner.scan()) == form.scan.SPECIAL:
            specials.append((scanner.special_lsn, scanner.special_rmid, scanner.special_main))
    except PgwalError as error:
        return str(error)
    assert isinstance(result, int)
    return result


def fed(form: Form, wal: bytes, start_lsn: int) -> tuple[object, ...]:
    scanner, specials = form.scan.WalScanner(SEGMENT_SIZE, start_lsn), list[tuple[object, ...]]()
    scanner.feed(wal)
    return scan(form, scanner, specials), specials, outcome(scanner)


def read(form: Form, wal: bytes, start_lsn: int, cuts: list[int], loaded: list[bool]) -> tuple[object, ...]:
    """Scan a file's parts between cuts, some of which are loaded before, as another thread does it."""
    scanner, specials = form.scan.WalScanner(SEGMENT_SIZE, start_lsn), list[tuple[object, ...]]()
    result: str | int = form.scan.NEED_DATA
    borders = sorted({0, *cuts, len(wal)})
    with shared_file(form, wal) as file:
        for number, (start, end) in enumerate(pairwise(borders)):
            part = form.segment_part.SegmentPart(file, "some file", start, end - start, zero_filled=False)
            if result == form.scan.NEED_DATA:
                if loaded[number % len(loaded)]:
                    scanner.feed(bytes(part.load(memoryview(bytearray(end - start)))))
                else:
                    scanner.read(part)
                result = scan(form, scanner, specials)
            assert (part.error_number, part.end) == (0, -1)
    if result == form.scan.NEED_DATA:
        assert scanner.feed_lsn == start_lsn - start_lsn % PAGE_SIZE + len(wal)
    return result, specials, outcome(scanner)


@forms
@many
@given(data=st.data(), builder=strategies.wal_builders(), loaded=st.lists(st.booleans(), min_size=1, max_size=4))
def test_parts_are_as_good_as_what_is_fed(
    form: Form, data: st.DataObject, builder: WalBuilder, loaded: list[bool]
) -> None:
    wal = builder.wal()
    cuts = data.draw(st.lists(st.integers(0, len(wal)), max_size=6))
    assert read(form, wal, builder.start_lsn, cuts, loaded) == fed(form, wal, builder.start_lsn)


@forms
@many
@given(data=st.data(), builder=strategies.wal_builders(), loaded=st.lists(st.booleans(), min_size=1, max_size=4))
def test_damage_is_seen_at_the_same_place(
    form: Form, data: st.DataObject, builder: WalBuilder, loaded: list[bool]
) -> None:
    wal = bytearray(builder.wal())
    wal[data.draw(st.integers(0, len(wal) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    cuts = data.draw(st.lists(st.integers(0, len(wal)), max_size=6))
    assert read(form, bytes(wal), builder.start_lsn, cuts, loaded) == fed(form, bytes(wal), builder.start_lsn)


@forms
def test_more_than_one_buffer(form: Form) -> None:
    builder = WalBuilder(18, start_lsn=1 << 20)
    while len(builder.wal()) < 3 * SOURCE_BUFFER:
        builder.append(RecordSpec(RM_HEAP, 0x00, blocks=(BlockSpec(0, block_no=7),), main_data=os.urandom(19_000)))
    wal = builder.wal()
    assert len(wal) > 3 * SOURCE_BUFFER
    assert read(form, wal, builder.start_lsn, [], [False]) == fed(form, wal, builder.start_lsn)


@forms
@given(size=st.integers(0, 70), offset=st.integers(0, 80), wanted=st.integers(0, 80), zero_filled=st.booleans())
def test_what_a_file_does_not_have(form: Form, size: int, offset: int, wanted: int, zero_filled: bool) -> None:
    content = os.urandom(size)
    with shared_file(form, content) as file:
        part = form.segment_part.SegmentPart(file, "some file", offset, wanted, zero_filled=zero_filled)
        target = bytearray(b"x" * 100)
        data = bytes(part.load(memoryview(target)))
    there = content[offset : offset + wanted]
    assert data == (there.ljust(wanted, b"\0") if zero_filled else there)
    assert target[len(data) :] == b"x" * (100 - len(data)), "written behind what was asked for"
    assert part.left == 0
    is_cut_off = len(there) < wanted and not zero_filled
    assert part.end == (offset + len(there) if is_cut_off else -1)


@forms
def test_what_the_system_refuses(form: Form) -> None:
    descriptor = os.open(os.curdir, os.O_RDONLY)
    shared = form.segment_part.SharedFile(descriptor)
    os.close(descriptor)
    part = form.segment_part.SegmentPart(shared, "some file", 0, 8192, zero_filled=True)
    scanner = form.scan.WalScanner(SEGMENT_SIZE, 0)
    scanner.read(part)
    assert scanner.scan() == form.scan.NEED_DATA
    assert (part.error_number, part.left, scanner.feed_lsn) == (errno.EISDIR, 0, 0)
    assert not part.load(memoryview(bytearray(8192)))


@forms
def test_the_file_is_closed_with_its_last_part(form: Form) -> None:
    with shared_file(form, b"12345678") as file:
        descriptor = file.descriptor
        parts = [form.segment_part.SegmentPart(file, "some file", at, 4, zero_filled=False) for at in (0, 4)]
        del file
        parts.pop()
        assert bytes(parts[0].load(memoryview(bytearray(4)))) == b"1234"
    os.fstat(descriptor)
    parts.clear()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(descriptor)


@forms
def test_a_file_that_cannot_be_shared(form: Form) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        form.segment_part.SharedFile(-1)


def test_modules_of_two_forms_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = WalBuilder(18, start_lsn=SEGMENT_SIZE)
    builder.append(RecordSpec(RM_HEAP, 0x00, blocks=(BlockSpec(0, block_no=7),)))
    (tmp_path / "000000010000000000000001").write_bytes(builder.wal_to_segment_end())
    assert WalGeometry(SEGMENT_SIZE).file_name(1, 1) == "000000010000000000000001"
    directory, _ = open_wal_directory(LocalStore(tmp_path))
    assert len(list(directory.parts(1, Lsn(SEGMENT_SIZE)))) == 1
    monkeypatch.setattr(pgwal.repository.segment_part, "COMPILED", not pgwal.wal.scan.COMPILED)
    with pytest.raises(PgwalError, match="compiled in part only"):
        list(directory.parts(1, Lsn(SEGMENT_SIZE)))


def test_memory_that_cannot_be_had_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> memoryview:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    builder = WalBuilder(18, start_lsn=SEGMENT_SIZE)
    builder.append(RecordSpec(RM_HEAP, 0x00, blocks=(BlockSpec(0, block_no=7),)))
    (tmp_path / "000000010000000000000001").write_bytes(builder.wal_to_segment_end())
    monkeypatch.setattr(read_ahead, "aligned_buffer", refuse)
    with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
        recorded.summarize_wal(tmp_path, tmp_path / "out", jobs=1)
