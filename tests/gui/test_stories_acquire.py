"""User stories: series are set up, taken, refused, broken off."""

from __future__ import annotations

import contextlib

import psutil
import pytest
from PyQt5.QtCore import Qt

from tests.gui.conftest import READY, idle
from tests.system.disks import tmpfs

pytestmark = [pytest.mark.slow, pytest.mark.system, pytest.mark.timeout(300)]


def test_set_up_and_take_100_frames(beamline, desk):
    file = beamline.new_file()
    desk.wait_state(*READY)
    desk.set(
        ExposureTime=0.008,
        FrameTime=0.02,
        TriggerMode="INTERNAL",
        nTriggers=1,
        nFramesPerTrigger=100,
        DestinationFilename=file,
    )
    desk.until(lambda: "100 frames · 2 s · at most 65.5 MB · " in desk.acquire.coming.sentence)
    assert desk.acquire.coming.sentence.endswith(" free")
    desk.press("Arm")
    desk.wait_state("RUNNING")
    assert not desk.acquire.buttons["Arm"].isEnabled() and desk.acquire.buttons["Stop"].isEnabled()
    desk.live.log.setChecked(True)
    desk.until(lambda: 20 < desk.source.get("nFramesReceived") < 100)
    desk.picture("acquiring")
    desk.wait_state(*READY)
    progress = desk.widget.progress
    desk.until(lambda: progress.numbers["nFramesWritten"].text() == "100")
    assert progress.numbers["nFramesMissing"].text() == "0"
    assert progress.bar.value() == progress.bar.maximum() == 100
    desk.until(lambda: progress.table.rowCount() and progress.table.item(0, 1).text() == file.name)
    desk.until(lambda: desk.live.view.picture is not None and desk.live.view.picture.number == 99)
    beamline.assert_frames(file, range(100))
    desk.picture("done")


def test_a_wrong_file_name_is_corrected(beamline, desk):
    desk.wait_state(*READY)
    desk.type(desk.acquire.file, "/etc/somewhere.h5")
    desk.until(lambda: "outside" in desk.acquire.warning.sentence)  # before anything is armed, in the receiver's words
    desk.press("Arm")
    desk.until(lambda: "outside" in desk.acquire.refusal.sentence)
    assert desk.source.state in READY and desk.acquire.file.editor.property("wrong")
    desk.picture("wrong_file")
    file = beamline.new_file()
    desk.type(desk.acquire.file, str(file))
    desk.until(lambda: desk.acquire.warning.isHidden())
    desk.press("Arm")
    desk.until(lambda: file.exists())
    desk.wait_state(*READY)
    assert desk.acquire.refusal.isHidden() and not desk.acquire.file.editor.property("wrong")
    desk.type(desk.acquire.exposure, "-3")  # and what the device does not take is said at the field
    desk.until(lambda: "below the minimum" in desk.acquire.exposure.complaint.sentence)
    desk.press("Arm")
    desk.until(lambda: "correct what is marked" in desk.acquire.refusal.sentence)
    assert desk.source.state in READY
    desk.qtbot.keyClick(desk.acquire.exposure.line, Qt.Key_Escape)
    assert desk.acquire.exposure.complaint.isHidden()


def test_an_external_trigger_is_waited_for_and_given_up(beamline, desk):
    desk.arm(TriggerMode="EXTERNAL_MULTI", nTriggers=5, nFramesPerTrigger=2, DestinationFilename=beamline.new_file())
    desk.until(lambda: "Waiting for trigger 1 of 5" in desk.widget.bar.status.text())
    beamline.detector.SimulatedEdges = 2
    desk.until(lambda: "Waiting for trigger 3 of 5, for" in desk.widget.progress.text.text())
    assert "Waiting" in desk.widget.bar.state.text() and desk.sentences() == ""  # nothing is wrong
    desk.picture("waiting_for_trigger")
    desk.press("Stop")
    desk.wait_state(*READY)
    assert beamline.detector.nFramesWritten == 4


def test_abort_asks_once_where_data_could_be_lost(beamline, desk):
    from taurus_gui.acquire import DOUBLE_CLICK

    desk.arm(TriggerMode="INTERNAL", FrameTime=0.02, nTriggers=1, nFramesPerTrigger=5000,
             DestinationFilename=beamline.new_file())  # fmt: skip
    desk.press("Abort")
    assert "lost" in desk.acquire.buttons["Abort"].text() and desk.source.state == "RUNNING"
    desk.qtbot.wait(DOUBLE_CLICK + 100)
    desk.press("Abort")
    desk.wait_state(*READY)
    desk.press("Live")  # without a file there is nothing to lose
    desk.until(lambda: "Live" in desk.widget.bar.state.text())
    desk.press("Abort")
    desk.wait_state(*READY)


def test_the_detector_dies_and_comes_back(beamline, desk):
    desk.arm(TriggerMode="INTERNAL", FrameTime=0.05, ExposureTime=0.01, nTriggers=1, nFramesPerTrigger=2000,
             DestinationFilename=beamline.new_file())  # fmt: skip
    desk.until(lambda: desk.live.view.picture is not None)
    beamline.stop_detector(kill=True)
    try:
        desk.wait_state(None)
        desk.until(lambda: "No connection" in desk.sentences())
        assert "No connection" in desk.widget.bar.state.text()
        assert not any(button.isEnabled() for button in desk.acquire.buttons.values())
        desk.until(lambda: "cut off" in desk.live.badge.text())
        desk.picture("no_connection")
    finally:
        beamline.start_detector()
    desk.until(lambda: desk.source.state is not None and "No connection" not in desk.sentences())
    beamline.receiver.Stop()
    desk.wait_state(*READY)
    desk.until(lambda: "Connected again" in desk.log())
    desk.set(nFramesPerTrigger=5, DestinationFilename=beamline.new_file())
    desk.press("Arm")
    desk.until(lambda: desk.source.get("nFramesWritten") == 5)


def test_the_camera_reports_an_error_and_it_is_acknowledged(beamline, desk):
    beamline.detector.InjectDie = 3
    desk.wait_state(*READY)
    desk.set(FrameTime=0.02, nFramesPerTrigger=20, DestinationFilename=beamline.new_file())
    desk.press("Arm")
    desk.wait_state("FAULT")
    desk.until(lambda: desk.sentences())
    desk.picture("fault")
    remedy = desk.widget.bar.remedy
    desk.until(lambda: remedy.isVisible() and "Reset" in remedy.text())
    desk.click(remedy)
    desk.wait_state(*READY)


def test_missing_frames_are_plain_to_see(beamline, desk):
    beamline.detector.InjectDrop = 2
    desk.wait_state(*READY)
    desk.set(FrameTime=0.02, nFramesPerTrigger=20, DestinationFilename=beamline.new_file())
    desk.press("Arm")
    desk.until(lambda: "2 frames are missing" in desk.sentences())
    assert desk.widget.progress.numbers["nFramesMissing"].text() == "▲ 2"
    desk.picture("frames_missing")


def test_the_receivers_disk_is_full(beamline, desk):
    with tmpfs(beamline.root / "small", "30m") as disk:
        desk.wait_state(*READY)
        desk.set(FrameTime=0.05, ExposureTime=0.01, nFramesPerTrigger=100, DestinationFilename=disk / "a.h5")
        desk.until(lambda: "needed" in desk.acquire.warning.sentence)  # 66 MB: said before anything is armed
        desk.until(lambda: "not enough room" in desk.acquire.coming.sentence)
        desk.picture("disk_full")
        desk.arm(nFramesPerTrigger=40)  # fits, until somebody else fills the disk
        desk.until(desk.acquire.warning.isHidden)
        desk.until(lambda: desk.source.get("nFramesWritten") > 2)
        with (disk / "others").open("wb", buffering=0) as others, contextlib.suppress(OSError):
            while True:
                others.write(bytes(1 << 20))
        desk.wait_state("FAULT")
        desk.until(lambda: "the disk is full: free some space" in desk.sentences())
        desk.until(lambda: "frames are missing" in desk.sentences())
        desk.picture("disk_filled_up")
        (disk / "others").unlink()
        desk.click(desk.widget.bar.remedy)  # Reset
        desk.wait_state(*READY)
        file = disk / "b.h5"
        desk.set(nFramesPerTrigger=5, DestinationFilename=file)
        desk.press("Arm")
        desk.until(lambda: desk.source.get("nFramesWritten") == 5 and desk.source.state in READY)
        assert desk.sentences() == ""
        beamline.assert_frames(file, range(5))


@pytest.mark.parametrize("frames", [2000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_a_long_series_overnight(beamline, desk, frames):
    """Small frames, many: memory stays as it is."""
    beamline.detector.Roi = [256, 208, 128, 96]
    try:
        beamline.set(FrameTime=0.0012, ExposureTime=0.0005, nFramesPerTrigger=frames)
        beamline.detector.Arm()
        desk.until(lambda: desk.source.get("nFramesReceived") > frames // 10)
        process = psutil.Process()
        before = process.memory_info().rss
        desk.until(lambda: desk.source.get("nFramesReceived") > frames // 2)
        desk.picture("overnight")
        desk.wait_state(*READY)
        desk.until(lambda: desk.source.get("nFramesWritten") == frames)
        grown = process.memory_info().rss - before
        assert grown < 30e6, f"{grown / 1e6:.1f} MB in {9 * frames // 10} frames"
        assert desk.source.get("nFramesMissing") == 0 and desk.live.pictures_drawn > 5
        assert len(desk.live._shown_at) < 200
    finally:
        idle(beamline)
        beamline.detector.Roi = [0, 0, 640, 512]
        beamline.acquire(nFramesPerTrigger=1)  # the next window begins with a whole image
