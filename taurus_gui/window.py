"""The main window: one or several detectors in tabs or beside each other, all of them always in view on top."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from taurus.external.qt import Qt
from taurus.qt.qtgui.container import TaurusMainWindow

from taurus_gui import control, theme
from taurus_gui.chooser import choose_devices
from taurus_gui.detectorwidget import PANELS, DetectorWidget

KEYS = """
<table cellpadding=3>
<tr><td><b>F5 F6 F7 F8</b><td>Arm, Trigger, Live, Stop
<tr><td><b>Ctrl+F8</b><td>Abort (twice while a file is written)
<tr><td><b>Ctrl+1 … Ctrl+9</b><td>panels; <b>Alt+1 …</b> detectors
<tr><td><b>Ctrl+O</b><td>open the last file
<tr><td><b>F1, F11</b><td>these keys, full screen
<tr><td colspan=2><i>In the image:</i>
<tr><td><b>+ − 0 1</b><td>zoom, the whole image, 1:1; wheel and drag
<tr><td><b>arrows</b><td>move; with Shift the cursor by a pixel
<tr><td><b>L A C K</b><td>logarithm, automatic range, colours, newest / sum / maximum / average
<tr><td><b>R P B G F</b><td>region, profile, beam centre, rings, full resolution
<tr><td><b>Enter, Esc</b><td>in a field: write it, take it back
</table>"""


class DetectorWindow(TaurusMainWindow):
    HEARTBEAT = None
    TAURUS_MENU_ENABLED = False
    TOOLS_MENU_ENABLED = False
    HELP_MENU_ENABLED = False
    FULLSCREEN_TOOLBAR_ENABLED = False
    LOGGER_WIDGET_ENABLED = False
    SPLASH_LOGO_NAME = None
    SAVE_SETTINGS_ON_CLOSE = True

    def __init__(self, devices: Sequence[str] = (), parent: Qt.QWidget | None = None) -> None:
        super().__init__(parent, False, False)
        self.setObjectName("DetectorWindow")
        self.detectors: list[DetectorWidget] = []
        self._theme = "system"
        self.tabs = Qt.QTabWidget()
        self.tabs.setDocumentMode(True)
        self.tabs.setTabsClosable(True)
        self.tabs.tabCloseRequested.connect(self._close_tab)
        self.tabs.currentChanged.connect(lambda _: self._retitle())
        self.beside = Qt.QSplitter()
        self.stack = Qt.QStackedWidget()
        for widget in (self.tabs, self.beside):
            self.stack.addWidget(widget)
        self.setCentralWidget(self.stack)
        self.perspectivesToolBar.hide()
        self._make_menus()
        self.registerConfigProperty(lambda: self._theme, self.use_theme, "theme")
        for device in devices:
            self.add(device)
        self._retitle()
        self.resize(1366, 768)

    # --- detectors ----------------------------------------------------------------------------------------------------

    def add(self, device: str) -> DetectorWidget:
        """One more; what is there already is shown."""
        for detector in self.detectors:
            if detector.getModel() == device:
                self.tabs.setCurrentWidget(detector)
                return detector
        detector = DetectorWidget(self)
        detector.setModel(device)
        self.detectors.append(detector)
        if self.side_by_side.isChecked():
            self.beside.addWidget(detector)
            detector.show()
        else:
            self.tabs.addTab(detector, device)
        detector.headline_changed.connect(self._retitle)
        self.registerConfigDelegate(detector, device)
        self._retitle()
        return detector

    def _close_tab(self, index: int) -> None:
        detector = self.tabs.widget(index)
        self.tabs.removeTab(index)
        self.detectors.remove(detector)
        self.unregisterConfigurableItem(detector.getModel(), raiseOnError=False)
        detector.close_source()
        detector.deleteLater()
        self._retitle()

    def _retitle(self) -> None:
        """State of each detector in its tab; of all in the window's title."""
        titles = []
        for detector in self.detectors:
            source = detector.source
            if source is None:
                continue
            line = control.headline(source.state, source.readings)
            name = source.name
            progress = ""
            if source.state == "RUNNING" and not control.is_live(source.state, source.readings):
                progress = f" {source.get('Progress', 0.0):.0f} %"
            missing = "  ▲ missing" if source.get("nFramesMissing") else ""
            titles.append(f"{line.symbol} {name}")
            index = self.tabs.indexOf(detector)
            if index >= 0:
                self.tabs.setTabText(index, f"{line.symbol} {name}: {line.word}{progress}{missing}")
                self.tabs.setTabToolTip(index, str(source.get("Status", "")))
                self.tabs.tabBar().setTabTextColor(index, Qt.QColor(theme.now().ink(line.role)))
        self.tabs.tabBar().setVisible(len(self.detectors) > 1)
        self.setWindowTitle(" · ".join(titles) or "Detectors")

    def current(self) -> DetectorWidget | None:
        """The one that is in front, or has the focus."""
        if self.stack.currentWidget() is self.tabs:
            return self.tabs.currentWidget()
        focus = Qt.QApplication.focusWidget()
        for detector in self.detectors:
            if focus is not None and detector.isAncestorOf(focus):
                return detector
        return self.detectors[0] if self.detectors else None

    def set_side_by_side(self, wanted: bool) -> None:
        current = self.tabs.currentWidget()
        for detector in self.detectors:
            if wanted:
                self.beside.addWidget(detector)
            else:
                self.tabs.addTab(detector, detector.getModel())
            detector.show()
        self.stack.setCurrentWidget(self.beside if wanted else self.tabs)
        if not wanted and current:
            self.tabs.setCurrentWidget(current)
        self._retitle()

    # --- menus --------------------------------------------------------------------------------------------------------

    def _make_menus(self) -> None:
        self.fileMenu.setTitle("&File")
        self.viewMenu.setTitle("&View")
        first = self.fileMenu.actions()[0]
        choose = Qt.QAction("&Detector…", self)
        choose.setShortcut("Ctrl+N")
        choose.triggered.connect(self.choose)
        self.fileMenu.insertAction(first, choose)
        self.fileMenu.insertSeparator(first)
        self.viewToolBarsMenu.menuAction().setVisible(False)
        view = self.viewMenu.actions()[0]
        for n, name in enumerate(PANELS):
            action = Qt.QAction(name, self)
            action.setShortcut(f"Ctrl+{n + 1}")
            action.triggered.connect(partial(self._show_panel, name))
            self.viewMenu.insertAction(view, action)
        self.viewMenu.insertSeparator(view)
        self.movable = Qt.QAction("&Move panels", self)
        self.movable.setCheckable(True)
        self.movable.toggled.connect(self._set_movable)
        again = Qt.QAction("Panels as at &first", self)
        again.triggered.connect(self._arrange)
        self.side_by_side = Qt.QAction("Detectors &beside each other", self)
        self.side_by_side.setCheckable(True)
        self.side_by_side.toggled.connect(self.set_side_by_side)
        for action in (self.movable, again, self.side_by_side):
            self.viewMenu.insertAction(view, action)
        themes = Qt.QMenu("&Colours of the window", self)
        self._themes = Qt.QActionGroup(self)
        for name in theme.THEMES:
            action = themes.addAction(name.capitalize())
            action.setCheckable(True)
            action.setData(name)
            self._themes.addAction(action)
            action.triggered.connect(partial(self.use_theme, name))
        self.viewMenu.insertMenu(view, themes)
        self.viewMenu.insertSeparator(view)
        keys = self.menuBar().addMenu("&Help").addAction("&Keys")
        keys.setShortcut("F1")
        keys.triggered.connect(self.show_keys)
        for n in range(9):
            shortcut = Qt.QShortcut(Qt.QKeySequence(f"Alt+{n + 1}"), self)
            shortcut.activated.connect(partial(self.tabs.setCurrentIndex, n))

    def _set_movable(self, movable: bool) -> None:
        for detector in self.detectors:
            detector.set_movable(movable)

    def _arrange(self) -> None:
        for detector in self.detectors:
            detector.arrange()

    def _show_panel(self, name: str, *_: object) -> None:
        if detector := self.current():
            detector.show_panel(name)

    def use_theme(self, name: str, *_: object) -> None:
        if name in theme.THEMES:
            self._theme = name
            theme.apply(name)
            for action in self._themes.actions():
                action.setChecked(action.data() == name)
            self._retitle()

    def show_keys(self) -> None:
        box = Qt.QMessageBox(self)
        box.setWindowTitle("Keys")
        box.setText(KEYS)
        box.open()

    def choose(self) -> None:
        """Other detectors, out of the database."""
        choose_devices(self, [detector.getModel() for detector in self.detectors], self._chosen)

    def _chosen(self, devices: list[str]) -> None:
        for device in devices:
            self.add(device)

    # --- the end ------------------------------------------------------------------------------------------------------

    def closeEvent(self, event: Qt.QCloseEvent) -> None:
        super().closeEvent(event)
        if event.isAccepted():
            for detector in self.detectors:
                detector.close_source()
