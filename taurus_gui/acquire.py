"""Panel: what the next series is, and the commands."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

from taurus.external.qt import Qt

from taurus_gui import control, estimate, theme, words
from taurus_gui.fields import ChoiceField, Field, SwitchField, TextField, time_field, whole_field
from taurus_gui.orders import Answer
from taurus_gui.sentence import Sentence
from taurus_gui.source import Source

ASK_AFTER = 400  # ms without a key before the receiver is asked about a file name
SURE = 4000  # ms in which Abort must be pressed again
DOUBLE_CLICK = 600  # ms in which a second press of Abort is not meant as an answer
POLICIES = ["ABORT", "NEXT_NUMBER", "OVERWRITE"]
COMMANDS = {
    "Arm": ("&Arm", "F5", "Begin a series: the receiver opens the file, then the detector is armed."),
    "SoftwareTrigger": ("&Trigger", "F6", "One software trigger, in trigger mode SOFTWARE."),
    "Live": ("&Live", "F7", "Images for the live view, without a file, until Stop."),
    "Stop": ("&Stop", "F8", "End the series and keep what came."),
    "Abort": ("A&bort", "Ctrl+F8", "End the series at once: frames that are under way are lost."),
}


class AcquirePanel(Qt.QWidget):
    def __init__(self, source: Source, parent: Qt.QWidget | None = None) -> None:
        super().__init__(parent)
        self._source = source
        self._free: float | None = None
        self.exposure = time_field(source, "ExposureTime", self)
        self.period = time_field(source, "FrameTime", self)
        self.mode = ChoiceField(source, "TriggerMode", self, "TriggerModes")
        self.triggers = whole_field(source, "nTriggers", self)
        self.frames = whole_field(source, "nFramesPerTrigger", self)
        self.file = TextField(source, "DestinationFilename", self)
        self.policy = ChoiceField(source, "OverwritePolicy", self, POLICIES)
        self.save = SwitchField(source, "SaveRaw", self)
        self.fields: tuple[Field, ...] = (
            self.exposure, self.period, self.mode, self.triggers, self.frames, self.file, self.policy, self.save,
        )  # fmt: skip
        self._then = ""  # the command that waits for the fields
        self.rate = Qt.QLabel()
        self.coming = Sentence(self)
        self.coming.setAccessibleName("The coming series")
        self.warning = Sentence(self, ink="warning")
        self.refusal = Sentence(self, role="bad")
        self.buttons: dict[str, Qt.QPushButton] = {}
        self._place()
        self._ask = Qt.QTimer(self)
        self._ask.setSingleShot(True)
        self._ask.setInterval(ASK_AFTER)
        self._ask.timeout.connect(self._ask_receiver)
        self._sure = Qt.QTimer(self)
        self._sure.setSingleShot(True)
        self._sure.setTimerType(Qt.Qt.PreciseTimer)  # what remains is looked at
        self._sure.setInterval(SURE)
        self._sure.timeout.connect(self._unsure)
        for signal in (self.file.typed, self.file.taken_back):
            signal.connect(self._other_name)
        self.file.line.setPlaceholderText("no file: live view only")
        source.changed.connect(self._changed)
        source.described.connect(self._widen, Qt.Qt.QueuedConnection)  # labels are the device's own: once they are set
        source.connection_changed.connect(self._refresh)
        source.receiver_changed.connect(self._ask.start)
        source.answered.connect(self._answered)
        self._refresh()

    # --- layout -------------------------------------------------------------------------------------------------------

    def _place(self) -> None:
        fields = Qt.QWidget()
        grid = Qt.QGridLayout(fields)
        grid.setContentsMargins(8, 6, 6, 0)
        grid.setHorizontalSpacing(8)
        grid.setVerticalSpacing(4)
        grid.setColumnStretch(1, 1)
        grid.setColumnStretch(3, 1)
        row = 0
        for field in (self.exposure, self.period, self.mode):
            row = self._row(grid, row, field)
        theme.set_property(self.rate, "dim", True)
        grid.addWidget(self.rate, row, 1, 1, 3)
        grid.addWidget(self.triggers.label, row + 1, 0)
        grid.addWidget(self.triggers.editor, row + 1, 1)
        grid.addWidget(self.frames.label, row + 1, 2)
        grid.addWidget(self.frames.editor, row + 1, 3)
        self.frames.set_label = lambda described: self.frames.label.setText("× frames")  # type: ignore[method-assign]
        self.frames.label.setText("× frames")
        grid.addWidget(self.triggers.complaint, row + 2, 0, 1, 4)
        grid.addWidget(self.frames.complaint, row + 3, 0, 1, 4)
        row += 4
        browse = Qt.QToolButton()
        browse.setText("…")
        browse.setToolTip("Choose a folder and name, where this computer sees the receiver's disks")
        browse.setAccessibleName("Browse")
        browse.clicked.connect(self.browse)
        grid.addWidget(self.file.label, row, 0)
        line = Qt.QHBoxLayout()
        line.setSpacing(2)
        line.addWidget(self.file.editor)
        line.addWidget(browse)
        grid.addLayout(line, row, 1, 1, 3)
        grid.addWidget(self.file.complaint, row + 1, 0, 1, 4)
        grid.addWidget(self.warning, row + 2, 0, 1, 4)
        grid.addWidget(self.policy.label, row + 3, 0)
        self.policy.combo.setMinimumWidth(self.fontMetrics().horizontalAdvance(max(POLICIES, key=len)) + 30)
        both = Qt.QHBoxLayout()
        both.setSpacing(8)
        both.addWidget(self.policy.editor, 1)
        both.addWidget(self.save.editor)
        grid.addLayout(both, row + 3, 1, 1, 3)
        self.save.label.hide()
        self.policy.set_label = lambda described: self.policy.label.setText("If it exists")  # type: ignore[method-assign]
        self.policy.label.setText("If it exists")
        self.save.set_label = lambda described: self.save.box.setText(described.label)  # type: ignore[method-assign]
        grid.addWidget(self.policy.complaint, row + 4, 0, 1, 4)
        grid.addWidget(self.coming, row + 5, 0, 1, 4)
        grid.setRowStretch(row + 6, 1)
        self._form = fields
        self.area = area = Qt.QScrollArea()  # small screens: fields that do not fit are scrolled, the buttons never
        area.setFrameShape(Qt.QFrame.NoFrame)
        area.setWidgetResizable(True)
        area.setHorizontalScrollBarPolicy(Qt.Qt.ScrollBarAlwaysOff)
        area.setWidget(fields)
        self._widen()
        below = Qt.QVBoxLayout()
        below.setContentsMargins(8, 0, 8, 4)
        below.addWidget(self.refusal)
        below.addLayout(self._place_buttons())
        layout = Qt.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        layout.addWidget(area, 1)
        layout.addLayout(below)

    def _widen(self) -> None:
        """So that no field is cut off, beside a scroll bar too."""
        bar = self.area.verticalScrollBar().sizeHint().width()
        self.setMinimumWidth(self._form.minimumSizeHint().width() + bar)

    def _row(self, grid: Qt.QGridLayout, row: int, field: Field) -> int:
        grid.addWidget(field.label, row, 0)
        grid.addWidget(field.editor, row, 1, 1, 3)
        grid.addWidget(field.complaint, row + 1, 0, 1, 4)
        return row + 2

    def _place_buttons(self) -> Qt.QGridLayout:
        grid = Qt.QGridLayout()
        grid.setSpacing(6)
        places = {"Arm": (0, 0), "SoftwareTrigger": (0, 1), "Stop": (1, 0), "Live": (1, 1), "Abort": (2, 0, 1, 2)}
        for name, place in places.items():
            text, key, _ = COMMANDS[name]
            button = Qt.QPushButton(text)
            button.setMinimumHeight(34)
            button.clicked.connect(lambda _=False, name=name: self.give(name))
            shortcut = Qt.QShortcut(Qt.QKeySequence(key), self.parentWidget() or self)
            shortcut.setContext(Qt.Qt.WidgetWithChildrenShortcut)
            shortcut.setAutoRepeat(False)
            shortcut.activated.connect(button.click)
            self.buttons[name] = button
            grid.addWidget(button, *place)
        self.buttons["Arm"].setProperty("kind", "primary")
        self.buttons["Abort"].setProperty("kind", "danger")
        return grid

    # --- what is shown ------------------------------------------------------------------------------------------------

    def _changed(self, names: set[str]) -> None:
        if names & {"DestinationFilename", "FrameShape", "nTriggers", "nFramesPerTrigger", "LastFilename"}:
            self._ask.start()
        if "DestinationFilename" in names:
            self._other_name()
        if "LastFilename" in names and self._source.state in control.BUSY:
            self._warn("")  # it exists now, because we write it
        if names - {"nFramesReceived", "nFramesWritten", "Progress", "MeasuredRate"}:
            self._refresh()

    def _refresh(self) -> None:
        source = self._source
        state = source.state
        for name, why in control.refusals(state, source.readings).items():
            if name in self.buttons:
                button, (_, key, doc) = self.buttons[name], COMMANDS[name]
                button.setEnabled(not why)
                button.setToolTip(f"<p>{doc} ({key}){f'<br><i>Not now: {why}.</i>' if why else ''}</p>")
        if state not in control.BUSY:
            self._unsure()
        open_ = state is not None and state not in control.BUSY
        for field in self.fields:
            field.editor.setEnabled(open_)
        rate = source.get("FrameRate")
        latency = source.get("LatencyTime")
        if rate and latency is not None:
            self.rate.setText(f"{words.rate(rate)}, dead time {words.duration(latency) if latency else 'none'}")
        self._estimate()

    def _estimate(self) -> None:
        found = estimate.estimate(self._source.readings)
        room = found is None or found.fits(self._free)
        text = found.text(self._free) if found else ""
        self.coming.say(text if room else f"▲ {text}: not enough room")
        theme.set_property(self.coming, "ink", None if room else "bad")

    @property
    def _name(self) -> str:
        """Of the file of the next series, as far as it is typed."""
        return self.file.line.text().strip() if self.file.edited else str(self._source.get("DestinationFilename", ""))

    def _other_name(self, *_: Any) -> None:
        """What was said of the last one is not of this."""
        self._warn("")
        self._ask.start()

    def _ask_receiver(self) -> None:
        """Whether the file can be written, and what room there is."""
        name = self._name
        if not name or self._source.state in (None, *control.BUSY):
            self._warn("")
            return
        found = estimate.estimate(self._source.readings)
        self._source.check(name, found.nbytes if found else 0)

    def _warn(self, sentence: str, wrong: bool = True) -> None:
        self.warning.say(f"▲ {sentence}" if sentence else "")
        theme.set_property(self.file.editor, "wrong", (wrong and bool(sentence)) or not self.file.complaint.isHidden())

    def _answered(self, answer: Answer) -> None:
        order = answer.order
        if order.kind == "check":
            if answer.error or order.value[0] != self._name or self._source.state in control.BUSY:
                return  # too late: of a name that was given up, or of the file that is being written
            sentence, self._free = answer.value
            if ": exists;" not in sentence:
                self._warn(sentence)
            elif self._source.get("OverwritePolicy") != "ABORT":  # another number is taken, or it is replaced
                self._warn("")
            else:
                self._warn(
                    f"{PurePath(order.value[0]).name} exists: choose another name, or write {{number}} into it", False
                )
            self._estimate()
        elif order.kind == "command" and order.name in self.buttons:
            self._refuse(f"{order.name} was refused. {answer.error}" if answer.error else "")
            if answer.error:
                self._ask.start()  # room and names may have changed
        elif order.kind == "write" and self._then:
            Qt.QTimer.singleShot(0, self._go_on)  # after the field has taken the answer

    # --- what is done -------------------------------------------------------------------------------------------------

    def give(self, name: str) -> None:
        """A command; Abort of a series that is being written is asked for twice."""
        button = self.buttons[name]
        if name == "Abort" and control.writes_file(self._source.state, self._source.readings):
            if not self._sure.isActive():
                self._sure.start()
                button.setText("Frames under way will be lost. A&bort?")
                theme.set_property(button, "sure", True)
                return
            if self._sure.remainingTime() > SURE - DOUBLE_CLICK:
                return
        self._unsure()
        self._refuse("")
        if name in ("Arm", "Live"):
            for field in self.fields:
                field.finish()  # what was typed counts, also when F5 is pressed in the field
            self._then = name
            self._go_on()
        else:
            self._source.command(name)

    def _go_on(self) -> None:
        """The command that waits for fields to be accepted."""
        if not self._then:
            return
        if any(not field.complaint.isHidden() for field in self.fields):
            self._refuse(f"{self._then} was not given: correct what is marked first.")
            self._then = ""
        elif not any(field.edited for field in self.fields):
            name, self._then = self._then, ""
            self._source.command(name)

    def _refuse(self, sentence: str) -> None:
        self.refusal.say(f"✖ {sentence}" if sentence else "")

    def _unsure(self) -> None:
        self._sure.stop()
        self.buttons["Abort"].setText(COMMANDS["Abort"][0])
        theme.set_property(self.buttons["Abort"], "sure", False)

    def browse(self) -> None:
        known: Any = self._source.get("DestinationFilename") or self._source.get("LastFilename") or ""
        folder = Path(known).parent if known else Path.home()
        name, _ = Qt.QFileDialog.getSaveFileName(
            self,
            "File of the next series, as the receiver's computer names it",
            str(folder / "scan_{number:04d}.h5"),
            "HDF5 files (*.h5 *.hdf5 *.nxs);;All files (*)",
            options=Qt.QFileDialog.DontConfirmOverwrite,
        )
        if name:
            self.file.line.setText(name)
            self.file.send(name)
