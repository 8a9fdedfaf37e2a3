"""backup_manifest, both ways."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgwal.backup.manifest import CHECKSUM_HEX_LENGTHS, FileChecksum, ManifestWriter, manifest_version
from pgwal.backup.manifest_reader import Manifest, ManifestFile, ManifestReader, read_manifest
from pgwal.errors import ChecksumMismatch, FormatError, TruncatedInput, UnsupportedVersion
from pgwal.lsn import Lsn, LsnRange

SYSTEM_IDENTIFIER = 7710976684590823411
RANGE = LsnRange(1, Lsn(0x6000028), Lsn(0x6000120))
FILES = [
    ManifestFile("base/5/1259", 122880, "2026-11-22 12:49:32 GMT", "CRC32C", "671449c2"),
    ManifestFile("global/INCREMENTAL.1261", 12, "2026-11-22 12:49:32 GMT", "CRC32C", "dac55f1e"),
]
MTIME = 1795351772

NATIVE_LINES = b"""\
{ "PostgreSQL-Backup-Manifest-Version": 2,
"System-Identifier": 7710976684590823411,
"Files": [
{ "Path": "base/5/1259", "Size": 122880, "Last-Modified": "2026-11-22 12:49:32 GMT", "Checksum-Algorithm": "CRC32C", \
"Checksum": "671449c2" },
{ "Path": "global/INCREMENTAL.1261", "Size": 12, "Last-Modified": "2026-11-22 12:49:32 GMT", \
"Checksum-Algorithm": "CRC32C", "Checksum": "dac55f1e" }
],
"WAL-Ranges": [
{ "Timeline": 1, "Start-LSN": "0/6000028", "End-LSN": "0/6000120" }
],
"""


def sealed(lines: bytes) -> bytes:
    return lines + f'"Manifest-Checksum": "{hashlib.sha256(lines).hexdigest()}"}}\n'.encode()


NATIVE = sealed(NATIVE_LINES)


def write(files: list[ManifestFile], ranges: list[LsnRange], major: int = 17) -> bytes:
    writer = ManifestWriter(major, SYSTEM_IDENTIFIER)
    pieces = [writer.header()]
    pieces += [
        writer.file_entry(file.path, file.size, MTIME, file.checksum_algorithm, file.checksum_hex) for file in files
    ]
    return b"".join([*pieces, writer.finish(ranges)])


def test_the_bytes_are_those_of_the_server() -> None:
    assert write(FILES, [RANGE]) == NATIVE


def test_the_servers_bytes_are_read() -> None:
    assert read_manifest(NATIVE) == Manifest(2, SYSTEM_IDENTIFIER, tuple(FILES), (RANGE,))


@pytest.mark.parametrize(("major", "version"), [(13, 1), (16, 1), (17, 2), (18, 2), (19, 2)])
def test_versions(major: int, version: int) -> None:
    assert manifest_version(major) == version
    content = write(FILES, [RANGE], major)
    assert (b"System-Identifier" in content) == (version == 2)
    manifest = read_manifest(content)
    assert (manifest.version, manifest.system_identifier) == (version, SYSTEM_IDENTIFIER if version == 2 else None)


def test_without_files() -> None:
    content = write([], [RANGE])
    assert b'"Files": [\n],\n"WAL-Ranges": [\n{' in content
    assert read_manifest(content).files == ()
    assert read_manifest(write([], [])).wal_ranges == ()


def test_several_ranges() -> None:
    ranges = [LsnRange(3, Lsn(0x300), Lsn(1 << 40)), LsnRange(2, Lsn(0x100), Lsn(0x300))]
    assert read_manifest(write(FILES, ranges)).wal_ranges == tuple(ranges)


def path_member(path: str | bytes) -> str:
    writer = ManifestWriter(17, SYSTEM_IDENTIFIER)
    writer.header()
    return writer.file_entry(path, 0, 0, "NONE", None).decode().partition(", ")[0].removeprefix("\n{ ")


def test_paths_are_escaped_as_the_server_does() -> None:
    assert path_member('a"\\\b\f\n\r\t\x01\x1f\x7f/é€') == '"Path": "a\\"\\\\\\b\\f\\n\\r\\t\\u0001\\u001f\x7f/é€"'
    assert path_member(b"base/\xff\x00\xfe".replace(b"\0", b"a")) == '"Encoded-Path": "626173652fff61fe"'
    assert path_member("a\udcff") == '"Encoded-Path": "61ff"'
    assert path_member("é".encode()) == '"Path": "é"'


@pytest.mark.parametrize("path", ["", "/a", "a/../b", "..", "a//b", "a/", "./a", "a\0", "\ud800", "\udcc3\udca9"])
def test_paths_that_lead_elsewhere_are_not_written(path: str) -> None:
    with pytest.raises(FormatError):
        path_member(path)


@pytest.mark.parametrize(
    ("mtime", "text"),
    [
        (0, "1970-01-01 00:00:00 GMT"),
        (-1, "1969-12-31 23:59:59 GMT"),
        (-0.5, "1969-12-31 23:59:59 GMT"),
        (1795351772.999, "2026-11-22 12:49:32 GMT"),
        (1 << 60, "9999-12-31 23:59:59 GMT"),
        (-(1 << 60), "0001-01-01 00:00:00 GMT"),
    ],
)
def test_times(mtime: float, text: str) -> None:
    writer = ManifestWriter(17, 1)
    writer.header()
    assert f'"Last-Modified": "{text}" }}'.encode() in writer.file_entry("a", 0, mtime, "NONE", None)


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        ("NONE", None),
        ("CRC32C", "839206e3"),
        ("SHA224", hashlib.sha224(b"123456789").hexdigest()),
        ("SHA256", hashlib.sha256(b"123456789").hexdigest()),
        ("SHA384", hashlib.sha384(b"123456789").hexdigest()),
        ("SHA512", hashlib.sha512(b"123456789").hexdigest()),
    ],
)
def test_checksums(algorithm: str, expected: str | None) -> None:
    checksum = FileChecksum(algorithm)
    checksum.update(b"1234")
    checksum.update(b"56789")
    assert checksum.hexdigest() == expected
    file = ManifestFile("a", 9, "2026-11-22 12:49:32 GMT", algorithm, expected)
    assert read_manifest(write([file], [RANGE])).files == (file,)


def test_unknown_algorithms_are_refused() -> None:
    for name in ("MD5", "", "crc32c"):
        with pytest.raises(FormatError):
            FileChecksum(name)


@pytest.mark.parametrize(
    ("size", "algorithm", "checksum"),
    [
        (-1, "NONE", None),
        (1 << 63, "NONE", None),
        (0, "MD5", None),
        (0, "NONE", "00"),
        (0, "NONE", ""),
        (0, "CRC32C", None),
        (0, "CRC32C", "1234567"),
        (0, "CRC32C", "1234567G"),
        (0, "CRC32C", "ABCDEF01"),
    ],
)
def test_what_readers_would_refuse_is_not_written(size: int, algorithm: str, checksum: str | None) -> None:
    writer = ManifestWriter(17, 1)
    writer.header()
    with pytest.raises(FormatError):
        writer.file_entry("a", size, 0, algorithm, checksum)


# -- round trips

PARTS = st.text(max_size=6).filter(lambda part: part not in ("", ".", "..") and not set(part) & set("/\0"))
RAW_PARTS = st.binary(min_size=1, max_size=4).filter(
    lambda part: part not in (b".", b"..") and not set(part) & set(b"/\0")
)
ALL_PARTS = PARTS.filter(lambda part: not any("\ud800" <= c <= "\udfff" for c in part)) | RAW_PARTS.map(
    lambda part: part.decode("utf-8", "surrogateescape")
)


@st.composite
def manifest_files(draw: st.DrawFn) -> list[ManifestFile]:
    paths = draw(st.lists(st.lists(ALL_PARTS, min_size=1, max_size=3).map("/".join), unique=True, max_size=6))
    files = []
    for path in paths:
        algorithm = draw(st.sampled_from(list(CHECKSUM_HEX_LENGTHS)))
        length = CHECKSUM_HEX_LENGTHS[algorithm]
        checksum = draw(st.text("0123456789abcdef", min_size=length, max_size=length)) or None
        size = draw(st.integers(0, (1 << 63) - 1))
        files.append(ManifestFile(path, size, "2026-11-22 12:49:32 GMT", algorithm, checksum))
    return files


@given(manifest_files(), st.sampled_from([13, 18]), st.integers(1, 50))
def test_reading_undoes_writing_in_chunks_of_any_size(files: list[ManifestFile], major: int, chunk: int) -> None:
    content = write(files, [RANGE], major)
    assert json.loads(content)["PostgreSQL-Backup-Manifest-Version"] == manifest_version(major)
    reader = ManifestReader()
    found: list[ManifestFile] = []
    for at in range(0, len(content), chunk):
        found += reader.feed(content[at : at + chunk])
    assert found == files
    assert reader.finish().wal_ranges == (RANGE,)
    assert read_manifest(content).files == tuple(files)


def test_files_come_as_soon_as_they_are_complete() -> None:
    reader = ManifestReader()
    first, second, third = NATIVE.partition(b"},\n")
    assert reader.feed(first) == []
    assert reader.feed(second) == FILES[:1]
    assert reader.feed(third) == FILES[1:]
    reader.finish()


# -- what is tolerated, and what is not


def edited(edit: Callable[[dict[str, Any]], object]) -> bytes:
    """Return the native manifest with its JSON edited and sealed anew."""
    document = json.loads(NATIVE)
    del document["Manifest-Checksum"]
    edit(document)
    return sealed(json.dumps(document, indent=1)[:-2].encode() + b",\n")


def test_white_space_and_order_are_free() -> None:
    manifest = read_manifest(NATIVE)
    assert read_manifest(edited(lambda _: None)) == manifest
    assert read_manifest(edited(lambda top: top.update({"Files": top.pop("Files")}))) == manifest
    assert read_manifest(edited(lambda top: top["Files"][0].update({"Path": top["Files"][0].pop("Path")}))) == manifest


def test_numbers_may_be_strings_and_digits_upper_case() -> None:
    manifest = read_manifest(NATIVE)
    assert read_manifest(edited(lambda top: top.update({"System-Identifier": str(SYSTEM_IDENTIFIER)}))) == manifest
    assert read_manifest(edited(lambda top: top["Files"][0].update(Size="122880"))) == manifest
    assert read_manifest(edited(lambda top: top["Files"][0].update(Checksum="671449C2"))) == manifest


def test_a_file_may_lack_time_and_checksum() -> None:
    manifest = read_manifest(edited(lambda top: top.update(Files=[{"Path": "a", "Size": 1}])))
    assert manifest.files == (ManifestFile("a", 1, "", "NONE", None),)


def in_file(**members: Any) -> Callable[[dict[str, Any]], object]:
    return lambda top: top["Files"][0].update({name.replace("_", "-"): value for name, value in members.items()})


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda top: top["Files"][0].pop(name)


@pytest.mark.parametrize(
    "edit",
    [
        lambda top: top.update(Unknown=1),
        lambda top: top.pop("Files"),
        lambda top: top.pop("WAL-Ranges"),
        lambda top: top.pop("System-Identifier"),
        lambda top: top.pop("PostgreSQL-Backup-Manifest-Version"),
        lambda top: top.update({"PostgreSQL-Backup-Manifest-Version": 1}),
        lambda top: top.update({"PostgreSQL-Backup-Manifest-Version": 3}),
        lambda top: top.update({"PostgreSQL-Backup-Manifest-Version": "2"}),
        lambda top: top.update({"PostgreSQL-Backup-Manifest-Version": True}),
        lambda top: top.update({"PostgreSQL-Backup-Manifest-Version": top.pop("PostgreSQL-Backup-Manifest-Version")}),
        lambda top: top.update({"System-Identifier": -1}),
        lambda top: top.update({"System-Identifier": 1 << 64}),
        lambda top: top.update({"System-Identifier": 1.5}),
        lambda top: top.update(Files={}),
        lambda top: top.update(Files=[1]),
        lambda top: top.update(Files=[[]]),
        lambda top: top["Files"].append(top["Files"][0]),
        lambda top: top["Files"].append({"Encoded-Path": b"base/5/1259".hex(), "Size": 1}),
        in_file(Unknown=1),
        in_file(Encoded_Path="61"),
        in_file(Path=1),
        in_file(Path=None),
        in_file(Checksum_Algorithm=None),
        in_file(Path="/etc/passwd"),
        in_file(Path="base/../../x"),
        in_file(Path="\ud800"),
        in_file(Path="a\0"),
        in_file(Size=-1),
        in_file(Size=1.0),
        in_file(Size=True),
        in_file(Size=None),
        in_file(Size="0x10"),
        in_file(Size=1 << 63),
        in_file(Last_Modified=1),
        in_file(Checksum_Algorithm="MD5"),
        in_file(Checksum_Algorithm=3),
        in_file(Checksum="67"),
        in_file(Checksum="671449c2671449c2"),
        in_file(Checksum="67144 c2"),
        in_file(Checksum=[]),
        without("Path"),
        without("Size"),
        without("Checksum"),
        without("Checksum-Algorithm"),
        lambda top: top.update(Files=[{"Encoded-Path": "6", "Size": 1}]),
        lambda top: top.update(Files=[{"Encoded-Path": "zz", "Size": 1}]),
        lambda top: top.update(Files=[{"Encoded-Path": "", "Size": 1}]),
        lambda top: top.update(Files=[{"Encoded-Path": None, "Size": 1}]),
        lambda top: top["WAL-Ranges"].append({}),
        lambda top: top["WAL-Ranges"][0].update(Other=1),
        lambda top: top["WAL-Ranges"][0].update(Timeline=0),
        lambda top: top["WAL-Ranges"][0].update({"Start-LSN": 5}),
        lambda top: top["WAL-Ranges"][0].update({"Start-LSN": "0/7000000"}),
        lambda top: top["WAL-Ranges"][0].update({"End-LSN": "x"}),
    ],
)
def test_defects_are_refused(edit: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(FormatError):
        read_manifest(edited(edit))


def test_an_unknown_version_says_so() -> None:
    with pytest.raises(UnsupportedVersion):
        read_manifest(NATIVE.replace(b'Version": 2', b'Version": 3'))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"Size": 12,', b'"Size": 12, "Size": 13,'),
        (b'"Files": [', b'"Files": [], "Files": ['),
        (b'"Size": 12,', b'"Size": 12 13,'),
        (b'"Size": 12,', b'"Size": NaN,'),
        (b'"Size": 12,', b'"Size": ' + b"9" * 5000 + b","),
        (b'"Size": 12,', b'"Size": ' + b"[" * 60000 + b","),
        (b'"Size": 12,', b"'Size': 12,"),
        (b"],\n", b"]\n"),
        (b"},\n", b"}\n"),
        (b"{ ", b""),
        (b"base", b"\xff\xff"),
        (b"base", b"a\nb"),
        (b"base", b"x" * 70000 + b"\n"),
        (b"base/5", b"x" * 70000),
    ],
)
def test_bad_json_is_refused(old: bytes, new: bytes) -> None:
    assert old in NATIVE_LINES
    with pytest.raises(FormatError):
        read_manifest(sealed(NATIVE_LINES.replace(old, new, 1)) + b" " * 100000)


@pytest.mark.parametrize(
    "content",
    [
        NATIVE.replace(b"}\n", b"} \n x"),
        NATIVE + b"\n",
        NATIVE + NATIVE,
        NATIVE[:-2] + b', "x": 1}\n',
        NATIVE_LINES[:-2] + b"}\n",
        NATIVE_LINES[:-2] + b"\n}\n",
        NATIVE.replace(b'],\n"Manifest', b'], "Manifest'),
        NATIVE[:-3] + b'00"}\n',
        b"[]\n\n",
        b"\n\n",
    ],
)
def test_the_last_line_is_the_checksum_and_no_more(content: bytes) -> None:
    with pytest.raises(FormatError):
        read_manifest(content)


def test_a_wrong_checksum_says_so() -> None:
    with pytest.raises(ChecksumMismatch):
        read_manifest(NATIVE.replace(b'"Size": 12,', b'"Size": 13,'))


def test_every_truncation_is_seen() -> None:
    for length in range(len(NATIVE)):
        with pytest.raises(TruncatedInput):
            read_manifest(NATIVE[:length])


@settings(max_examples=300)
@given(st.integers(0, len(NATIVE) * 8 - 1))
def test_every_flipped_bit_is_seen(bit: int) -> None:
    damaged = bytearray(NATIVE)
    damaged[bit // 8] ^= 1 << bit % 8
    # Hex digits of the checksum may be upper-case.
    if bytes(damaged).lower() != NATIVE.lower() or bit // 8 < len(NATIVE_LINES):
        with pytest.raises(FormatError):
            read_manifest(bytes(damaged))


@given(st.binary(max_size=60), st.integers(0, len(NATIVE)))
def test_any_bytes_give_only_declared_errors(content: bytes, at: int) -> None:
    with pytest.raises(FormatError):
        read_manifest(content)
    try:
        read_manifest(NATIVE[:at] + content + NATIVE[at:])
    except FormatError:
        pass
    else:
        assert content.strip() == b""


def test_a_long_manifest_is_not_held() -> None:
    reader, writer = ManifestReader(), ManifestWriter(17, 1)
    reader.feed(writer.header())
    count = 0
    for number in range(3000):
        count += len(reader.feed(writer.file_entry(f"base/5/{number}", number, 0, "CRC32C", "00000000")))
        assert len(reader._scanner._text) < 1000
        assert len(reader._checksum._last_line) < 1000
    count += len(reader.feed(writer.finish([RANGE])))
    reader.finish()
    assert count == 3000
