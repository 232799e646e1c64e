"""One file for a beamline: the difference, writing it, and back out of the database."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tangods_detector import register
from tangods_detector.export import OURS, as_yaml, export
from tangods_detector.localtango import LocalTango
from tangods_receiver.errors import ConfigError
from tests.system import mariadb
from tests.system.beamline import Beamline
from tests.system.test_cli import run

pytestmark = pytest.mark.system

TOP = Path(__file__).parent.parent.parent
PAGE = TOP / "resources/registration.md"


def beamline_file() -> dict[str, Any]:
    """The example of the page for users."""
    text = PAGE.read_text().partition("```yaml\n")[2].partition("```")[0]
    return dict(yaml.safe_load(text))


def write(folder: Path, content: object) -> Path:
    file = folder / "beamline.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def put(local: LocalTango, file: Path, dry_run: bool = False) -> str:
    return register.run(local.database, register.load_registration(file), dry_run)


def exported_by(local: LocalTango, *servers: str, **more: Any) -> str:
    return as_yaml(export(local.database, servers or OURS, **more))


def test_at_the_command_line(local_tango: LocalTango, tmp_path: Path) -> None:
    file = write(tmp_path, {"servers": {"Detector": {"line": {"Detector": {"line/det/1": {"alias": "line1"}}}}}})
    shown = run("register", file, "--dry-run", TANGO_HOST=local_tango.tango_host)
    assert shown.returncode == 0 and "    + line1" in shown.stdout.splitlines(), shown.stderr
    assert run("export", "Detector/line", TANGO_HOST=local_tango.tango_host).stderr.count("Detector/line: ") == 1
    put(local_tango, file)
    exported = run("export", "Detector/line", TANGO_HOST=local_tango.tango_host)
    assert exported.stdout == exported_by(local_tango, "Detector/line") == file.read_text()


@pytest.mark.parametrize("database", [LocalTango, pytest.param(mariadb.MariaTango, marks=pytest.mark.soak)])
def test_dry_run_write_change_and_export(tmp_path: Path, database: type[LocalTango]) -> None:
    if database is mariadb.MariaTango and mariadb.missing():
        pytest.skip(mariadb.missing())
    content = beamline_file()
    with database(tmp_path / "one") as local:
        file, db = write(tmp_path, content), local.database
        shown = put(local, file, dry_run=True)
        for line in (
            "b1/dia/det1",
            "    + host = dcu1",
            "    + det1",
            "    + /opt/detector/bin",
            "nothing was written",
        ):
            assert line in shown.splitlines(), shown
        assert list(db.get_server_list("Detector/*")) == [], "nothing was written"
        assert "server Detector/b1: Starter = daq-host-1, run level 2" in put(local, file)
        assert put(local, file, dry_run=True) == "nothing to change\nnothing was written"

        detector = content["servers"]["Detector"]["b1"]["Detector"]["b1/dia/det1"]
        detector["properties"] |= {"BackendOptions": ["host = dcu1", "port = 81"], "AllowOverwrite": True}
        content["servers"]["StreamReceiver"]["b1"]["StreamReceiver"]["b1/dia/rec1"]["properties"]["Http"] = None
        content["starter"]["daq-host-1"] = {"path": ["/opt/new/bin"], "levels": {"Detector/b1": 0}}
        content["classes"]["Detector"] = {"properties": {"Site": "here"}}
        file = write(tmp_path, content)
        assert put(local, file, dry_run=True).splitlines() == [
            "class Detector",
            "  Site",
            "    + here",
            "b1/dia/rec1",
            "  Http",
            "    - 127.0.0.1:8000",
            "b1/dia/det1",
            "  BackendOptions",
            "      host = dcu1",
            "    + port = 81",
            "  AllowOverwrite",
            "    + True",
            "tango/admin/daq-host-1",
            "  StartDsPath",
            "      /opt/detector/bin",
            "    + /opt/new/bin",
            "server Detector/b1",
            "  Starter",
            "    - daq-host-1, run level 2",
            "    + daq-host-1, run level 0",
            "nothing was written",
        ]
        assert list(db.get_device_property("b1/dia/rec1", "Http")["Http"]) == ["127.0.0.1:8000"]
        assert "b1/dia/rec1: Http removed" in put(local, file)
        assert list(db.get_device_property("b1/dia/rec1", "Http")["Http"]) == []

        db.put_device_attribute_property("b1/dia/det1", {"nTriggers": {"__value": ["7"]}})
        exported = exported_by(local)
        assert "nTriggers" not in exported and "nTriggers" in exported_by(local, "Detector/b1", memorised=True)
    with database(tmp_path / "two") as other:
        file.write_text(exported)
        put(other, file)
        assert exported_by(other) == exported
        assert other.database.get_device_from_alias("det1") == "b1/dia/det1"
        assert yaml.safe_load(exported)["starter"]["daq-host-1"]["levels"] == {"StreamReceiver/b1": 1, "Detector/b1": 0}


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("starter: {here: {levels: {Nobody/b1: 1}}}", "Nobody/b1 is not registered"),
        ("starter: {here: {levels: {Nobody: 1}}}", "server/instance"),
        ("starter: {here: {levels: {Detector/a: -1}}}", "greater than or equal"),
        ("classes: {Detector: {propertys: {a: b}}}", "propertys"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(
    local_tango: LocalTango, tmp_path: Path, content: str, word: str
) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("servers: {Detector: {wrong: {Detector: {wrong/det/1: {}}}}}\n" + content)
    with pytest.raises(ConfigError, match=word):
        put(local_tango, file)
    assert "Detector/wrong" not in list(local_tango.database.get_server_list("Detector/*"))


def test_what_servers_write_themselves_is_not_exported(beamline: Beamline) -> None:
    exported = yaml.safe_load(exported_by(beamline.local, f"Detector/{beamline.instance}"))
    assert set(exported) == {"servers"}
    entry = exported["servers"]["Detector"][beamline.instance]["Detector"][beamline.detector_name]
    assert set(entry) == {"properties"} and set(entry["properties"]) == {"Backend", "BackendOptions", "Receiver"}


@pytest.fixture
def sardana_file(tmp_path: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "sardana_ctrl",
        "config",
        "reg",
        "reg/det/1",
        "--environment",
        str(tmp_path / "env"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(TOP)}
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=60).stdout
    detector = {"Detector": {"reg": {"Detector": {"reg/det/1": {"properties": {"Backend": "simulator"}}}}}}
    levels = {"localhost": {"levels": {"Detector/reg": 1}}}
    return write(tmp_path, {"servers": detector, "starter": levels, "sardana": yaml.safe_load(text)})


def test_sardana_elements(local_tango: LocalTango, sardana_file: Path) -> None:
    put(local_tango, sardana_file)
    exported = yaml.safe_load(exported_by(local_tango, "Detector/reg", macro_server="macroserver/reg/1"))
    controllers = exported["sardana"]["pools"]["reg"]["controllers"]
    assert set(controllers["motctrl"]["elements"]) == {"mot01", "mot02"}
    assert exported["starter"] == {socket.gethostname(): {"levels": {"Detector/reg": 1}}}


@pytest.mark.soak
def test_sardana_elements_dry_and_repeated(tmp_path: Path, sardana_file: Path) -> None:
    with LocalTango(tmp_path) as local:
        shown = put(local, sardana_file, dry_run=True)
        assert "macroserver/reg/1" in shown and "Sardana/reg" not in list(local.database.get_server_list("*"))
        put(local, sardana_file)
        sardana_file.write_text(exported_by(local, "Detector/reg", macro_server="macroserver/reg/1"))
        assert "mot01" not in put(local, sardana_file, dry_run=True)
