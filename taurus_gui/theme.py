"""Dark and light: palettes, the colours of states, and what little style sheet there is."""

from __future__ import annotations

from dataclasses import dataclass

import pyqtgraph as pg
from taurus.external.qt import Qt

THEMES = ("system", "light", "dark")


@dataclass(frozen=True)
class Theme:
    """Colours as #rrggbb. Each role has a background and the text upon it, and `ink`: the role as text on `window`."""

    name: str
    window: str
    base: str
    raised: str
    text: str
    dim: str
    line: str
    accent: str
    on_accent: str
    roles: dict[str, tuple[str, str, str]]
    curves: tuple[str, ...]

    def background(self, role: str) -> str:
        return self.roles[role][0]

    def foreground(self, role: str) -> str:
        return self.roles[role][1]

    def ink(self, role: str) -> str:
        return self.roles[role][2]


LIGHT = Theme(
    "light", "#f3f4f6", "#ffffff", "#e6e8ec", "#1b1f24", "#5b6470", "#c3c8cf", "#1f5fae", "#ffffff",
    {
        "good": ("#d3efd9", "#0f4a20", "#17692f"),
        "busy": ("#cfe3fb", "#0d3a6e", "#1459a5"),
        "warning": ("#fde9bd", "#5c3c00", "#8a5a00"),
        "bad": ("#f9d0cc", "#7a1410", "#b3261e"),
        "gone": ("#dcdfe4", "#30363d", "#50575f"),
        "idle": ("#e6e8ec", "#1b1f24", "#5b6470"),
    },
    ("#1459a5", "#b3261e", "#17692f", "#8a5a00", "#7b3fa0", "#00707a", "#a03a72", "#555555"),
)  # fmt: skip
DARK = Theme(
    "dark", "#1e2227", "#15181c", "#2b3037", "#e3e6ea", "#9aa3ad", "#444b54", "#5aa2f0", "#0b1b2d",
    {
        "good": ("#1f4d2c", "#d3f5dc", "#7fd596"),
        "busy": ("#1d4472", "#dcecff", "#86bdf7"),
        "warning": ("#5e4506", "#ffe9b8", "#f0c35a"),
        "bad": ("#71211c", "#ffdcd9", "#ff8f85"),
        "gone": ("#3a4048", "#e3e6ea", "#b3bac2"),
        "idle": ("#2b3037", "#e3e6ea", "#9aa3ad"),
    },
    ("#86bdf7", "#ff8f85", "#7fd596", "#f0c35a", "#c9a0ea", "#65d0da", "#f29bcb", "#bbbbbb"),
)  # fmt: skip

_now = LIGHT


def now() -> Theme:
    return _now


class _Told(Qt.QObject):
    changed = Qt.pyqtSignal()


told = _Told()


def apply(name: str) -> Theme:
    """For the whole application; "system" is what the desktop's palette looks like."""
    global _now
    app = Qt.QApplication.instance()
    if name == "system":
        name = "dark" if app.style().standardPalette().color(Qt.QPalette.Window).lightness() < 128 else "light"
    _now = DARK if name == "dark" else LIGHT
    app.setStyle("Fusion")
    app.setPalette(_palette(_now))
    app.setStyleSheet(_sheet(_now))
    pg.setConfigOptions(foreground=_now.dim, background=_now.base)
    told.changed.emit()
    return _now


def _palette(theme: Theme) -> Qt.QPalette:
    palette = Qt.QPalette()
    for role, colour in (
        (Qt.QPalette.Window, theme.window),
        (Qt.QPalette.WindowText, theme.text),
        (Qt.QPalette.Base, theme.base),
        (Qt.QPalette.AlternateBase, theme.raised),
        (Qt.QPalette.Text, theme.text),
        (Qt.QPalette.Button, theme.raised),
        (Qt.QPalette.ButtonText, theme.text),
        (Qt.QPalette.BrightText, theme.ink("bad")),
        (Qt.QPalette.ToolTipBase, theme.base),
        (Qt.QPalette.ToolTipText, theme.text),
        (Qt.QPalette.Highlight, theme.accent),
        (Qt.QPalette.HighlightedText, theme.on_accent),
        (Qt.QPalette.Link, theme.accent),
        (Qt.QPalette.PlaceholderText, theme.dim),
        (Qt.QPalette.Mid, theme.line),
    ):
        palette.setColor(role, Qt.QColor(colour))
    for role in (Qt.QPalette.WindowText, Qt.QPalette.Text, Qt.QPalette.ButtonText):
        palette.setColor(Qt.QPalette.Disabled, role, Qt.QColor(theme.dim))
    return palette


def _sheet(t: Theme) -> str:
    role_rules = "".join(
        f'*[role="{role}"] {{ background: {back}; color: {fore}; }}\n*[ink="{role}"] {{ color: {ink}; }}\n'
        for role, (back, fore, ink) in t.roles.items()
    )
    return f"""
QToolTip {{ color: {t.text}; background: {t.base}; border: 1px solid {t.line}; padding: 3px; }}
QGroupBox {{ font-weight: 600; border: none; margin-top: 17px; padding: 0; }}
QGroupBox::title {{ subcontrol-origin: margin; left: 0; color: {t.dim}; }}
QLineEdit, QComboBox, QPlainTextEdit {{ border: 1px solid {t.line}; border-radius: 3px; padding: 2px 4px;
    background: {t.base}; }}
QLineEdit:focus, QComboBox:focus {{ border: 1px solid {t.accent}; }}
QLineEdit[edited="true"] {{ border: 1px solid {t.ink("warning")}; font-style: italic; }}
QLineEdit[wrong="true"], QComboBox[wrong="true"] {{ border: 2px solid {t.ink("bad")}; }}
QLineEdit:disabled, QComboBox:disabled {{ color: {t.dim}; background: {t.window}; }}
QPushButton {{ border: 1px solid {t.line}; border-radius: 4px; padding: 5px 10px; background: {t.raised}; }}
QPushButton:hover {{ border-color: {t.accent}; }}
QPushButton:focus, QToolButton:focus, QCheckBox:focus {{ border: 2px solid {t.accent}; }}
QPushButton:disabled {{ color: {t.dim}; background: {t.window}; border-style: dashed; }}
QPushButton[kind="primary"]:enabled {{ background: {t.accent}; color: {t.on_accent}; font-weight: 600; }}
QPushButton[kind="danger"]:enabled {{ border: 2px solid {t.ink("bad")}; color: {t.ink("bad")}; font-weight: 600; }}
QPushButton[kind="danger"][sure="true"] {{ background: {t.ink("bad")}; color: {t.base}; }}
QToolButton {{ border: 1px solid transparent; border-radius: 3px; padding: 2px 3px; }}
QToolButton:hover {{ border-color: {t.line}; background: {t.raised}; }}
QToolButton:checked {{ background: {t.background("busy")}; color: {t.foreground("busy")};
    border-color: {t.ink("busy")}; }}
QProgressBar {{ border: 1px solid {t.line}; border-radius: 3px; background: {t.base}; text-align: center; height: 18px;
    color: {t.text}; }}
QProgressBar::chunk {{ background: {t.background("busy")}; }}
QDockWidget::title {{ background: {t.raised}; padding: 3px 6px; }}
QHeaderView::section {{ background: {t.raised}; color: {t.dim}; border: none; padding: 2px 4px; }}
QTableWidget, QTableView, QTreeView, QTreeWidget {{ border: 1px solid {t.line}; gridline-color: {t.raised}; }}
QLabel[dim="true"] {{ color: {t.dim}; }}
QLabel[role] {{ border-radius: 4px; padding: 4px 8px; }}
{role_rules}"""


def set_property(widget: Qt.QWidget, name: str, value: object) -> None:
    """A property that the style sheet looks at."""
    if widget.property(name) != value:
        widget.setProperty(name, value)
        restyle(widget)


def restyle(widget: Qt.QWidget) -> None:
    """Look at the style sheet again; what was hidden until now has not all of it."""
    widget.style().unpolish(widget)
    widget.style().polish(widget)
    Qt.QApplication.sendEvent(widget, Qt.QEvent(Qt.QEvent.StyleChange))  # a frame looks at its padding again
    widget.updateGeometry()
