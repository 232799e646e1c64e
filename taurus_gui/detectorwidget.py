"""All panels of one detector in one widget: for our window, for taurusgui, and for Taurus designer."""

from __future__ import annotations

from typing import Any

from taurus.external.qt import Qt
from taurus.qt.qtgui.container import TaurusWidget

from taurus_gui.acquire import AcquirePanel
from taurus_gui.filepanel import FilePanel
from taurus_gui.hardware import HardwarePanel
from taurus_gui.livepanel import LivePanel
from taurus_gui.logpanel import LogPanel
from taurus_gui.progresspanel import ProgressPanel
from taurus_gui.source import Source
from taurus_gui.statebar import StateBar

LEFT = 384  # pixels of the left column
PANELS = ("Acquire", "Progress", "Live view", "File", "Hardware", "Log")


class DetectorWidget(TaurusWidget):
    """`model` is the name of a Detector device. No Taurus model object is made of it: nothing is asked in the GUI's
    thread."""

    headline_changed = Qt.pyqtSignal()

    def __init__(self, parent: Qt.QWidget | None = None, designMode: bool = False) -> None:
        super().__init__(parent, designMode)
        self._design = designMode
        self._device = ""
        self.source: Source | None = None
        self.panels: dict[str, Qt.QWidget] = {}
        self._docks: dict[str, Qt.QDockWidget] = {}
        layout = Qt.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        self._empty = Qt.QLabel("Detector: set the model to the name of a device")
        self._empty.setAlignment(Qt.Qt.AlignCenter)
        layout.addWidget(self._empty)
        self.registerConfigProperty(self._kept, self._restore, "panels")

    # --- the model ----------------------------------------------------------------------------------------------------

    @classmethod
    def getQtDesignerPluginInfo(cls) -> dict[str, Any]:
        found: dict[str, Any] = TaurusWidget.getQtDesignerPluginInfo()
        return found | {"module": "taurus_gui.detectorwidget", "group": "Detector", "container": False}

    def getModel(self, **_: Any) -> str:
        return self._device

    def setModel(self, model: str | None, **_: Any) -> None:
        """Returns at once; the connection is made elsewhere."""
        device = str(model or "").strip()
        if device == self._device:
            return
        self.close_source()
        self._device = device
        if device and not self._design:
            self._build(device)
        else:
            self._empty.setText(f"Detector {device}" if device else "Detector: set the model to the name of a device")
            self._empty.show()
        self.modelChanged.emit(device)

    def resetModel(self, **_: Any) -> None:
        self.setModel("")

    model = Qt.pyqtProperty("QString", getModel, setModel, resetModel)

    # --- panels -------------------------------------------------------------------------------------------------------

    def _build(self, device: str) -> None:
        source = self.source = Source(device, self)
        self._empty.hide()
        self.bar = StateBar(source, self)
        self.acquire = AcquirePanel(source, self)
        self.progress = ProgressPanel(source, self)
        self.live = LivePanel(source, self)
        self.file = FilePanel(source, self)
        self.hardware = HardwarePanel(source, self)
        self.log = LogPanel(source, self)
        self.progress.file_wanted.connect(self.open_file)
        self.inner = Qt.QMainWindow(self)
        self.inner.setWindowFlags(Qt.Qt.Widget)
        self.inner.setDockNestingEnabled(True)
        self.inner.setTabPosition(Qt.Qt.AllDockWidgetAreas, Qt.QTabWidget.North)
        widgets = (self.acquire, self.progress, self.live, self.file, self.hardware, self.log)
        for name, widget in zip(PANELS, widgets, strict=True):
            self.panels[name] = widget
            dock = self._docks[name] = Qt.QDockWidget(name, self.inner)
            dock.setObjectName(name)
            dock.setWidget(widget)
        self.layout().addWidget(self.bar)
        self.layout().addWidget(self.inner, 1)
        self.arrange()
        self.set_movable(False)
        for signal in (source.connection_changed, source.ticked):
            signal.connect(self.headline_changed)
        source.start()

    def arrange(self) -> None:
        """All panels where they are at the first start."""
        for dock in self._docks.values():
            dock.setFloating(False)
            self.inner.removeDockWidget(dock)
        left, right = Qt.Qt.LeftDockWidgetArea, Qt.Qt.RightDockWidgetArea
        docks = self._docks
        self.inner.addDockWidget(left, docks["Acquire"])
        self.inner.addDockWidget(left, docks["Progress"])
        self.inner.addDockWidget(right, docks["Live view"])
        for name in ("File", "Hardware", "Log"):
            self.inner.addDockWidget(right, docks[name])
            self.inner.tabifyDockWidget(docks["Live view"], docks[name])
        for dock in docks.values():
            dock.show()
        docks["Live view"].raise_()
        Qt.QTimer.singleShot(0, self._size_docks)

    def _size_docks(self) -> None:
        """As soon as there is room to share out."""
        docks = self._docks
        if docks:
            self.inner.resizeDocks(
                [docks["Acquire"], docks["Live view"]], [LEFT, max(LEFT, self.width() - LEFT)], Qt.Qt.Horizontal
            )
            self.inner.resizeDocks([docks["Acquire"], docks["Progress"]], [410, 290], Qt.Qt.Vertical)

    def set_movable(self, movable: bool) -> None:
        """Titles, by which panels are moved, floated and closed; without them there is more room."""
        for dock in self._docks.values():
            if movable:
                title, bar = dock.titleBarWidget(), None
                dock.setTitleBarWidget(bar)
                if title is not None:
                    title.deleteLater()
            elif dock.titleBarWidget() is None:
                dock.setTitleBarWidget(Qt.QWidget())

    def show_panel(self, name: str) -> None:
        dock = self._docks[name]
        dock.show()
        dock.raise_()

    def open_file(self, path: str) -> None:
        self.show_panel("File")
        self.file.open(path)

    def _kept(self) -> Any:
        """Where the panels are, and how the image is looked at."""
        return (Qt.QByteArray(self.inner.saveState()), self.live.kept()) if self.source else None

    def _restore(self, kept: Any) -> None:
        if self.source and kept:
            self.inner.restoreState(kept[0])
            self.live.restore(kept[1])

    # --- the end ------------------------------------------------------------------------------------------------------

    def close_source(self) -> None:
        """Ends the threads; the panels go."""
        if self.source is None:
            return
        self.file.close_file()
        self.source.close()
        self.source = None
        for widget in (self.bar, self.inner):
            self.layout().removeWidget(widget)
            widget.setParent(None)
            widget.deleteLater()
        self.panels, self._docks = {}, {}

    def closeEvent(self, event: Qt.QCloseEvent) -> None:
        self.close_source()
        super().closeEvent(event)
