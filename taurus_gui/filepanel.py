"""Panel: what is in a file, also while it grows: the tree, its images with a slider, curves."""

from __future__ import annotations

import os
from typing import Any

import pyqtgraph as pg
from silx.gui.hdf5 import Hdf5TreeModel, Hdf5TreeView
from silx.gui.widgets.FlowLayout import FlowLayout
from taurus.external.qt import Qt

from taurus_gui import control, levels, pictures, theme, words
from taurus_gui.filelink import FileLink
from taurus_gui.h5reading import Opened
from taurus_gui.mailbox import Mailbox
from taurus_gui.pictures import Look
from taurus_gui.pictureview import ColourScale, PictureView
from taurus_gui.sentence import Sentence
from taurus_gui.source import Source

GROWS = 1000  # ms between looks at a file that is being written


class FilePanel(Qt.QWidget):
    rang = Qt.pyqtSignal()

    def __init__(self, source: Source, parent: Qt.QWidget | None = None) -> None:
        super().__init__(parent)
        self._source = source
        self.path = ""
        self.dataset = ""
        self.opened: Opened | None = None
        self._structure: object = None
        self._box = Mailbox(self.rang.emit)
        self.link = FileLink(self._box)
        self.rang.connect(self._deliver, Qt.Qt.QueuedConnection)
        self._place()
        self._again = Qt.QTimer(self)
        self._again.setInterval(GROWS)
        self._again.timeout.connect(self._grow)
        self._again.start()
        self.view.wanted.connect(self._want)
        self.view.pointed.connect(self._pointed)
        source.changed.connect(self._changed)
        theme.told.changed.connect(self.restyle)
        self.restyle()
        self._changed(set())
        self.link.start()

    def _place(self) -> None:
        self.name = Qt.QLineEdit()
        self.name.setPlaceholderText("A file to look into, as this computer names it")
        self.name.setAccessibleName("File")
        self.name.returnPressed.connect(lambda: self.open(self.name.text().strip()))
        self.last = Qt.QPushButton("Last file")
        self.last.setToolTip("The file of the running or last series (Ctrl+O)")
        self.last.clicked.connect(self.open_last)
        shortcut = Qt.QShortcut(Qt.QKeySequence("Ctrl+O"), self.parentWidget() or self)
        shortcut.setContext(Qt.Qt.WidgetWithChildrenShortcut)
        shortcut.activated.connect(self.open_last)
        browse = Qt.QPushButton("Browse…")
        browse.clicked.connect(self._browse)
        top = Qt.QHBoxLayout()
        top.addWidget(self.name, 1)
        top.addWidget(self.last)
        top.addWidget(browse)
        self.about = Sentence(self)
        self.tree = Hdf5TreeView()
        self.tree.setAccessibleName("What is in the file")
        self.tree.setSelectionMode(Qt.QAbstractItemView.SingleSelection)
        self.tree.setModel(Hdf5TreeModel(self.tree, ownFiles=True))
        header: Any = self.tree.header()
        header.setSections(
            [
                Hdf5TreeModel.NAME_COLUMN,
                Hdf5TreeModel.VALUE_COLUMN,
                Hdf5TreeModel.SHAPE_COLUMN,
                Hdf5TreeModel.TYPE_COLUMN,
            ]
        )
        self.tree.clicked.connect(lambda _: self._chosen())
        self.tree.activated.connect(lambda _: self._chosen())
        self.view = PictureView()
        self.scale = ColourScale()
        self.colours = Qt.QComboBox()
        self.colours.addItems(list(levels.MAPS))
        self.colours.currentTextChanged.connect(self._recolour)
        self.log = Qt.QToolButton()
        self.log.setText("Log")
        self.log.setCheckable(True)
        self.log.toggled.connect(lambda _: self.link.look(self._look()))
        self.follow = Qt.QCheckBox("Newest")
        self.follow.setToolTip("Go to the last frame whenever the file has grown")
        self.follow.setChecked(True)
        self.slider = Qt.QSlider(Qt.Qt.Horizontal)
        self.slider.setAccessibleName("Frame")
        self.slider.valueChanged.connect(self._slid)
        self.slider.actionTriggered.connect(lambda _: self.follow.setChecked(False))
        self.number = Qt.QSpinBox()
        self.number.setAccessibleName("Frame number")
        self.number.setKeyboardTracking(False)
        self.number.valueChanged.connect(self.slider.setValue)
        self.number.lineEdit().textEdited.connect(lambda _: self.follow.setChecked(False))
        self.cursor_text = Qt.QLabel()
        self.curve = pg.PlotWidget()
        self.line = self.curve.plot([], [])
        bar = FlowLayout()
        bar.setHorizontalSpacing(6)
        bar.setVerticalSpacing(3)
        self.slider.setMinimumWidth(160)
        for widget in (self.colours, self.log, self.number, self.follow, self.slider):
            bar.addWidget(widget)
        image = Qt.QWidget()
        column = Qt.QVBoxLayout(image)
        column.setContentsMargins(4, 0, 0, 0)
        picture = Qt.QHBoxLayout()
        picture.addWidget(self.view, 1)
        picture.addWidget(self.scale)
        column.addLayout(bar)
        column.addLayout(picture, 1)
        column.addWidget(self.cursor_text)
        self.stack = Qt.QStackedWidget()
        self.stack.addWidget(image)
        self.stack.addWidget(self.curve)
        splitter = Qt.QSplitter()
        splitter.addWidget(self.tree)
        splitter.addWidget(self.stack)
        splitter.setSizes([430, 570])
        layout = Qt.QVBoxLayout(self)
        layout.setContentsMargins(8, 6, 8, 6)
        layout.addLayout(top)
        layout.addWidget(self.about)
        layout.addWidget(splitter, 1)

    def restyle(self) -> None:
        now = theme.now()
        self.curve.setBackground(now.base)
        self.line.setPen(pg.mkPen(now.curves[0], width=1.5))
        for side in ("left", "bottom"):
            self.curve.getAxis(side).setPen(now.line)
            self.curve.getAxis(side).setTextPen(now.dim)

    # --- which file ---------------------------------------------------------------------------------------------------

    def open(self, path: str) -> None:
        """Returns at once."""
        if not path:
            return
        self.path, self.dataset, self.opened, self._structure = path, "", None, None
        self.name.setText(path)
        self._forget()
        self.number.setRange(0, 0)
        self.number.setSuffix("")
        self.slider.setRange(0, 0)
        self._say(f"Reading {path}")
        self.link.open(path)

    def _forget(self) -> None:
        """What was shown is not of what was asked for now."""
        self.view.forget()
        self.cursor_text.setText("")
        self.stack.setCurrentIndex(0)

    def open_last(self) -> None:
        path = str(self._source.get("LastFilename", ""))
        if path:
            self.open(path)
        else:
            self._say("No series was written yet", "warning")

    def close_file(self) -> None:
        """Ends the thread."""
        self._again.stop()
        self._box.close()
        self.link.close()

    def _browse(self) -> None:
        known = self.path or str(self._source.get("LastFilename", ""))
        name, _ = Qt.QFileDialog.getOpenFileName(
            self, "Look into", os.path.dirname(known), "HDF5 files (*.h5 *.hdf5 *.nxs);;All files (*)"
        )
        self.open(name)

    @property
    def grows(self) -> bool:
        """This file is being written."""
        return bool(self.path) and self.path == self._source.get("LastFilename") and self._source.state in control.BUSY

    def _changed(self, names: set[str]) -> None:
        self.last.setEnabled(bool(self._source.get("LastFilename")))
        if names & {"State"} and self.path and self.path == self._source.get("LastFilename"):
            self.link.open(self.path)  # also once more when it is closed

    def _grow(self) -> None:
        if self.grows and self.isVisible():
            self.link.open(self.path)

    # --- what came ----------------------------------------------------------------------------------------------------

    def _deliver(self) -> None:
        newest, _ = self._box.take()
        if "file_error" in newest:
            self._say(newest["file_error"][""], "bad")
        if "opened" in newest and newest["opened"][""].file == self.path:
            self._take_file(newest["opened"][""])
        if "frame" in newest and newest["frame"][""][:2] == (self.path, self.dataset):
            picture = newest["frame"][""][2]
            self.view.show_picture(picture)
            self.scale.show_range(self.colours.currentText(), picture.low, picture.high, self.log.isChecked())
        if "curve" in newest and newest["curve"][""][0] == self.path:
            _, name, values = newest["curve"][""]
            self.stack.setCurrentIndex(1)
            self.curve.setTitle(name)
            if values.dtype.kind in "uifb":
                self.line.setData(values.astype(float), connect="finite")

    def _take_file(self, opened: Opened) -> None:
        self.opened = opened
        structure = (opened.file, tuple((i.path, i.shape) for i in opened.images.values()))
        if structure != self._structure or not self.grows:
            self._structure = structure
            self._fill_tree(opened)
        if not self.dataset and opened.default:
            self.dataset = opened.default
        self._show_images(opened)

    def _show_images(self, opened: Opened) -> None:
        images = opened.images.get(self.dataset)
        if images is None:
            self._say(f"{words.size(opened.nbytes)}, no images in it")
            return
        last = max(0, (images.there if self.grows else images.frames) - 1)
        self.number.setRange(0, last)
        self.number.setPrefix("frame ")
        self.number.setSuffix(f" of {images.frames}")
        self.number.setMinimumWidth(150)
        self.slider.setRange(0, last)
        self.slider.setPageStep(max(1, images.frames // 20))
        if self.follow.isChecked() and self.grows:
            self.slider.setValue(last)
        growing = " · growing" if self.grows else ""
        there = f"{words.count(images.there)} of " if images.there < images.frames else ""
        shape = f"{there}{words.count(images.frames)} × {images.shape[0]} × {images.shape[1]} {images.dtype}"
        self._say(f"{images.path}: {shape} · {words.size(opened.nbytes)}{growing}")
        self._want()

    def _fill_tree(self, opened: Opened) -> None:
        model = self.tree.findHdf5TreeModel()
        model.clear()
        model.insertH5pyObject(opened.tree, text=os.path.basename(opened.file))
        index = model.index(0, 0)
        for _ in range(3):
            self.tree.expand(index)
            index = model.index(0, 0, index)
        self.tree.resizeColumnToContents(0)

    def _chosen(self) -> None:
        nodes = list(self.tree.selectedH5Nodes())
        if not nodes or self.opened is None:
            return
        name = nodes[0].physical_name
        if name in self.opened.images:
            if name != self.dataset:
                self._forget()
            self.dataset = name
            self.stack.setCurrentIndex(0)
            self._show_images(self.opened)
        elif getattr(nodes[0], "ndim", None) == 1 or len(getattr(nodes[0].h5py_object, "shape", ())) == 1:
            self.link.curve(self.path, name)

    # --- pictures -----------------------------------------------------------------------------------------------------

    def _slid(self, value: int) -> None:
        if self.number.value() != value:
            self.number.setValue(value)
        self._want()

    def _look(self) -> Look:
        return Look(log=self.log.isChecked())

    def _want(self) -> None:
        if self.opened is None or self.dataset not in self.opened.images:
            return
        full = self.opened.images[self.dataset].shape
        wanted = pictures.wish(self.view.shown_part(), full, self.view.screen())
        self.link.frame(
            self.path, self.dataset, self.slider.value(), wanted["region"], wanted["size"], self._look()
        )  # fmt: skip

    def _recolour(self, title: str) -> None:
        self.view.set_colours(title)
        if self.view.picture is not None:
            self.scale.show_range(title, self.view.picture.low, self.view.picture.high, self.log.isChecked())

    def _pointed(self, cursor: Any) -> None:
        picture = self.view.picture
        found = pictures.value_at(picture, *cursor) if cursor and picture else None
        if found is None or cursor is None:
            self.cursor_text.setText("")
            return
        about = "about " if picture is not None and picture.factor > 1 else ""
        mark = f" ({found[1]})" if found[1] else ""
        self.cursor_text.setText(f"row {cursor[0]}  column {cursor[1]}  <b>{about}{words.count(found[0])}</b>{mark}")

    def _say(self, text: str, role: str = "idle") -> None:
        symbol = {"bad": "✖ ", "warning": "▲ "}.get(role, "")
        self.about.say(f"{symbol}{text}")
        theme.set_property(self.about, "ink", role)
