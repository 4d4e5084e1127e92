"""From what a person typed to a query of the text index: pure, and never an error whatever was typed."""

from __future__ import annotations

import re
from typing import Final

MAX_QUERY_BYTES: Final = 1_024
MAX_QUERY_WORDS: Final = 64

# A word as the index's tokenizer, unicode61, cuts it: letters and digits, and inside it those combining marks that
# the tokenizer takes for diacritics. It counts characters newer than Unicode 6.1 as letters, whatever they are; here
# they divide words (an emoji that touches a word should not hide the word).
_WORD: Final = re.compile(
    r"[^\W_](?:[^\W_]"
    "|[\u0300-\u0304\u0306-\u030c\u030f\u0311\u031b\u0323-\u0328\u032d\u032e\u0330\u0331])*"
)

# Words that say nothing about what a memory is about, and the pieces contractions fall into (don't: don, t). Those that
# are names or months too (will, may) are not among them.
_SAYING_LITTLE: Final = """
a about above after again against all am an and any are aren as at be because been before being below between both but
by can could couldn d did didn do does doesn doing don down during each else every few for from further had hadn has
hasn have haven having he her here hers herself him himself his how i if in into is isn it its itself just let ll m me
might more most must my myself no nor not now of off on once only or other our ours ourselves out over own re s same
shall she should shouldn so some such t than that the their theirs them themselves then there these they this those
through to too under until up upon us ve very was wasn we were weren what when where whether which while who whom
whose why with won would wouldn you your yours yourself yourselves
"""
STOP_WORDS: Final = frozenset(_SAYING_LITTLE.split())


def match_expression(text: str) -> str | None:
    """The query that finds what holds any word of `text`, the rarer word weighing more; None if there is no word.

    Stop words count only where there is nothing else. At most `MAX_QUERY_WORDS` different words of the first
    `MAX_QUERY_BYTES` bytes are used. Every word is quoted: nothing typed has the power of an operator.
    """
    # Words go to the index as they were typed: it folds case by tables of its own, which differ from Python's.
    words = list({word.lower(): word for word in _words(text)}.items())
    telling = [word for folded, word in words if folded not in STOP_WORDS] or [word for _, word in words]
    return " OR ".join(f'"{word}"' for word in telling[:MAX_QUERY_WORDS]) or None


def _words(text: str) -> list[str]:
    head = text[:MAX_QUERY_BYTES].encode("utf-8", "replace")[:MAX_QUERY_BYTES]
    limit = len(head.decode("utf-8", "ignore"))
    # Looking one character further shows whether the last word goes on: half a word would find something else.
    return [found[0] for found in _WORD.finditer(text, 0, limit + 1) if found.end() <= limit]
