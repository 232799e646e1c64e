"""Who may import what: the directions of the design, read from the sources."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
MODULES = {
    ".".join(path.relative_to(TOP).with_suffix("").parts): path
    for package in ("tangods_receiver", "tangods_detector", "sardana_ctrl", "taurus_gui")
    for path in sorted((TOP / package).rglob("*.py"))
}
RIM = (
    "device",
    "receiver",
    "tango_edge",
    "cli",
    "demo",
    "register",
    "localtango",
    "client",
    "export",
)  # modules that may know Tango
# Modules that may know h5py: nothing of a frame's way.
READ_FILES = ("nexus", "arrays", "masters", "assembled", "assemble", "recovery", "h5fields", "demo", "tables")
OURS = ("tangods_receiver", "tangods_detector")
CLIENTS = ("sardana_ctrl", "taurus_gui")
SHARED = ("base", "frame", "hw", "rest")  # of the backends: frame_ring, HTTP


def imports(name: str) -> set[str]:
    """Full names of all that a module imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, node.module] if node.module else package)
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def uses(name: str, *packages: str) -> bool:
    return any(found == package or found.startswith(f"{package}.") for found in imports(name) for package in packages)


def modules(prefix: str) -> list[str]:
    return [name for name in MODULES if name == prefix or name.startswith(f"{prefix}.")]


def last(name: str) -> str:
    return name.rpartition(".")[2]


def family(name: str) -> str:
    """Of a backend's modules; lambda alone is a word of Python, so that one is called xlambda."""
    return last(name).partition("_")[0].replace("xlambda", "lambda")


def test_everything_imported_is_required():
    """A module that is only here by chance is missing at a user's."""
    requirements = "\n".join(importlib.metadata.requires("tangods-detector") or [])
    required = {found[0].lower().replace("_", "-") for found in re.finditer(r"(?m)^[\w.-]+", requirements)}
    distributions = importlib.metadata.packages_distributions()
    missing = set()
    for name in MODULES:
        for top in {found.partition(".")[0] for found in imports(name)} - {*OURS, *CLIENTS, *sys.stdlib_module_names}:
            if not {d.lower().replace("_", "-") for d in distributions.get(top, [top])} & required:
                missing.add(f"{name}: {top}")
    assert missing == set()


def test_the_receiver_never_imports_the_detector():
    assert [name for name in modules("tangods_receiver") if uses(name, "tangods_detector")] == []


def test_clients_import_neither_server():
    assert [name for name in (*modules("sardana_ctrl"), *modules("taurus_gui")) if uses(name, *OURS)] == []


def test_tango_stays_at_the_rim():
    servers = [*modules("tangods_receiver"), *modules("tangods_detector")]
    assert [name for name in servers if uses(name, "tango", "PyTango") and last(name) not in RIM] == []


def test_h5py_stays_out_of_the_way_of_a_frame():
    assert [n for n in modules("tangods_receiver") if uses(n, "h5py", "hdf5plugin") and last(n) not in READ_FILES] == []


def test_backends_know_nothing_of_control_and_no_other_backend():
    control = [f"tangods_detector.{name}" for name in ("device", "acquisition", "receiver", "states", "cli")]
    engine = [f"tangods_receiver.{name}" for name in ("device", "engine", "source", "series", "seriesfile", "http")]
    for name in modules("tangods_detector.hw"):
        assert not uses(name, *control, *engine), name
        others = [m for m in modules("tangods_detector.hw") if family(m) not in (family(name), *SHARED)]
        assert last(name) == "hw" or not uses(name, *others), name


def test_protocols_are_pure():
    for name in modules("tangods_receiver.protocol"):
        inside = {f for f in imports(name) if f.startswith(OURS)}
        allowed = ("tangods_receiver.protocol", "tangods_receiver.errors", "tangods_receiver.codecs")
        assert all(f == "tangods_receiver" or f.startswith(allowed) for f in inside), name


def test_the_engine_is_not_imported_by_what_it_uses():
    above = {"tangods_receiver.engine", "tangods_receiver.device", "tangods_receiver.http"}
    top = ("device", "engine", "http")
    assert [n for n in modules("tangods_receiver") if last(n) not in top and uses(n, *above)] == []


@pytest.mark.parametrize(
    "module", ["tangods_receiver.protocol", "tangods_receiver.protocol.stins", "tangods_detector.hw"]
)
def test_a_streamer_on_an_old_computer_needs_little(module):
    """Json and zmq are enough: no orjson, NumPy, h5py, Tango or pydantic comes with the protocol."""
    heavy = ["tango", "h5py", "numpy", "pydantic", "fastapi", "uvicorn", "hdf5plugin", "bitshuffle", "yaml", "rich"]
    code = f"import sys, {module}; sys.exit(', '.join(m for m in {heavy} if m in sys.modules) or 0)"
    env = {**os.environ, "PYTHONPATH": str(TOP)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
