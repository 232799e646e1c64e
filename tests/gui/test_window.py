"""The window as such: it never blocks, fits small screens, works with keys alone, and lives in Taurus' own programs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PyQt5.QtCore import Qt, QTimer

from tests.gui.conftest import READY, full_name

pytestmark = [pytest.mark.slow, pytest.mark.system, pytest.mark.timeout(300)]
TURN = 0.1  # s of work that one turn of the event loop may take

TAURUSGUI = """
import os, sys, time, warnings
warnings.simplefilter("ignore")
from taurus_gui.app import application
app = application()
from taurus.external.qt import Qt
Qt.QSettings.setPath(Qt.QSettings.IniFormat, Qt.QSettings.UserScope, sys.argv[2])
from taurus.qt.qtgui.taurusgui import TaurusGui
gui = TaurusGui(confname=sys.argv[1])
gui.show()
panel = gui.getPanel("Detector " + os.environ["DETECTORS"]).widget()
end = time.monotonic() + 60
while panel.source.state != "ON" and time.monotonic() < end:
    app.processEvents()
    time.sleep(0.01)
print("panel", type(panel).__name__, panel.source.state, flush=True)
panel.close_source()
from taurus_gui.designer.detectorplugin import DetectorWidgetPlugin
plugin = DetectorWidgetPlugin()
widget = plugin.createWidget(None)
widget.setModel("a/b/c")
print("plugin", plugin.name(), plugin.includeFile(), widget.getModel(), widget.source, flush=True)
os._exit(0)
"""


def test_the_event_loop_is_never_held_up(beamline, desk, qtbot):
    """Work, not time: a busy machine holds everything up."""
    beats: list[float] = []
    heart = QTimer()
    heart.setTimerType(Qt.PreciseTimer)
    heart.timeout.connect(lambda: beats.append(time.thread_time()))
    desk.live.line.setChecked(True)
    beamline.set(FrameTime=0.1, ExposureTime=0.05, DestinationFilename="")
    desk.press("Live")
    desk.until(lambda: desk.live.pictures_drawn > 3)
    before = desk.live.pictures_drawn
    heart.start(5)
    desk.until(lambda: len(beats) > 60 and desk.live.pictures_drawn > before + 10)
    heart.stop()
    turns = [later - earlier for earlier, later in zip(beats, beats[1:], strict=False)]
    assert max(turns) < TURN, f"{1000 * max(turns):.0f} ms"
    desk.press("Stop")
    desk.wait_state(*READY)


def test_it_fits_a_small_screen(beamline, desk):
    assert desk.window.minimumSizeHint().width() <= 1366 and desk.window.minimumSizeHint().height() <= 700
    desk.window.resize(1366, 768)
    for name in ("Hardware", "File", "Log", "Live view"):
        desk.widget.show_panel(name)
        if name == "Hardware":
            desk.until(lambda: "SensorTemperature" in desk.widget.hardware.shown)
            desk.until(lambda: len(desk.widget.hardware.trends["SensorTemperature"]) > 1)
            desk.picture("hardware")
        if name == "Log":
            desk.picture("log")
    assert desk.window.width() == 1366 and desk.window.height() == 768
    for button in desk.acquire.buttons.values():  # never out of sight
        assert button.visibleRegion().boundingRect().size() == button.size()


def test_keys_alone_are_enough(beamline, desk, qtbot):
    beamline.acquire(nFramesPerTrigger=1)
    desk.until(lambda: desk.live.view.picture is not None)
    file = beamline.set(nFramesPerTrigger=5000, FrameTime=0.02)
    desk.window.activateWindow()
    line = desk.acquire.exposure.line
    desk.until(lambda: desk.source.get("nFramesPerTrigger") == 5000 and desk.acquire.buttons["Arm"].isEnabled())
    line.setFocus()
    line.selectAll()
    qtbot.keyClicks(line, "5 ms")  # not confirmed: F5 does
    qtbot.keyClick(line, Qt.Key_F5)
    desk.wait_state("RUNNING")
    assert desk.source.get("ExposureTime") == 0.005
    desk.until(desk.acquire.buttons["Stop"].isEnabled)
    qtbot.keyClick(desk.live.view, Qt.Key_F8)
    desk.wait_state(*READY)
    assert file.exists()
    view, live = desk.live.view, desk.live
    for key, switch in ((Qt.Key_L, live.log), (Qt.Key_A, live.auto), (Qt.Key_P, live.line), (Qt.Key_T, live.tools)):
        before = switch.isChecked()
        qtbot.keyClick(view, key)
        assert switch.isChecked() != before
    qtbot.keyClick(view, Qt.Key_C)
    assert live.colours.currentIndex() == 1
    for _ in range(3):
        qtbot.keyClick(view, Qt.Key_Plus)
    assert not view.fits
    desk.until(lambda: view.picture.region != (0, 0, *view.picture.full))
    qtbot.keyClick(view, Qt.Key_0)
    assert view.fits
    for widget in (*desk.acquire.buttons.values(), *(field.editor for field in desk.acquire.fields)):
        assert widget.focusPolicy() & Qt.TabFocus
    qtbot.keyClick(desk.window, Qt.Key_2, Qt.AltModifier)  # there is no second detector: nothing happens
    keys = desk.window.menuBar().actions()
    assert [action.text() for action in keys] == ["&File", "&View", "&Help"]


def test_full_resolution_on_request(beamline, desk):
    beamline.acquire(nFramesPerTrigger=3)
    desk.until(lambda: desk.live.view.picture is not None and desk.live.view.picture.number == 2)
    desk.click(desk.live.hold)
    desk.until(lambda: desk.live.view.picture.whole)
    picture = desk.live.view.picture
    expected = beamline.expected(2)
    assert picture.factor == 1 and (picture.pixels == expected).all() and "held" in desk.live.badge.text()
    desk.click(desk.live.hold)
    desk.until(lambda: not desk.live.view.picture.whole)


def test_a_receiver_without_http(beamline, desk):
    """It was one with it until it was started anew."""
    beamline.stop_receiver()
    try:
        beamline.put("StreamReceiver", beamline.receiver_name, Http="")
        beamline.start_receiver()
        desk.until(lambda: desk.source.receiver.name and not desk.source.receiver.address)
        beamline.wait_on()
        file = beamline.acquire(nFramesPerTrigger=3)
        desk.until(lambda: desk.live.view.picture is not None and desk.live.view.picture.number == 2)
        picture = desk.live.view.picture
        whole = beamline.expected(2)
        assert picture.full == whole.shape
        assert picture.pixels[5, 7] == whole[5 * picture.factor, 7 * picture.factor]
        table = desk.widget.progress.table
        desk.until(lambda: table.rowCount() and table.item(0, 1).text() == file.name)
        beamline.stop_receiver()
    finally:
        beamline.put("StreamReceiver", beamline.receiver_name, **beamline.receiver_properties)
        beamline.start_receiver()
    desk.until(lambda: desk.source.receiver.address and not desk.source.images_error)
    beamline.wait_on()
    beamline.acquire(nFramesPerTrigger=5)
    desk.until(lambda: desk.live.view.picture.number == 4)


def test_expert_parameters_are_set_and_refused_at_the_field(beamline, desk):
    desk.widget.show_panel("Hardware")
    hardware = desk.widget.hardware
    desk.until(lambda: "SimulatedTemperature" in hardware.fields)
    field = hardware.fields["SimulatedTemperature"]
    desk.type(field, "31")
    desk.until(lambda: desk.source.get("SensorTemperature", 0) > 30)
    desk.type(hardware.fields["Rotation"], "45")
    desk.until(lambda: "can be 0, 90, 180 or 270" in hardware.fields["Rotation"].complaint.sentence)
    hardware.search.setText("inject")
    assert not field.editor.isVisible() and hardware.fields["InjectDie"].editor.isVisible()
    desk.type(field, "25")
    desk.until(lambda: "Rotation = 45 was refused" in desk.log())
    tip = desk.acquire.exposure.editor.toolTip()
    assert "Reads back what the hardware accepted" in tip  # the device's own documentation


def test_detectors_are_chosen_from_the_database(beamline, qtbot, qapp, monkeypatch):
    from taurus_gui.chooser import Chooser

    monkeypatch.setenv("TANGO_HOST", beamline.local.tango_host)
    dialog = Chooser(None, [])
    qtbot.addWidget(dialog)
    dialog.show()
    qtbot.waitUntil(lambda: dialog.about.text() != "Asking the database …", timeout=30_000)
    names = [dialog.list.item(n).data(Qt.UserRole) for n in range(dialog.list.count())]
    assert beamline.detector_name in names or "does not answer" in dialog.about.text()
    dialog.name.setText(" b9/dia/det1 ")
    assert dialog.chosen() == ["b9/dia/det1"]


def test_in_taurusgui_and_designer(beamline, screen, tmp_path):
    here = Path(__file__).parents[2]
    printed = subprocess.run(
        [sys.executable, "-m", "taurus_gui", "--taurusgui"], capture_output=True, text=True, cwd=here, timeout=60
    )
    configuration = printed.stdout.strip()
    assert configuration.endswith("detgui.py"), printed.stderr
    environment = {**os.environ, "DETECTORS": full_name(beamline), "TANGO_HOST": beamline.local.tango_host}
    done = subprocess.run(
        [sys.executable, "-c", TAURUSGUI, configuration, str(tmp_path)],
        capture_output=True, text=True, cwd=here, env=environment, timeout=110,
    )  # fmt: skip
    assert "panel DetectorWidget ON" in done.stdout, done.stdout + done.stderr[-2000:]
    assert "plugin DetectorWidget taurus_gui.detectorwidget a/b/c None" in done.stdout, done.stderr[-2000:]


def test_demo_opens_everything_with_one_command(screen, tmp_path):
    program = Path(sys.executable).with_name("tangods-detector")
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "config")}
    demo = subprocess.Popen(
        [program, "demo", "--keep", "--gui", "--frames", "5", "--size", "64", "64", "--output", tmp_path / "data"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        said = ""
        assert demo.stdout
        while "The live page" not in said:
            line = demo.stdout.readline()
            assert line, said
            said += line
        assert re.search(r"live page: http://127.0.0.1:\d+", said)
        end = time.monotonic() + 150
        while not (window := _window_of(demo.pid)):
            assert time.monotonic() < end and demo.poll() is None
            time.sleep(0.1)
        window.terminate()  # as if it was closed: then all ends
        assert demo.wait(60) == 0
    finally:
        if demo.poll() is None:
            demo.kill()
            demo.wait()
        demo.stdout.close() if demo.stdout else None


def _window_of(pid: int):
    """The process of the GUI, once it takes signals."""
    import psutil

    for child in psutil.Process(pid).children(recursive=True):
        if "taurus_gui" in child.cmdline() and child.num_threads() > 5:
            return child
    return None
