"""A bad network: a TCP proxy that is slow, cuts connections in mid-message, or falls silent, when it is told to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

_CHUNK = 4096


class Proxy:
    """Passes connections on to 127.0.0.1:`target`. `passed` counts the bytes of both directions, `accepted` connections.

    Its methods may be called from any thread; what they ask for has happened when they return.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, bytes_per_second: float | None) -> None:
        self.target = 0
        self.port = 0
        self.passed = 0
        self.accepted = 0
        self._loop = loop
        self._seconds_per_byte = 1 / bytes_per_second if bytes_per_second else 0.0
        self._cut_at: int | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._speaking = asyncio.Event()
        self._speaking.set()

    def cut_after(self, count: int) -> None:
        """After so many more bytes, drop the rest of the message at hand, and every connection with it."""

        def plan() -> None:
            self._cut_at = self.passed + count

        self._call(plan)

    @property
    def is_about_to_cut(self) -> bool:
        """Whether the bytes after which it cuts have not passed yet."""
        return self._cut_at is not None

    def cut(self) -> None:
        """Drop every connection, with what is on its way."""
        self._call(self._abort_all)

    def fall_silent(self) -> None:
        """Pass nothing on any more; connections stay open, and new ones are accepted."""
        self._call(self._speaking.clear)

    def speak(self) -> None:
        """Drop the connections that were silent, and pass new ones on."""

        def again() -> None:
            self._abort_all()
            self._speaking.set()

        self._call(again)

    def heal(self) -> None:
        """No cut is planned any more, and nothing is silent."""

        def forget() -> None:
            self._cut_at = None

        self._call(forget)
        if not self._speaking.is_set():
            self.speak()

    def _call(self, action: Any) -> None:
        done = threading.Event()

        def act() -> None:
            action()
            done.set()

        self._loop.call_soon_threadsafe(act)
        assert done.wait(30)

    def _abort_all(self) -> None:
        self._cut_at = None
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.accepted += 1
        self._open.add(writer)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            self._open.discard(writer)
            return
        self._open.add(back)
        await asyncio.gather(self._pump(reader, back), self._pump(there, writer), return_exceptions=True)
        for one in (writer, back):
            one.transport.abort()
            self._open.discard(one)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(_CHUNK):
                await self._speaking.wait()
                if self._cut_at is not None and self.passed + len(data) >= self._cut_at:
                    writer.write(data[: self._cut_at - self.passed])
                    with suppress(OSError):
                        await writer.drain()
                    self._abort_all()
                    return
                writer.write(data)
                await writer.drain()
                self.passed += len(data)
                if self._seconds_per_byte:
                    await asyncio.sleep(len(data) * self._seconds_per_byte)
            if writer.can_write_eof():
                writer.write_eof()
        except OSError:
            writer.transport.abort()  # a connection that was reset is passed on as such, or the other end would wait for ever


@contextmanager
def proxies(*speeds: float | None) -> Iterator[list[Proxy]]:
    """A proxy for each of the speeds (bytes per second and connection; None: as fast as it goes). Set their `target`s."""
    loop = asyncio.new_event_loop()
    made, listeners = [], []
    for speed in speeds:
        proxy = Proxy(loop, speed)
        listener = loop.run_until_complete(asyncio.start_server(proxy.accept, "127.0.0.1", 0))
        proxy.port = listener.sockets[0].getsockname()[1]
        made.append(proxy)
        listeners.append(listener)
    thread = threading.Thread(target=loop.run_forever, name="proxies")
    thread.start()
    try:
        yield made
    finally:
        for proxy in made:
            proxy.cut()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for listener in listeners:
            listener.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
            with suppress(asyncio.CancelledError):
                loop.run_until_complete(task)
        loop.close()
