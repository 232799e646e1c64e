"""DetectorClient against real servers: series, refusals, faults, Ctrl-C, progress and pictures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
import tango
from PIL import Image

from tangods_detector import client, display
from tangods_detector.client import DetectorClient, IncompleteSeries
from tangods_receiver.errors import ConfigError, DaqError, HardwareError
from tangods_receiver.recovery import check
from tests.system.beamline import BUSY, DATASET, ON, Beamline, wait_for

pytestmark = pytest.mark.system


def address(beamline: Beamline) -> str:
    """The detector's name as another process finds it."""
    return f"tango://{beamline.local.tango_host}/{beamline.detector_name}"


@pytest.fixture
def det(beamline: Beamline) -> DetectorClient:
    beamline.wait_on()
    return DetectorClient(beamline.detector)


def test_acquire_returns_the_file_with_all_frames(beamline: Beamline, det: DetectorClient) -> None:
    file = beamline.new_file()
    path = det.acquire(n=25, exposure=0.001, file=file, period=0.002, label="from a client", metadata={"sample": "A1"})
    assert path == file and det.state in ON
    beamline.assert_frames(file, range(25))
    assert check(file).ok
    assert (beamline.detector.FrameTime, beamline.detector.Label) == (0.002, "from a client")
    assert beamline.detector.Metadata == '{"sample": "A1"}'


def test_each_call_means_the_same_whatever_was_set_before(beamline: Beamline, det: DetectorClient) -> None:
    det.acquire(n=2, exposure=0.001, period=0.005, triggers=3, mode="software", file=beamline.new_file())
    path = det.acquire(n=4, file=beamline.new_file())
    assert path
    with h5py.File(path) as h5:
        assert h5[DATASET].shape[0] == 4
    assert beamline.detector.ExposureTime == 0.001, "what is not given stays as it was"


def test_names_without_a_directory_are_below_the_root(beamline: Beamline, det: DetectorClient) -> None:
    path = det.acquire(n=3, exposure=0.001, file="short_{number}.h5")
    assert path == beamline.root / "short_1.h5", "as the receiver wrote it"
    beamline.assert_frames(path, range(3))
    assert det.acquire(n=3, exposure=0.001) is None, "no file was asked for"


def test_triggers_one_by_one(beamline: Beamline, det: DetectorClient) -> None:
    with det:
        det.arm(2, 0.001, file := beamline.new_file(), mode="SOFTWARE", triggers=4)
        for done in range(4):
            det.trigger()
            assert beamline.detector.nFramesAcquired == 2 * done + 2
        assert det.wait() == file
    beamline.assert_frames(file, range(8), n_triggers=4, n_frames_per_trigger=2)


def test_refusals_are_what_they_are_and_begin_nothing(beamline: Beamline, det: DetectorClient) -> None:
    with pytest.raises(ConfigError, match="/nowhere/at/all.h5: outside"):
        det.acquire(exposure=0.001, file="/nowhere/at/all.h5")
    with pytest.raises(ConfigError, match="TriggerMode.*EXTERNAL_MULTI"):
        det.arm(mode="SOMETIMES")
    with pytest.raises(DaqError, match="nTriggers"):
        det.arm(triggers=0)
    with pytest.raises(ConfigError, match="TANGO_HOST"):
        DetectorClient(address(beamline).replace(beamline.detector_name, "no/such/device"))
    assert beamline.detector.state() in ON


def test_a_refused_arm_leaves_anothers_series_alone(beamline: Beamline, det: DetectorClient) -> None:
    other = DetectorClient(beamline.detector)
    other.arm(5, 0.001, file := beamline.new_file(), mode="SOFTWARE")
    with pytest.raises(DaqError), det:
        det.acquire(exposure=0.001)
    other.trigger()
    assert other.wait() == file


def test_leaving_the_block_stops_what_runs(beamline: Beamline, det: DetectorClient) -> None:
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), det:
            det.arm(100_000, 0.001, file := beamline.new_file(), period=0.01)
            wait_for("frames", lambda: beamline.detector.nFramesWritten > 3)
            raise error
        assert beamline.detector.state() in ON and check(file).ok
    with det:
        det.live()
        wait_for("RUNNING", lambda: det.state == tango.DevState.RUNNING)
    assert beamline.detector.state() in ON


def test_stopped_by_another_client(beamline: Beamline, det: DetectorClient) -> None:
    file, stopped = beamline.new_file(), threading.Event()

    def stop() -> None:
        other = tango.DeviceProxy(address(beamline))
        wait_for("frames", lambda: other.nFramesWritten > 2, 30)
        other.Stop()
        stopped.set()

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    with pytest.raises(IncompleteSeries, match="of 100000 frames.*stopped") as raised:
        det.acquire(100_000, 0.001, file, period=0.01)
    thread.join()
    assert stopped.is_set() and raised.value.path == file and check(file).ok


def test_time_is_up(beamline: Beamline, det: DetectorClient) -> None:
    with pytest.raises(DaqError, match=r"of 3 frames after 0\.2 s"):
        det.acquire(3, 0.001, mode="EXTERNAL_MULTI", timeout=0.2)
    assert beamline.detector.state() in ON, "it was stopped"


def test_faults_and_a_server_that_is_gone(own_beamline: Beamline, monkeypatch: pytest.MonkeyPatch) -> None:
    det = DetectorClient(own_beamline.detector)
    det.arm(100_000, 0.001, own_beamline.new_file(), period=0.01)
    own_beamline.wait_running()
    own_beamline.stop_receiver(kill=True)
    with pytest.raises(HardwareError, match=f"FAULT.*{own_beamline.receiver_name}"):
        det.wait()
    own_beamline.start_receiver()
    own_beamline.detector.Reset()
    own_beamline.wait_on()
    monkeypatch.setattr(client, "SILENT_LIMIT", 1.0)
    det.arm(100_000, 0.001, own_beamline.new_file(), period=0.01)
    own_beamline.stop_detector(kill=True)
    with pytest.raises(DaqError, match="check that its server runs"):
        det.wait()


INTERRUPTED = """
import sys
from tangods_detector.client import DetectorClient
DetectorClient(sys.argv[1]).acquire(100_000, 0.001, sys.argv[2], period=0.01)
"""


def test_ctrl_c_ends_the_series_and_closes_the_file(beamline: Beamline, tmp_path: Path) -> None:
    file = beamline.new_file()
    command = [sys.executable, "-c", INTERRUPTED, address(beamline), str(file)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for("frames", lambda: beamline.detector.LastFilename == str(file) and beamline.detector.nFramesWritten > 3, 60)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT and "KeyboardInterrupt" in said
    assert beamline.detector.state() not in BUSY
    assert check(file).ok


def test_the_newest_image_and_its_picture(beamline: Beamline, det: DetectorClient, tmp_path: Path) -> None:
    det.acquire(5, 0.001, beamline.new_file())
    wait_for("the last image", lambda: beamline.detector.LastImageNumber == 4)
    np.testing.assert_array_equal(det.image(), beamline.expected(4).astype("f4"))
    picture = det.plot()
    png = picture._repr_png_()
    assert png.startswith(b"\x89PNG") and png != det.plot(det.image() * 0)._repr_png_()
    picture.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as shown:
        assert shown.size == (700, 600)
    for odd in (np.full((4, 5), -1), np.array([[np.nan, 1e9]]), np.zeros((1, 1))):
        assert display.draw(odd, "odd", log=odd.size != 2)._repr_png_()


NOTEBOOK = """
import sys
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from tangods_detector.client import DetectorClient
shell = InteractiveShell.instance()
shell.kernel = object()  # what tells a notebook's shell from a terminal's
with capture_output() as shown:
    DetectorClient(sys.argv[1]).acquire(20, 0.001, period=0.005)
bars = [out.data["text/html"] for out in shown.outputs]
assert "value='0'" in bars[0], bars
assert "max='20' value='20'" in bars[-1], bars
with capture_output() as shown:
    shell.run_cell("from tangods_detector.client import DetectorClient")
    shell.run_cell(f"DetectorClient({sys.argv[1]!r}).plot()")
assert "image/png" in shell.display_formatter.format(shell.user_ns["_"])[0]
"""


def test_in_a_notebook(beamline: Beamline, tmp_path: Path) -> None:
    command = [sys.executable, "-c", NOTEBOOK, address(beamline)]
    environment = {**os.environ, "IPYTHONDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


def test_progress_is_told_and_can_be_left_out(
    beamline: Beamline, det: DetectorClient, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[int, int | None]] = []
    monkeypatch.setattr(display, "_notebook_bar", lambda: lambda done, total: told.append((done, total)))
    monkeypatch.setattr(display, "_in_notebook", lambda: True)
    det.acquire(30, 0.001, beamline.new_file(), period=0.01)
    assert told[-1] == (30, 30) and len(told) > 2 and told == sorted(told)
    told.clear()
    DetectorClient(beamline.detector, progress=False).acquire(2, 0.001)
    thread = threading.Thread(target=det.acquire, args=(2, 0.001))
    thread.start()
    thread.join()
    assert told == [] and capfd.readouterr().err == ""
