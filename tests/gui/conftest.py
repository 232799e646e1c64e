"""The window on a screen of its own, before real servers."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import os
import select
import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tangods_detector.localtango import LocalTango
from taurus_gui.orders import Connection, ReceiverSide
from tests.gui.bench import LIMIT, READINGS, Bench
from tests.system.beamline import Beamline

PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None)
_servers: list[subprocess.Popen[bytes]] = []
XVFB = shutil.which("Xvfb")
READY = ("ON", "ALARM")  # ALARM: frames of the series before are missing, for example
#: `make screenshots` keeps the pictures here; else they go into the test's own folder.
SCREENSHOTS = os.environ.get("SCREENSHOTS", "")

if XVFB:
    os.environ["QT_QPA_PLATFORM"] = "xcb"  # a real window; without Xvfb Qt draws into memory


@pytest.fixture(scope="session")
def screen() -> Iterator[None]:
    """A screen that nobody sees; it ends with this process."""
    if not XVFB:
        yield
        return
    read, write = os.pipe()
    command = [XVFB, "-displayfd", str(write), "-screen", "0", "1920x1200x24", "-nolisten", "tcp", "-noreset"]
    server = subprocess.Popen(
        command,
        pass_fds=(write,),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C reaches us alone
        preexec_fn=lambda: _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
    )
    os.close(write)
    with os.fdopen(read) as told:
        ready, _, _ = select.select([told], [], [], 30)
        number = told.readline().strip() if ready else ""
    assert number, "Xvfb did not start"
    os.environ["DISPLAY"] = f":{number}"
    _servers.append(server)
    yield  # and it stays: Qt ends the whole process when its screen goes


@pytest.fixture(scope="session")
def qapp(screen: None) -> Iterator[Any]:
    """Takes the place of pytest-qt's: Taurus' application."""
    with warnings.catch_warnings():  # of Taurus and silx when they are imported: not ours to mend
        warnings.simplefilter("ignore")
        from taurus_gui import theme
        from taurus_gui.app import application

        app = application()
        import taurus_gui.window  # noqa: F401
    theme.apply("light")
    yield app
    app.processEvents()


@pytest.fixture
def settings(qapp: Any, tmp_path: Path) -> Path:
    """What is kept between starts is kept in the test's folder."""
    from taurus.external.qt import Qt

    Qt.QSettings.setPath(Qt.QSettings.IniFormat, Qt.QSettings.UserScope, str(tmp_path / "settings"))
    return tmp_path / "settings"


@pytest.fixture(scope="session")
def local_tango() -> Iterator[LocalTango]:
    folder = Path(tempfile.mkdtemp(prefix="gui-tests-"))
    with LocalTango(folder) as local:
        yield local
    shutil.rmtree(folder)


_numbers = itertools.count(1)


def make_beamline(local: LocalTango, root: Path, *options: str, **properties: Any) -> Beamline:
    """Not started yet."""
    line = Beamline(local, f"b{next(_numbers)}", root, **{"Http": "127.0.0.1:0", **properties})
    line.options = ["width = 640", "height = 512", *options]
    return line


@pytest.fixture(scope="session")
def beamline(local_tango: LocalTango) -> Iterator[Beamline]:
    """Of all tests: each leaves it idle (`desk`), with both servers running."""
    root = Path(tempfile.mkdtemp(prefix="scans-"))  # a short name for the pictures
    with make_beamline(local_tango, root) as line:
        yield line
    shutil.rmtree(root)


def full_name(line: Beamline) -> str:
    return f"tango://{line.local.tango_host}/{line.detector_name}"


@pytest.fixture
def open_window(qtbot: Any, settings: Path) -> Iterator[Callable[..., Any]]:
    """A window with the detectors of some beamlines, connected; closed at the end."""
    from taurus_gui.window import DetectorWindow

    windows: list[Any] = []

    def open_one(*lines: Beamline, wait: bool = True) -> Any:
        window = DetectorWindow([full_name(line) for line in lines])
        windows.append(window)
        window.show()
        if wait:
            for detector in window.detectors:
                qtbot.waitUntil(lambda source=detector.source: source.state is not None, timeout=LIMIT)
                qtbot.waitUntil(lambda source=detector.source: bool(source.receiver.name), timeout=LIMIT)
        return window

    yield open_one
    for window in windows:
        with contextlib.suppress(RuntimeError):
            window.close()
            window.deleteLater()
    qtbot.wait(50)
    gc.collect()


@pytest.fixture
def bench(qtbot: Any, settings: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A window before no server at all, with one image."""
    from taurus_gui.tangolink import TangoLink
    from taurus_gui.window import DetectorWindow

    monkeypatch.setattr(TangoLink, "start", lambda link: None)
    window = DetectorWindow(["tango://127.0.0.1:1/b1/det/1"])
    window.show()
    bench = Bench(qtbot, window)
    bench.put("connection", Connection(True))
    bench.put("receiver", ReceiverSide("b1/rec/1"))
    bench.tell(**READINGS)
    qtbot.waitUntil(lambda: bench.source.state == "ON", timeout=LIMIT)
    bench.picture()
    yield bench
    window.close()
    window.deleteLater()
    qtbot.wait(50)


class Desk:
    """What a person does and sees at one detector."""

    def __init__(self, qtbot: Any, window: Any, number: int, keep: Callable[[str], Path]) -> None:
        self.qtbot, self.window, self._keep = qtbot, window, keep
        self.widget = window.detectors[number]
        self.source = self.widget.source
        self.acquire, self.live, self.file = self.widget.acquire, self.widget.live, self.widget.file

    def until(self, look: Callable[[], Any]) -> None:
        """Wait for what is to be seen."""

        def seen() -> None:
            assert look(), (self.source.state, self.source.readings.get("Status"), self.sentences(), self.log())

        self.qtbot.waitUntil(seen, timeout=LIMIT)

    def wait_state(self, *states: str | None) -> None:
        self.until(lambda: self.source.state in states)

    def type(self, field: Any, text: str) -> None:
        """Into a field, and Enter."""
        from PyQt5.QtCore import Qt

        line = getattr(field, "line", field)
        line.setFocus()
        line.selectAll()
        self.qtbot.keyClicks(line, text)
        self.qtbot.keyClick(line, Qt.Key_Return)

    def click(self, button: Any) -> None:
        from PyQt5.QtCore import Qt

        self.qtbot.mouseClick(button, Qt.LeftButton)

    def press(self, name: str) -> None:
        """A command, as soon as it can be given."""
        button = self.acquire.buttons[name]
        self.until(button.isEnabled)
        self.click(button)

    def choose(self, combo: Any, text: str) -> None:
        combo.setCurrentText(text)
        combo.activated.emit(combo.currentIndex())

    def set(self, **values: Any) -> None:
        """Fields, and wait until the device has them."""
        fields = {field.name: field for field in self.acquire.fields}
        for name, value in values.items():
            field = fields[name]
            if hasattr(field, "combo"):
                self.choose(field.combo, str(value))
            else:
                self.type(field, str(value))
        for name, value in values.items():
            self.until(lambda name=name, value=value: str(self.source.readings[name]) == str(value))

    def arm(self, **values: Any) -> None:
        self.wait_state(*READY)
        self.set(**values)
        self.press("Arm")
        self.wait_state("RUNNING")

    def sentences(self) -> str:
        return " | ".join(self.widget.bar.sentences())

    def log(self) -> str:
        return " | ".join(self.widget.log.texts())

    def picture(self, name: str) -> Path:
        """Of the whole window."""
        self.qtbot.wait(120)  # one more round of drawing
        path = self._keep(name)
        assert self.window.grab().save(str(path))
        if SCREENSHOTS:  # for the documentation: small
            with Image.open(path) as picture:
                picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
                    path, optimize=True
                )
        return path


@pytest.fixture
def keep(tmp_path: Path) -> Callable[[str], Path]:
    def place(name: str) -> Path:
        folder = Path(SCREENSHOTS) if SCREENSHOTS else tmp_path
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.png"

    return place


@pytest.fixture
def sit_down(qtbot: Any, open_window: Callable[..., Any], keep: Callable[[str], Path]) -> Callable[..., Desk]:
    """A window with these beamlines, and what a person does at the first detector."""

    def sit(*lines: Beamline, wait: bool = True) -> Desk:
        return Desk(qtbot, open_window(*lines, wait=wait), 0, keep)

    return sit


@pytest.fixture
def desk(beamline: Beamline, sit_down: Callable[..., Desk]) -> Iterator[Desk]:
    """Before the beamline of all tests, idle and without regions."""
    idle(beamline)
    beamline.receiver.Rois = []
    beamline.detector.Metadata = "{}"
    beamline.set(nFramesPerTrigger=1, DestinationFilename="")
    yield sit_down(beamline)
    idle(beamline)


def idle(line: Beamline) -> None:
    """As other tests want to find it."""
    line.detector.Stop()
    line.wait_end()
    if str(line.detector.state()) == "FAULT":
        line.detector.Reset()
    line.wait_on()
