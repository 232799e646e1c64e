"""A pretended libatcore in a folder of its own, with its cameras: what `tangods-detector simulate andor` makes."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from tangods_detector.simulators.build import build
from tangods_receiver.errors import ConfigError

MODELS = ("zyla", "zyla42", "balor", "marana", "sona")
NAME = "libatcore.so"


def make(
    folder: Path, cameras: Sequence[str] = ("zyla SIM-1",), lines: Sequence[str] = (), flags: Sequence[str] = ()
) -> Path:
    """The library in `folder` (made if it is not there), for the option `library`.

    `cameras` are model and serial number; `lines` more commands of fake_atcore.c, obeyed when the library is
    initialised. ConfigError: no compiler, or the folder cannot be written."""
    built = build("fake_atcore.c", flags)
    library = folder / NAME
    text = "".join(f"{line}\n" for line in [*(f"camera {camera}" for camera in cameras), *lines])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        new = library.with_name(f"{NAME}.new")  # one that is in use must not be written over
        shutil.copyfile(built, new)
        os.replace(new, library)
        Path(f"{library}.conf").write_text(text)
        control = Path(f"{library}.control")
        if not control.is_fifo():
            os.mkfifo(control, 0o600)
    except OSError as exc:
        raise ConfigError(f"the library cannot be put into {folder}: {exc}") from exc
    return library


def tell(library: Path, words: str) -> None:
    """A command of fake_atcore.c to the process that uses the library. ConfigError: there is none."""
    try:
        fd = os.open(f"{library}.control", os.O_WRONLY | os.O_NONBLOCK)
    except OSError as exc:
        why = "no Detector uses it" if exc.errno == errno.ENXIO else str(exc)
        raise ConfigError(f"{library}: {why}") from exc
    with open(fd, "w") as fifo:
        fifo.write(f"{words}\n")
