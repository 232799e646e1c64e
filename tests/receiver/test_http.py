"""The HTTP side over real sockets."""

import base64
import contextlib
import io
import json
import math
import re
import signal
import socket
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from tangods_receiver import http
from tangods_receiver.errors import ConfigError, StreamError
from tangods_receiver.http import HttpServer, encode_png
from tangods_receiver.metrics import COUNTERS
from tangods_receiver.protocol import SeriesStart
from tangods_receiver.remote import RemoteEngine
from tangods_receiver.stats import Loss, Past, Shares, Snapshot, WorkerStats
from tests.waiting import wait_for


@dataclass
class Shot:
    number: int
    series: int
    array: np.ndarray
    timestamp: float = math.nan
    frames: int = 1
    masked: np.ndarray | None = None
    again: int = 0

    @property
    def id(self):
        return self.series, self.number, self.again


@dataclass
class Engine:
    """Answers like an engine."""

    now: Snapshot = Snapshot(state="running", series=3, received=12, written=11, repeated=1, opened=3, closed=2)
    shot: Shot | None = None
    calls: list = field(default_factory=list)
    refuse: Exception | None = None
    block: threading.Event | None = None
    past: list = field(default_factory=list)
    start: SeriesStart | None = None
    asked: list = field(default_factory=list)

    def snapshot(self):
        return self.now

    def stop(self, series=None):
        if self.refuse:
            raise self.refuse
        self.calls.append(("stop", series))

    def reset(self):
        self.calls.append(("reset",))

    def check(self, path, nbytes, overwrite=False):
        if self.block:
            self.block.wait(20)
        return "" if path == "/data/a.h5" else f"{path} for {nbytes} bytes: outside the root"

    def begin(self, filename, nframes=None, metadata=None):
        self.calls.append(("begin", filename, nframes, metadata))
        return 8

    def history(self):
        return self.past

    def announced(self, series):
        return self.start

    def silence(self):
        return 0.0

    def last_frame(self, kind="last", newer_than=None, wait=0.0, channel=0):
        self.asked.append((kind, channel))
        shot = self.shot
        if shot is None or (shot.series, shot.number) == newer_than:
            if wait:
                time.sleep(min(wait, 0.02))
            return None
        return shot


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def token_file(tmp_path):
    return tmp_path / "token"


@pytest.fixture
def client(engine, token_file):
    """It has the token."""
    with HttpServer(engine, "127.0.0.1:0", (), token_file) as server:
        headers = {"Authorization": f"Bearer {token_file.read_text().strip()}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", headers=headers) as client:
            yield client


def test_status_is_the_whole_snapshot(client, engine):
    assert client.get("/status").json() == engine.now.as_dict()


def test_received_frames(client):
    assert client.get("/received_frames").json() == {"value": 12}


def test_check_answers_with_a_sentence_or_nothing(client):
    assert client.get("/check", params={"path": "/data/a.h5", "nbytes": 10}).json() == {"value": ""}
    assert client.get("/check", params={"path": "/etc/x"}).json() == {"value": "/etc/x for 0 bytes: outside the root"}


@pytest.mark.parametrize(
    ("path", "params", "words"),
    [
        ("/check", {}, "query.path: Field required"),
        ("/check", {"path": "a", "nbytes": -1}, "query.nbytes: Input should be greater than or equal to 0"),
        ("/check", {"path": "a", "nbytes": "many"}, "query.nbytes: Input should be a valid integer"),
        ("/last_frame", {"format": "pickle"}, "query.format: Input should be 'npy', 'png', 'jpeg' or 'raw'"),
        ("/last_frame", {"region": "1,2,3"}, "query.region: String should match pattern"),
        ("/last_frame", {"size": "0x"}, "query.size: String should match"),
        ("/last_frame", {"newer": "5"}, "query.newer: String should match"),
        ("/last_frame", {"colormap": "jet"}, "query.colormap: Input should be 'grey', 'grey_r'"),
        ("/last_frame", {"downsample": 0}, "query.downsample: Input should be greater than or equal to 1"),
        ("/last_frame", {"min": "nan"}, "query.min: Input should be a finite number"),
        ("/last_frame", {"wait": 1e9}, "query.wait: Input should be less than or equal to 60"),
        ("/pixel", {"row": -1, "column": 0}, "query.row: Input should be greater than or equal to 0"),
    ],
)
def test_a_wrong_question_gets_a_sentence(client, path, params, words):
    reply = client.get(path, params=params)
    assert reply.status_code == 422
    assert words in reply.json()["error"]


def test_an_unknown_page_and_a_wrong_method(client):
    reply = client.get("/nowhere")
    assert (reply.status_code, reply.json()) == (404, {"error": "GET /nowhere: Not Found"})
    assert client.get("/stop").json() == {"error": "GET /stop: Method Not Allowed"}


def test_stop_and_reset(client, engine):
    assert client.post("/stop", json={"series": 41}).json()["series"] == 3
    assert client.post("/stop", json={}).status_code == 200
    assert client.post("/stop").status_code == 200
    assert client.post("/reset").json()["state"] == "running"
    assert engine.calls == [("stop", 41), ("stop", None), ("stop", None), ("reset",)]
    assert client.post("/stop", json={"series": "x"}).status_code == 422
    assert client.post("/stop", content=b"{{{", headers={"content-type": "application/json"}).status_code == 422


@pytest.mark.parametrize(("error", "code"), [(ConfigError("set root"), 400), (StreamError("the sender"), 503)])
def test_what_the_engine_refuses_is_said(client, engine, error, code):
    engine.refuse = error
    reply = client.post("/stop")
    assert (reply.status_code, reply.json()) == (code, {"error": str(error), "reason": type(error).__name__})


def test_no_image_yet(client):
    reply = client.get("/last_frame")
    assert (reply.status_code, reply.json()) == (404, {"error": "no image has been received yet"})


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int32", "float32"])
def test_last_image_as_numpy(client, engine, dtype):
    engine.shot = Shot(7, 3, np.arange(12, dtype=dtype).reshape(3, 4), 1.5)
    reply = client.get("/last_frame")
    array = np.load(io.BytesIO(reply.content), allow_pickle=False)
    np.testing.assert_array_equal(array, engine.shot.array)
    assert array.dtype == dtype
    assert (reply.headers["X-Frame"], reply.headers["X-Series"], reply.headers["X-Timestamp"]) == ("7", "3", "1.5")


def test_last_image_as_png(client, engine):
    image = np.full((30, 40), 10, np.uint16)
    image[5, 6] = 65535  # masked
    image[20:25, 10:20] = 1000
    engine.shot = Shot(7, 3, image, math.nan)
    reply = client.get("/last_frame", params={"format": "png"})
    assert reply.headers["content-type"] == "image/png"
    assert reply.headers["X-Timestamp"] == "nan"
    grey = np.asarray(Image.open(io.BytesIO(reply.content)))
    assert grey.shape == (30, 40)
    assert (grey[5, 6], grey[0, 0], grey[22, 15]) == (0, 0, 255)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint16),
        np.full((4, 4), 65535, np.uint16),
        np.full((4, 4), 255, np.uint8),
        np.full((4, 4), -1, np.int32),
        np.full((4, 4), np.nan, np.float32),
        np.ones((2, 4, 4), np.int16),
        np.full((1, 1), np.inf, np.float64),
        np.eye(700, dtype=np.float32) * np.finfo(np.float32).max,
    ],
)
def test_any_image_can_be_shown(array):
    grey = np.asarray(Image.open(io.BytesIO(encode_png(array))))
    assert grey.dtype == np.uint8
    assert grey.size == array.size


def metrics(client, **headers) -> dict[tuple[str, ...], float]:
    """(name, label values in the order of their names) -> value."""
    reply = client.get("/metrics", headers=headers)
    assert reply.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(reply.text)
    samples = [sample for family in families for sample in family.samples]
    found = {(s.name, *(s.labels[key] for key in sorted(s.labels))): s.value for s in samples}
    assert len(found) == len(samples)
    return found


def test_metrics_of_the_series_and_of_each_worker(client, engine):
    engine.now = replace(
        engine.now,
        workers=(
            WorkerStats(
                0,
                received=70,
                written=60,
                repeated=10,
                bytes=600,
                received_bytes=700,
                waiting=3.5,
                now=Shares(0.5),
                behind=1.5,
            ),
            WorkerStats(1, received=7, written=7, batches=3, full=2, batch_size=2.5),
        ),
        lost=(Loss("late", 4, "image 3 came after the end"),),
        missing_total=5,
        commits=20,
        commit_seconds=0.5,
        commit_time=0.02,
        longest_commit=0.04,
    )
    now = metrics(client)
    assert now["stream_receiver_frames_received",] == 12
    assert now["stream_receiver_state", "running"] == 1
    assert now["stream_receiver_state", "idle"] == now["stream_receiver_state", "error"] == 0
    assert now["stream_receiver_received_frames_total", "0"] == 70
    assert now["stream_receiver_written_frames_total", "1"] == 7
    assert now["stream_receiver_written_bytes_total", "0"] == 600
    assert now["stream_receiver_received_bytes_total", "0"] == 700
    assert now["stream_receiver_unwritten_frames_total", "repeated", "0"] == 10
    assert now["stream_receiver_missing_frames_total",] == 5
    assert now["stream_receiver_worker_seconds_total", "waiting", "0"] == 3.5
    assert now["stream_receiver_time_share", "waiting", "0"] == 0.5
    assert now["stream_receiver_behind_seconds", "0"] == 1.5
    assert now["stream_receiver_batches_total", "1"] == 3 and now["stream_receiver_full_batches_total", "1"] == 2
    assert now["stream_receiver_batch_size_frames", "1"] == 2.5
    assert (now["stream_receiver_commit_seconds_count",], now["stream_receiver_commit_seconds_sum",]) == (20, 0.5)
    assert now["stream_receiver_last_commit_seconds",] == 0.02
    assert now["stream_receiver_longest_commit_seconds",] == 0.04
    assert now["stream_receiver_anomalies", "late"] == 4
    assert math.isnan(now["stream_receiver_frames_expected",])
    assert now["process_resident_memory_bytes",] > 1e6


def test_every_metric_is_explained_and_counters_look_like_counters(client, engine):
    text = client.get("/metrics").text
    families = [family for family in text_string_to_metric_families(text) if family.name.startswith("stream_receiver")]
    assert len(families) > 25
    for family in families:
        assert family.type in ("counter", "gauge", "summary") and len(family.documentation) > 10, family.name
        assert text.count(f"# TYPE {family.name}") >= 1
    counters = {family.name for family in families if family.type == "counter"}
    assert {f"stream_receiver_{name}" for name, *_ in COUNTERS} <= counters


def test_one_snapshot_for_each_scrape(client, engine, monkeypatch):
    asked = []
    monkeypatch.setattr(engine, "snapshot", lambda: asked.append(1) or engine.now)
    with HttpServer(engine, "127.0.0.1:0") as server:
        asked.clear()
        httpx.get(f"http://127.0.0.1:{server.port}/metrics")
    assert len(asked) == 1


def test_openmetrics_for_who_asks_for_it(client):
    reply = client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert reply.headers["content-type"].startswith("application/openmetrics-text")
    assert reply.text.endswith("# EOF\n")


# --- the dashboard ---------------------------------------------------------------------------------------------------

DASHBOARD = json.loads((Path(__file__).parents[2] / "resources/grafana.json").read_text())


def test_the_dashboard_asks_only_for_metrics_that_exist(client, engine):
    engine.now = replace(engine.now, workers=(WorkerStats(0),), lost=(Loss("late", 1, "x"),))
    exist = {name for name, *_ in metrics(client)}
    asked = set()
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            asked |= set(re.findall(r"\b(?:stream_receiver|process)_\w+", target["expr"]))
    assert asked <= exist
    assert {f"stream_receiver_{name}_total" for name in ("received_frames", "written_bytes", "missing_frames")} <= asked


def test_the_dashboard_can_be_imported():
    """Into any Grafana: no data source of ours is named, every panel has its place and its own number."""
    assert DASHBOARD["title"] and DASHBOARD["schemaVersion"] >= 36 and DASHBOARD["id"] is None
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    for variable in variables.values():
        assert variable.get("datasource", {"uid": "${datasource}"})["uid"] == "${datasource}"
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 6
    taken = set()
    for panel in panels:
        assert panel["title"] and panel["type"] in ("timeseries", "stat", "state-timeline")
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] and target["refId"]
            assert "$instance" in target["expr"]
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24
        taken |= cells


def test_a_slow_answer_holds_nobody_up(engine, client):
    engine.block = threading.Event()
    with contextlib.ExitStack() as stack:
        asking = [threading.Thread(target=client.get, args=("/check?path=x",)) for _ in range(3)]
        for thread in asking:
            thread.start()
            stack.callback(thread.join)
        stack.callback(engine.block.set)
        assert client.get("/status").status_code == 200


def test_images_are_decoded_a_few_at_a_time(engine, client, monkeypatch):
    let_go, at_work = threading.Event(), []

    def last_frame(*_):
        at_work.append(1)
        let_go.wait(20)

    monkeypatch.setattr(engine, "last_frame", last_frame)
    with contextlib.ExitStack() as stack:
        asking = [threading.Thread(target=client.get, args=("/last_frame",)) for _ in range(4)]
        for thread in asking:
            thread.start()
            stack.callback(thread.join)
        stack.callback(let_go.set)
        wait_for(lambda: len(at_work) == 4)
        refused = client.get("/last_frame")
        assert refused.status_code == 503 and "ask again" in refused.json()["error"] and len(at_work) == 4
    assert client.get("/last_frame").status_code == 404


def test_it_ends_at_once_and_leaves_no_thread_and_no_port(engine):
    before = set(threading.enumerate())
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    server = HttpServer(engine, "127.0.0.1:0")
    server.start()
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    port = server.port
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        client.get("/status")  # and keeps the connection open
        began = time.monotonic()
        server.stop()
        server.stop()
        assert time.monotonic() - began < 1.0
    wait_for(lambda: set(threading.enumerate()) <= before)
    with HttpServer(engine, f"127.0.0.1:{port}") as again:
        assert again.port == port


def test_a_client_that_sends_half_a_request_does_not_delay_the_end(engine):
    server = HttpServer(engine, "127.0.0.1:0")
    server.start()
    with socket.create_connection(("127.0.0.1", server.port)) as half:
        half.sendall(b"POST /stop HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 1.5


@pytest.mark.parametrize("address", ["8000", "localhost", ":8000", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:70000"])
def test_an_address_that_is_none(engine, address):
    with pytest.raises(ConfigError, match="is not .host:port."):
        HttpServer(engine, address).start()


def test_a_port_that_is_taken(engine):
    with HttpServer(engine, "127.0.0.1:0") as server:
        with pytest.raises(ConfigError, match=r"in use; end what uses this port, or choose another"):
            HttpServer(engine, f"127.0.0.1:{server.port}").start()


def test_a_host_that_is_not_ours(engine):
    with pytest.raises(ConfigError, match="192.0.2.1:0"):
        HttpServer(engine, "192.0.2.1:0").start()


@pytest.mark.slow
def test_twenty_starts_leave_descriptors_as_they_were(engine):
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    with HttpServer(engine, "127.0.0.1:0"):
        pass
    before = open_files()
    for _ in range(20):
        with HttpServer(engine, "127.0.0.1:0") as server:
            httpx.get(f"http://127.0.0.1:{server.port}/status")
    assert open_files() <= before


# --- images in other forms -------------------------------------------------------------------------------------------


def ramp(rows=12, columns=16, dtype="uint16"):
    return np.arange(rows * columns).reshape(rows, columns).astype(dtype)


def load(reply):
    assert reply.status_code == 200, reply.text
    return np.load(io.BytesIO(reply.content), allow_pickle=False)


def test_a_region_made_smaller(client, engine):
    engine.shot = Shot(7, 3, ramp())
    reply = client.get("/last_frame", params={"region": "4,4,12,16", "downsample": 4, "method": "max"})
    np.testing.assert_array_equal(load(reply), ramp()[7::4, 7::4])
    assert (reply.headers["X-Region"], reply.headers["X-Factor"]) == ("4,4,12,16", "4")
    reply = client.get("/last_frame", params={"size": "6x8", "method": "sample"})
    np.testing.assert_array_equal(load(reply), ramp()[::2, ::2])
    reply = client.get("/last_frame", params={"size": "6"})
    assert load(reply).shape == (4, 5) and load(reply).dtype == np.float32


@pytest.mark.parametrize("dtype", ["uint16", ">u4", "uint64", "float64"])
def test_raw_pixels(client, engine, dtype):
    engine.shot = Shot(7, 3, ramp(2, 6, dtype).reshape(2, 2, 3))
    reply = client.get("/last_frame", params={"format": "raw"})
    assert reply.headers["content-type"] == "application/octet-stream"
    shape = tuple(map(int, reply.headers["X-Shape"].split(",")))
    assert shape == (2, 2, 3) and reply.headers["X-Dtype"][0] == "<"
    pixels = np.frombuffer(reply.content, reply.headers["X-Dtype"]).reshape(shape)
    np.testing.assert_array_equal(pixels, engine.shot.array)


def test_kind_and_channel_are_passed_on(client, engine):
    engine.shot = Shot(7, 3, ramp(), frames=12)
    reply = client.get("/last_frame", params={"kind": "sum", "channel": 2})
    assert reply.headers["X-Frames"] == "12" and engine.asked == [("sum", 2)]
    assert "query.kind" in client.get("/last_frame", params={"kind": "first"}).json()["error"]


@pytest.mark.parametrize("format", ["png", "jpeg"])
def test_a_picture_in_colours(client, engine, format):
    image = np.full((64, 64), 50, np.uint16)
    image[:32, :32], image[32:, 32:] = 0, 100
    image[32:, :32] = 65535
    engine.shot = Shot(7, 3, image)
    reply = client.get("/last_frame", params={"format": format, "colormap": "viridis", "min": 0, "max": 100})
    assert reply.headers["content-type"] == f"image/{format}"
    picture = np.asarray(Image.open(io.BytesIO(reply.content)).convert("RGB")).astype(int)
    expected = [(68, 1, 84), (253, 231, 37), (33, 145, 140), (32, 80, 16)]
    found = [picture[16, 16], picture[48, 48], picture[16, 48], picture[48, 16]]
    assert all(np.abs(a - b).max() <= (1 if format == "png" else 8) for a, b in zip(found, expected, strict=True))


def test_a_logarithmic_picture(client, engine):
    engine.shot = Shot(7, 3, np.array([[1, 10, 100]], np.uint16))
    reply = client.get("/last_frame", params={"format": "png", "log": 1, "min": 1, "max": 100})
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(reply.content))), [[0, 128, 255]])


def test_saturated_pixels_of_the_picture(client, engine):
    engine.shot = Shot(7, 3, ramp())
    params = {"format": "png", "colormap": "grey", "saturation": 191}
    picture = np.asarray(Image.open(io.BytesIO(client.get("/last_frame", params=params).content)))
    assert picture[11, 15].tolist() == [240, 160, 240] and picture[11, 14].tolist() != [240, 160, 240]
    engine.start = SeriesStart("a", metadata={"saturation_value": 190})
    params.pop("saturation")
    picture = np.asarray(Image.open(io.BytesIO(client.get("/last_frame", params=params).content)))
    assert picture[11, 14].tolist() == [240, 160, 240]


def test_only_what_is_newer(client, engine):
    engine.shot = Shot(7, 3, ramp())
    assert client.get("/last_frame", params={"newer": "3:7"}).status_code == 204
    assert client.get("/last_frame", params={"newer": "3:6"}).headers["X-Frame"] == "7"
    assert client.get("/last_frame", params={"newer": "2:7"}).headers["X-Frame"] == "7"
    began = time.monotonic()
    assert client.get("/last_frame", params={"newer": "3:7", "wait": 0.5}).status_code == 204
    assert time.monotonic() - began >= 0.5


def test_waiting_for_a_new_image_takes_nobodys_turn(client, engine):
    engine.shot = Shot(7, 3, ramp())
    replies = []
    asking = [
        threading.Thread(
            target=lambda: replies.append(client.get("/last_frame", params={"newer": "3:7", "wait": 20}, timeout=30))
        )
        for _ in range(9)
    ]
    for thread in asking:
        thread.start()
    try:
        time.sleep(0.3)
        assert client.get("/last_frame").headers["X-Frame"] == "7"
        assert not replies
    finally:
        engine.shot = Shot(8, 3, ramp())
        for thread in asking:
            thread.join()
    assert [reply.headers["X-Frame"] for reply in replies] == ["8"] * 9


def test_somebody_who_waits_does_not_delay_the_end(engine):
    server = HttpServer(engine, "127.0.0.1:0")
    server.start()
    with socket.create_connection(("127.0.0.1", server.port)) as waiting:
        waiting.sendall(b"GET /last_frame?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(0.2)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 1.5


def test_one_pixel(client, engine):
    assert client.get("/pixel", params={"row": 1, "column": 2}).status_code == 404
    engine.shot = Shot(7, 3, ramp())
    values = {"row": 1, "column": 2, "value": 18, "masked": False, "saturated": False, "series": 3, "number": 7}
    assert client.get("/pixel", params={"row": 1, "column": 2}).json() == values
    gone = client.get("/pixel", params={"row": 12, "column": 2})
    assert gone.status_code == 404 and "the image has 12 x 16 pixels" in gone.json()["error"]
    engine.shot = Shot(8, 3, np.full((2, 2), np.nan))
    assert client.get("/pixel", params={"row": 1, "column": 1}).json()["value"] is None
    engine.shot = Shot(9, 3, np.full((2, 2), 0.1), masked=np.ones((2, 2), bool))
    assert client.get("/pixel", params={"row": 1, "column": 1}).json() | {"masked": True, "value": 0.1} == {
        **{"row": 1, "column": 1, "value": 0.1, "masked": True, "saturated": False, "series": 3, "number": 9}
    }


def test_colour_maps(client):
    said = client.get("/colormaps").json()
    assert {"viridis", "magma", "inferno", "grey", "grey_r", "turbo"} <= set(said["maps"])
    assert all(len(base64.b64decode(one["colours"])) == 768 and one["title"] for one in said["maps"].values())


def test_the_last_series(client, engine):
    assert client.get("/series").json() == {"series": []}
    engine.past = [Past(4, "/d/b.h5", 10, 9, 9, 1, begun=1.5, ended=2.5, reason="1 of 10 frames missing"), Past(3)]
    listed = client.get("/series").json()["series"]
    assert [Past.from_dict(series) for series in listed] == engine.past


def test_begin(client, engine):
    assert client.post("/begin", json={"filename": "a.h5", "nframes": 5, "metadata": {"b": 1}}).json() == {"series": 8}
    assert engine.calls == [("begin", "a.h5", 5, {"b": 1})]
    assert client.post("/begin", json={"nframes": -1, "filename": ""}).status_code == 422


# --- what is said about the routes is true ---------------------------------------------------------------------------


def test_openapi_names_every_route_and_what_it_answers(client, engine):
    engine.shot = Shot(7, 3, ramp())
    said = client.get("/openapi.json").json()
    routes = {path: set(methods) for path, methods in said["paths"].items()}
    posts = ("/stop", "/reset", "/begin")
    gets = ("/status", "/received_frames", "/series", "/check", "/last_frame", "/pixel", "/colormaps", "/metrics")
    regions = {"/rois": {"get", "post"}, "/rois/history": {"get"}}
    assert routes == {**{path: {"get"} for path in gets}, **{path: {"post"} for path in posts}, **regions}
    queries = {"/check": {"path": "a"}, "/pixel": {"row": 0, "column": 0}}
    for path in gets:
        answers = said["paths"][path]["get"]["responses"]
        reply = client.get(path, params=queries.get(path, {}))
        media = reply.headers["content-type"].partition(";")[0]
        assert reply.status_code == 200 and media in answers["200"]["content"], path
        if media == "application/json":
            schema = answers["200"]["content"][media]["schema"]["$ref"].rpartition("/")[2]
            assert set(reply.json()) == set(said["components"]["schemas"][schema]["properties"]), path
        if path in queries:
            wrong = client.get(path, params={"row": "x"})
            assert wrong.status_code == 422 and set(wrong.json()) <= {"error", "reason"}
            assert answers["422"]["content"]["application/json"]["schema"]["$ref"].endswith("/Failure")
    for format in ("npy", "raw", "png", "jpeg"):
        reply = client.get("/last_frame", params={"format": format})
        assert reply.headers["content-type"] in said["paths"]["/last_frame"]["get"]["responses"]["200"]["content"]
        headers = said["paths"]["/last_frame"]["get"]["responses"]["200"]["headers"]
        assert {name.lower() for name in headers} >= {name for name in reply.headers if name.startswith("x-f")}
    for path in posts:
        post = said["paths"][path]["post"]
        assert {"401", "403", "422"} <= set(post["responses"]) and post["security"] == [{"HTTPBearer": []}]
    assert said["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"


def test_an_engine_elsewhere_gives_the_same_images(engine, client):
    with RemoteEngine(str(client.base_url)) as remote:
        assert remote.last_frame() is None and remote.history() == []
        engine.shot = Shot(7, 3, ramp(), 1.5, 4)
        engine.past = [Past(3, "/d/a.h5")]
        frame = remote.last_frame("sum")
        assert frame[:2] == (7, 3) and (frame.timestamp, frame.frames) == (1.5, 4)
        np.testing.assert_array_equal(frame.array, ramp())
        assert remote.last_frame("sum", (3, 7)) is None and remote.last_frame("sum", (3, 6)).number == 7
        assert remote.history() == engine.past


def test_the_page_and_its_script(client):
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert '<script src="/live.js">' in page.text
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page.text)
    assert client.get("/live.js").headers["content-type"] == "text/javascript; charset=utf-8"


def test_answers_are_sent_at_once(client, monkeypatch):
    """Without TCP_NODELAY each answer on a kept connection waits 40 ms for the peer's acknowledgement."""
    found, begun = [], http._Connection.connection_made

    def connection_made(self, transport):
        found.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        begun(self, transport)

    monkeypatch.setattr(http._Connection, "connection_made", connection_made)
    assert client.get("/status").status_code == 200
    assert found and all(found)
