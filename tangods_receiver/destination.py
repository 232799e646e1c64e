"""File names come over the network: they are confined to the configured root, and refused in words."""

from __future__ import annotations

import os
import stat
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path

from tangods_receiver import fileset
from tangods_receiver.errors import WriteError
from tangods_receiver.spread import Spread

ANSWER_LIMIT = 1.0  # s; Tango and HTTP clients wait for it
_asked: dict[str, Future[str]] = {}  # by directory: the question that has no answer yet


ONE_FILE = Spread()


def confine(root: Path, filename: str) -> Path:
    """The real path of `filename`, symbolic links and `..` resolved. WriteError: outside `root`, or not a file name.

    A relative name counts from `root`."""
    if not filename.isprintable():
        raise WriteError(f"{filename!r}: not a file name (control characters); choose another")
    try:
        path = (root / filename).resolve()
        outside = not path.is_relative_to(root) or path == root
    except (OSError, RuntimeError, ValueError) as exc:  # a loop of links, a name too long, a lone surrogate
        raise WriteError(f"{filename!r}: not a file name ({exc}); choose another") from exc
    if outside:
        raise WriteError(f"{filename}: outside {root}, where this receiver may write; choose a path below it")
    return path


def refusal(
    root: Path, filename: str, nbytes: int = 0, replace: bool = False, spread: Spread = ONE_FILE, nframes: int = -1
) -> str:
    """Why a series of `nbytes` (and `nframes`, -1: not known) cannot be written to `filename`, and what to do; "" when
    it can.

    `replace`: a file that is there already may go. `spread`: over which files it goes."""
    try:
        path = confine(root, filename)
        sentence = _obstacle(path, nbytes, replace)
        if sentence or spread.is_one_file:
            return sentence
        return fileset.obstacle(path, spread, None if nframes < 0 else nframes, replace)
    except WriteError as exc:
        return str(exc)
    except OSError as exc:
        return f"{filename}: {exc.strerror or exc}; choose another name or look at the storage"


def refusal_soon(root: Path, filename: str, nbytes: int = 0, replace: bool = False, spread: Spread = ONE_FILE) -> str:
    """As `refusal`, in bounded time also when the storage hangs, which is then the sentence.

    Who asks again and again leaves one thread behind for each directory that hangs, not one for each question."""
    directory = os.path.dirname(root / filename)
    silence = f"{filename}: no answer from the storage in {ANSWER_LIMIT:g} s; look at the mount, or choose another disk"
    if earlier := _asked.get(directory):
        try:
            earlier.exception(ANSWER_LIMIT)
        except NotYet:
            return silence
    answer = _asked[directory] = Future()

    def ask() -> None:
        try:
            answer.set_result(refusal(root, filename, nbytes, replace, spread))
        except BaseException as exc:
            answer.set_exception(exc)
        finally:
            _asked.pop(directory, None)

    threading.Thread(target=ask, name=f"check {filename}", daemon=True).start()
    try:
        return answer.result(ANSWER_LIMIT)
    except NotYet:
        return silence


def _obstacle(path: Path, nbytes: int, replace: bool) -> str:
    directory = path.parent
    if not directory.is_dir():
        if directory.exists():
            return f"{path}: {directory} is not a directory; choose another"
        return f"{path}: the directory {directory} does not exist; create it, or choose another"
    try:
        there = os.lstat(path).st_mode
        if not (replace and stat.S_ISREG(there)):
            return (
                f"{path}: exists; choose another name (files are only replaced where the receiver's property allows it)"
            )
    except FileNotFoundError:
        pass
    if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
        return f"{path}: no permission to write in {directory}; change it or choose another directory"
    room = os.statvfs(directory)
    free = room.f_bavail * room.f_frsize
    if nbytes > free:
        return f"{path}: {_size(nbytes)} needed, {_size(free)} free; make room or choose another file system"
    return ""


def _size(nbytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.4g} TB"
