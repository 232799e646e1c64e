"""One Detector and its StreamReceiver for the system tests: start, break, arm, wait, read back."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers the bitshuffle filter
import numpy as np
import tango

from tangods_detector.hw.simulator import Simulator
from tangods_detector.hw.simulator_images import expected_frame
from tangods_detector.localtango import LocalTango
from tangods_detector.options import parse_options
from tangods_detector.register import checked_registration, register
from tangods_detector.settings import Settings
from tests import waiting

DATASET = "entry/instrument/detector/data"
ON = (tango.DevState.ON, tango.DevState.ALARM)
BUSY = (tango.DevState.MOVING, tango.DevState.RUNNING)


def wait_for(what: str, condition: Callable[[], Any], limit: float = 15.0) -> Any:
    """Wait until the condition is true and return its value; AssertionError says what never came."""
    return waiting.wait_for(condition, limit, what)


class Beamline:
    """`detector` and `receiver` are proxies of two servers in processes of their own; `root` is where files go."""

    def __init__(
        self, local: LocalTango, instance: str, root: Path, options: Sequence[str] = (), **receiver_properties: Any
    ) -> None:
        self.local, self.instance, self.root = local, instance, root
        self.detector_name, self.receiver_name = f"{instance}/det/1", f"{instance}/rec/1"
        self.options = ["width = 80", "height = 64", *options]
        self.receiver_properties = {"Http": "", **receiver_properties}
        self._files = 0

    def __enter__(self) -> Beamline:
        self.put("Detector", self.detector_name, Backend="simulator", BackendOptions=self.options)
        self.put("Detector", self.detector_name, Receiver=self.receiver_name)
        self.local.start(f"Detector/{self.instance}")
        self.detector = self.local.device(self.detector_name)
        endpoints = wait_for("the detector's stream", lambda: list(self.detector.Endpoints or []))
        self.options.append(f"port = {endpoints[0].rpartition(':')[2]}")  # the same after a restart
        self.put("Detector", self.detector_name, BackendOptions=self.options)
        self.put("StreamReceiver", self.receiver_name, Root=str(self.root), Endpoints=endpoints)
        self.put("StreamReceiver", self.receiver_name, **self.receiver_properties)
        self.start_receiver()
        self.wait_on()
        return self

    def __exit__(self, *_: object) -> None:
        for server in (f"Detector/{self.instance}", f"StreamReceiver/{self.instance}"):
            with contextlib.suppress(KeyError):
                self.local.stop(server)

    def put(self, klass: str, device: str, **properties: Any) -> None:
        """Register a device with these properties."""
        entry = {"servers": {klass: {self.instance: {klass: {device: {"properties": properties}}}}}}
        register(self.local.database, checked_registration(entry, "test"))

    def start_receiver(self) -> None:
        self.local.start(f"StreamReceiver/{self.instance}")
        self.receiver = self.local.device(self.receiver_name)

    def stop_receiver(self, kill: bool = False) -> int:
        return self.local.stop(f"StreamReceiver/{self.instance}", kill=kill)

    def start_detector(self) -> None:
        self.local.start(f"Detector/{self.instance}")
        self.detector = self.local.device(self.detector_name)

    def stop_detector(self, kill: bool = False) -> int:
        return self.local.stop(f"Detector/{self.instance}", kill=kill)

    def new_file(self) -> Path:
        self._files += 1
        return self.root / f"series_{self._files:04d}.h5"

    def set(self, **settings: Any) -> Path:
        """Write attributes, with a new file unless one is given; returns the file's path."""
        chosen: dict[str, Any] = {
            "DestinationFilename": str(self.new_file()),
            "ExposureTime": 0.001,
            "FrameTime": 0.002,
            "TriggerMode": "INTERNAL",
            "nTriggers": 1,
            "nFramesPerTrigger": 10,
            **settings,
        }
        for name, value in chosen.items():
            setattr(self.detector, name, value)
        return Path(chosen["DestinationFilename"])

    def wait_state(self, *states: tango.DevState, limit: float = 15.0) -> tango.DevState:
        end = time.monotonic() + limit
        while (state := self.detector.state()) not in states:
            assert time.monotonic() < end, f"{state} after {limit} s instead of {states}: {self.detector.status()}"
            time.sleep(0.005)
        return state

    def wait_on(self, limit: float = 15.0) -> None:
        self.wait_state(*ON, limit=limit)

    def wait_running(self) -> None:
        self.wait_state(tango.DevState.RUNNING)

    def wait_end(self, limit: float = 30.0) -> tango.DevState:
        """Wait until the series is over, well or not."""
        end = time.monotonic() + limit
        while (state := self.detector.state()) in BUSY:
            assert time.monotonic() < end, f"still {state} after {limit} s: {self.detector.status()}"
            time.sleep(0.005)
        return state

    def acquire(self, **settings: Any) -> Path:
        """One whole series without triggers from outside, which must end well."""
        file = self.set(**settings)
        self.detector.Arm()
        state = self.wait_end()
        assert state in ON, self.detector.status()
        return file

    def good_series(self) -> None:
        """Whatever happened before, the next series is complete, by content."""
        file = self.acquire(nFramesPerTrigger=20)
        self.assert_frames(file, range(20))
        assert self.detector.nFramesMissing == 0

    def snapshot(self) -> dict[str, Any]:
        return dict(json.loads(self.receiver.Snapshot))

    def expected(self, number: int, **settings: Any) -> np.ndarray:
        return expected_frame(parse_options(Simulator.Options, self.options), Settings(**settings), number)

    def assert_frames(self, file: Path, numbers: Sequence[int], **settings: Any) -> None:
        """These frames are in the file, each at its place, equal to what the simulator sent."""
        with h5py.File(file) as h5:
            data = h5[DATASET]
            for number in numbers:
                np.testing.assert_array_equal(data[number], self.expected(number, **settings))
