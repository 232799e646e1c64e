"""The way to a control unit: what is repeated and what is not, whose words an error has, what a write reads back."""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from tangods_detector.hw import eiger_arrays
from tangods_detector.hw.base import Phase
from tangods_detector.hw.eiger_series import Plan, Request, Run
from tangods_detector.hw.eiger_unit import Unit, Value
from tangods_detector.hw.rest import Connection, Refused, Unreachable
from tangods_detector.settings import Settings, TriggerMode
from tangods_detector.simulators.eiger import tiff
from tangods_receiver.errors import ConfigError, HardwareError
from tests.contract import wait_for

COUNT_TIME = {"value": 0.5, "value_type": "float", "access_mode": "rw", "min": 1e-7, "max": 3600.0, "unit": "s"}


class Scripted:
    """Answers in turn, by path; the last one again and again. Remembers what was asked."""

    def __init__(self, **answers: Any) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self._answers: dict[str, list[Any]] = {}

    def on(self, path: str, *answers: Any) -> Scripted:
        self._answers[path] = list(answers)
        return self

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        self.asked.append((request.method, request.url.path, body))
        answers = self._answers.get(request.url.path)
        if not answers:
            return httpx.Response(404, text=f"no such path: {request.url.path}")
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx.Response):
            return answer
        return httpx.Response(200, json=answer)

    def count(self, path: str) -> int:
        return sum(1 for _, asked, _ in self.asked if asked == path)


def connection(server: Callable[[httpx.Request], httpx.Response]) -> Connection:
    return Connection("dcu", 80, 0.3, httpx.MockTransport(server))


def unit(server: Scripted, api: str = "1.8.0") -> Unit:
    return Unit(connection(server), api)


# --- the connection -------------------------------------------------------------------------------------------------


def test_the_units_own_words_are_passed_on() -> None:
    server = Scripted().on("/x", httpx.Response(400, text=" nimages must be 1 \n"))
    with pytest.raises(Refused) as caught:
        connection(server).put("/x", 3)
    assert str(caught.value) == "PUT http://dcu/x: 400 nimages must be 1"
    assert (caught.value.status, caught.value.words, len(server.asked)) == (400, "nimages must be 1", 1)


def test_a_busy_unit_is_asked_once_more_but_never_for_a_command() -> None:
    server = Scripted().on("/x", httpx.Response(503, text="busy"), {"value": 1})
    assert connection(server).read("/x") == {"value": 1}
    server.on("/x", httpx.Response(503, text="busy"), {"value": 1})
    with pytest.raises(Refused, match="503 busy"):
        connection(server).command("/x")
    server.on("/x", httpx.Response(500, text="broken"))
    with pytest.raises(Refused, match="500 broken"):
        connection(server).put("/x", 1)


def test_a_kept_connection_that_had_gone_is_replaced_but_a_command_is_not_sent_twice() -> None:
    gone = httpx.RemoteProtocolError("Server disconnected without sending a response.")
    server = Scripted().on("/x", gone, [])
    assert connection(server).put("/x", 1) == []
    server.on("/x", gone, {})
    with pytest.raises(Unreachable, match="disconnected"):
        connection(server).command("/x")
    assert server.count("/x") == 3


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (httpx.ConnectError("Connection refused"), "Connection refused"),
        (httpx.ReadTimeout(""), "no answer within 0.3 s"),
        (httpx.ConnectTimeout(""), "no answer within 0.3 s"),
        (httpx.ReadError(""), "ReadError"),
    ],
)
def test_no_answer_is_something_else_than_a_bad_one(error: Exception, words: str) -> None:
    with pytest.raises(Unreachable, match=words) as caught:
        connection(Scripted().on("/x", error)).read("/x")
    assert not isinstance(caught.value, Refused) and "GET http://dcu/x" in str(caught.value)


def test_a_silent_unit_is_not_asked_again() -> None:
    server = Scripted().on("/x", httpx.ReadTimeout(""))
    with pytest.raises(Unreachable):
        connection(server).read("/x")
    assert server.count("/x") == 1


def test_something_else_than_a_control_unit() -> None:
    server = Scripted().on("/x", httpx.Response(200, text="<html>"))
    with pytest.raises(HardwareError, match="is this a SIMPLON control unit"):
        connection(server).read("/x")
    assert connection(server.on("/x", httpx.Response(200))).command("/x") is None


def test_what_trickles_in_has_a_limit_as_a_whole() -> None:
    def trickle() -> Iterator[bytes]:
        for _ in range(100):
            time.sleep(0.05)
            yield b"x"

    link = connection(
        Scripted().on("/x", httpx.Response(200, content=trickle())).on("/y", httpx.Response(408, text="no"))
    )
    begun = time.monotonic()
    with pytest.raises(Unreachable, match="GET http://dcu/x: not all of the answer within 0.2 s"):
        link.fetch("/x", 0.2)
    assert time.monotonic() - begun < 1
    with pytest.raises(Refused, match="GET http://dcu/y: 408 no"):
        link.fetch("/y", 0.2)


def test_who_waits_for_a_connection_that_is_taken_is_told_so() -> None:
    freed, entered = threading.Event(), threading.Event()

    def slow(request: httpx.Request) -> httpx.Response:
        entered.set()
        freed.wait(5)
        return httpx.Response(200, json={})

    line = connection(slow)
    thread = threading.Thread(target=line.command, args=("/trigger",))
    thread.start()
    entered.wait(5)
    try:
        with pytest.raises(Unreachable, match="earlier request"):
            line.read("/state", 0.05)
    finally:
        freed.set()
        thread.join()
    line.close()
    with pytest.raises(Unreachable):
        line.read("/state")


# --- keys ------------------------------------------------------------------------------------------------------------


def keys(server: Scripted, *names: str) -> Scripted:
    server.on("/detector/api/1.8.0/config/keys", {"value": list(names), "value_type": "string[]"})
    for name in names:
        server.on(f"/detector/api/1.8.0/config/{name}", dict(COUNT_TIME))
    return server


def test_the_version_is_asked_unless_it_is_given() -> None:
    server = Scripted().on("/detector/api/version/", {"value": "1.6.0", "value_type": "string"})
    found = unit(server, "")
    found.discover()
    assert found.path("detector/config/threshold/1/energy") == "/detector/api/1.6.0/config/threshold/1/energy"
    given = unit(server, "1.8.0")
    given.discover()
    assert (given.api, len(server.asked)) == ("1.8.0", 1)


@pytest.mark.parametrize("key", ["", "count_time", "detector/count_time", "detector/secret/x"])
def test_what_is_no_key(key: str) -> None:
    with pytest.raises(ConfigError, match="is no key"):
        unit(Scripted()).path(key)


def test_everything_that_a_write_changes_is_read_back_but_no_arrays_and_no_invented_names() -> None:
    server = keys(Scripted(), "count_time", "frame_time", "flatfield")
    path = "/detector/api/1.8.0/config/"
    changed = ["count_time", "frame_time", "flatfield", "difference_mode"]
    server.on(f"{path}count_time", dict(COUNT_TIME), changed, {**COUNT_TIME, "value": 0.1})
    found = unit(server)
    assert found.set("detector/config/count_time", 0.1)
    assert found.get("detector/config/count_time") == 0.1
    assert "detector/config/frame_time" in found
    assert server.count(f"{path}frame_time") == 1
    assert server.count(f"{path}flatfield") == server.count(f"{path}difference_mode") == 0


def test_what_is_so_already_is_not_written() -> None:
    path = "/detector/api/1.8.0/config/photon_energy"
    server = Scripted().on(path, {"value": 8000.0, "value_type": "float"})
    found = unit(server)
    assert not found.set("detector/config/photon_energy", 8000)
    assert not found.set("detector/config/photon_energy", 8000.04, tolerance=0.05)
    assert server.count(path) == 1
    server.on(path, [], {"value": 8000.1, "value_type": "float"})
    assert found.set("detector/config/photon_energy", 8000.12, tolerance=0.05)
    assert not found.set("detector/config/photon_energy", 8000.12), "the unit has made 8000.1 of it, once is enough"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1e-9, "1e-09 is not between 1e-07 and 3600 s"),
        (4000, "4000 is not between"),
        ("long", "'long' is not float"),
        (float("nan"), "nan is no number"),
    ],
)
def test_what_is_outside_the_limits_is_refused_before_the_unit_is_asked(value: Any, words: str) -> None:
    server = keys(Scripted(), "count_time")
    with pytest.raises(ConfigError, match=words):
        unit(server).set("detector/config/count_time", value)
    assert all(method == "GET" for method, _, _ in server.asked)


def test_lists_of_values_and_keys_that_are_read_only() -> None:
    mode = Value.of({"value": "ints", "value_type": "string", "allowed_values": ["ints", "exts"]}, "trigger_mode")
    assert mode.refusal("ints") == ""
    assert mode.refusal("soft") == "'soft' is not one of ints, exts"
    depth = Value.of({"value": 16, "value_type": "uint", "access_mode": "r"}, "bit_depth_image")
    assert depth.refusal(16) == "can only be read"
    with pytest.raises(HardwareError, match="has no value"):
        Value.of(["ints"], "trigger_mode")


def test_values_have_the_type_of_their_key() -> None:
    assert Value(1, "float").converted(2) == 2.0 and type(Value(1, "float").converted(2)) is float
    assert Value(True, "bool").converted(0) is False
    assert Value(1, "bool").converted(False) == 0 and type(Value(1, "bool").converted(False)) is int, "API 1.6"
    assert type(Value(1, "uint").converted(3.0)) is int


def test_what_the_unit_refuses_is_the_users_to_mend_and_a_breakdown_is_not() -> None:
    path = "/detector/api/1.8.0/config/nimages"
    told = {"value": 1, "value_type": "uint"}
    with pytest.raises(ConfigError, match="400 not in mode inte"):
        unit(Scripted().on(path, told, httpx.Response(400, text="not in mode inte"))).set("detector/config/nimages", 2)
    with pytest.raises(Refused, match="500"):
        unit(Scripted().on(path, told, httpx.Response(500, text="oh"))).set("detector/config/nimages", 2)


def test_lists_of_keys() -> None:
    found = unit(keys(Scripted(), "count_time", "threshold/1/energy"))
    assert found.has("detector/config/threshold/1/energy") and not found.has("detector/config/threshold/2/energy")
    assert found.has("detector/config/wavelength"), "there, although it is not listed"
    assert not found.has("stream/config/format"), "no list at all"
    assert found.first("detector/config/threshold/2/energy", "detector/config/count_time").endswith("count_time")
    assert found.names("detector/config", "thr") == ["detector/config/threshold/1/energy"]


# --- triggers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "plan"),
    [
        (TriggerMode.INTERNAL, Plan("ints", 3, 4, True)),
        (TriggerMode.SOFTWARE, Plan("ints", 3, 4, True)),
        (TriggerMode.EXTERNAL_SINGLE, Plan("exts", 12, 1, False)),
        (TriggerMode.EXTERNAL_MULTI, Plan("exts", 3, 4, False)),
        (TriggerMode.EXTERNAL_GATE, Plan("exte", 1, 12, False)),
    ],
)
def test_trigger_modes(mode: TriggerMode, plan: Plan) -> None:
    assert Plan.of(Settings(trigger_mode=mode, n_triggers=4, n_frames_per_trigger=3)) == plan


def test_free_exposures_take_single_frames() -> None:
    single = Settings(trigger_mode=TriggerMode.SOFTWARE, n_triggers=4)
    assert Plan.of(single, own_exposure=True) == Plan("inte", 1, 4, True)
    with pytest.raises(ConfigError, match="nFramesPerTrigger 2"):
        Plan.of(Settings(trigger_mode=TriggerMode.SOFTWARE, n_frames_per_trigger=2), own_exposure=True)
    assert Plan.of(Settings(), live=True).nimages > 1e9


def test_one_image_is_written_before_the_mode_that_needs_it_and_the_mode_before_more_images() -> None:
    gate, single = Plan("exte", 1, 5, False), Plan("exts", 7, 1, False)
    assert [name for name, _ in gate.writes("ints")] == ["nimages", "ntrigger", "trigger_mode"]
    assert [name for name, _ in single.writes("exte")] == ["trigger_mode", "nimages", "ntrigger"]
    assert [name for name, _ in gate.writes("inte")] == ["trigger_mode", "nimages", "ntrigger"]


def series(mode: TriggerMode, fire: Callable[[float], None], triggers: int = 2, each: int = 3) -> Run:
    settings = Settings(trigger_mode=mode, n_triggers=triggers, n_frames_per_trigger=each)
    return Run(Plan.of(settings), settings, fire)


def test_all_triggers_of_an_internal_series_are_sent() -> None:
    fired: list[float] = []
    run = series(TriggerMode.INTERNAL, fired.append, triggers=5)
    assert run.status.phase is Phase.ARMED
    run.begin()
    wait_for("the end", lambda: run.status.phase is Phase.DONE)
    assert (len(fired), run.status.frames, run.status.triggers) == (5, 15, 5)
    assert run.leave(1)


def test_a_software_trigger_is_refused_until_the_last_has_returned() -> None:
    go = threading.Semaphore(0)
    run = series(TriggerMode.SOFTWARE, lambda exposure: bool(go.acquire(timeout=5)) or None)
    with pytest.raises(HardwareError, match="none is waited for"):
        run.trigger(0.0)
    run.begin()
    run.trigger(0.0)
    wait_for("the trigger", lambda: run.status.triggers == 1)
    with pytest.raises(HardwareError, match="busy with trigger 1"):
        run.trigger(0.0)
    run.came = 3
    assert run.status.frames == 2, "the last is not told before its trigger has returned: the next would be refused"
    go.release()
    wait_for("its frames", lambda: run.status.frames == 3)
    run.trigger(0.0)
    go.release()
    wait_for("the end", lambda: run.status.phase is Phase.DONE)
    with pytest.raises(HardwareError, match="none is waited for"):
        run.trigger(0.0)
    assert run.leave(1)


def test_external_series_are_counted_by_what_came_or_ended_by_the_unit() -> None:
    run = series(TriggerMode.EXTERNAL_MULTI, lambda exposure: None)
    run.begin()
    run.came = 4
    assert (run.status.frames, run.status.triggers, run.status.phase) == (4, 2, Phase.ACQUIRING)
    run.finished = True
    assert run.status.phase is Phase.DONE
    run.finished, run.came = False, 6
    assert run.status.phase is Phase.DONE


def test_a_trigger_that_fails_is_the_end_unless_it_was_stopped() -> None:
    def refuse(exposure: float) -> None:
        raise HardwareError("trigger: 400 not armed")

    run = series(TriggerMode.INTERNAL, refuse)
    run.begin()
    wait_for("the failure", lambda: run.status.phase is Phase.ERROR)
    assert run.status.message == "trigger: 400 not armed"
    stopped = series(TriggerMode.SOFTWARE, refuse)
    stopped.begin()
    stopped.stop()
    assert stopped.leave(1) and stopped.status.phase is Phase.IDLE


def test_a_question_that_nobody_waits_for_is_followed_up() -> None:
    go, late = threading.Event(), threading.Event()
    request = Request(lambda: bool(go.wait(5)))
    request.start()
    assert not request.leave(0.02, late.set)
    go.set()
    assert late.wait(2)
    request.join()
    quick = Request(lambda: 7)
    late.clear()
    quick.start()
    assert quick.leave(2, late.set) and quick.result() == 7
    time.sleep(0.02)
    assert not late.is_set()


# --- arrays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["npy", "tif"])
@pytest.mark.parametrize("dtype", ["<u4", "<f4"])
def test_arrays_there_and_back(tmp_path: Any, suffix: str, dtype: str) -> None:
    array = np.arange(12, dtype=dtype).reshape(3, 4)
    sent = eiger_arrays.to_json(array, dtype)
    assert sent["shape"] == [3, 4]
    path = str(tmp_path / f"mask.{suffix}")
    eiger_arrays.save(path, eiger_arrays.from_json(sent))
    np.testing.assert_array_equal(eiger_arrays.load(path), array)


def test_what_is_no_array(tmp_path: Any) -> None:
    for answer in (None, {}, {"__darray__": [1], "filters": ["base64"], "type": "<u4", "shape": [2], "data": "AAAA"}):
        with pytest.raises(HardwareError, match="makes no sense"):
            eiger_arrays.from_json(answer)
    for path, words in (("mask.h5", "must end in"), (str(tmp_path / "none.npy"), "No such file")):
        with pytest.raises(ConfigError, match=words):
            eiger_arrays.load(path)
    np.save(tmp_path / "line.npy", np.zeros(3))
    with pytest.raises(ConfigError, match="1 dimensions"):
        eiger_arrays.load(str(tmp_path / "line.npy"))
    with pytest.raises(ConfigError, match="must end in"):
        eiger_arrays.save("mask.txt", np.zeros((2, 2)))


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_an_image_of_the_monitor(dtype: str) -> None:
    image = np.arange(12, dtype=dtype).reshape(3, 4)
    image[1, 2] = np.iinfo(dtype).max
    decoded = eiger_arrays.from_tiff(tiff.encode(image))
    assert decoded.dtype == image.dtype
    np.testing.assert_array_equal(decoded, image)


@pytest.mark.filterwarnings("ignore:.*EXIF:UserWarning")  # what Pillow calls a damaged list of tags
def test_what_is_no_image() -> None:
    good = tiff.encode(np.arange(12, dtype="u4").reshape(3, 4))
    width, wider = (struct.pack("<HHII", 256, 4, 1, columns) for columns in (4, 400))
    assert width in good
    real = tiff.encode(np.zeros((3, 4), "f4"))
    for data in (b"", b"GIF89a", good[:10], good[:30], good[:60], good.replace(width, wider), real):
        with pytest.raises(HardwareError, match="image of the control unit makes no sense"):
            eiger_arrays.from_tiff(data)
