"""What Jive and Astor ask of database and devices, call by call, on SQLite and on Debian's database with MariaDB."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import tango

from tangods_detector.localtango import LocalTango
from tests.system import mariadb
from tests.system.beamline import ON, Beamline, wait_for

pytestmark = pytest.mark.system

INSTANCE = "jive"
SETTINGS = {"ExposureTime": 0.0125, "TriggerMode": "SOFTWARE", "nTriggers": 7}
DATABASES = ["sqlite", pytest.param("mariadb", marks=pytest.mark.soak)]


@pytest.fixture(scope="module", params=DATABASES)
def tango_system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTango]:
    if request.param == "sqlite":
        yield request.getfixturevalue("local_tango")
        return
    if mariadb.missing():
        pytest.skip(mariadb.missing())
    with mariadb.MariaTango(tmp_path_factory.mktemp("maria")) as local:
        yield local


@pytest.fixture(scope="module")
def both(tango_system: LocalTango, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beamline]:
    with Beamline(tango_system, INSTANCE, tmp_path_factory.mktemp("data")) as beamline:
        yield beamline


def admin(beamline: Beamline, klass: str = "Detector") -> tango.DeviceProxy:
    return beamline.local.device(f"dserver/{klass}/{beamline.instance}")


def select(beamline: Beamline, query: str) -> list[str]:
    """The words of the answer, row by row, without the counts at the end."""
    database = beamline.local.device("sys/database/2")
    numbers, words = database.DbMySqlSelect(query)
    rows, columns = numbers[-2:]
    return list(words)[: rows * columns]


def set_all(beamline: Beamline) -> None:
    for name, value in SETTINGS.items():
        setattr(beamline.detector, name, value)


def assert_settings_are_back(beamline: Beamline) -> None:
    beamline.wait_on()
    assert {name: beamline.detector.read_attribute(name).value for name in SETTINGS} == SETTINGS


def test_the_tree(both: Beamline) -> None:
    assert select(both, f"select distinct domain from device where name LIKE '{INSTANCE}/%' order by domain") == [
        INSTANCE
    ]
    families = select(both, f"select distinct family from device where domain='{INSTANCE}' order by family")
    assert families == ["det", "rec"]
    members = select(both, f"select distinct member from device where domain='{INSTANCE}' and family='det'")
    assert members == ["1"]
    named = select(both, f"select name,class from device where server='Detector/{INSTANCE}' order by name")
    assert named == [f"dserver/Detector/{INSTANCE}", "DServer", both.detector_name, "Detector"]
    of_class = select(both, "select name from device where class='StreamReceiver' order by name")
    assert both.receiver_name in of_class
    db = both.local.database
    assert f"Detector/{INSTANCE}" in list(db.get_server_list("Detector/*"))
    assert INSTANCE in list(db.get_instance_name_list("Detector"))
    assert both.detector_name in list(db.get_device_exported(f"{INSTANCE}/*"))
    assert "Detector" in list(db.get_class_list("*"))


@pytest.mark.parametrize("klass", ["Detector", "StreamReceiver"])
def test_the_wizard(both: Beamline, klass: str) -> None:
    """Create server: what it asks the running server, and each page has a name, an explanation and a default."""
    server = admin(both, klass)
    device = both.detector_name if klass == "Detector" else both.receiver_name
    assert list(server.QueryClass()) == [klass]
    assert list(server.QueryDevice()) == [f"{klass}::{device}"]
    assert [name.lower() for name in server.QuerySubDevice()] == ([both.receiver_name] if klass == "Detector" else [])
    assert list(server.QueryWizardClassProperty(klass)) == [], "there is nothing to set for a whole class"
    pages = list(server.QueryWizardDevProperty(klass))
    names, texts, defaults = pages[0::3], pages[1::3], pages[2::3]
    assert len(names) == len(set(names)) > 5
    for name, text, default in zip(names, texts, defaults, strict=True):
        assert len(text) > 20 and text.endswith("."), f"{name}: {text}"
        assert default not in ("None", "Not specified"), f"{name}: Finish would store {default!r}"


def test_finishing_the_wizard_at_once_changes_nothing(both: Beamline) -> None:
    """Finish stores every default as text: those that were not set before must mean the same as nothing."""
    db, stored = both.local.database, dict[str, dict[str, list[str]]]()
    for klass, device, proxy in (
        ("Detector", both.detector_name, both.detector),
        ("StreamReceiver", both.receiver_name, both.receiver),
    ):
        pages = list(admin(both, klass).QueryWizardDevProperty(klass))
        held = set(db.get_device_property_list(device, "*"))
        pairs = zip(pages[0::3], pages[2::3], strict=True)
        stored[device] = {name: default.split("\n") for name, default in pairs if name not in held}
        assert len(stored[device]) > 3
        db.put_device_property(device, stored[device])
        proxy.Init()
    both.wait_on()
    both.good_series()
    for device, names in stored.items():
        db.delete_device_property(device, list(names))
    both.receiver.Init()
    both.detector.Init()
    both.wait_on()


def test_properties_and_their_history(both: Beamline) -> None:
    db = both.local.database
    for value in ("1.5", "2.5"):
        db.put_device_property(both.detector_name, {"TriggerTimeout": [value]})
    history = db.get_device_property_history(both.detector_name, "TriggerTimeout")
    assert [list(one.get_value()) for one in history][-2:] == [["1.5"], ["2.5"]]
    assert "TriggerTimeout" in list(db.get_device_property_list(both.detector_name, "*"))
    db.delete_device_property(both.detector_name, "TriggerTimeout")
    assert "TriggerTimeout" not in list(db.get_device_property_list(both.detector_name, "*"))


def test_test_device_shows_everything(both: Beamline) -> None:
    """The panel lists commands with what goes in and out, and reads every attribute."""
    both.good_series()
    for device in (both.detector, both.receiver):
        commands = {c.cmd_name: c for c in device.command_list_query()}
        assert {"Init", "State", "Status", "Stop", "Reset"} <= set(commands)
        infos = {a.name: a for a in device.attribute_list_query_ex()}
        replies = {reply.name: reply for reply in device.read_attributes(list(infos))}
        for name, info in infos.items():
            assert not replies[name].has_failed, name
            assert info.unit in (
                "",
                "s",
                "Hz",
                "%",
                "deg",
                "bit",
                "pixel",
                "pixels",
                "m",
                "MB/s",
                "MB",
                "GB",
                "degC",
            ), name
            assert info.max_dim_x > 0 and info.label, name


def test_the_menu_of_an_attribute(both: Beamline) -> None:
    device = both.detector
    config = device.get_attribute_config("ExposureTime")
    before = config.max_value
    config.max_value, config.label = "20", "Exposure"
    device.set_attribute_config(config)
    device.Init()
    both.wait_on()
    again = device.get_attribute_config("ExposureTime")
    assert (again.max_value, again.label, again.unit) == ("20", "Exposure", "s")
    with pytest.raises(tango.DevFailed):
        device.ExposureTime = 21.0
    again.max_value, again.label = before, "Exposure time"
    device.set_attribute_config(again)

    server = admin(both)
    name = both.detector_name
    server.AddObjPolling(([1000], [name, "attribute", "nFramesAcquired"]))
    assert list(server.PolledDevice()) == [name]
    assert "nFramesAcquired" in "".join(server.DevPollStatus(name))
    server.UpdObjPollingPeriod(([2000], [name, "attribute", "nFramesAcquired"]))
    assert "2000" in "".join(server.DevPollStatus(name))
    server.RemObjPolling([name, "attribute", "nFramesAcquired"])
    assert list(server.PolledDevice()) == []


def test_logging_and_locks(both: Beamline, tmp_path: Path) -> None:
    server, name, file = admin(both, "StreamReceiver"), both.receiver_name, tmp_path / "device.log"
    levels = server.GetLoggingLevel([name])
    assert list(levels[1]) == [name]
    server.AddLoggingTarget([name, f"file::{file}"])
    server.SetLoggingLevel(([5], [name]))
    assert f"file::{file}" in list(server.GetLoggingTarget(name))
    both.good_series()
    wait_for("the log", lambda: file.exists() and "closed" in file.read_text())
    server.SetLoggingLevel(([int(levels[0][0])], [name]))
    server.RemoveLoggingTarget([name, f"file::{file}"])
    assert server.DevLockStatus(name)[1][0] == f"Device {name} is not locked"


@pytest.mark.parametrize("way", ["Init", "DevRestart", "RestartServer"])
def test_restarts_bring_the_settings_back(both: Beamline, way: str) -> None:
    both.good_series()
    set_all(both)
    server = admin(both)
    if way == "Init":
        both.detector.Init()
    elif way == "DevRestart":
        server.DevRestart(both.detector_name)
    else:
        server.RestartServer()
        wait_for("the new server", lambda: has_begun_anew(both), 60)
    assert_settings_are_back(both)
    both.good_series()


def has_begun_anew(beamline: Beamline) -> bool:
    """RestartServer returns before anything happens; a new server knows of no last file."""
    try:
        return beamline.detector.state() in ON and beamline.detector.LastFilename == ""
    except tango.DevFailed:
        return False


def test_create_and_delete_a_server(both: Beamline) -> None:
    db = both.local.database
    server, name = "Detector/wizard", f"{INSTANCE}/wizard/1"
    infos = []
    for klass, device in (("Detector", name), ("DServer", f"dserver/{server}")):
        info = tango.DbDevInfo()
        info.server, info._class, info.name = server, klass, device
        infos.append(info)
    db.add_server(server, infos)
    with_device = list(db.get_device_class_list(server))
    assert name in with_device
    both.local.start(server)
    try:
        device = both.local.device(name)
        wait_for("FAULT", lambda: device.state() == tango.DevState.FAULT)
        assert "Backend: not set" in device.status()
        assert list(both.local.device(f"dserver/{server}").QueryWizardDevProperty("Detector"))
    finally:
        process = both.local.process(server)
        both.local.device(f"dserver/{server}").Kill()
        assert process.wait(10) == 0
        both.local.stop(server)
    wait_for("un-export", lambda: not db.get_device_info(name).exported)
    db.delete_server(server)
    assert server not in list(db.get_server_list("Detector/*"))


def test_sigterm_ends_a_server_that_was_started_with_all_signals_blocked(both: Beamline) -> None:
    """As Starter starts it."""
    both.stop_detector()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        both.start_detector()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    both.wait_on()
    assert both.stop_detector() == 0
    both.start_detector()
    both.wait_on()


def test_what_astor_asks_of_the_database(both: Beamline) -> None:
    db = both.local.database
    for level, klass in enumerate(("StreamReceiver", "Detector"), start=1):
        info = tango.DbServerInfo()
        info.name, info.host, info.mode, info.level = f"{klass}/{INSTANCE}", "jive-host", 1, level
        db.put_server_info(info)
    got = db.get_server_info(f"Detector/{INSTANCE}")
    assert (got.host, got.mode, got.level) == ("jive-host", 1, 2)
    (host,) = select(both, f"select host from device where name='{both.detector_name}'")
    listed = [str(word) for word in db.command_inout("DbGetHostServersInfo", host)]
    rows = {listed[i].lower(): listed[i + 1 : i + 3] for i in range(0, len(listed), 3)}
    assert rows[f"streamreceiver/{INSTANCE}"] == ["1", "1"] and rows[f"detector/{INSTANCE}"] == ["1", "2"]
    assert f"Detector/{INSTANCE}" in list(db.command_inout("DbGetHostServerList", host))
    assert list(db.command_inout("DbGetHostServerList", "nowhere*")) == []
    assert list(db.get_host_list("*"))
