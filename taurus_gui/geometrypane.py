"""Beam centre, energy and distance: typed, read from the device, or the centre by a click; written into the files."""

from __future__ import annotations

from taurus.external.qt import Qt

from taurus_gui import geometry, roistats, theme, words
from taurus_gui.orders import Answer
from taurus_gui.pictureview import PictureView
from taurus_gui.rings import Geometry
from taurus_gui.source import Source

ROWS = {
    "column": ("Beam centre, column", "pixel", "In pixels of the image, from 0; a pixel's centre is at .5 here"),
    "row": ("Beam centre, row", "pixel", "In pixels of the image, from 0; a pixel's centre is at .5 here"),
    "distance": ("Distance", "mm", "From the sample to the detector"),
    "energy": ("Photon energy", "eV", "Of the beam"),
}
FACTOR = {"distance": 1000.0}  # m -> what is shown


class GeometryPane(Qt.QWidget):
    changed = Qt.pyqtSignal()

    def __init__(self, source: Source, view: PictureView, parent: Qt.QWidget | None = None) -> None:
        super().__init__(parent)
        self._source, self._view = source, view
        self._values: dict[str, float] = {}
        self._told: dict[str, float] = {}
        self._typed: set[str] = set()
        self._image: dict[str, object] = {}  # what the image is like
        self._before = ""  # what changed since the centre was told
        self._stale: set[str] = set()  # row, column: of the image before
        self.lines: dict[str, Qt.QLineEdit] = {}
        grid = Qt.QGridLayout(self)
        grid.setContentsMargins(6, 6, 6, 6)
        for n, (name, (text, unit, tip)) in enumerate(ROWS.items()):
            line = Qt.QLineEdit()
            line.setToolTip(tip)
            line.setPlaceholderText("not known")
            line.setAccessibleName(text)
            line.editingFinished.connect(lambda name=name: self._type(name))
            label = Qt.QLabel(text)
            label.setBuddy(line)
            self.lines[name] = line
            grid.addWidget(label, n, 0)
            grid.addWidget(line, n, 1)
            grid.addWidget(Qt.QLabel(unit), n, 2)
        self.pick = Qt.QPushButton("Click the beam centre")
        self.pick.setCheckable(True)
        self.pick.setToolTip("Then the next click in the image is the beam centre")
        self.from_region = Qt.QPushButton("From the first region")
        self.from_region.setToolTip("The centre of mass in the first region of interest becomes the beam centre")
        self.from_region.clicked.connect(self.use_region)
        self.write = Qt.QPushButton("Write into the next files")
        self.write.setToolTip("Into the device's Metadata: beam_center_x, beam_center_y, detector_distance, "
                              "incident_energy")  # fmt: skip
        self.write.clicked.connect(self._write)
        self.confirm = Qt.QPushButton("The centre is right")
        self.confirm.setToolTip("For the image as it is now, too")
        self.confirm.clicked.connect(self._confirm)
        self.about = Qt.QLabel()
        self.about.setWordWrap(True)
        theme.set_property(self.about, "dim", True)
        n = len(ROWS)
        grid.addWidget(self.pick, n, 0, 1, 3)
        grid.addWidget(self.from_region, n + 1, 0, 1, 3)
        grid.addWidget(self.write, n + 2, 0, 1, 3)
        grid.addWidget(self.about, n + 3, 0, 1, 3)
        grid.addWidget(self.confirm, n + 4, 0, 1, 3)
        grid.setRowStretch(n + 5, 1)
        view.clicked.connect(self._clicked)
        source.changed.connect(self._follow)
        source.answered.connect(self._answered)
        self._tell()

    def geometry(self) -> Geometry:
        values = {name: value for name, value in self._values.items() if name not in self._stale}
        return geometry.geometry(self._source.readings, values)

    def set_values(self, **values: float) -> None:
        """By the names of ROWS; distance in m."""
        self._values |= values
        self._typed |= set(values)
        self._stale -= set(values)
        self._show()

    def _follow(self, names: set[str]) -> None:
        if not names & {"Metadata", "PixelSize", *geometry.IMAGE, *geometry.ENERGY}:
            return
        now = {name: self._source.readings[name] for name in geometry.IMAGE if name in self._source.readings}
        changed = [name for name, value in now.items() if self._image.get(name, value) != value]
        self._image = now
        if changed:
            self._before = changed[0]
            self._stale = {"row", "column"} & set(self._values)
        found = geometry.told(self._source.readings)
        for name, value in found.items():
            if name not in self._typed or self._told.get(name) != value:
                self._values[name] = value
                self._typed.discard(name)
            if self._told.get(name) != value:
                self._stale.discard(name)
        self._told = found
        self._show()

    def _show(self) -> None:
        for name, line in self.lines.items():
            if name in self._values and not line.isModified():
                line.setText(f"{self._values[name] * FACTOR.get(name, 1):.7g}")
        self._tell()
        self.changed.emit()

    def _tell(self) -> None:
        found = self.geometry()
        self.write.setEnabled(not self._stale)
        self.confirm.setVisible(bool(self._stale))
        if self._stale:
            text = f"▲ The centre is of the image before {self._before} changed: tell it anew, or that it is right."
        elif found.known:
            text = (
                f"Wavelength {found.wavelength:.4g} Å. The resolution of the pixel under the cursor is below the image."
            )
        else:
            text = f"For resolution rings: {found.lacks()}."
        self.about.setText(text)

    def _confirm(self) -> None:
        self._stale.clear()
        self._show()

    def _type(self, name: str) -> None:
        line = self.lines[name]
        if not line.isModified():
            return
        try:
            value = words.real(line.text()) / FACTOR.get(name, 1)
            if name in ("distance", "energy") and value <= 0:
                raise ValueError(f"{line.text()!r} is not more than 0")
        except ValueError as exc:
            theme.set_property(line, "wrong", True)
            self.about.setText(f"▲ {ROWS[name][0]}: {exc}")
            return
        theme.set_property(line, "wrong", False)
        line.setModified(False)
        self.set_values(**{name: value})

    def _clicked(self, row: float, column: float) -> None:
        if self.pick.isChecked():
            self.pick.setChecked(False)
            self.set_values(row=row, column=column)

    def use_region(self) -> None:
        rows = self._source.rois.rows
        values = roistats.newest(rows, 0) if rows is not None else {}
        if not values or values["x"] != values["x"]:
            self.about.setText("▲ There is no region of interest with something in it: draw one about the beam first.")
            return
        self.set_values(row=values["y"] + 0.5, column=values["x"] + 0.5)

    def _write(self) -> None:
        self._source.write("Metadata", geometry.with_geometry(self._source.readings, self._values))

    def _answered(self, answer: Answer) -> None:
        if answer.order.kind == "write" and answer.order.name == "Metadata":
            self.about.setText(f"▲ {answer.error}" if answer.error else "In the device's Metadata now.")
