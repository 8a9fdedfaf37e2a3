"""docs/formats.md says what the construct declarations say: every one, its size, and where its fields are."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import construct
import pytest
from construct import Construct, IfThenElse, Renamed, SizeofError, Struct

from pgwal.backup.pack_table import (
    FRAME_SIZE,
    PACK_HEADER_SIZE,
    PACK_MAGIC,
    SEAL_SIZE,
    Extent,
    Pack,
    Sealed,
    encode_packs,
)
from pgwal.budget import PACK_SIZE
from pgwal.encryption.container import FRAME_BYTES, MAGIC, SEALED_FRAME_BYTES, VERSION, Header, SealedFor
from pgwal.repository.storage_format import StorageFormat
from pgwal.wal import layout
from pgwal.wal.page_magic import WAL_FORMATS

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = (ROOT / "docs" / "formats.md").read_text()

HEADING = re.compile(r"^### \[`(\w+)`\]\(\.\./pgwal/wal/layout\.py\): (?:(\d+) bytes?|variable size)$", re.MULTILINE)
WIDTHS = {"bool": 1, "u8": 1, "u16": 2, "u32": 4, "i32": 4, "oid": 4, "u64": 8, "i64": 8, "lsn": 8, "locator": 12}
LINK = re.compile(r"\[((?:`\w+`(?:, )?)+)\]\((\.\./pgwal/[\w/]+\.py)\)")


class Field(NamedTuple):
    offset: int
    size: int
    name: str


def declarations() -> dict[str, Construct[Any, Any]]:
    """Return the declarations of the layout that are made there, by name."""
    found = {name: value for name, value in vars(layout).items() if isinstance(value, Construct)}
    return {name: value for name, value in found.items() if getattr(construct, name, None) is not value}


def declaring_functions() -> set[str]:
    """Return the functions of the layout that make a declaration for a format of WAL."""
    return {name for name, value in vars(layout).items() if isinstance(value, type(cache(len)))}


def sections() -> dict[str, tuple[int | None, str]]:
    """Return size and text of each structure of the layout that the document has a section for."""
    headings = list(HEADING.finditer(DOCUMENT))
    ends = [*(heading.start() for heading in headings[1:]), len(DOCUMENT)]
    return {
        heading[1]: (int(heading[2]) if heading[2] else None, DOCUMENT[heading.end() : end].split("\n#")[0])
        for heading, end in zip(headings, ends, strict=True)
    }


def documented_fields(text: str) -> list[Field]:
    """Return the fields of a table whose places are fixed."""
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (\w+) \|", text, re.MULTILINE)
    return [Field(int(offset), WIDTHS.get(kind) or int(kind), name) for offset, kind, name in rows]


def declared_fields(declaration: Construct[Any, Any]) -> list[Field]:
    """Return the named fields of a struct, up to the first whose size is not fixed."""
    assert isinstance(declaration, Struct)
    found, offset = [], 0
    for part in declaration.subcons:
        size = fixed_size(part)
        if size is None:
            break
        if isinstance(part, Renamed) and part.name:
            found.append(Field(offset, size, part.name))
        offset += size
    return found


def fixed_size(declaration: Construct[Any, Any]) -> int | None:
    """Return the size of what has always the same; None when it depends on what is read."""
    if isinstance(declaration, IfThenElse) or isinstance(getattr(declaration, "subcon", None), IfThenElse):
        return None
    try:
        return declaration.sizeof()
    except SizeofError:
        return None


def test_every_declaration_is_documented() -> None:
    assert set(sections()) == set(declarations()) | (declaring_functions() - {"payloads"})
    assert "[`payloads`](../pgwal/wal/layout.py)" in DOCUMENT


@pytest.mark.parametrize("name", declarations())
def test_sizes_are_those_of_the_declarations(name: str) -> None:
    assert sections()[name][0] == fixed_size(declarations()[name])


@pytest.mark.parametrize("name", declarations())
def test_fields_are_where_the_declarations_have_them(name: str) -> None:
    fields = documented_fields(sections()[name][1])
    if name == "LongPageHeader":
        fields = documented_fields(sections()["ShortPageHeader"][1]) + fields
    assert fields == declared_fields(declarations()[name])


@pytest.mark.parametrize("name", ["block_header", "image_header"])
def test_what_differs_between_versions_has_its_fields(name: str) -> None:
    documented = documented_fields(sections()[name][1])
    names = re.findall(r"^\| (?:\d+|then) \|(?: \w+)? \| (\w+) \|", sections()[name][1], re.MULTILINE)
    for wal_format in WAL_FORMATS.values():
        declaration: Any = getattr(layout, name)(wal_format)
        fixed = declared_fields(declaration)
        assert documented[: len(fixed)] == fixed
        assert names == [part.name for part in declaration.subcons]


def test_the_versions_are_those_of_the_formats() -> None:
    (line,) = re.findall(r"^\| page magic \| (.*) \|$", DOCUMENT, re.MULTILINE)
    assert [int(magic, 16) for magic in line.split(" | ")] == list(WAL_FORMATS)
    (line,) = re.findall(r"^\| page flags: cut off by a crash / all \| (.*) \|$", DOCUMENT, re.MULTILINE)
    flags = [(wal_format.overwrite_contrecord_flag, wal_format.page_flags) for wal_format in WAL_FORMATS.values()]
    assert [tuple(int(flag, 16) for flag in cell.split(" / ")) for cell in line.split(" | ")] == flags
    (line,) = re.findall(r"^\| image flags: apply / compressed \| (.*) \|$", DOCUMENT, re.MULTILINE)
    flags = [(wal_format.apply_image_bit, wal_format.compressed_image_bits) for wal_format in WAL_FORMATS.values()]
    assert [tuple(int(flag, 16) for flag in cell.split(" / ")) for cell in line.split(" | ")] == flags


def test_packed_backups_have_the_sizes_of_the_code() -> None:
    text = DOCUMENT[DOCUMENT.index("\n## Packed backups\n") : DOCUMENT.index("\n## Encrypted objects\n")]
    assert documented_fields(text) == [Field(0, len(PACK_MAGIC), "magic"), Field(8, PACK_HEADER_SIZE - 8, "name")]
    assert f"| `{PACK_MAGIC.decode()}` |" in text
    assert f"| {PACK_HEADER_SIZE} | | frames |" in text
    assert f"at most {FRAME_SIZE} bytes" in text
    assert f"once the pack has {PACK_SIZE >> 20} MiB" in text
    for number, name in ((0, "its offset"), (1, "bytes that are stored"), (2, "bytes of files"), (3, "xxh3-128")):
        assert f"| {number} | {name}" in text
    assert f"`[{', '.join(Extent._fields)}]`" in text
    line = json.loads(next(encode_packs([Pack("0" * 32, 532, Sealed(bytes(512), bytes(20)))])))
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(line)


def test_format_json_has_the_members_of_the_code() -> None:
    text = DOCUMENT[DOCUMENT.index("\n`format.json`") : DOCUMENT.index("\n## Packed backups\n")]
    assert re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE) == list(
        json.loads(StorageFormat(encryption_id="0" * 32).encode())
    )


def test_encrypted_objects_have_the_sizes_of_the_code() -> None:
    text = DOCUMENT[DOCUMENT.index("\n## Encrypted objects\n") :]
    fields = documented_fields(text)
    names = ["magic", "version", "sealed_for", "generation", "frame_bytes", "object_id", "wrapped_length"]
    assert [field.name for field in fields] == names
    header = Header(SealedFor.RECIPIENTS, 0x0102, 65536, b"an object's name", b"wrapped" * 10)
    stored = header.encode()
    values = [int.from_bytes(stored[field.offset : field.offset + field.size], "little") for field in fields]
    numbers = [VERSION, SealedFor.RECIPIENTS, header.generation, header.frame_bytes, header.object_id, 70]
    assert values == [int.from_bytes(each, "little") if isinstance(each, bytes) else each for each in (MAGIC, *numbers)]
    assert "| 34 | | wrapped |" in text
    assert stored[34:104] == header.wrapped
    for kind in SealedFor:
        assert f"{kind.header_bytes} where" in text or f"{kind.header_bytes} bytes where" in text
    assert f"of each {FRAME_BYTES} bytes" in text
    assert f"{SEALED_FRAME_BYTES} are stored" in text
    assert f"{SEAL_SIZE} bytes more than" in text


def test_links_name_what_is_there() -> None:
    links = LINK.findall(DOCUMENT)
    assert len(links) > 40
    for names, path in links:
        source = (ROOT / "docs" / path).resolve().read_text()
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^(class |def )?{name}\b", source, re.MULTILINE), f"{path} has no {name}"
