"""A rollback seen by its clients: who answers, while one command takes a version back.

The clients are connections that ask again as soon as they were answered, in one thread, so
that nothing stands between a request's time stamp and its bytes.
"""

import asyncio
import os
import re
import time
from dataclasses import dataclass, field

import uvloop

from processes import Failed

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
STATUS = re.compile(rb"HTTP/1\.1 (\d+)")
# Load before the command, and after its end.
BEFORE_S = 1.0
AFTER_S = 1.0


@dataclass
class Seen:
    """What all clients saw."""

    answers: list = field(default_factory=list)  # (begun, ended, version), in wall time
    bad: int = 0  # answers other than 200, and requests without any
    dropped: int = 0  # connections that ended under a request
    refused: int = 0  # connections that were not let in
    ending: bool = False


class Client(asyncio.Protocol):
    """One connection, with one request under way."""

    def __init__(self, seen, request, version_header, lost):
        self.seen = seen
        self.request = request
        self.version = re.compile(rb"\r\n" + version_header + rb": *([^\r]*)", re.IGNORECASE)
        self.lost = lost
        self.got = b""

    def connection_made(self, transport):
        self.transport = transport
        self.ask()

    def ask(self):
        self.got = b""
        self.begun = time.time()
        self.transport.write(self.request)

    def data_received(self, data):
        self.got += data
        head, end, body = self.got.partition(b"\r\n\r\n")
        if not end:
            return
        length = LENGTH.search(head)
        if not length or len(body) < int(length[1]):
            return
        version = self.version.search(head)
        if STATUS.match(head)[1] == b"200" and version:
            self.seen.answers.append((self.begun, time.time(), version[1].decode()))
        else:
            self.seen.bad += 1
        if self.seen.ending:
            self.transport.close()
        else:
            self.ask()

    def connection_lost(self, _error):
        if not self.seen.ending:
            self.seen.dropped += 1
        if not self.lost.done():
            self.lost.set_result(None)


async def keep_asking(seen, address, request, version_header):
    """A client that connects anew when its connection is taken away."""
    host, port = address.split(":")
    loop = asyncio.get_running_loop()
    while not seen.ending:
        lost = loop.create_future()
        try:
            await loop.create_connection(
                lambda lost=lost: Client(seen, request, version_header, lost), host, int(port)
            )
        except OSError:
            seen.refused += 1
            continue
        await lost


async def load_and_command(address, request, version_header, connections, command, environment):
    seen = Seen()
    clients = [
        asyncio.create_task(keep_asking(seen, address, request, version_header))
        for _ in range(connections)
    ]
    await asyncio.sleep(BEFORE_S)
    typed = time.time()
    process = await asyncio.create_subprocess_exec(
        *command,
        env=os.environ | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, said = await process.communicate()
    returned = time.time()
    await asyncio.sleep(AFTER_S)
    seen.ending = True
    _, waiting = await asyncio.wait(clients, timeout=5)
    seen.bad += len(waiting)
    if process.returncode != 0:
        raise Failed(f"{command} failed: {said.decode()}")
    return seen, typed, returned, printed.decode()


def roll_back(server, withdrawn, connections, command, environment):
    """Runs the command while connections load a server (address, path, body, name of the
    header with the version). Gives what clients saw of the withdrawn version, when the command
    was typed and returned, and what it printed."""
    address, path, body, version_header = server
    request = (
        f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    uvloop.install()
    seen, typed, returned, printed = asyncio.run(
        load_and_command(address, request, version_header, connections, command, environment)
    )
    before = [version for _, ended, version in seen.answers if ended < typed]
    after = [answer for answer in seen.answers if answer[1] >= typed and answer[2] == withdrawn]
    return {
        "share_before": before.count(withdrawn) / max(1, len(before)),
        "requests_a_second": len(before) / BEFORE_S,
        "command_ms": (returned - typed) * 1e3,
        "last_answer_ms": max(((ended - typed) * 1e3 for _, ended, _ in after), default=0.0),
        "answers_after_typing": len(after),
        "begun": [begun for begun, _, _ in after],
        "dropped": seen.dropped + seen.refused,
        "bad": seen.bad,
        "typed": typed,
        "returned": returned,
        "printed": printed,
    }
