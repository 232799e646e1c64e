"""Every fault of the simulated control unit is provoked and observed, and the next series is a good one."""

import json
import threading
import time

import httpx
import pytest

from tangods_detector.simulators.eiger import Failures
from tangods_receiver.codecs import decompress
from tangods_receiver.errors import ConfigError, StreamError
from tangods_receiver.protocol import SeriesEnd, dectris1, dectris2
from tests.simulators.eiger import running
from tests.simulators.test_eiger_streams import cbor, end1, end2, series


@pytest.fixture(scope="module", params=["legacy", "cbor"])
def unit(request):
    with running(keep_sent=True) as (dcu, client, v1, v2):
        puller = v1 if request.param == "legacy" else v2
        yield dcu, client, puller, request.param


@pytest.fixture(autouse=True)
def fresh(request):
    """The unit is shared; afterwards nothing is pending, and a series without faults is what it should be."""
    if "unit" not in request.fixturenames:
        yield
        return
    dcu, client, puller, format = request.getfixturevalue("unit")
    dcu.fail(Failures())
    dcu.happened.clear()
    client.command("initialize")
    client.put("stream/command/initialize")
    client.stream(format)
    puller.rest(0.02)
    yield
    assert dcu.unit.failures.pending() == {}
    puller.rest(0.02)
    assert numbers(unit_series(request.getfixturevalue("unit")), format) == ["start", 0, 1, 2, "end"]


def unit_series(unit, n=3):
    _, client, puller, format = unit
    series(client, n)
    return puller.until(end1 if format == "legacy" else end2)


def numbers(messages, format, current=None):
    """Of the messages: `start`, `end`, or the number of the image; others than of series `current` in brackets."""
    found = []
    for parts in messages:
        if format == "legacy":
            told = json.loads(parts[0])
            kind = {"dheader-1.0": "start", "dseries_end-1.0": "end"}.get(told["htype"], told.get("frame"))
            number = told["series"]
        else:
            told = cbor(parts)
            kind, number = told.get("image_id", told["type"]), told["series_id"]
        found.append(kind if current in (None, number) else (number, kind))
    return found


def decode(parts, format):
    return (dectris1 if format == "legacy" else dectris2).decode(parts)


# --- HTTP ------------------------------------------------------------------------------------------------------------


def test_a_parameter_is_refused_once(unit):
    dcu, client, _, _ = unit
    dcu.fail(Failures(refuse="config/count_time"))
    client.set(nimages=2)
    assert client.value("detector/config/count_time")  # reading is fine
    answer = client.put("detector/config/count_time", 0.1)
    assert answer.status_code == 400 and answer.headers["content-type"].startswith("text/plain")
    client.set(count_time=0.1)
    assert dcu.happened == ["refuse /detector/api/1.8.0/config/count_time"]


def test_an_error_500_once(unit):
    dcu, client, _, _ = unit
    dcu.fail(Failures(server_error="command/arm"))
    assert client.put("detector/command/arm").status_code == 500
    assert client.state == "idle"
    client.command("arm")
    client.command("disarm")


def test_a_request_hangs_once_and_others_go_on(unit):
    dcu, client, _, _ = unit
    dcu.fail(Failures(hang="status/temperature", hang_seconds=30))
    with pytest.raises(httpx.ReadTimeout):
        client.http.get(client.url("detector/status/temperature"), timeout=0.2)
    assert client.value("detector/status/temperature") == 23.4


def test_the_connection_drops_during_a_trigger_and_the_exposure_goes_on(unit):
    dcu, client, puller, format = unit
    dcu.fail(Failures(drop_connection="command/trigger", drop_after=0.05))
    client.set(nimages=3, count_time=0.1, frame_time=0.1)
    client.command("arm")
    begun = time.monotonic()
    with pytest.raises(httpx.TransportError):
        client.put("detector/command/trigger")
    assert time.monotonic() - begun < 0.25
    assert client.state == "acquire"
    client.wait_state("idle")
    client.command("disarm")
    assert numbers(puller.rest(), format) == ["start", 0, 1, 2, "end"]


def test_failures_by_http(unit):
    dcu, client, _, _ = unit
    answer = client.http.post("/simulator/failures", json={"lose": [1], "server_error": "status/state"})
    assert answer.json()["pending"] == {"lose": [1], "server_error": "status/state"}
    assert client.http.get(client.url("detector/status/state")).status_code == 500
    assert client.http.get("/simulator/failures").json() == {
        "pending": {"lose": [1]},
        "happened": ["server_error /detector/api/1.8.0/status/state"],
    }
    client.http.post("/simulator/failures", json={})
    assert client.http.get("/simulator/failures").json()["pending"] == {}


@pytest.mark.parametrize("told", [{"x": 1}, {"stale": 1.5}, {"no_end": 1}, {"error_at": "1"}, {"lose": [True]}])
def test_failures_that_cannot_be(told):
    with pytest.raises(ConfigError):
        Failures.from_json(told)


# --- states ----------------------------------------------------------------------------------------------------------


def test_an_error_at_once(unit):
    dcu, client, _, _ = unit
    dcu.fail(Failures(error="Module 3 does not answer"))
    assert client.state == "error" and client.value("detector/status/error") == ["Module 3 does not answer"]
    assert client.put("detector/command/arm").status_code == 400
    assert client.command("disarm") and client.state == "error"
    client.command("initialize")
    assert client.state == "idle" and client.value("detector/status/error") == []


def test_an_error_in_the_middle_of_a_series(unit):
    dcu, client, puller, format = unit
    dcu.fail(Failures(error="high voltage lost", error_at=2))
    client.set(nimages=50, count_time=0.02, frame_time=0.02)
    client.command("arm")
    begun = time.monotonic()
    client.command("trigger")
    assert time.monotonic() - begun < 0.9  # it does not wait for 50 images
    assert client.state == "error"
    assert numbers(puller.rest(), format) == ["start", 0, 1]
    client.command("disarm")
    assert numbers(puller.rest(), format) == ["end"]
    client.command("initialize")


def test_an_arm_that_takes_long(unit):
    dcu, client, _, _ = unit
    dcu.fail(Failures(arm_seconds=0.3))
    begun = time.monotonic()
    client.command("arm")
    assert time.monotonic() - begun > 0.29
    client.command("disarm")


def test_a_restart_at_once(unit):
    dcu, client, _, format = unit
    client.command("arm")
    dcu.fail(Failures(restart=True))
    with pytest.raises(httpx.TransportError):
        client.state  # noqa: B018
    came_back(client)
    client.command("initialize")
    client.stream(format)


def came_back(client, limit=5.0):
    end = time.monotonic() + limit
    while time.monotonic() < end:
        try:
            assert client.state == "na"
            return
        except httpx.TransportError:
            time.sleep(0.01)
    pytest.fail("it did not come back")


def test_a_restart_in_the_middle_of_a_series(unit):
    dcu, client, puller, format = unit
    dcu.fail(Failures(restart_at=2))
    client.set(nimages=50, count_time=0.02, frame_time=0.02)
    client.command("arm")
    with pytest.raises(httpx.TransportError):
        client.command("trigger")
    came_back(client)
    found = numbers(puller.rest(), format)
    assert found in (["start", 0, 1], ["start", 0], ["start"])  # no end message; the last may be lost with the socket
    assert client.put("detector/command/arm").status_code == 400
    assert client.value("stream/config/mode") == "disabled"
    client.command("initialize")
    client.stream(format)


def test_too_few_edges(unit):
    dcu, client, puller, format = unit
    dcu.fail(Failures(skip_edges=2))
    client.set(trigger_mode="exts", ntrigger=5, count_time=0.004, frame_time=0.004)
    client.command("arm")
    dcu.edge(5)
    assert numbers(puller.rest(), format) == ["start", 0, 1, 2]
    assert client.state == "ready"
    client.command("disarm")
    assert numbers(puller.rest(), format) == ["end"] and client.state == "idle"
    client.set(trigger_mode="ints", ntrigger=1)


# --- images ----------------------------------------------------------------------------------------------------------


def test_an_image_is_lost(unit):
    dcu, *_, format = unit
    dcu.fail(Failures(lose=[1]))
    assert numbers(unit_series(unit), format) == ["start", 0, 2, "end"]
    assert [n for n, _ in dcu.sent] == [0, 2] and dcu.happened == ["lose 1"]


def test_an_image_comes_twice(unit):
    dcu, *_, format = unit
    dcu.fail(Failures(duplicate=[1]))
    messages = unit_series(unit)
    assert numbers(messages, format) == ["start", 0, 1, 1, 2, "end"]
    assert messages[2] == messages[3]


def test_two_images_change_places(unit):
    dcu, *_, format = unit
    dcu.fail(Failures(reorder=[0, 2]))
    assert numbers(unit_series(unit, 4), format) == ["start", 1, 0, 3, 2, "end"]


def test_the_last_image_cannot_change_places_and_is_not_lost(unit):
    dcu, *_, format = unit
    dcu.fail(Failures(reorder=[2]))
    assert numbers(unit_series(unit), format) == ["start", 0, 1, 2, "end"]


def test_stale_images_come_first(unit):
    dcu, _, _, format = unit
    for current, former in ((1, 41), (2, 1)):
        dcu.fail(Failures(stale=2))
        found = numbers(unit_series(unit), format, current)
        assert found == [(former, 0), (former, 1), "start", 0, 1, 2, "end"]


def test_no_end_message(unit):
    dcu, client, puller, format = unit
    dcu.fail(Failures(no_end=True))
    series(client)
    assert numbers(puller.rest(), format) == ["start", 0, 1, 2]


def test_a_damaged_blob(unit):
    dcu, *_, format = unit
    dcu.fail(Failures(corrupt=[1]))
    _, *images, _ = unit_series(unit)
    frames = [decode(parts, format) for parts in images]
    for k, frame in enumerate(frames):
        if k == 1:
            with pytest.raises(StreamError):
                decompress(frame.codec, frame.data, frame.shape, frame.dtype)
        else:
            decompress(frame.codec, frame.data, frame.shape, frame.dtype)


@pytest.mark.parametrize("fault", ["wrong_size", "missing_part"])
def test_a_message_that_contradicts_itself(unit, fault):
    dcu, *_, format = unit
    dcu.fail(Failures(**{fault: [1]}))
    _, *images, _ = unit_series(unit)
    assert numbers(images, format) == [0, 1, 2]
    decode(images[0], format)
    with pytest.raises(StreamError):
        decode(images[1], format)
    decode(images[2], format)
    if format == "legacy" and fault == "wrong_size":
        assert json.loads(images[1][1])["size"] == len(images[1][2]) + 1


def test_a_full_queue(unit):
    dcu, client, _, format = unit
    dcu.fail(Failures(full_queue=2))
    assert numbers(unit_series(unit), format) == ["start", 2, "end"]
    assert client.value("stream/status/dropped") == 2


def test_another_type_of_images_for_one_series(unit):
    dcu, client, _, format = unit
    found = []
    for depth in (0, 32, 0):
        dcu.fail(Failures(bit_depth=depth))
        messages = unit_series(unit)
        found.append(decode(messages[1], format).dtype)
    assert found == ["uint16", "uint32", "uint16"]


def test_images_come_late_after_an_abort(unit):
    dcu, client, puller, format = unit
    dcu.fail(Failures(late=2, late_seconds=0.15))
    client.set(nimages=1000, count_time=0.05, frame_time=0.05)
    client.command("arm")
    thread = threading.Thread(target=client.command, args=("trigger",))
    thread.start()
    puller.messages(2)
    client.command("abort")
    thread.join()
    first = puller.until(end1 if format == "legacy" else end2, 1.0)
    assert client.state == "idle"
    late = numbers(puller.messages(2, 1.0), format)
    last = numbers(first, format)[-2:]
    assert last[-1] == "end" and len(late) == 2 and late[1] == late[0] + 1
    client.set(nimages=1)
    dcu.fail(Failures())


def test_late_images_do_not_disturb_the_next_series(unit):
    dcu, client, puller, format = unit
    dcu.fail(Failures(late=2, late_seconds=0.1))
    client.set(nimages=1000, count_time=0.05, frame_time=0.05)
    client.command("arm")
    thread = threading.Thread(target=client.command, args=("trigger",))
    thread.start()
    puller.messages(2)
    client.command("abort")
    thread.join()
    puller.until(end1 if format == "legacy" else end2, 1.0)
    client.set(nimages=5)
    client.command("arm")
    client.command("trigger")
    client.command("disarm")
    found = numbers(puller.until(end1 if format == "legacy" else end2), format, 2)
    ours = [number for number in found if not isinstance(number, tuple)]
    assert ours == ["start", 0, 1, 2, 3, 4, "end"]
    assert [number[0] for number in found if isinstance(number, tuple)] == [1, 1]
    assert [number for number, _ in dcu.sent] == [0, 1, 2, 3, 4]
    dcu.fail(Failures())


def test_a_unit_that_starts_uninitialised_and_fails_from_the_start():
    with running(state="na") as (dcu, client, v1, _):
        dcu.fail(Failures(refuse="command/initialize"))
        assert client.put("detector/command/initialize").status_code == 400
        assert client.state == "na"
        client.command("initialize")
        client.stream("legacy")
        series(client)
        assert isinstance(dectris1.decode(v1.until(end1)[-1]), SeriesEnd)


def test_a_mistake_of_the_simulator_is_an_error_and_no_hang(caplog):
    with running() as (dcu, client, *_):
        client.stream("legacy")
        client.command("arm")
        dcu.unit._sender.end = None  # what no client can do
        client.command("disarm")
        assert client.state == "error" and "simulator" in client.value("detector/status/error")[0]
    assert "has failed" in caplog.text
