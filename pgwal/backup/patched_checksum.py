"""The CRC-32C of a file of which parts have changed, from that of before, without a look at the rest.

CRC-32C is linear: what the exchange of some bytes changes depends on how the old ones and the new ones differ, and on
how many follow.  Polynomials over GF(2) modulo that of CRC-32C are numbers, the coefficient of x^0 in the highest bit.
"""

from __future__ import annotations

from functools import cache

from pgwal.checksum import crc32c

_POLYNOMIAL = 0x82F63B78
_X = 1 << 30
_ORDER = (1 << 31) - 1
"""x to this power is 1: the polynomial is (x + 1) times a primitive one of degree 31."""


class PatchedChecksum:
    """Changes a checksum, as a manifest has it, along with the file.

    First ``drop`` is told of what is cut off at the end, then ``replace`` of what is replaced, and last of what is
    added behind the end, all in ascending order.
    """

    def __init__(self, hexdigest: str, old_size_bytes: int, size_bytes: int) -> None:
        self._value = int.from_bytes(bytes.fromhex(hexdigest), "little")
        self._dropped = 0
        self._dropped_bytes = max(0, old_size_bytes - size_bytes)
        self._common_bytes = min(old_size_bytes, size_bytes)
        self._left_to_drop = self._dropped_bytes

    def drop(self, data: bytes) -> None:
        """Take bytes of the end that is cut off: all of it, in order, before anything else."""
        self._dropped = crc32c(data, self._dropped)
        self._left_to_drop -= len(data)
        if not self._left_to_drop:
            self._value = _times_power(self._value ^ self._dropped, -8 * self._dropped_bytes)

    def replace(self, offset: int, old: bytes, new: bytes) -> None:
        """Have new bytes at an offset instead of the old ones, of which there are fewer at the end of the old file."""
        shared = max(0, min(len(old), len(new), self._common_bytes - offset))
        if shared:
            difference = crc32c(old[:shared]) ^ crc32c(new[:shared])
            self._value ^= _times_power(difference, 8 * (self._common_bytes - offset - shared))
        if len(new) > shared:
            self._value = crc32c(new[shared:], self._value)

    def hexdigest(self) -> str:
        return self._value.to_bytes(4, "little").hex()


def _times_power(value: int, exponent: int) -> int:
    """Return a polynomial times x to a power, which may be negative."""
    exponent %= _ORDER
    bit = 0
    while exponent:
        if exponent & 1:
            value = _times(value, _power_of_two(bit))
        exponent >>= 1
        bit += 1
    return value


@cache
def _power_of_two(bit: int) -> int:
    """Return x to the power of 2 ** bit."""
    return _X if bit == 0 else _times(_power_of_two(bit - 1), _power_of_two(bit - 1))


def _times(first: int, second: int) -> int:
    product = 0
    for bit in range(31, -1, -1):
        if first >> bit & 1:
            product ^= second
        second = (second >> 1) ^ _POLYNOMIAL if second & 1 else second >> 1
    return product
