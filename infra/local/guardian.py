"""A watchman for services that must not outlive their parent, however it ends.

It reads lines `[pid, command]` from its parent. When the parent says "done" it leaves; when the pipe closes without
that, because the parent was killed, it ends the processes it was told of. A pipe closes on every system, and unlike
PR_SET_PDEATHSIG it does not depend on which thread started the child. Run by path: it imports nothing of this repository.
"""

from __future__ import annotations

import contextlib
import json
import sys

import psutil


def main() -> None:
    """Watch until the parent says "done" or its end of the pipe closes."""
    wards: list[tuple[int, list[str]]] = []
    for line in sys.stdin:
        message = json.loads(line)
        if message == "done":
            return
        wards.append((message[0], message[1]))
    for pid, command in wards:
        # A process that is gone needs no ending; one with another command line is a stranger with a recycled pid.
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.cmdline() == command:
                process.kill()


if __name__ == "__main__":
    main()
