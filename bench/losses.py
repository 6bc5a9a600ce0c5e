"""Requests that get no answer while a server stops, reloads or replaces its workers."""

import asyncio
import os
import shlex
import signal
from collections import Counter
from urllib.parse import urlsplit

from bench.modes import Mode

CLIENTS = 16
BEFORE, AFTER = 1.0, 3.0  # seconds of load around the signal
SECONDS_TO_ANSWER = 15.0
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
# The connection was refused: the server never had the request, so a client may safely repeat it.
REFUSED = "refused"


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """One request and its whole answer; whether the connection stays open. Raises OSError or EOFError."""
    writer.write(REQUEST)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith((b"http/1.1 200", b"http/1.0 200")):
        raise OSError(head.splitlines()[0].decode())
    await reader.readexactly(int(head.partition(b"content-length: ")[2].split()[0]))
    return b"connection: close" not in head


async def client(host: str, port: int, seen: Counter[str], ended: asyncio.Event, stopping: bool) -> None:
    """Ask again and again on kept-alive connections; count what was answered, lost and refused."""
    while not ended.is_set():
        try:
            reader, writer = await asyncio.open_connection(host, port)
        except OSError:
            seen[REFUSED] += 1
            if stopping:
                return
            await asyncio.sleep(0.02)
            continue
        try:
            stays_open = True
            while stays_open and not ended.is_set():
                async with asyncio.timeout(SECONDS_TO_ANSWER):
                    stays_open = await ask(reader, writer)
                seen["answered"] += 1
                # A pause, so that the clients do not compete with the server for a CPU.
                await asyncio.sleep(0.004)
        except (OSError, EOFError, TimeoutError):
            seen["lost"] += 1
        finally:
            writer.close()


async def drive(url: str, signals: list[int], pid: int, stopping: bool) -> Counter[str]:
    """Load `url`, send `signals` to the server's first process after a second, and count."""
    parts, seen, ended = urlsplit(url), Counter[str](), asyncio.Event()
    clients = [
        asyncio.create_task(client(str(parts.hostname), int(parts.port or 80), seen, ended, stopping))
        for _ in range(CLIENTS)
    ]
    await asyncio.sleep(BEFORE)
    for number in signals:
        os.kill(pid, number)
    if not stopping:
        await asyncio.sleep(AFTER)
        ended.set()
    await asyncio.gather(*clients)
    return seen


def losses(mode: Mode) -> dict[str, dict[str, int]]:
    """Per event, the requests that were answered, lost and refused; under "stop", refused is no loss."""
    events = {
        "stop": ([], [signal.SIGTERM]),
        "reload": ([], [signal.SIGHUP]),
        "recycling": (shlex.split(mode.recycle), []),
    }
    found = {}
    for event, (flags, signals) in events.items():
        with mode.running(*flags) as server:
            seen = asyncio.run(drive(server.url, signals, server.process.pid, event == "stop"))
        lost = seen["lost"] + (0 if event == "stop" else seen[REFUSED])
        found[event] = {"answered": seen["answered"], "lost": lost}
    return found
