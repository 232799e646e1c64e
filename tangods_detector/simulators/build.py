"""Builds a pretended vendor's library from its C source in this folder, with gcc, once for each version of it."""

from __future__ import annotations

import errno
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tangods_receiver.errors import ConfigError

HERE = Path(__file__).parent
FLAGS = ("-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-fPIC", "-shared", "-pthread")


def build(source: str, flags: Sequence[str] = (), folder: Path | None = None) -> Path:
    """The shared library of `source`, a file in this folder, in `folder` (None: one of the user's for such things).

    Kept under a name that says what it was made from, so it is built anew only after a change; several processes may
    ask at a time. `flags` come after ours. ConfigError with the compiler's words: it cannot be built."""
    folder = folder or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tangods-detector"
    command = [*shlex.split(os.environ.get("CC", "gcc")), *FLAGS, *flags]
    sources = [HERE / source, *sorted(HERE.glob("fake_*.h"))]
    words = hashlib.sha256("\0".join(command).encode() + b"".join(path.read_bytes() for path in sources)).hexdigest()
    target = folder / f"{Path(source).stem}-{words[:16]}.so"
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(".so", dir=folder)
        os.close(handle)
    except OSError as exc:
        raise ConfigError(f"{source} cannot be built in {folder}: {exc}") from exc
    try:
        done = subprocess.run([*command, str(HERE / source), "-o", name, "-lm"], text=True, capture_output=True)
        if done.returncode:
            raise ConfigError(f"{source} cannot be built: {' '.join(command)}: {done.stderr.strip()[-2000:]}")
        os.chmod(name, 0o755)
        os.replace(name, target)
    except OSError as exc:
        raise ConfigError(f"{source} cannot be built: {exc}; install gcc and libc6-dev, or set CC") from exc
    finally:
        Path(name).unlink(missing_ok=True)
    return target


def place(source: str, library: Path, lines: Sequence[str] = (), flags: Sequence[str] = ()) -> Path:
    """The library of `source` as `library`, whose folder is made if it is not there; returns it.

    Beside it `.conf` with `lines`, commands that it obeys when it is initialised, and `.control`, a FIFO for `tell`.
    ConfigError: no compiler, or the folder cannot be written."""
    built = build(source, flags)
    text = "".join(f"{line}\n" for line in lines)
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        new = library.with_name(f"{library.name}.new")  # one that is in use must not be written over
        shutil.copyfile(built, new)
        os.replace(new, library)
        Path(f"{library}.conf").write_text(text)
        control = Path(f"{library}.control")
        if not control.is_fifo():
            os.mkfifo(control, 0o600)
    except OSError as exc:
        raise ConfigError(f"the library cannot be put into {library.parent}: {exc}") from exc
    return library


def tell(library: Path, words: str) -> None:
    """A command to the process that uses the library at this place. ConfigError: there is none."""
    try:
        fd = os.open(f"{library}.control", os.O_WRONLY | os.O_NONBLOCK)
    except OSError as exc:
        why = "no Detector uses it" if exc.errno == errno.ENXIO else str(exc)
        raise ConfigError(f"{library}: {why}") from exc
    with open(fd, "w") as fifo:
        fifo.write(f"{words}\n")
