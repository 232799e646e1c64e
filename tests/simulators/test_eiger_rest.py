"""The HTTP side of the simulated control unit over real sockets: URLs, types, states, blocking, several at a time."""

import json
import random
import signal
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pytest

from tangods_detector.simulators.eiger import EigerOptions, EigerSimulator, tiff
from tangods_receiver.errors import ConfigError, HardwareError
from tests.simulators.eiger import running


@pytest.fixture(scope="module")
def unit():
    with running(pull=False) as (dcu, client, *_):
        yield dcu, client


@pytest.fixture(autouse=True)
def idle(request):
    """What the module shares begins each test as after `initialize`."""
    if "unit" in request.fixturenames:
        client = request.getfixturevalue("unit")[1]
        client.command("initialize")
        client.put("stream/command/initialize")


def in_thread(call):
    """(thread, list for what it returns)"""
    found = []

    def work():
        found.append(call())

    thread = threading.Thread(target=work)
    thread.start()
    return thread, found


def test_the_samples_of_the_specification(unit):
    dcu, client = unit
    http = client.http
    client.set(count_time=0.1)
    assert http.get("/detector/api/version/").text == '{"value":"1.8.0","value_type":"string"}'
    assert http.get("/detector/api/version").json()["value"] == "1.8.0"
    assert (
        http.get("/detector/api/1.8.0/config/count_time").text
        == '{"access_mode":"rw","max":3600.0,"min":1e-07,"unit":"s","value":0.1,"value_type":"float"}'
    )
    assert (
        http.put("/detector/api/1.8.0/config/count_time", json={"value": 0.5}).text
        == '["bit_depth_image","bit_depth_readout","count_time","countrate_correction_count_cutoff",'
        '"frame_count_time","frame_time"]'
    )
    assert http.put("/detector/api/1.8.0/command/arm").text == '{"sequence id":1}'
    assert (
        http.get("/detector/api/1.8.0/status/state").text == '{"access_mode":"r","value":"ready","value_type":"string"}'
    )
    assert http.get("/stream/api/1.8.0/status/dropped").text == '{"access_mode":"r","value":0,"value_type":"uint"}'


@pytest.mark.parametrize("module", ["detector", "stream", "filewriter", "monitor", "system"])
def test_every_listed_key_of_every_module_is_there(unit, module):
    _, client = unit
    assert client.http.get(f"/{module}/api/version/").json()["value"] == "1.8.0"
    for kind in ("config", "status") if module != "system" else ("status",):
        for key in client.get(f"{module}/{kind}/keys"):
            told = client.get(f"{module}/{kind}/{key}")
            assert {"value", "value_type", "access_mode"} <= told.keys(), key
    assert client.get(f"{module}/command/keys")


def test_keys_that_are_there_but_not_listed(unit):
    _, client = unit
    assert client.value("detector/status/error") == []
    assert client.get("detector/config/wavelength")["unit"] == "angstrom"
    assert "error" not in client.get("detector/status/keys")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/detector",
        "/detector/api/1.8.0",
        "/detector/api/1.6.0/config/count_time",
        "/detector/api/1.8.0/config/no_such",
        "/detector/api/1.8.0/config",
        "/detector/api/1.8.0/status/no_such",
        "/detector/api/1.8.0/command/no_such",
        "/camera/api/1.8.0/config/count_time",
        "/system/api/1.8.0/config/count_time",
        "/data/series_1_master.h5",
        "/monitor/api/1.8.0/images/1/2",
        "/simulator/no_such",
    ],
)
def test_an_unknown_path_is_a_404_in_plain_text(unit, path):
    _, client = unit
    answer = client.http.get(path)
    assert answer.status_code == 404 and answer.headers["content-type"].startswith("text/plain")
    assert path in answer.text or "images" in path
    if "config/" in path or "command/" in path:
        assert client.http.put(path, json={"value": 1}).status_code == 404


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'{"values": 1}', b'{"value": "x"}', b'{"value": null}'])
def test_a_bad_body_is_a_400_and_changes_nothing(unit, body):
    _, client = unit
    before = client.value("detector/config/count_time")
    answer = client.http.put(client.url("detector/config/count_time"), content=body)
    assert answer.status_code == 400 and answer.headers["content-type"].startswith("text/plain") and answer.text
    assert client.value("detector/config/count_time") == before


def test_answers_say_that_they_are_json(unit):
    _, client = unit
    for answer in (client.http.get("/detector/api/version"), client.put("detector/config/nimages", 3)):
        assert answer.headers["content-type"] == "application/json; charset=utf-8"


def test_several_keys_of_the_stream_at_once(unit):
    _, client = unit
    url = client.url("stream/config")
    answer = client.http.put(url, json={"header_appendix": {"value": {"a": [1]}}, "format": {"value": "cbor"}})
    assert answer.json() == ["format", "header_appendix"]
    assert client.value("stream/config/header_appendix") == {"a": [1]}
    assert client.http.put(url, json={"mode": {"value": "enabled"}, "header_detail": {"value": "x"}}).status_code == 400
    assert client.value("stream/config/mode") == "disabled"  # all or none
    assert client.http.put(url, json={"mode": {"value": "enabled"}, "nix": {"value": 1}}).status_code == 404
    assert client.http.put(url, json={"mode": 1}).status_code == 400
    assert client.http.put(url, json={}).status_code == 400
    assert client.value("stream/status/state") == "disabled"
    client.set("stream/config", mode="enabled")
    assert client.value("stream/status/state") == "ready"


def test_arrays_in_both_forms(unit):
    dcu, client = unit
    told = client.get("detector/config/pixel_mask")
    url = client.url("detector/config/pixel_mask")
    answer = client.http.get(url, headers={"Accept": "application/tiff"})
    assert answer.headers["content-type"] == "application/tiff"
    mask = tiff.decode(answer.content).copy()
    assert told["value"]["shape"] == [*mask.shape]
    mask[5, 7] = 8
    sent = client.http.put(url, content=tiff.encode(mask), headers={"Content-Type": "application/tiff"})
    assert sent.json() == ["pixel_mask", "threshold/1/pixel_mask"]
    again = client.http.get(
        client.url("detector/config/threshold/1/pixel_mask"), headers={"Accept": "application/tiff"}
    )
    assert np.array_equal(tiff.decode(again.content), mask)
    bad = client.http.put(url, content=b"II*", headers={"Content-Type": "application/tiff"})
    assert bad.status_code == 400
    wrong = client.http.get(client.url("detector/config/count_time"), headers={"Accept": "application/tiff"})
    assert wrong.status_code == 400


def test_the_old_version():
    with running("EIGER 500K", api="1.6.0", pull=False) as (_, client, *_):
        assert client.http.get("/detector/api/version/").json()["value"] == "1.6.0"
        told = client.get("detector/status/builder/dcu_buffer_free")
        assert {"time", "state", "critical_limits", "critical_values"} <= told.keys() and told["state"] == "normal"
        assert client.value("detector/config/pixel_mask_applied") == 1
        assert client.command("status_update") == {}
        assert client.get("filewriter/status/buffer_free")["unit"] == "KB"
        for gone in ("stream/config/format", "detector/config/incident_energy", "detector/config/threshold/1/energy"):
            assert client.http.get(client.url(gone)).status_code == 404
        assert client.value("detector/status/board_000/th0_temp") > 0


# --- states ----------------------------------------------------------------------------------------------------------


def test_a_unit_that_was_switched_on():
    with running(state="na", pull=False) as (_, client, *_):
        assert client.state == "na"
        for command in ("arm", "trigger", "disarm", "abort", "cancel"):
            assert client.put(f"detector/command/{command}").status_code == 400
        assert client.put("detector/config/count_time", 0.1).status_code == 400
        assert client.state == "na"
        assert client.command("initialize") == {}
        assert client.state == "idle"


def test_initialize_takes_its_time_and_resets():
    with running(speed=0.002, pull=False) as (_, client, *_):
        client.set(count_time=0.01, nimages=7)
        assert client.command("arm") == {"sequence id": 1}
        client.command("disarm")
        thread, _ = in_thread(lambda: client.command("initialize"))
        client.wait_state("initialize")
        assert client.put("detector/command/arm").status_code == 400
        thread.join()
        assert client.state == "idle" and client.value("detector/config/nimages") == 1
        assert client.command("arm") == {"sequence id": 1}  # ids begin again


@pytest.mark.parametrize("command", ["trigger"])
def test_a_command_in_a_wrong_state_changes_nothing(unit, command):
    _, client = unit
    answer = client.put(f"detector/command/{command}")
    assert answer.status_code == 400 and "idle" in answer.text
    assert client.state == "idle"


def test_disarm_is_harmless_when_idle(unit):
    _, client = unit
    for command in ("disarm", "cancel", "abort"):
        assert client.command(command) == {"sequence id": 0}


def test_an_armed_detector_takes_no_parameters_and_no_second_arm(unit):
    _, client = unit
    client.command("arm")
    assert client.put("detector/config/count_time", 0.1).status_code == 400
    assert client.put("detector/command/arm").status_code == 400
    assert client.state == "ready"
    client.command("disarm")
    assert client.state == "idle"


def test_a_series_with_triggers_goes_through_its_states(unit):
    _, client = unit
    client.set(nimages=2, ntrigger=2, count_time=0.05, frame_time=0.05)
    client.command("arm")
    for state_after in ("ready", "idle"):
        begun = time.monotonic()
        thread, found = in_thread(lambda: client.command("trigger"))
        client.wait_state("acquire")
        thread.join()
        assert found == [{}] and 0.09 < time.monotonic() - begun < 2
        assert client.state == state_after
    assert client.put("detector/command/trigger").status_code == 400
    assert client.command("arm") == {"sequence id": 2}  # without a disarm between


def test_inte_returns_at_once_with_its_own_time(unit):
    _, client = unit
    client.set(trigger_mode="inte", ntrigger=2, count_time=0.01)
    client.command("arm")
    begun = time.monotonic()
    client.command("trigger", 0.4)
    assert time.monotonic() - begun < 0.3 and client.state == "acquire"
    assert client.put("detector/command/trigger", 0.1).status_code == 400
    client.wait_state("ready")
    assert time.monotonic() - begun > 0.39
    for wrong in ("1", -1, True):
        assert client.put("detector/command/trigger", wrong).status_code == 400
    client.command("trigger")
    client.wait_state("idle")


@pytest.mark.parametrize("mode", ["exts", "exte", "eies"])
def test_external_modes_refuse_triggers(unit, mode):
    _, client = unit
    client.set(trigger_mode=mode)
    client.command("arm")
    answer = client.put("detector/command/trigger")
    assert answer.status_code == 400 and mode in answer.text and client.state == "ready"


@pytest.mark.parametrize("command", ["abort", "cancel", "disarm"])
def test_a_trigger_that_blocks_is_ended_from_another_connection(unit, command):
    dcu, client = unit
    client.set(nimages=1000, count_time=0.1, frame_time=0.1)
    client.command("arm")
    thread, found = in_thread(
        lambda: httpx.put(f"http://{dcu.address}{client.url('detector/command/trigger')}", timeout=60)
    )
    client.wait_state("acquire")
    begun = time.monotonic()
    assert client.command(command) == {"sequence id": 1}
    thread.join()
    assert time.monotonic() - begun < 2 and found[0].status_code == 200
    assert client.state == "idle"


def test_status_answers_quickly_while_a_trigger_blocks(unit):
    _, client = unit
    client.set(nimages=10, count_time=0.05, frame_time=0.05)
    client.command("arm")
    thread, _ = in_thread(lambda: client.command("trigger"))
    client.wait_state("acquire")
    begun = time.monotonic()
    for _ in range(10):
        assert client.state == "acquire"
    assert time.monotonic() - begun < 0.4
    thread.join()


def test_an_arm_that_takes_long_is_aborted():
    with running(speed=1.0, pull=False) as (_, client, *_):
        thread, found = in_thread(lambda: client.put("detector/command/arm"))
        client.wait_state("configure")
        assert client.command("abort") == {"sequence id": 0}
        thread.join()
        assert found[0].status_code == 400 and "abort" in found[0].text
        assert client.state == "idle"


def test_a_new_energy_takes_its_time():
    with running(speed=0.02, pull=False) as (_, client, *_):
        thread, _ = in_thread(lambda: client.set(photon_energy=9000.0))
        client.wait_state("configure")
        assert client.put("detector/config/nimages", 5).status_code == 400
        thread.join()
        begun = time.monotonic()
        client.set(photon_energy=9000.0)
        assert time.monotonic() - begun < 0.15  # it is what it was
        assert client.state == "idle"


def test_both_names_of_the_id():
    with running(id_key="series id", pull=False) as (_, client, *_):
        assert client.command("arm") == {"series id": 1}


def test_wait_ends_with_the_series(unit):
    _, client = unit
    client.set(trigger_mode="inte", count_time=0.2)
    client.command("arm")
    client.command("trigger")
    assert client.command("wait") == {} and client.state == "idle"


def test_the_high_voltage_of_cdte():
    with running(sensor="CdTe", speed=0.001, pull=False) as (_, client, *_):
        assert client.value("detector/config/sensor_material") == "CdTe"
        assert client.value("detector/status/high_voltage/state") == "READY"
        client.command("hv_reset", 300)
        assert client.value("detector/status/high_voltage/state") == "RAMPING"
        time.sleep(0.35)
        assert client.value("detector/status/high_voltage/state") == "READY"
        assert client.put("detector/command/hv_reset").status_code == 400


def test_the_web_server_drops_what_lasts_too_long():
    with running(web_limit=0.5, pull=False) as (_, client, *_):
        client.set(count_time=0.9, frame_time=0.9)
        client.command("arm")
        with pytest.raises(httpx.TransportError):
            client.command("trigger")
        assert client.state == "acquire"  # the exposure goes on
        client.wait_state("idle")


def test_a_restart_drops_the_connections_and_comes_back_uninitialised():
    with running(speed=0.002, pull=False) as (_, client, *_):
        client.command("arm")
        with pytest.raises(httpx.TransportError):
            client.put("system/command/restart")
        with pytest.raises(httpx.TransportError):
            client.state  # noqa: B018
        time.sleep(0.15)
        assert client.state == "na"
        client.command("initialize")
        client.command("arm")


# --- external edges --------------------------------------------------------------------------------------------------


def test_edges_when_not_armed_are_ignored(unit):
    dcu, client = unit
    client.set(trigger_mode="exts", nimages=2, ntrigger=2, count_time=0.01, frame_time=0.01)
    dcu.edge(2)
    client.command("arm")
    time.sleep(0.1)
    assert client.state == "ready"
    dcu.edge(1)
    time.sleep(0.1)
    assert client.state == "ready"  # one of two
    assert client.http.post("/simulator/edge", json={"n": 1}).status_code == 200
    client.wait_state("idle")


def test_edges_at_their_own_pace_are_skipped_when_the_detector_is_busy(unit):
    dcu, client = unit
    client.set(trigger_mode="exts", ntrigger=3, count_time=0.1, frame_time=0.1)
    client.command("arm")
    dcu.edge(4, period=0.06)  # at 0, 60, 120 and 180 ms: two of them while it is exposed
    time.sleep(0.5)
    assert client.state == "ready" and client.value("detector/config/ntriggers_skipped") == 2
    dcu.edge()
    client.wait_state("idle")


def test_bad_orders_of_the_bench(unit):
    _, client = unit
    for path, body in (
        ("edge", "[]"),
        ("edge", '{"n":"x"}'),
        ("failures", '{"loose": [1]}'),
        ("failures", '{"lose": 1}'),
        ("failures", '{"lose": ["1"]}'),
        ("failures", "{"),
    ):
        assert client.http.post(f"/simulator/{path}", content=body).status_code == 400, body


# --- monitor and filewriter ------------------------------------------------------------------------------------------


def test_the_monitor_keeps_the_latest_images(unit):
    dcu, client = unit
    client.put("monitor/command/initialize")
    client.set("monitor/config", mode="enabled", buffer_size=3)
    assert client.http.get(client.url("monitor/images/monitor")).status_code == 408
    client.set(nimages=5, count_time=0.005, frame_time=0.005)
    client.command("arm")
    client.command("trigger")
    client.command("disarm")
    assert client.get("monitor/images") == [[1, [2, 3, 4]]]
    assert client.value("monitor/status/dropped") == 2 and client.value("monitor/status/state") == "overflow"
    assert client.value("monitor/status/monitor_image_number") == [1, 4]
    latest = client.http.get(client.url("monitor/images/monitor"))
    assert latest.headers["content-type"] == "application/tiff"
    image = tiff.decode(latest.content)
    assert image.shape == (512, 1028) and image.dtype == np.uint16
    assert client.http.get(client.url("monitor/images/1/4")).content == latest.content
    taken = [client.http.get(client.url("monitor/images/next"), params={"timeout": 50}) for _ in range(4)]
    assert [answer.status_code for answer in taken] == [200, 200, 200, 408]
    assert taken[2].content == latest.content
    assert client.value("monitor/status/buffer_free") == 3
    assert client.put("monitor/command/clear").json() == {}


def test_the_monitor_can_keep_the_first_images(unit):
    _, client = unit
    client.put("monitor/command/initialize")
    client.set("monitor/config", mode="enabled", buffer_size=2, discard_new=True)
    client.set(nimages=4, count_time=0.005, frame_time=0.005)
    client.command("arm")
    client.command("trigger")
    client.command("disarm")
    assert client.get("monitor/images") == [[1, [0, 1]]]
    client.put("monitor/command/initialize")


def test_the_filewriter_has_states_and_no_files(unit):
    _, client = unit
    assert client.value("filewriter/status/state") == "disabled"
    client.set("filewriter/config", mode="enabled", name_pattern="x_$id")
    assert client.value("filewriter/status/state") == "ready"
    client.command("arm")
    assert client.value("filewriter/status/state") == "acquire"
    client.command("disarm")
    assert client.value("filewriter/status/files") == [] and client.get("filewriter/files") == []
    assert client.http.get("/data/").json() == []
    assert client.put("filewriter/command/initialize").json() == {}
    assert client.value("filewriter/config/mode") == "disabled"


# --- the process -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_it_runs_in_a_process_of_its_own_and_ends_when_told(sign):
    words = ["simulate", "eiger", "--model", "EIGER 500K", "--api", "1.6.0", "--failures", '{"server_error": "state"}']
    code = "from tangods_detector.cli import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        address = next(word for word in line.split() if word.startswith("http://"))
        assert line.count("tcp://127.0.0.1:") == 2
        assert httpx.get(f"{address}/detector/api/version").json()["value"] == "1.6.0"
        assert httpx.get(f"{address}/detector/api/1.6.0/status/state").status_code == 500
        assert httpx.get(f"{address}/simulator/failures").json()["happened"] == [
            "server_error /detector/api/1.6.0/status/state"
        ]
    finally:
        process.send_signal(sign)
        assert process.wait(20) == 0
        process.stdout.close()


def test_a_port_that_is_taken():
    with EigerSimulator(EigerOptions(model="EIGER2 500K")) as dcu:
        for name, where in (("port", dcu.address), ("stream_port", dcu.endpoint_v1), ("cbor_port", dcu.endpoint_v2)):
            other = EigerSimulator(EigerOptions(model="EIGER2 500K", **{name: int(where.rpartition(":")[2])}))
            with pytest.raises((ConfigError, HardwareError), match="port|bind"), other:
                pass


def test_options_that_cannot_be():
    with pytest.raises(ConfigError, match="hwm.*api|api.*hwm"):
        EigerOptions(hwm=0, api="2.0")
    with pytest.raises(ConfigError, match="bit_depth: 12.*state: 'on'|state: 'on'.*bit_depth: 12"):
        EigerOptions(bit_depth=12, state="on")
    with pytest.raises(ConfigError, match="does not exist"):
        EigerSimulator(EigerOptions(images="/no/such/file"))


def test_close_is_safe_twice():
    dcu = EigerSimulator(EigerOptions(model="EIGER2 500K"))
    with dcu:
        dcu.close()
    dcu.close()
    assert json.dumps(dcu.happened) == "[]"


# --- everything at once ----------------------------------------------------------------------------------------------


def test_whatever_several_clients_do_each_series_begins_and_ends_once():
    """Commands, parameters and edges from four connections, in no order at all."""
    wanted = ("arm", "arm", "trigger", "disarm", "abort", "cancel", "state", "nimages", "mode", "edge")
    codes = set()

    def work(seed, dcu, client):
        chance = random.Random(seed)
        with httpx.Client(base_url=f"http://{dcu.address}", timeout=20, verify=False, trust_env=False) as http:
            for _ in range(80):
                what = chance.choice(wanted)
                if what == "state":
                    answer = http.get(client.url("detector/status/state"))
                elif what == "nimages":
                    answer = http.put(client.url("detector/config/nimages"), json={"value": chance.choice([1, 300])})
                elif what == "mode":
                    mode = chance.choice(["ints", "inte", "exts", "exte", "eies"])
                    answer = http.put(client.url("detector/config/trigger_mode"), json={"value": mode})
                elif what == "edge":
                    answer = http.post("/simulator/edge", json={"n": 3})
                else:
                    answer = http.put(client.url(f"detector/command/{what}"))
                codes.add(answer.status_code)

    with running() as (dcu, client, v1, _):
        client.stream("legacy")
        client.set(count_time=1e-3, frame_time=1e-3)
        clients = [threading.Thread(target=work, args=(seed, dcu, client)) for seed in range(4)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        client.command("abort")
        assert client.state == "idle" and codes == {200, 400}
        found = {}
        for parts in v1.rest():
            head = json.loads(parts[0])
            found.setdefault(head["series"], []).append(head["htype"])
        assert len(found) > 10
        for kinds in found.values():
            assert kinds[0] == "dheader-1.0" and kinds[-1] == "dseries_end-1.0"
            assert set(kinds[1:-1]) <= {"dimage-1.0"}
