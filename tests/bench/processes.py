"""Processes of ours: their start, their CPU, their end.

Only what was started here is ended here, by its process id.
"""

import ctypes
import os
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
PR_SET_PDEATHSIG = 1
# Below the range from which the kernel gives ports to clients.
PORTS = range(20_000, 32_000)
untried = random.sample(PORTS, len(PORTS))


class Failed(Exception):
    """Something that the user has to see, without a trace."""


def free_port():
    """A loopback port that is free for TCP and for UDP."""
    while untried:
        port = untried.pop()
        try:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with socket.socket(socket.AF_INET, kind) as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return port
    raise Failed(f"no loopback port from {PORTS.start} to {PORTS.stop} is free")


class Processes:
    """Everything started, ended in reverse order when the block is left."""

    def __init__(self, folder):
        self.folder = folder
        self.started = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for _, process in reversed(self.started):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start(self, name, command, **environment):
        """Starts a server; it ends with us, also when we are killed."""
        libc = ctypes.CDLL(None)
        with open(self.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | environment,
                preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
            )
        self.started.append((name, process))
        return process.pid

    def check(self):
        """Fails when a server ended by itself."""
        for name, process in self.started:
            if process.poll() is not None:
                log = (self.folder / f"{name}.log").read_text(errors="replace")
                raise Failed(f"{name} ended with {process.returncode}:\n{log[-2000:]}")

    def until(self, what, condition, patience_s=60):
        """Waits for a condition, asking ten times a second."""
        end = time.monotonic() + patience_s
        while not condition():
            self.check()
            if time.monotonic() > end:
                raise Failed(f"waited {patience_s} s in vain until {what}")
            time.sleep(0.1)

    def until_ok(self, url):
        """Waits until a URL answers with 200."""

        def answers():
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    return answer.status == 200
            except (urllib.error.URLError, OSError):
                return False

        self.until(f"{url} answers with 200", answers)

    def until_quiet(self, pids, patience_s=30):
        """Waits until processes use less than a twentieth of a core, e.g. when shadows that
        wait in queues would otherwise count for the next run."""

        def quiet():
            before = cpu_s(pids)
            time.sleep(0.2)
            return cpu_s(pids) - before < 0.05 * 0.2 + 1 / TICKS_A_SECOND

        self.until(f"processes {pids} are quiet", quiet, patience_s)


def run(command, **environment):
    """Runs a command to its end and gives what it printed."""
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )
    if done.returncode != 0:
        raise Failed(f"{' '.join(str(word) for word in command)} failed: {done.stderr.strip()}")
    return done.stdout


def tree(pid):
    """A process and its descendants."""
    found = [pid]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            found += tree(int(child))
    return found


def cpu_s(pids):
    """CPU seconds, user and system, of processes and their descendants."""
    ticks = 0
    for root in pids:
        try:
            for pid in tree(root):
                # The name, in brackets, may hold spaces.
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        except (FileNotFoundError, ProcessLookupError):
            raise Failed(f"process {root}, or one that it started, has gone") from None
    return ticks / TICKS_A_SECOND
