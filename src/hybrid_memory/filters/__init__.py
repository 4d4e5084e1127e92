"""One filter language: parsed once, then evaluated alike in memory and on SQLite.

A filter is a dict, or is built with `field(...)` and joined by `&`, `|` and `~`:

    {"context_type": "domain_entity", "importance": {"gte": 0.5}, "or": [{"tags": {"contains": "open"}}, ...]}
    field("context_type").eq("domain_entity") & (field("importance") >= 0.5)

Names are those of `Column`, or `content.a.b` for a key inside the content; `{"path": ["content", "a.b"], "op": "eq",
"value": 1}` says the same of keys that hold dots. A key is taken literally, never as an index into a list. A bare
value means `eq`; several entries mean `and`. The operators are `eq ne gt gte lt lte in nin contains prefix exists`.

Semantics, the same on every tier:

- A missing key, a JSON null, a column without value and an empty list of tags are all *absent*. `eq: None` and
  `exists: False` match what is absent; every other test of it is false, so `ne: 1` and `nin: [1]` match it.
- Numbers equal and order numbers by exact value, int or float; strings order by code point; booleans are not
  numbers. Values of different kinds are not equal and have no order: `eq`, `gt`, ... are false, `ne` is true.
- `ne`, `nin` and `not` are the exact opposites of `eq`, `in` and the filter inside.
- `contains` finds an equal tag, an equal element of a JSON list, or a part of a string; `prefix` the beginning of a
  string. Both go by code points and mind case.
- Names (all text columns but `summary` and `text_content`) and tags are stored in NFC, so what they are tested
  against is brought to NFC too. Content is not, and is compared as it stands.
- Times are aware datetimes or ISO 8601 texts with an offset, exact to the microsecond.

None stands for no filter. Anything unknown, of a wrong type, empty or beyond the limits of `tree` raises
`InvalidInput`, which names the place as in `where.or[1].importance.gte`.
"""

from __future__ import annotations

from hybrid_memory.filters.builder import Field, Filter, Where, field
from hybrid_memory.filters.memory import matches
from hybrid_memory.filters.parsing import parse
from hybrid_memory.filters.sqlite import to_sqlite
from hybrid_memory.filters.tree import All, AnyOf, Column, Condition, JsonPath, Not, Op, Predicate

__all__ = [
    "All",
    "AnyOf",
    "Column",
    "Condition",
    "Field",
    "Filter",
    "JsonPath",
    "Not",
    "Op",
    "Predicate",
    "Where",
    "field",
    "matches",
    "parse",
    "to_sqlite",
]
