"""What a forked child must not share with its parent: locks that another thread held, threads that it does not have."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forked(Protocol):
    """Something that has to begin anew in a forked child."""

    def after_fork(self) -> None:
        """Called in the child, before anything else runs there."""


_KNOWN: weakref.WeakSet[Forked] = weakref.WeakSet()


def renew_after_fork(thing: Forked) -> None:
    """Call `thing.after_fork` in every child that is forked while it lives. Costs nothing until then."""
    _KNOWN.add(thing)


def _in_child() -> None:
    for thing in list(_KNOWN):
        thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
