"""Both devices seen by the Java library of Jive and Astor (tests/jtango): all that Python sees, to the letter."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tango

from tangods_detector.localtango import LocalTango
from tests.system.beamline import Beamline, wait_for

pytestmark = [
    pytest.mark.system,
    pytest.mark.soak,
    pytest.mark.timeout(900),  # the first time Maven downloads
    pytest.mark.skipif(not (shutil.which("mvn") and shutil.which("javac")), reason="needs Maven and a JDK: mvn, javac"),
]

PROJECT = Path(__file__).parents[1] / "jtango" / "pom.xml"
INSTANCE = "jtango"
SHOWN = 100  # elements of an array, as in Walk.java
MEMORIZED = {"NOT_KNOWN": "UNKNOWN", "NONE": "NOT_MEMORIZED", "MEMORIZED_WRITE_INIT": "MEMORIZED_SET_AT_INIT"}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """How to run Walk, built into a folder of its own."""
    out = tmp_path_factory.mktemp("jtango")
    build = ["mvn", "-q", "-B", "-f", str(PROJECT), f"-Dout={out}", "compile"]
    done = subprocess.run(build, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return ["java", "-cp", f"{out}/classes:{out}/lib/*", "Walk"]


@pytest.fixture(scope="module")
def both(local_tango: LocalTango, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beamline]:
    with Beamline(local_tango, INSTANCE, tmp_path_factory.mktemp("data")) as beamline:
        yield beamline


def walk(program: list[str], beamline: Beamline, *words: str) -> dict[str, Any]:
    env = {**os.environ, "TANGO_HOST": beamline.local.tango_host}
    done = subprocess.run([*program, *words], capture_output=True, timeout=240, env=env)
    assert done.returncode == 0, done.stderr.decode()
    return dict(json.loads(done.stdout))


@dataclass
class Look:
    """One device: what Java found, and what Python read before and after that."""

    klass: str
    name: str
    device: tango.DeviceProxy
    java: dict[str, Any]
    before: dict[str, Any]
    after: dict[str, Any]


@pytest.fixture(scope="module")
def looks(program: list[str], both: Beamline) -> list[Look]:
    both.set(FrameTime=0.1, nFramesPerTrigger=20)  # counters, an image and a file name to look at
    both.detector.Arm()
    wait_for("a rate", lambda: both.receiver.FrameRate > 0)
    both.wait_end()
    both.wait_on()
    wait_for("no rate", lambda: both.receiver.FrameRate == both.receiver.Throughput == 0)
    kinds = (("Detector", both.detector_name, both.detector), ("StreamReceiver", both.receiver_name, both.receiver))
    before = [values(device) for _, _, device in kinds]
    java = walk(program, both, "look", *(name for _, name, _ in kinds))
    return [
        Look(klass, name, device, java[name], first, values(device))
        for (klass, name, device), first in zip(kinds, before, strict=True)
    ]


def values(device: tango.DeviceProxy) -> dict[str, Any]:
    return {name: shown(device.read_attribute(name)) for name in device.get_attribute_list()}


def shown(read: tango.DeviceAttribute) -> dict[str, Any]:
    """As Walk shows it."""
    value = read.value
    if read.type == tango.CmdArgType.DevEncoded:
        value = [value[0], len(value[1])]
    elif read.type == tango.CmdArgType.DevState:
        value = str(value)
    elif read.data_format != tango.AttrDataFormat.SCALAR:
        value = [] if value is None else value.ravel() if hasattr(value, "ravel") else list(value)
        value = [one.item() if hasattr(one, "item") else one for one in value[:SHOWN]]
    return {
        "type": int(read.type),
        "quality": int(read.quality),
        "dim_x": read.dim_x,
        "dim_y": read.dim_y,
        "value": value,
    }


def test_the_database_as_the_tree_and_astor_show_it(both: Beamline, looks: list[Look]) -> None:
    for look in looks:
        found, server = look.java["database"], f"{look.klass}/{INSTANCE}"
        assert (found["server"], found["class"], found["exported"]) == (server, look.klass, True)
        assert found["pid"] == both.local.process(server).pid
        domain, family, member = look.name.split("/")
        assert domain in found["domains"] and family in found["families"] and member in found["members"]
        assert server in found["servers"] and INSTANCE in found["instances"] and look.klass in found["classes"]
        assert found["devices"] == [look.name]
        assert {one.name for one in looks} <= set(found["exported devices"])
        assert found["hosts"] and server in found["servers of its host"]
        db = both.local.database
        names = list(db.get_device_property_list(look.name, "*"))
        wanted = {name: list(db.get_device_property(look.name, name)[name]) for name in names}
        assert found["properties"] == wanted and len(wanted) >= 3


def test_the_wizard(looks: list[Look]) -> None:
    for look in looks:
        found = look.java["admin"]
        server = look.device.get_device_db().get_device_info(look.name).ds_full_name
        assert found["name"] == f"dserver/{server}" and found["state"] == "ON"
        assert found["classes"] == [look.klass] and found["devices"] == [f"{look.klass}::{look.name}"]
        assert found["class properties"] == []
        pages = found["device properties"]
        assert len(pages) > 15 and len(pages) % 3 == 0
        for name, text, default in zip(pages[0::3], pages[1::3], pages[2::3], strict=True):
            assert name and len(text) > 20 and text.endswith("."), f"{name}: {text}"
            assert default not in ("None", "Not specified"), f"{name}: Finish would store {default!r}"


def test_info_and_commands(looks: list[Look]) -> None:
    for look in looks:
        info = look.device.info()
        wanted = (info.dev_class, info.server_id, info.server_host, info.doc_url, info.dev_type)
        found = look.java["info"]
        assert tuple(found[name] for name in ("class", "server", "host", "url", "type")) == wanted
        assert look.java["state"] == str(look.device.state()) and look.java["status"] == look.device.status()
        fields = ("in_type", "in_type_desc", "out_type", "out_type_desc", "disp_level")
        assert look.java["commands"] == {
            command.cmd_name: {field: getattr(command, field) for field in fields}
            for command in look.device.command_list_query()
        }


def test_attributes_and_how_they_are_described(looks: list[Look]) -> None:
    plain = "label description unit standard_unit display_unit format min_value max_value writable disp_level"
    for look in looks:
        infos = {info.name: info for info in look.device.attribute_list_query_ex()}
        assert set(look.java["attributes"]) == set(infos) and len(infos) > 20
        for name, info in infos.items():
            alarms, events = info.alarms, info.events
            wanted = {
                **{field: getattr(info, field) for field in plain.split()},
                "data_type": int(info.data_type),
                "data_format": int(info.data_format),
                "max_dim_x": info.max_dim_x,
                "max_dim_y": info.max_dim_y,
                **{one: getattr(alarms, one) for one in ("min_alarm", "max_alarm", "min_warning", "max_warning")},
                "abs_change": events.ch_event.abs_change,
                "archive_abs_change": events.arch_event.archive_abs_change,
                "enum_labels": list(info.enum_labels),
                "memorized": MEMORIZED.get(info.memorized.name, info.memorized.name),
            }
            assert look.java["attributes"][name] == wanted, name


def test_every_attribute_is_read_and_has_the_same_value(looks: list[Look]) -> None:
    """Those that Python saw change, such as ages, need only be of the same kind."""
    for look in looks:
        java = look.java["values"]
        assert list(java) == list(look.before)
        changed = set()
        for name, read in java.items():
            assert "errors" not in read, (name, read)
            before, after = look.before[name], look.after[name]
            if before == after:
                assert read == before, name
            else:
                changed.add(name)
                assert (read["type"], type(read["value"])) == (after["type"], type(after["value"])), name
        assert len(changed) < len(java) / 10, changed


@pytest.fixture(scope="module")
def series(program: list[str], both: Beamline, looks: list[Look]) -> dict[str, Any]:
    return walk(program, both, "series", both.detector_name, str(both.root / "java.h5"))


def test_what_java_writes_is_read_back(both: Beamline, series: dict[str, Any]) -> None:
    assert series["written"] == {
        "DestinationFilename": str(both.root / "java.h5"),
        "ExposureTime": 0.0125,
        "FrameTime": 0.2,
        "TriggerMode": "INTERNAL",
        "nTriggers": 1,
        "nFramesPerTrigger": 3,
        "SaveRaw": True,
        "Label": "Größe 5 µm",
    }
    assert both.detector.Label == "Größe 5 µm"


def test_a_refusal_comes_word_for_word(both: Beamline, series: dict[str, Any]) -> None:
    detector = both.detector
    attempts = {
        "TriggerMode": lambda: detector.write_attribute("TriggerMode", "NEVER"),
        "ExposureTime": lambda: detector.write_attribute("ExposureTime", 1e9),
        "Rotation": lambda: detector.write_attribute("Rotation", 45),
        "Metadata": lambda: detector.write_attribute("Metadata", "no JSON"),
        "nFramesAcquired": lambda: detector.write_attribute("nFramesAcquired", 1),
        "SoftwareTrigger": lambda: detector.command_inout("SoftwareTrigger"),
    }
    assert set(series["refused"]) == set(attempts)
    for name, attempt in attempts.items():
        with pytest.raises(tango.DevFailed) as refusal:
            attempt()
        first, java = refusal.value.args[0], series["refused"][name][0]
        assert (java["reason"], java["desc"], java["origin"]) == (first.reason, first.desc, first.origin), name
    assert "'NEVER' is not one of INTERNAL, SOFTWARE" in series["refused"]["TriggerMode"][0]["desc"]


def test_a_series_and_its_events(both: Beamline, series: dict[str, Any]) -> None:
    assert (series["state"], series["acquired"]) == ("ON", 3), series["status"]
    assert series["file"] == str(both.root / "java.h5")
    both.assert_frames(both.root / "java.h5", range(3))
    for name, event in series["events"].items():
        assert event["errors"] == [] and event["over ZMQ"], (name, event)
    states = series["events"]["State"]["values"]
    assert states[0] == states[-1] == "ON" and {"MOVING", "RUNNING"} <= set(states)
    counts = series["events"]["nFramesAcquired"]["values"]
    assert counts[0] == 20 and counts[-1] == 3, "the series before and this one"
    assert counts[1:] == sorted(counts[1:])
    exposures = series["events"]["ExposureTime"]["values"]
    assert set(exposures) == {0.01, 0.0125} and exposures[-1] == both.detector.ExposureTime
