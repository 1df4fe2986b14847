"""A line between a hospital and the consortium that can be cut, stalled and slowed: a TCP proxy on loopback.

It passes bytes on as they are (TLS stays between the two ends) and counts them.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from types import TracebackType
from typing import Self

_PIECE = 1 << 14  # bytes passed on at a time


class Line:
    """Listens on a free port of 127.0.0.1 and connects to `target` on the same machine.

    sent and received: bytes that the hospital has sent and received. rate: bytes a second in each direction, of all connections together, None for all that come.
    """

    def __init__(self, target: int, rate: float | None = None) -> None:
        self.sent = self.received = 0
        self.rate = rate
        self.port = 0
        self._target = target
        self._open = self._flowing = True
        self._free = {True: 0.0, False: 0.0}  # when the line, up or not, has passed what it was given
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="line", daemon=True)

    def cut(self) -> None:
        """Break every connection and refuse new ones, as a VPN that is down does."""
        self._open = False
        self._loop.call_soon_threadsafe(self._break)

    def stall(self) -> None:
        """Keep connections open and pass nothing on, as a firewall that has forgotten them does."""
        self._flowing = False

    def mend(self) -> None:
        """Let everything through again."""
        self._open = self._flowing = True

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port = int(server.sockets[0].getsockname()[1])
        self._ready.set()
        self._loop.run_forever()
        server.close()
        self._break()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def _break(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._open:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        try:
            await asyncio.gather(self._pass(reader, far_writer, up=True), self._pass(far_reader, writer, up=False))
        finally:
            for each in (writer, far_writer):
                self._writers.discard(each)
                each.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_PIECE):
                while not self._flowing:
                    await asyncio.sleep(0.05)
                if self.rate:
                    await self._take_turn(len(data) / self.rate, up=up)
                self.sent, self.received = self.sent + len(data) * up, self.received + len(data) * (not up)
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            writer.write_eof()

    async def _take_turn(self, seconds: float, *, up: bool) -> None:
        """Wait until the line has passed what came before, and this."""
        self._free[up] = max(self._free[up], self._loop.time()) + seconds
        await asyncio.sleep(self._free[up] - self._loop.time())
