"""Files that are there as a whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

from tally.errors import UnavailableError

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file in the folder of `path`, to be written in the block; it takes the place of `path` when the block ends.

    It is on the disk by then. When the block raises it is removed and `path` is as it was before. Raises
    UnavailableError, naming `path`, when it cannot be written.
    """
    aside = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    try:
        yield aside
        _sync(aside)
        aside.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise UnavailableError(_sentence(path, error)) from error
    finally:
        aside.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sentence(path: Path, error: OSError) -> str:
    reason = os.strerror(error.errno) if error.errno else str(error)
    remedy = "check the path and its permissions"
    if error.errno in _FULL:
        free = shutil.disk_usage(path.parent).free
        remedy = f"{free / 1e6:,.0f} MB are free there: make room, raise the limit, or choose another place"
    return f"{path} could not be written ({reason}); nothing of it was kept, and what was there before is as it was; {remedy}."
