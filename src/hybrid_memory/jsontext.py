r"""The one JSON codec of both tiers: equal values give equal text, and only that text is stored and hashed.

The canonical text is compact UTF-8 with object keys sorted by code point. Compared with RFC 8785 (JCS):

- numbers keep their type: `1.0` stays `1.0` (JCS: `1`), `-0.0` stays `-0.0` (JCS: `0`), integers keep all 64 bits
  (JCS: a double, exact to 53 bits only); a float is the shortest text that reads back as the same double;
- keys are sorted by code point (JCS: by UTF-16 unit; they differ only between U+E000..U+FFFF and what lies above);
- strings are escaped as in JCS: `\b \t \n \f \r \" \\`, `\u00xx` for the other controls, the rest as it is.

orjson may spell the exponent of a float differently in another release (`1e22`, `1e+22`), so text already stored is
hashed as it stands and never encoded anew to be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import orjson

from hybrid_memory.errors import InvalidInput

if TYPE_CHECKING:
    from hybrid_memory.graph import JsonValue

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
"""What can be written as JSON, as a type checker sees it; at run time only dicts and lists pass validation."""

# Passed through means refused, as no fallback encoder is ever given.
_OPTIONS: Final = (
    orjson.OPT_SORT_KEYS
    | orjson.OPT_PASSTHROUGH_SUBCLASS
    | orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
)


def encode(value: Json) -> str:
    """The canonical text of a value made of None, bool, int, float, str, list and dict with str keys.

    Raises `TypeError` on other types, integers beyond 64 bits, lone surrogates and nesting beyond 254 levels. What
    comes from a caller must have passed `validation` first: a NaN or an infinity that gets here is written as null.
    """
    return orjson.dumps(value, option=_OPTIONS).decode()


def decode(text: str | bytes) -> JsonValue:
    """The value of a JSON text; the last of repeated keys counts.

    Raises `InvalidInput` on anything else (NaN, numbers beyond a double, trailing text, lone surrogates). Integers
    beyond 64 bits, which our own text never holds, come back as floats.
    """
    try:
        return cast("JsonValue", orjson.loads(text))
    except orjson.JSONDecodeError:
        # Not chained: the decoder's error carries the whole text.
        raise InvalidInput("json", "is not well-formed JSON") from None
