"""The checksum of a file that is changed in parts is that of the file as it is then."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pgwal.backup.manifest import FileChecksum
from pgwal.backup.patched_checksum import PatchedChecksum


def checksum_of(content: bytes) -> str:
    checksum = FileChecksum("CRC32C")
    checksum.update(content)
    found = checksum.hexdigest()
    assert found is not None
    return found


@given(st.binary(max_size=300), st.binary(max_size=300), st.sets(st.integers(0, 19)), st.integers(1, 40))
def test_it_follows_every_change(old: bytes, new: bytes, changed: set[int], step: int) -> None:
    """Parts of ``step`` bytes come from the new content where they are changed, else from the old."""
    size = len(new)
    parts = [
        (at, new[at : at + step] if at // step in changed or at + step > len(old) else old[at : at + step][: size - at])
        for at in range(0, size, step)
    ]
    content = b"".join(part for _, part in parts)
    patched = PatchedChecksum(checksum_of(old), len(old), size)
    for at in range(size, len(old), step):
        patched.drop(old[at : at + step])
    for at, part in parts:
        if part != old[at : at + step][: size - at]:
            patched.replace(at, old[at : at + len(part)], part)
    assert patched.hexdigest() == checksum_of(content)


def test_it_depends_on_what_was_there() -> None:
    """Were a block taken for another, the checksum would not be that of the file."""
    old, new = b"a" * 30, b"a" * 10 + b"b" * 10 + b"a" * 10
    patched = PatchedChecksum(checksum_of(old), 30, 30)
    patched.replace(10, b"c" * 10, b"b" * 10)
    assert patched.hexdigest() != checksum_of(new)
