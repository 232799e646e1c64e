"""Debian's Starter, which Astor drives, starts, stops and restarts our servers from where pip put them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import tango

from tangods_detector import register
from tangods_detector.client import DetectorClient
from tangods_detector.localtango import LocalTango
from tangods_receiver.recovery import check
from tests.system.beamline import ON, wait_for

STARTER = Path("/usr/lib/tango/Starter")
pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.skipif(not STARTER.exists(), reason=f"{STARTER} is not on this machine (Debian: tango-starter)"),
]
LIMIT = 90.0  # s; a Starter looks every second, and gives up on a server after some
RECEIVER, DETECTOR = "StreamReceiver/start", "Detector/start"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Facility:
    """An empty database, one file registered in it, and the Starter of this host."""

    def __init__(self, local: LocalTango, folder: Path) -> None:
        self.local, self.folder, self.data = local, folder, folder / "data"
        self.data.mkdir()
        port = free_port()
        receiver = {"Root": str(self.data), "Endpoints": f"tcp://127.0.0.1:{port}", "Http": ""}
        options = [f"port = {port}", "width = 80", "height = 64"]
        detector = {"Backend": "simulator", "BackendOptions": options, "Receiver": "start/rec/1"}
        content: dict[str, Any] = {
            "servers": {
                "StreamReceiver": {"start": {"StreamReceiver": {"start/rec/1": {"properties": receiver}}}},
                "Detector": {"start": {"Detector": {"start/det/1": {"properties": detector}}}},
            },
            "starter": {
                "localhost": {"path": [str(Path(sys.executable).parent)], "levels": {RECEIVER: 1, DETECTOR: 2}}
            },
        }
        self.registration = register.checked_registration(content, "beamline")

    def __enter__(self) -> Facility:
        register.register(self.local.database, self.registration)
        admin, logs = f"tango/admin/{socket.gethostname()}", self.folder / "log"
        logs.mkdir()
        properties = {"LogFileHome": [str(logs)], "StartServersAtStartup": ["false"], "InterStartupLevelWait": ["1"]}
        self.local.database.put_device_property(admin, properties)
        environment = {
            **os.environ,
            "TANGO_HOST": self.local.tango_host,
            "HOME": str(self.folder),
            "PATH": "/usr/bin:/bin",  # not ours: what a service has
            "ORBendPoint": "giop:tcp:127.0.0.1:0",  # of the Starter and all that it starts
        }
        with (self.folder / "starter.log").open("wb") as output:
            command = [str(STARTER), socket.gethostname()]
            self._process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        self.starter = self.local.device(admin)
        self.starter.set_timeout_millis(30_000)
        wait_for("the Starter to list both", lambda: len(self.states()) == 2, LIMIT)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)
        for process in self.processes():
            process.kill()
            wait_for("its end", lambda process=process: not process.is_running(), 30)

    def states(self) -> dict[str, str]:
        """As Astor shows them: server -> ON, MOVING, FAULT (not running)."""
        try:
            lines = self.starter.read_attribute("Servers").value or ()
        except tango.DevFailed:
            return {}
        return {line.split("\t")[0]: line.split("\t")[1] for line in lines}

    def wait_states(self, **wanted: str) -> None:
        """By class, such as Detector="ON"."""
        expected = {f"{klass}/start": state for klass, state in wanted.items()}
        wait_for(f"{expected}, not {self.states()}", lambda: self.states() == expected, LIMIT)

    def processes(self) -> list[psutil.Process]:
        """Our servers that run, whoever started them; they belong to nobody in particular."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if words[-1:] == ["start"] and words[1:2] and Path(words[1]).name in ("Detector", "StreamReceiver"):
                found.append(process)
        return found

    def client(self) -> DetectorClient:
        client = DetectorClient(self.local.device("start/det/1"), progress=False)
        wait_for("ON", lambda: client.state in ON, LIMIT)
        return client

    def log(self, server: str) -> str:
        return str(self.starter.DevReadLog(server))


@pytest.fixture
def facility(tmp_path: Path) -> Iterator[Facility]:
    with LocalTango(tmp_path / "db") as local, Facility(local, tmp_path) as one:
        yield one


def test_from_an_empty_database_to_a_file_and_back(facility: Facility) -> None:
    """Registered from one file, started by run level, an acquisition, stopped: nothing stays but the file."""
    starter = facility.starter
    facility.wait_states(StreamReceiver="FAULT", Detector="FAULT")
    assert facility.processes() == []
    starter.DevStartAll(1)
    facility.wait_states(StreamReceiver="ON", Detector="FAULT")
    starter.DevStartAll(2)
    facility.wait_states(StreamReceiver="ON", Detector="ON")
    assert set(starter.DevGetRunningServers(True)) == {RECEIVER, DETECTOR}
    wait_for("its green light", lambda: starter.state() == tango.DevState.ON, LIMIT)
    assert "connected to" in facility.log(DETECTOR), "what the server says is kept by the Starter"

    client = facility.client()
    path = client.acquire(n=20, exposure=0.001, period=0.002, file=facility.data / "walk.h5")
    report = check(facility.data / "walk.h5")
    assert path == facility.data / "walk.h5" and report.ok and report.frames == 20

    client.arm(100_000, 0.001, facility.data / "cut.h5", period=0.005)  # stopped in mid-series, the writer first
    wait_for("frames", lambda: client.proxy.nFramesWritten > 3, 30)
    starter.DevStop(RECEIVER)
    facility.wait_states(StreamReceiver="FAULT", Detector="ON")
    assert check(facility.data / "cut.h5").ok, "the file was finished"
    assert f"closed {facility.data / 'cut.h5'}" in facility.log(RECEIVER), "and it is said"
    starter.DevStop(DETECTOR)
    facility.wait_states(StreamReceiver="FAULT", Detector="FAULT")
    wait_for("no process", lambda: facility.processes() == [], 30)
    assert set(starter.DevGetStopServers(True)) == {RECEIVER, DETECTOR}


@pytest.mark.soak
def test_restart_and_hard_kill(facility: Facility) -> None:
    starter = facility.starter
    for level in (1, 2):
        starter.DevStartAll(level)
        facility.wait_states(StreamReceiver="ON", Detector="ON" if level == 2 else "FAULT")
    ended: list[tuple[str, Callable[[], object]]] = [
        ("Kill", lambda: facility.local.device(f"dserver/{DETECTOR}").Kill()),
        ("DevStop", lambda: starter.DevStop(DETECTOR)),
        ("HardKillServer", lambda: starter.HardKillServer(DETECTOR)),
        ("SIGTERM", lambda: psutil.Process(pid()).send_signal(signal.SIGTERM)),
    ]

    def pid() -> int:
        (found,) = [p.pid for p in facility.processes() if Path(p.cmdline()[1]).name == "Detector"]
        return found

    for number, (way, end) in enumerate(ended):
        client = facility.client()
        file = facility.data / f"restart_{number}.h5"
        client.acquire(n=5, exposure=0.001, file=file)
        assert check(file).ok
        process, begun = psutil.Process(pid()), time.monotonic()
        end()
        wait_for(f"the end by {way}", lambda process=process: not process.is_running(), 30)
        print(f"{way}: ended after {time.monotonic() - begun:.2f} s")
        facility.wait_states(StreamReceiver="ON", Detector="FAULT")
        starter.DevStart(DETECTOR)
        facility.wait_states(StreamReceiver="ON", Detector="ON")
