"""The list of bugs, in its order."""

from __future__ import annotations

import re
from typing import Final

from tests.planted.bug import Bug
from tests.planted.copy_bugs import COPIES
from tests.planted.durable_bugs import DURABLE
from tests.planted.local_bugs import LOCAL


def _place(bug: Bug) -> tuple[int, str]:
    digits = re.sub(r"\D", "", bug.number)
    return int(digits), bug.number


BUGS: Final = tuple(sorted((*LOCAL, *DURABLE, *COPIES), key=_place))
