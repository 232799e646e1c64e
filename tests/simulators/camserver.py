"""A client of the simulated camserver: text on a socket, files in a folder. It knows nothing of ours."""

import ctypes
import json
import os
import re
import socket
import struct
import time
from contextlib import contextmanager
from pathlib import Path

from tangods_detector.simulators.camserver import CamserverOptions, CamserverSimulator

DATE = r"\d{4}-[A-Z][a-z]{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}"


class Client:
    def __init__(self, port, timeout=10.0):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.timeout = timeout
        self.waiting = b""
        self.segments = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, text):
        self.socket.sendall(text.encode() if isinstance(text, str) else text)

    def reply(self, limit=None):
        """Without the 0x18. AssertionError: nothing comes; EOFError: the connection is closed."""
        end = time.monotonic() + (self.timeout if limit is None else limit)
        while b"\x18" not in self.waiting:
            self.socket.settimeout(max(0.001, end - time.monotonic()))
            try:
                data = self.socket.recv(65536)
            except TimeoutError:
                raise AssertionError(f"no reply, only {self.waiting!r}") from None
            if not data:
                raise EOFError
            self.segments.append(data)
            self.waiting += data
        reply, _, self.waiting = self.waiting.partition(b"\x18")
        return reply.decode("latin-1")

    def say(self, text, limit=None):
        self.send(f"{text}\n")
        return self.reply(limit)

    def set(self, **values):
        for name, value in values.items():
            reply = self.say(f"{name} {value}")
            assert " OK" in reply, reply

    def silent(self, seconds=0.15):
        """Nothing comes for so long."""
        try:
            found = self.reply(seconds)
        except AssertionError:
            return not self.waiting
        raise AssertionError(f"there came {found!r}")

    def series(self, name="a.cbf", n=3, exptime=0.002, period=0.01, mode="exposure"):
        """Path of the last image."""
        self.set(nimages=n, exptime=exptime, expperiod=period)
        reply = self.say(f"{mode} {name}")
        assert re.match("15 OK  Starting ", reply), reply
        return self.end()

    def end(self):
        reply = self.reply()
        while reply.startswith("15 OK img"):
            reply = self.reply()
        assert reply.startswith("7 OK "), reply
        return Path(reply[5:])


def controlling(cam, limit=5.0):
    """A client that has control, as soon as the former one is found to have left."""
    end = time.monotonic() + limit
    while (client := Client(cam.port)).say("dbglvl 1") == "1 ERR access denied":
        client.socket.close()
        assert time.monotonic() < end
        time.sleep(0.01)
    return client


class Watch:
    """inotify: (event, name) of what happens in a folder."""

    KINDS = {0x40: "moved from", 0x80: "moved to", 0x100: "created", 0x200: "deleted"}

    def __init__(self, folder):
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._file = self._libc.inotify_init1(os.O_NONBLOCK)
        assert self._libc.inotify_add_watch(self._file, os.fsencode(folder), sum(self.KINDS)) > 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._file)

    def events(self):
        """Those that there are."""
        try:
            data = os.read(self._file, 1 << 20)
        except BlockingIOError:
            return
        while data:
            _, kind, _, size = struct.unpack_from("iIII", data)
            yield self.KINDS[kind & 0xFFF], data[16 : 16 + size].rstrip(b"\0").decode()
            data = data[16 + size :]

    def arrived(self):
        return [name for kind, name in self.events() if kind == "moved to"]


def ask(cam, **told):
    """One order to the test-only port."""
    with socket.create_connection(("127.0.0.1", cam.test_port), 10) as sock, sock.makefile("rb") as file:
        sock.sendall(json.dumps(told).encode() + b"\n")
        return json.loads(file.readline())


def images(cam, folder=""):
    """Names of complete images."""
    return sorted(p.name for p in (Path(cam.folder) / folder).iterdir() if p.is_file() and p.name[0] != ".")


@contextmanager
def running(model="100K", **options):
    """(simulator, client with control)"""
    with CamserverSimulator(CamserverOptions(model=model, **options)) as cam, Client(cam.port) as client:
        assert client.say("version").startswith("24 OK")  # it is accepted
        yield cam, client
