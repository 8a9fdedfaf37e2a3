"""Text of unknown origin, as a report shows it: short, and with nothing in it that cannot be seen."""

from __future__ import annotations

import unicodedata

MOST_SHOWN = 200
"""Characters of a name or label; the server's own names are shorter, what stands in a repository may be anything."""

# Control, format (which turn the direction of text, too), lone surrogates, private use, ends of lines and paragraphs.
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def shown(text: str) -> str:
    """Return a text of at most MOST_SHOWN characters and a mark of what is cut off; what cannot be seen is escaped."""
    seen: list[str] = []
    length = 0
    for letter in text[:MOST_SHOWN]:
        if unicodedata.category(letter) in _UNSEEN:
            letter = f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"
        length += len(letter)
        if length > MOST_SHOWN:
            return "".join(seen) + "…"
        seen.append(letter)
    return "".join(seen) + ("…" if len(text) > MOST_SHOWN else "")
