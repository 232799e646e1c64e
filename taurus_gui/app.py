"""`detector-gui [DEVICE ...]`: the program."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

NAME = "detector-gui"


def main(argv: Sequence[str] | None = None) -> int:
    """Until the window is closed, or SIGINT or SIGTERM; returns the exit code."""
    arguments = _arguments(sys.argv[1:] if argv is None else argv)
    if arguments.taurusgui:
        print(Path(__file__).with_name("detgui.py"))
        return 0
    os.environ.setdefault("QT_API", "pyqt5")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)-7s %(message)s", stream=sys.stderr)
    app = application()
    from taurus_gui import theme
    from taurus_gui.window import DetectorWindow

    theme.apply(arguments.theme or "system")
    window = DetectorWindow(arguments.devices)
    if not arguments.fresh:
        window.loadSettings()
    if arguments.theme:
        window.use_theme(arguments.theme)
    window.show()
    if not arguments.devices:
        window.choose()
    wake = _end_by_signal(window)
    code = int(app.exec_())
    wake.stop()
    return code


def application():  # type: ignore[no-untyped-def]
    """The application, with pixels as fine as the screen's."""
    import taurus

    taurus.setLogLevel(taurus.Error)
    from taurus.external.qt import Qt
    from taurus.qt.qtgui.application import TaurusApplication

    Qt.QApplication.setAttribute(Qt.Qt.AA_EnableHighDpiScaling)
    Qt.QApplication.setAttribute(Qt.Qt.AA_UseHighDpiPixmaps)
    return Qt.QApplication.instance() or TaurusApplication(
        sys.argv[:1], cmd_line_parser=None, app_name=NAME, org_name="tangods-detector", app_version="1"
    )


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(NAME, description="Set, watch and judge area detectors.")
    parser.add_argument("devices", nargs="*", metavar="DEVICE", help="Detector devices; none: choose in the window")
    parser.add_argument("--theme", choices=("system", "light", "dark"), help="colours of the window [as last time]")
    parser.add_argument("--fresh", action="store_true", help="panels as at the first start")
    parser.add_argument("--taurusgui", action="store_true", help="print the configuration for `taurus gui`, and end")
    return parser.parse_args(argv)


def _end_by_signal(window):  # type: ignore[no-untyped-def]
    """Python sees signals only when it runs: a timer lets it."""
    from taurus.external.qt import Qt

    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, lambda *_: window.close())
    timer = Qt.QTimer()
    timer.timeout.connect(lambda: None)
    timer.start(200)
    return timer


if __name__ == "__main__":
    sys.exit(main())
