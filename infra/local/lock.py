"""One process at a time, of all that work in a folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.local.errors import LocalServiceError


@contextmanager
def locked(path: Path, trouble: str, variable: str) -> Iterator[None]:
    """Hold the lock file `path` for the block, waiting for it; its folder is made.

    Raises LocalServiceError where it cannot be: `trouble` says what cannot be kept where, `variable` names another folder.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("w")
    except OSError as error:
        raise LocalServiceError(
            f"{trouble} ({error.strerror}); make that folder writable, or name another with {variable}."
        ) from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
