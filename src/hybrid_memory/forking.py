"""What a forked child must not do with what it inherited: use it, close it, or keep others out by holding on to it."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def forsake_in_child(owner: T, let_go: Callable[[T], None]) -> None:
    """Have a child that is forked while `owner` lives call `let_go(owner)` at once, and never finalize it.

    A connection closed in a child, by its end if by nothing else, would cancel locks of the parent's, move or remove
    the log under it, or say goodbye to its server. So in the child the owner, and all that it holds, is kept for good.
    """
    # Python has no way to take a hook back; one whose owner is gone does nothing.
    known = weakref.ref(owner)

    def forked() -> None:
        inherited = known()
        if inherited is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))
            let_go(inherited)

    os.register_at_fork(after_in_child=forked)
