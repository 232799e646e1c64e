"""User stories: series are set up, taken, refused, broken off."""

from __future__ import annotations

import psutil
import pytest
from PyQt5.QtCore import Qt

from tests.gui.conftest import idle, make_beamline
from tests.system.disks import tmpfs

pytestmark = [pytest.mark.slow, pytest.mark.system, pytest.mark.soak]  # not yet reliable on a busy machine


@pytest.fixture
def desk(beamline, sit_down):
    idle(beamline)
    beamline.set(nFramesPerTrigger=1, DestinationFilename="")
    yield sit_down(beamline)
    idle(beamline)


def test_set_up_and_take_100_frames(beamline, desk):
    file = beamline.new_file()
    desk.wait_state("ON")
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
    desk.wait_state("ON")
    progress = desk.widget.progress
    desk.until(lambda: progress.numbers["nFramesWritten"].text() == "100")
    assert progress.numbers["nFramesMissing"].text() == "0"
    assert progress.bar.value() == progress.bar.maximum() == 100
    desk.until(lambda: progress.table.rowCount() == 1 and progress.table.item(0, 1).text() == file.name)
    desk.until(lambda: desk.live.view.picture is not None and desk.live.view.picture.number == 99)
    beamline.assert_frames(file, range(100))
    desk.picture("done")


def test_a_wrong_file_name_is_corrected(beamline, desk):
    desk.wait_state("ON")
    desk.type(desk.acquire.file, "/etc/somewhere.h5")
    desk.until(lambda: "outside" in desk.acquire.warning.sentence)  # before anything is armed, in the receiver's words
    desk.press("Arm")
    desk.until(lambda: "outside" in desk.acquire.refusal.sentence)
    assert desk.source.state == "ON" and desk.acquire.file.editor.property("wrong")
    desk.picture("wrong_file")
    file = beamline.new_file()
    desk.type(desk.acquire.file, str(file))
    desk.until(lambda: desk.acquire.warning.isHidden())
    desk.press("Arm")
    desk.until(lambda: file.exists())
    desk.wait_state("ON")
    assert desk.acquire.refusal.isHidden() and not desk.acquire.file.editor.property("wrong")
    desk.type(desk.acquire.exposure, "-3")  # and what the device does not take is said at the field
    desk.until(lambda: "below the minimum" in desk.acquire.exposure.complaint.sentence)
    desk.press("Arm")
    desk.until(lambda: "correct what is marked" in desk.acquire.refusal.sentence)
    assert desk.source.state == "ON"
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
    desk.wait_state("ON")
    assert beamline.detector.nFramesWritten == 4


def test_abort_asks_once_where_data_could_be_lost(beamline, desk):
    desk.arm(TriggerMode="INTERNAL", FrameTime=0.02, nTriggers=1, nFramesPerTrigger=5000,
             DestinationFilename=beamline.new_file())  # fmt: skip
    desk.press("Abort")
    assert "lost" in desk.acquire.buttons["Abort"].text() and desk.source.state == "RUNNING"
    desk.press("Abort")
    desk.wait_state("ON")
    desk.press("Live")  # without a file there is nothing to lose
    desk.until(lambda: "Live" in desk.widget.bar.state.text())
    desk.press("Abort")
    desk.wait_state("ON")


def test_the_detector_dies_and_comes_back(local_tango, tmp_path, sit_down):
    with make_beamline(local_tango, tmp_path) as line:
        desk = sit_down(line)
        desk.arm(TriggerMode="INTERNAL", FrameTime=0.05, ExposureTime=0.01, nTriggers=1, nFramesPerTrigger=2000,
                 DestinationFilename=line.new_file())  # fmt: skip
        desk.until(lambda: desk.live.view.picture is not None)
        line.stop_detector(kill=True)
        desk.wait_state(None)
        desk.until(lambda: "No connection" in desk.sentences())
        assert "No connection" in desk.widget.bar.state.text()
        assert not any(button.isEnabled() for button in desk.acquire.buttons.values())
        desk.until(lambda: "cut off" in desk.live.badge.text())
        desk.picture("no_connection")
        line.start_detector()
        desk.until(lambda: desk.source.state is not None and "No connection" not in desk.sentences())
        line.receiver.Stop()
        desk.wait_state("ON")
        desk.until(lambda: "Connected again" in desk.log())
        desk.set(nFramesPerTrigger=5, DestinationFilename=line.new_file())
        desk.press("Arm")
        desk.until(lambda: desk.source.get("nFramesWritten") == 5)


def test_the_camera_reports_an_error_and_it_is_acknowledged(beamline, desk):
    beamline.detector.InjectDie = 3
    desk.arm(TriggerMode="INTERNAL", FrameTime=0.02, nTriggers=1, nFramesPerTrigger=20,
             DestinationFilename=beamline.new_file())  # fmt: skip
    desk.wait_state("FAULT")
    desk.until(lambda: desk.sentences())
    desk.picture("fault")
    remedy = desk.widget.bar.remedy
    desk.until(lambda: remedy.isVisible() and "Reset" in remedy.text())
    desk.click(remedy)
    desk.wait_state("ON")


def test_missing_frames_are_plain_to_see(beamline, desk):
    beamline.detector.InjectDrop = 2
    desk.arm(TriggerMode="INTERNAL", FrameTime=0.02, nTriggers=1, nFramesPerTrigger=20,
             DestinationFilename=beamline.new_file())  # fmt: skip
    desk.wait_state("ON", "ALARM")
    desk.until(lambda: "2 frames are missing" in desk.sentences())
    assert desk.widget.progress.numbers["nFramesMissing"].text() == "▲ 2"
    desk.picture("frames_missing")


def test_the_receivers_disk_is_full(local_tango, tmp_path, sit_down):
    with tmpfs(tmp_path / "small", "12m") as disk, make_beamline(local_tango, disk, "codec = none") as line:
        desk = sit_down(line)
        desk.wait_state("ON")
        desk.set(FrameTime=0.05, ExposureTime=0.01, nTriggers=1, nFramesPerTrigger=100, TriggerMode="INTERNAL")
        desk.set(DestinationFilename=line.new_file())
        desk.until(lambda: "needed" in desk.acquire.warning.sentence)  # 66 MB: said before anything is armed
        desk.until(lambda: "not enough room" in desk.acquire.coming.sentence)
        desk.set(nFramesPerTrigger=12)  # fits, until somebody else fills the disk
        desk.until(lambda: desk.acquire.warning.isHidden())
        (disk / "others").write_bytes(bytes(8 << 20))
        desk.press("Arm")
        desk.until(lambda: "full" in desk.sentences() or "room" in desk.acquire.refusal.sentence)
        desk.picture("disk_full")


def test_a_long_series_overnight(local_tango, tmp_path, sit_down):
    with make_beamline(local_tango, tmp_path) as line:
        line.stop_detector()
        line.options = [*(o for o in line.options if o.startswith("port")), "width = 128", "height = 96"]
        line.put("Detector", line.detector_name, BackendOptions=line.options)
        line.start_detector()
        line.wait_on()
        desk = sit_down(line)
        line.set(FrameTime=0.0012, ExposureTime=0.0005, nFramesPerTrigger=10_000)
        line.detector.Arm()
        desk.wait_state("RUNNING")
        desk.until(lambda: desk.source.get("nFramesReceived") > 1000)
        process = psutil.Process()
        before = process.memory_info().rss
        desk.until(lambda: desk.source.get("nFramesReceived") > 5000)
        desk.picture("overnight")
        desk.wait_state("ON", "ALARM")
        desk.until(lambda: desk.source.get("nFramesWritten") == 10_000)
        grown = process.memory_info().rss - before
        assert grown < 30e6, f"{grown / 1e6:.1f} MB in 9000 frames"
        assert desk.source.get("nFramesMissing") == 0 and desk.live.pictures_drawn > 20
        assert len(desk.live._shown_at) < 200
