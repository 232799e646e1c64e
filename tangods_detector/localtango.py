"""A Tango database on SQLite and device servers beside it, as processes of this machine that end with their owner."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import tango

from tangods_receiver.errors import ConfigError, DaqError

log = logging.getLogger(__name__)

START_LIMIT = 30.0  # s; a busy machine needs a few to import tango, h5py and numpy
STOP_LIMIT = 5.0  # s; then the process is killed
PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None)


class LocalTango:
    """Database and servers in `folder` (database file, one log per process), bound to loopback, on free ports.

    Other processes reach it with TANGO_HOST = `tango_host`; in this one use `device(name)`, which needs no environment.
    Whatever was started ends on exit, also when this process dies without cleaning up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tango_host = ""
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> LocalTango:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._start_database()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def database(self) -> tango.Database:
        host, port = self.tango_host.split(":")
        return tango.Database(host, int(port))

    def device(self, name: str) -> tango.DeviceProxy:
        return tango.DeviceProxy(f"tango://{self.tango_host}/{name}")

    def start(self, server: str, *more: str, limit: float = START_LIMIT) -> subprocess.Popen[bytes]:
        """Start `Class/instance` (registered before), with `more` arguments, and wait until it answers; DaqError with
        its log if it does not within `limit` s."""
        program, instance = server.split("/")
        self._spawn(server, [_script(program), instance, *more, "-ORBendPoint", "giop:tcp:127.0.0.1:0"])
        self._wait(server, lambda: self.device(f"dserver/{server}").ping(), limit)
        return self.process(server)

    def process(self, server: str) -> subprocess.Popen[bytes]:
        """Of a server that was started."""
        return self._processes[server]

    def stop(self, server: str, kill: bool = False) -> int:
        """End one server, gently (SIGTERM) or not (SIGKILL); returns its exit code."""
        process = self._processes.pop(server)
        _end([process], signal.SIGKILL if kill else signal.SIGTERM)
        return process.returncode

    def close(self) -> None:
        """End all: the servers at once, then the database that they sign off from."""
        processes = self._processes
        self._processes = {}
        database = processes.pop("database", None)
        _end(list(processes.values()), signal.SIGTERM)
        _end([database] if database else [], signal.SIGTERM)

    def log_of(self, server: str) -> Path:
        return self.folder / f"{server.replace('/', '-')}.log"

    def _start_database(self) -> None:
        command = [_script("PyDatabaseds"), "--host", "127.0.0.1", "--port", "0", "--print-host-port", "2"]
        self._spawn("database", command, PYTANGO_DATABASE_NAME=str(self.folder / "tango.db"))

        def listening() -> None:
            found = re.search(r"host=(\S+), port=(\d+)", self.log_of("database").read_text())
            if not found:
                raise DaqError("the database does not listen yet")
            self.tango_host = f"{found[1]}:{found[2]}"
            self.database.get_info()

        self._wait("database", listening)

    def _spawn(self, name: str, command: list[str], **environment: str) -> None:
        env = {**os.environ, **environment}
        if self.tango_host:
            env["TANGO_HOST"] = self.tango_host
        # its own session: a Ctrl-C in the terminal reaches us alone, and we end the others in order
        with self.log_of(name).open("ab") as output:
            self._processes[name] = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env=env,
                start_new_session=True,
                preexec_fn=lambda: _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
            )

    def _wait(self, name: str, ready: Callable[[], object], limit: float = START_LIMIT) -> None:
        process = self._processes[name]
        end = time.monotonic() + limit
        while True:
            with contextlib.suppress(DaqError, tango.DevFailed):
                ready()
                return
            if process.poll() is not None or time.monotonic() > end:
                what = "ended at once" if process.poll() is not None else f"did not answer in {limit:.0f} s"
                tail = "\n".join(self.log_of(name).read_text(errors="replace").splitlines()[-15:])
                raise DaqError(f"{name} {what}; its log {self.log_of(name)} ends with:\n{tail}")
            time.sleep(0.05)


def _script(name: str) -> str:
    """A console script of the environment that runs us."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise ConfigError(f"{path} is missing: install this package into the environment of {sys.executable}")
    return str(path)


def _end(processes: list[subprocess.Popen[bytes]], sign: signal.Signals) -> None:
    for process in processes:
        process.send_signal(sign)
    for process in processes:
        try:
            process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            log.warning("process %d did not end in %.0f s and was killed", process.pid, STOP_LIMIT)
            process.kill()
            process.wait()
