"""Pool, MacroServer and Door beside detectors of the system tests, set up as the page for users says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers the bitshuffle filter
import numpy as np
import tango

from tangods_detector.localtango import LocalTango
from tests.sardana.door import DoorRunner, MacroError
from tests.system.beamline import Beamline, wait_for

START_LIMIT = 150.0  # s; 13 s of computing on a free machine
TOP = Path(__file__).parent.parent.parent


class Sardana:
    """Pool and MacroServer of this instance over the detectors of `beamlines`; scans go to `data`."""

    def __init__(self, local: LocalTango, instance: str, folder: Path, beamlines: Sequence[Beamline]) -> None:
        self.local, self.instance, self.folder = local, instance, folder
        self.beamlines = list(beamlines)
        self.data = beamlines[0].root
        self.servers = f"Pool/{instance}", f"MacroServer/{instance}"
        self.door: DoorRunner

    def __enter__(self) -> Sardana:
        self._load_configuration()
        self.start()
        for words in (("ScanDir", self.data), ("ScanFile", "scan.h5")):
            self.run("senv", *words)
        for group in ("mg_hw", "mg_roi", "mg"):
            self.run("senv", "ActiveMntGrp", group)
            self.run("det_setup")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _load_configuration(self) -> None:
        detectors = [beamline.detector_name for beamline in self.beamlines]
        environment = ["--environment", str(self.folder / "environment")]
        text = self.program("python", "-m", "sardana_ctrl", "config", self.instance, *detectors, *environment)
        file = self.folder / "sardana.yaml"
        file.write_text(text)
        self.program("sardana-config", "load", "--write", "--environment", str(file))

    def program(self, name: str, *arguments: str) -> str:
        """Run a program of our environment; its output."""
        environment = {**os.environ, "TANGO_HOST": self.local.tango_host, "PYTHONPATH": str(TOP)}
        done = subprocess.run(
            [Path(sys.executable).parent / name, *arguments],
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{name} {arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def name(self, kind: str) -> str:
        return f"{kind}/{self.instance}/1"

    def element(self, name: str) -> Any:
        """Proxy of a pool element."""
        return self.local.device(name)

    def start(self) -> None:
        for server in self.servers:  # the MacroServer finds the Pool's elements at once
            self.local.start(server, "--log-level=warning", "--without-log-file=True", limit=START_LIMIT)
        self.door = wait_for("the Door", self._door, START_LIMIT)
        wait_for("the Door's events", self._hears, START_LIMIT)

    def _door(self) -> DoorRunner | None:
        """None: the server answers, but does not give events yet."""
        try:
            return DoorRunner(self.local.device(self.name("door")))
        except tango.DevFailed:
            return None

    def _hears(self) -> bool:
        """A subscription is there some time before its events come."""
        try:
            self.door.run("senv", "Heard", True, timeout=2.0)
        except MacroError:
            return False
        return True

    def stop(self, kill: bool = False) -> None:
        self.door.close()
        for server in reversed(self.servers):
            self.local.stop(server, kill=kill)

    def run(self, *macro: object, timeout: float = 60.0) -> list[str]:
        return self.door.run(*macro, timeout=timeout)

    def ask(self, *macro: object) -> list[str]:
        """Of a macro that has a result."""
        return self.door.ask(*macro)

    def group(self, name: str) -> None:
        self.run("senv", "ActiveMntGrp", name)

    def files(self) -> set[Path]:
        """All detector files below `data`; the scan file is not one."""
        return set(self.data.rglob("*.h5")) - {self.data / "scan.h5"}

    def last_scan(self, file: Path | None = None) -> Scan:
        return Scan(file or self.data / "scan.h5")


class Scan:
    """The newest entry of a scan file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        with h5py.File(file) as h5:
            self.number = max(int(name.removeprefix("entry")) for name in h5 if name.startswith("entry"))

    def column(self, name: str) -> np.ndarray:
        with h5py.File(self.file) as h5:
            return np.asarray(h5[f"entry{self.number}/measurement/{name}"][()])

    def tags(self, channel: str = "det01") -> list[int]:
        """Numbers that the simulator put into the images, read through the virtual dataset."""
        images = self.column(channel)
        if not images.size:
            return []
        flat = np.ascontiguousarray(images.reshape(-1, *images.shape[-2:]))
        return [int(image.reshape(-1).view(np.uint8)[:8].view("<u8")[0]) for image in flat]

    def missing(self, channel: str = "det01") -> list[int]:
        return [int(n) for n in self.column(f"{channel}_missing")]

    def sources(self, channel: str = "det01") -> list[str]:
        """File names in the virtual dataset, one for each mapping."""
        with h5py.File(self.file) as h5:
            return [source.file_name for source in h5[f"entry{self.number}/measurement/{channel}"].virtual_sources()]
