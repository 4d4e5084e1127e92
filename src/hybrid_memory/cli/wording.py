"""How values are put into words for people, and text made safe to show."""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime
from typing import Final

_PASSWORD: Final = re.compile(r"(?<=://)([^:/@\s]*):[^@\s]*@|(?<=password=)[^&\s'\"]+")
_STEPS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"))
_KIB: Final = 1024


def without_passwords(text: str) -> str:
    """The text with the passwords of all DSNs in it blotted out."""
    return _PASSWORD.sub(lambda found: f"{found[1]}:***@" if found[1] is not None else "***", text)


def printable(text: str) -> str:
    """The text with every character that could steer a terminal, or turn the reading direction, shown as its code."""
    return "".join(one if _harmless(one) else f"\\u{ord(one):04x}" for one in text)


def _harmless(one: str) -> bool:
    # Cc controls, Cf invisible formats (turning of direction among them), Cs lone surrogates.
    return one == "\n" or unicodedata.category(one) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}


def clipped(text: str, *, length: int = 120) -> str:
    """The start of the text on one line."""
    line = " ".join(text[: 4 * length].split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


def moment(when: datetime) -> str:
    """A time to the second, UTC."""
    return when.strftime("%Y-%m-%d %H:%M:%S")


def span(seconds: float | None) -> str:
    """A duration in its largest unit."""
    if seconds is None:
        return "-"
    for size, unit in _STEPS:
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def room(count: int) -> str:
    """A number of bytes."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < _KIB:
            return f"{amount:.0f} {unit}"
        amount /= _KIB
    return f"{amount:.1f} GiB"


def counted(count: int, noun: str, plural: str = "") -> str:
    """A count with its noun."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
