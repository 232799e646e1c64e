"""Which detectors the database knows, asked for in a thread; and a dialog to choose among them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import tango
from taurus.external.qt import Qt

CLASS = "Detector"


def registered() -> list[str]:
    """Devices of class Detector in the database that TANGO_HOST names. RuntimeError in words."""
    with tango.EnsureOmniThread():
        try:
            found = tango.Database().get_device_exported_for_class(CLASS).value_string
            known = tango.Database().get_device_name("*", CLASS).value_string
        except tango.DevFailed as exc:
            raise RuntimeError(f"The Tango database does not answer (TANGO_HOST): {exc.args[0].desc}") from exc
    running = {name.lower() for name in found}
    return sorted(set(known) | set(found), key=lambda name: (name.lower() not in running, name))


class Chooser(Qt.QDialog):
    """The list comes when the database has answered."""

    told = Qt.pyqtSignal(list, str)

    def __init__(self, parent: Qt.QWidget | None, shown: Iterable[str]) -> None:
        super().__init__(parent)
        self._shown = {name.lower() for name in shown}
        self.setWindowTitle("Detectors in the database")
        self.list = Qt.QListWidget()
        self.list.setSelectionMode(Qt.QAbstractItemView.ExtendedSelection)
        self.list.itemActivated.connect(lambda _: self.accept())
        self.name = Qt.QLineEdit()
        self.name.setPlaceholderText("or a name: b1/dia/det1, tango://host:10000/b1/dia/det1")
        self.about = Qt.QLabel("Asking the database …")
        self.about.setWordWrap(True)
        buttons = Qt.QDialogButtonBox(Qt.QDialogButtonBox.Ok | Qt.QDialogButtonBox.Cancel)
        buttons.accepted.connect(self.accept)
        buttons.rejected.connect(self.reject)
        layout = Qt.QVBoxLayout(self)
        for widget in (self.about, self.list, self.name, buttons):
            layout.addWidget(widget)
        self.resize(420, 320)
        self.told.connect(self._fill)
        self._thread = threading.Thread(target=self._ask, name="database", daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        try:
            names, error = registered(), ""
        except RuntimeError as exc:
            names, error = [], str(exc)
        try:
            self.told.emit(names, error)
        except RuntimeError:  # the dialog is gone
            return

    def _fill(self, names: list[str], error: str) -> None:
        self.about.setText(error or (f"{len(names)} found" if names else "The database knows no Detector."))
        for name in names:
            item = Qt.QListWidgetItem(f"{name}  (shown)" if name.lower() in self._shown else name)
            item.setData(Qt.Qt.UserRole, name)
            self.list.addItem(item)
        if names:
            self.list.setCurrentRow(0)

    def chosen(self) -> list[str]:
        typed = self.name.text().strip()
        if typed:
            return [typed]
        return [item.data(Qt.Qt.UserRole) for item in self.list.selectedItems()]


def choose_devices(parent: Qt.QWidget, shown: Iterable[str], call: Callable[[list[str]], None]) -> Chooser:
    """Not modal for what goes on beside it; `call` gets what was chosen."""
    dialog = Chooser(parent, shown)
    dialog.setAttribute(Qt.Qt.WA_DeleteOnClose)
    dialog.accepted.connect(lambda: call(dialog.chosen()))
    dialog.open()
    return dialog
