"""Builds a pretended vendor's library from its C source in this folder, with gcc, once for each version of it."""

from __future__ import annotations

import hashlib
import os
import shlex
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
