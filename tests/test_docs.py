"""The documentation: built without a warning or a broken link, and true: what it tells to type works, what it quotes is
said, and no public name is left out."""

from __future__ import annotations

import ast
import contextlib
import gzip
import importlib
import inspect
import random
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import tango
import yaml

from tangods_detector.hw import BACKENDS, load_backend
from tangods_detector.hw.base import Backend
from tangods_detector.options import describe_options
from tangods_receiver import config, protocols, transforms
from tangods_receiver.errors import ConfigError, StreamError
from tangods_receiver.protocol import Frame, SeriesEnd, SeriesStart
from tests.contract import BackendContract
from tests.pages import Shell, blocks
from tests.waiting import wait_for

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module", autouse=True)
def beside() -> Iterator[None]:
    """Modules of docs/ that are not installed can be imported."""
    added = [str(DOCS / "extensions"), str(DOCS / "examples")]
    sys.path[:0] = added
    yield
    for folder in added:
        sys.path.remove(folder)


# --- the built pages -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the pages."""
    output = tmp_path_factory.mktemp("docs") / "html"
    done = subprocess.run([sys.executable, DOCS / "build.py", output], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


@pytest.mark.slow
@pytest.mark.timeout(700)
class TestBuilt:
    def test_without_warnings_and_with_a_first_page(self, built: Path) -> None:
        first = (built / "index.html").read_text()
        target = re.search(r"url=([^\"]+)", first)
        assert target and (built / target[1]).exists()

    def test_nothing_is_fetched_from_elsewhere(self, built: Path) -> None:
        fetched = re.compile(r'<(?:script|img|link)[^>]*(?:src|href)="(?:https?:)?//')
        assert [str(page) for page in built.rglob("*.html") if fetched.search(page.read_text())] == []

    def test_what_one_searches_for_is_found(self, built: Path) -> None:
        index = (built / "searchindex.js").read_text()
        for word in ("exposuretim", "destinationfilenam", "recov"):  # stems
            assert word in index

    @pytest.mark.parametrize("name", ["Detector", "StreamReceiver"])
    def test_every_name_of_a_class_has_its_place(self, built: Path, name: str) -> None:
        import tango_pages

        klass = tango_pages.tango_class(name)
        page = (built / f"docs/reference/{'detector' if name == 'Detector' else 'receiver'}.html").read_text()
        for key in [*klass.device_property_list, *klass.attr_list, *klass.cmd_list]:
            assert f'id="{name.lower()}-{key.lower().replace("_", "-")}"' in page, key
        for state in tango_pages.MODULES[name].STATES_MEAN:
            assert f">{state.name}<" in page

    @pytest.mark.parametrize("name", sorted(BACKENDS))
    def test_every_option_and_attribute_of_a_backend_has_its_place(self, built: Path, name: str) -> None:
        page = (built / "docs/reference/backends.html").read_text()
        kind = load_backend(name)
        for key in [*(o[0] for o in describe_options(kind.Options)), *(p.name for p in kind.parameters)]:
            assert f'id="{name}-{key.lower().replace("_", "-")}"' in page, key

    def test_commands_routes_and_keys(self, built: Path) -> None:
        import cli_pages
        import http_pages

        page = (built / "docs/reference/cli.html").read_text()
        for name, command in cli_pages.all_commands():
            assert f">{name}<" in page
            assert command.help, name
            for one in command.params:
                for option in (*one.opts, *one.secondary_opts) if one.param_type_name == "option" else ():
                    assert option in page, f"{name} {option}"
        page = (built / "docs/reference/http.html").read_text()
        for path, methods in http_pages.description()["paths"].items():
            for method, one in methods.items():
                assert f"{method.upper()} {path}<" in page
                assert one["description"], path
        page = (built / "docs/reference/yaml.html").read_text()
        for key in config.ReceiverConfig.model_fields:
            assert f'id="yaml-{key.replace("_", "-")}"' in page


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    import links

    (tmp_path / "a.html").write_text('<h1 id="here">A</h1><a href="b.html#there">b</a><a href="#here">a</a>')
    there = '<h1 id="there">B</h1><a href="a.html#no">a</a><img src="c.png"><a href="#no">b</a>'
    (tmp_path / "b.html").write_text(there + '<a href="https://example.org/x">elsewhere</a>')
    assert links.broken(tmp_path) == [f"b.html: {x} leads nowhere" for x in ("a.html#no", "c.png", "#no")]


# --- every public name -----------------------------------------------------------------------------------------------


def documented() -> list[tuple[str, list[str]]]:
    """Modules in the page of Python, each with the names that it shows; none: all that are public."""
    page = (DOCS / "reference/python.md").read_text()
    found = re.findall(r"automodule:: (\S+)\n +:members:(.*)", page)
    return [(module, [name.strip() for name in names.split(",") if name.strip()]) for module, names in found]


@pytest.mark.parametrize(("module", "names"), documented(), ids=[module for module, _ in documented()])
def test_public_names_have_docstrings(module: str, names: list[str]) -> None:
    inside = vars(importlib.import_module(module))
    assert inside["__doc__"]
    own = [key for key, value in inside.items() if getattr(value, "__module__", None) == module and key[0] != "_"]
    without = []
    for name in names or own:
        value = inside[name]
        if inspect.isclass(value) or inspect.isfunction(value):
            without += [] if value.__doc__ else [name]
        if inspect.isclass(value):
            members = [(k, m.fget if isinstance(m, property) else m) for k, m in vars(value).items() if k[0] != "_"]
            without += [f"{name}.{k}" for k, m in members if inspect.isroutine(m) and not inspect.getdoc(m)]
    assert without == []


@pytest.mark.parametrize("name", ["Detector", "StreamReceiver"])
def test_every_name_of_a_class_has_words(name: str) -> None:
    import tango_pages

    klass = tango_pages.tango_class(name)
    for key, (_, doc, *_) in klass.device_property_list.items():
        assert len(doc) > 10, key
    for key, one in klass.attr_list.items():
        assert len(one._kwargs.get("doc", "")) > 5, key
    for key in klass.cmd_list:
        assert inspect.getdoc(getattr(getattr(tango_pages.MODULES[name], name), key)), key


# --- what a reader types ---------------------------------------------------------------------------------------------


def free_port() -> int:
    """Below those that the system deals out, so that nobody beside us gets it."""
    while True:
        with socket.socket() as taken, contextlib.suppress(OSError):
            port = random.randrange(20_000, 32_000)
            taken.bind(("127.0.0.1", port))
            return port


def answers(host: str, port: int) -> bool:
    try:
        tango.Database(host, port).get_info()
    except tango.DevFailed:
        return False
    return True


def state_of(device: str) -> tango.DevState | None:
    try:
        return tango.DeviceProxy(device).state()
    except tango.DevFailed:
        return None


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_getting_started(tmp_path: Path) -> None:
    """Every block of the page, in its order, in an empty folder, but on free ports."""
    page = (DOCS / "start.md").read_text()
    ports = {port: free_port() for port in ("10000", "9999", "8000")}
    for port, free in ports.items():
        assert port in page
        page = re.sub(rf"\b{port}\b", str(free), page)
    device = f"tango://127.0.0.1:{ports['10000']}/b1/dia/det1"
    said = {}
    with Shell(tmp_path) as shell:
        for block in blocks(page):
            said[block.text] = shell.run(block)
            if "PyDatabaseds" in block.text and "&" in block.text:
                wait_for(lambda: answers("127.0.0.1", ports["10000"]), 60, "the database")
            if "\nDetector b1" in block.text:
                wait_for(lambda: state_of(device) == tango.DevState.ON, 120, f"{device} to be ON")
        wait_for(lambda: not shell.processes(), 30, "the servers to be gone after the last block")
    assert {block.language for block in blocks(page)} == {"sh", "python"}, "each block is run"
    printed = "".join(said.values())
    for words in ("scan_1.h5", "series 2 complete: 50 frames", "steps_1.h5", "(100, 256, 256)", "missing: 0", "idle"):
        assert words in printed, f"{words!r} is not in:\n{printed}"
    for name, frames in (("scan_1", 100), ("scan_2", 50), ("steps_1", 5)):
        with h5py.File(tmp_path / f"data/{name}.h5") as file:
            assert file["entry/instrument/detector/data"].shape[0] == frames


def test_recovering_a_file(tmp_path: Path) -> None:
    """Every block of the page, with a file that a killed receiver left."""
    (tmp_path / "data").mkdir()
    file = tmp_path / "data/scan_00007.h5"
    file.write_bytes(gzip.decompress((ROOT / "tests/receiver/format_1_killed.h5.gz").read_bytes()))
    with file.open("r+b") as raw:
        raw.truncate(int.from_bytes(file.read_bytes()[40:48], "little"))  # the horizon, which is not packed
    with Shell(tmp_path) as shell:
        said = [shell.run(block) for block in blocks((DOCS / "howto/recover.md").read_text())]
    assert "recovered" in said[0] and "ok" in said[1] and "missing:" in said[2]


def test_the_smallest_configuration(tmp_path: Path) -> None:
    (block,) = blocks((DOCS / "reference/yaml.md").read_text())
    made = config.make(yaml.safe_load(block.text.replace("/data", str(tmp_path))))
    assert made.root == tmp_path


# --- examples --------------------------------------------------------------------------------------------------------


class TestMyCamera(BackendContract):
    """The detector in one file passes what all detectors pass."""

    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        kind = load_backend("my_camera:MyCamera")
        camera = kind(kind.Options(port=free_port()))
        camera.connect()
        yield camera
        camera.close()


def test_the_stream_of_the_example() -> None:
    import my_stream

    try:
        made = protocols.PROTOCOLS["mine"].decoders()(0, 1)
        assert made([b'{"begin": "a.h5", "frames": 2}']) == SeriesStart("a.h5", nframes=2)
        image = made([b'{"frame": 1, "shape": [2, 3], "type": "uint16"}', bytes(12)])
        assert image == Frame(1, (2, 3), "uint16", "none", bytes(12))
        assert made([b"{}"]) == SeriesEnd()
        for wrong in (
            [b"no"],
            [b'{"begin": 1}'],
            [b'{"frame": 1, "shape": [2, 3], "type": "uint16"}', bytes(11)],
            [b'{"frame": 1, "shape": [2], "type": "uint16"}', bytes(4)],
            [b'{"frame": 1}'],
            [b'{"frame": 1, "shape": [1, 1], "type": "nothing"}', bytes(4)],
        ):
            with pytest.raises(StreamError):
                my_stream.decode(wrong)
    finally:
        del protocols.PROTOCOLS["mine"]


def test_the_transform_of_the_example() -> None:
    import my_transform

    try:
        chain = transforms.build([{"threshold": 5}])
        pixels = np.array([[1, 5], [9, 4]], np.uint16)
        kept = chain.apply(Frame(0, (2, 2), "uint16", "none", pixels.tobytes()))
        assert np.frombuffer(kept.data, np.uint16).tolist() == [0, 5, 9, 0]
        with pytest.raises(ConfigError, match="number of counts"):
            transforms.build([{"threshold": "much"}])
    finally:
        del transforms.STEPS["threshold"]
    assert my_transform.Threshold(1).layout((2, 2), "uint16") == ((2, 2), "uint16")


# --- what the pages quote --------------------------------------------------------------------------------------------

OF_OTHERS = ("is not defined in database", "synchronously read data")  # said by Tango, h5py


def sentences() -> list[str]:
    """All texts in the code; what is filled in is `...`."""
    found = []
    for package in ("tangods_detector", "tangods_receiver"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [p.value if isinstance(p, ast.Constant) else "..." for p in node.values]
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value.replace("%s", "...").replace("%d", "..."))
    return found


def quoted() -> list[str]:
    """The sentences in the first column of the tables of troubleshooting."""
    page = (DOCS / "troubleshooting.md").read_text()
    rows = re.findall(r"^\| (.*?) \|", page, re.MULTILINE)
    texts = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    return [text for text in texts if " " in text and not any(words in text for words in OF_OTHERS)]


def test_errors_that_are_quoted_are_said() -> None:
    said = sentences()
    assert len(quoted()) > 30
    for text in quoted():
        pieces = [piece.strip(" ,;:") for piece in text.split("...")]
        assert any(all(piece in one for piece in pieces) for one in said), f"nothing in the code says {text!r}"


def test_names_that_are_used_in_the_pages_exist() -> None:
    """Attributes, properties and commands between backticks in our own pages."""
    import tango_pages

    known = {"Init", "State", "Status", "Frame", "Protocol", "Parameter", "SeriesStart", "SeriesEnd", "Streamer"}
    for name in ("Detector", "StreamReceiver"):
        klass = tango_pages.tango_class(name)
        known |= {*klass.device_property_list, *klass.attr_list, *klass.cmd_list, name}
    known |= {"BackendContract", "DetectorClient", "HardwareError", "ConfigError", "StreamError"}
    for page in DOCS.rglob("*.md"):
        used = set(re.findall(r"`([A-Z][a-z]+[A-Z]\w+|n[A-Z][a-z]+[A-Z]?\w*)`", page.read_text()))
        assert used <= known, f"{page.name}: {sorted(used - known)}"
