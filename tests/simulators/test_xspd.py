"""The simulated xspd by its own sockets: variables, states, frames and faults."""

import json
import time
import zlib
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
import zmq

from tangods_detector import blosc
from tangods_detector.simulators.xspd import Failures, XspdOptions, XspdSimulator, layouts
from tangods_detector.simulators.xspd.course import Course, Plan
from tangods_receiver.errors import ConfigError
from tests.waiting import wait_for

LIMIT = 30.0  # s


class Client:
    """What a control system does: it knows nothing of ours."""

    def __init__(self, xspd):
        self.xspd = xspd
        self.http = httpx.Client(base_url=f"http://{xspd.address}", timeout=10, trust_env=False)
        self.context = zmq.Context()
        self.ports = [self.context.socket(zmq.SUB) for _ in xspd.endpoints]
        for port, endpoint in zip(self.ports, xspd.endpoints, strict=True):
            port.rcvhwm = 100_000
            port.subscribe(b"")
            port.connect(endpoint)

    def close(self):
        self.http.close()
        self.context.destroy(linger=0)

    def get(self, where="", /, **query):
        return self.http.get(f"/api/v1/devices/lambda01{where}", params=query)

    def value(self, path):
        return self.get("/variables", path=path).raise_for_status().json()["value"]

    def put(self, path, value):
        return self.http.put("/api/v1/devices/lambda01/variables", params={"path": path, "value": value})

    def set(self, **values):
        for name, value in values.items():
            self.put(f"lambda/{name}", value).raise_for_status()
        wait_for(lambda: self.value("lambda/1/ram_allocated"), LIMIT, "RAM")

    def command(self, name):
        return self.http.put("/api/v1/devices/lambda01/commands", params={"path": name})

    def start(self):
        assert self.command("start").raise_for_status().json() == {"status": "started"}

    def status(self, status, of="lambda"):
        wait_for(lambda: self.value(f"{of}/status") == status, LIMIT, status)

    def frames(self, n, port=0, dtype=np.uint16, shape=None):
        """(header, image) of the next `n`."""
        found, shape = [], shape or self.shape
        for _ in range(n):
            assert self.ports[port].poll(LIMIT * 1000), f"{len(found)} of {n} frames"
            subject, header, data = self.ports[port].recv_multipart()
            assert subject == b""
            found.append((header, np.frombuffer(data, dtype).reshape(shape)))
        return found

    @property
    def shape(self):
        return tuple(self.value(f"port-1/frame_{side}") for side in ("height", "width"))

    def nothing_comes(self):
        return not any(port.poll(200) for port in self.ports)


@contextmanager
def running(**options):
    with XspdSimulator(XspdOptions(**{"chip": 16, **options})) as xspd:
        client = Client(xspd)
        try:
            # a subscription takes a moment to reach the other side
            client.set(n_frames=1000, shutter_time=1)
            client.start()
            for port in client.ports:
                assert port.poll(LIMIT * 1000)
            client.command("stop")
            client.status("ready")
            time.sleep(0.05)
            for port in client.ports:
                while port.poll(50):
                    port.recv_multipart()
            yield xspd, client
        finally:
            client.close()


@pytest.fixture(scope="module")
def two():
    """A unit with two modules, shared by tests that leave it as it was."""
    with running(layout="pair", sensor="CdTe") as (xspd, client):
        yield xspd, client


@pytest.fixture
def unit(two):
    xspd, client = two
    xspd.fail(Failures())
    yield client
    xspd.fail(Failures())
    client.command("stop")
    client.status("ready")
    client.set(bit_depth=12, counter_mode="SINGLE", interpolation="ON", roi_rows=16, trigger_mode="SOFTWARE")
    client.set(gating_mode="OFF", compressor="none", shutter_time=1)
    for port in client.ports:
        while port.poll(20):
            port.recv_multipart()


# --- what it tells ---------------------------------------------------------------------------------------------------


def test_the_device_and_its_ports(two, unit):
    xspd, _ = two
    assert unit.http.get("/api").json() == {"api version": "1", "xspd version": "1.6.0"}
    (device,) = unit.http.get("/api/v1/devices").json()["devices"]
    assert (device["id"], device["type"]) == ("lambda01", "xsp") and device["href"].endswith("/api/v1/devices/lambda01")
    system = unit.get().json()["system"]
    assert system["detectors"] == [{"id": "lambda", "modules": 2}]
    assert [(port["ref"], port["id"]) for port in system["data-ports"]] == [
        ("lambda/1", "port-1"),
        ("lambda/2", "port-2"),
    ]
    assert [f"tcp://127.0.0.1:{port['port']}" for port in system["data-ports"]] == xspd.endpoints
    (detector,) = unit.value("info")["detectors"]
    assert [m["module"] for m in detector["modules"]] == ["lambda/1", "lambda/2"]
    assert len(detector["modules"][0]["chip-ids"]) == 12


def test_every_variable_that_is_listed_can_be_read(unit):
    listed = unit.get("/variables").json()
    assert all(len(row["description"]) > 5 for row in listed)
    paths = {row["path"] for row in listed}
    assert {"lambda/thresholds", "lambda/2/voltage", "port-2/frame_width", "lambda/1/position"} <= paths
    for path in paths:
        unit.value(path)
    assert unit.value("lambda/1/temperature") == [53.1, 53.3, 42.1]
    assert unit.value("lambda/2/position") == [0.0, 44.0, 0.0]


def test_commands_are_listed(unit):
    paths = [row["path"] for row in unit.get("/commands").json()]
    names = ["start", "stop", "reset", "generate_flatfield"]
    assert paths == [*names, *(f"lambda/{name}" for name in names)]
    assert unit.command("lambda/generate_flatfield").status_code == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/devices/lambda02", 404),
        ("/api/v2", 404),
        ("/api/v1/devices/lambda01/variables?path=lambda/nothing", 404),
        ("/api/v1/devices/lambda01/variables?path=lambda/3/voltage", 404),
    ],
)
def test_what_there_is_not(unit, path, status):
    answer = unit.http.get(path)
    assert answer.status_code == status and "not found" in answer.json()["error"]
    assert unit.command("nothing").status_code == 404
    assert unit.http.put("/api/v1/devices/lambda01/commands").status_code == 400


@pytest.mark.parametrize(
    ("path", "given", "value"),
    [
        ("lambda/shutter_time", "100.0", 100.0),
        ("lambda/thresholds", "4.0,8", [4.0, 8.0]),
        ("lambda/thresholds", "", []),
        ("lambda/trigger_mode", "ext_sequence", "EXT_SEQUENCE"),
        ("lambda/n_frames", "17", 17),
        ("lambda/user_data", "abc", "abc"),
        ("lambda/2/voltage", "100", 100.0),
        ("lambda/2/voltage", "298", 298.0),
    ],
)
def test_what_is_written_is_read(unit, path, given, value):
    assert unit.put(path, given).json() == {"path": path, "value": value}
    assert unit.value(path) == value


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("lambda/bit_depth", "7"),
        ("lambda/trigger_mode", "INTERNAL"),
        ("lambda/n_frames", "0"),
        ("lambda/n_frames", "16777216"),
        ("lambda/n_frames", "7000"),
        ("lambda/shutter_time", "abc"),
        ("lambda/thresholds", "1,2,3,4,5,6,7,8,9"),
        ("lambda/thresholds", "0.1"),
        ("lambda/roi_rows", "17"),
        ("lambda/status", "ready"),
        ("lambda/1/temperature", "1"),
    ],
)
def test_what_cannot_be_is_refused(unit, path, given):
    before = unit.value(path)
    answer = unit.put(path, given)
    assert answer.status_code == 400 and path in answer.json()["error"]
    assert unit.value(path) == before


def test_switches_tell_whether_they_are_on(unit):
    unit.set(countrate_correction="ON", flatfield_correction="OFF", interpolation="OFF")
    assert unit.value("lambda/countrate_correction_enabled") is True
    assert unit.value("lambda/flatfield_enabled") is False
    assert unit.value("lambda/1/interpolation_enabled") is unit.value("lambda/2/interpolation_enabled") is False


# --- states ----------------------------------------------------------------------------------------------------------


def test_an_acquisition_from_ready_to_ready(two, unit):
    unit.set(n_frames=1, shutter_time=60_000)
    unit.start()
    unit.status("busy")
    assert unit.value("lambda/1/status") == unit.value("lambda/2/status") == "busy"
    for answer in (unit.command("start"), unit.put("lambda/n_frames", "2")):
        assert answer.status_code == 400 and "busy" in answer.json()["error"]
    unit.command("stop")
    unit.status("ready")
    assert unit.nothing_comes()


def test_memory_is_allocated_anew_when_sizes_change(two, unit):
    xspd, _ = two
    xspd.fail(Failures(ram_seconds=0.5))
    unit.put("lambda/bit_depth", "24").raise_for_status()
    assert unit.value("lambda/1/ram_allocated") is False
    assert unit.command("start").json() == {"error": "start: failed to allocate RAM buffer on module 1"}
    wait_for(lambda: unit.value("lambda/1/ram_allocated"), LIMIT, "RAM")
    unit.set(interpolation="OFF", roi_rows=8)
    assert [unit.value(f"lambda/2/frame_{what}") for what in ("height", "width", "depth")] == [16, 96, 24]


def test_a_reset_takes_a_while_and_forgets_the_thresholds():
    with running(speed=0.1) as (_, client):
        client.set(thresholds="5")
        client.command("reset").raise_for_status()
        assert client.value("lambda/status") == "connected"
        assert client.command("start").json() == {"error": "start: not ready"}
        client.status("ready")
        assert client.value("lambda/thresholds") == []


# --- frames ----------------------------------------------------------------------------------------------------------


def numbers(frames):
    return [header[0] for header, _ in frames]


@pytest.mark.parametrize(("depth", "dtype"), [(1, np.uint8), (6, np.uint8), (12, np.uint16), (24, np.uint32)])
def test_each_frame_has_its_module_and_number(unit, depth, dtype):
    unit.set(bit_depth=depth, n_frames=4)
    unit.start()
    for module in (0, 1):
        frames = unit.frames(4, module, dtype)
        assert numbers(frames) == [1, 2, 3, 4] and {header[2] for header, _ in frames} == {0}
        assert [layouts.stamped(image) for _, image in frames] == [(module + 1, n, 0) for n in range(4)]
        assert max(int(image.max()) for _, image in frames) < 1 << depth
    unit.status("ready")
    unit.start()
    assert numbers(unit.frames(4, 0, dtype)) == [1, 2, 3, 4], "each acquisition begins at 1"
    unit.frames(4, 1, dtype)


def test_two_counters_give_two_frames(unit):
    unit.set(counter_mode="DUAL", n_frames=2)
    unit.start()
    frames = unit.frames(4)
    assert [layouts.stamped(image)[1:] for _, image in frames] == [(0, 0), (1, 1), (2, 0), (3, 1)]
    assert numbers(frames) == [1, 2, 3, 4]
    unit.frames(4, 1)


@pytest.mark.parametrize("compressor", ["zlib", "blosc/lz4", "blosc/zstd"])
def test_compressed_frames(unit, compressor):
    unit.set(compressor=compressor, shuffle_mode="BYTE_SHUFFLE", n_frames=1)
    unit.start()
    assert unit.ports[0].poll(LIMIT * 1000)
    data = unit.ports[0].recv_multipart()[2]
    size = 2 * unit.shape[0] * unit.shape[1]
    plain = zlib.decompress(data) if compressor == "zlib" else blosc.decompress(data, size)
    assert len(data) < size
    assert layouts.stamped(np.frombuffer(plain, np.uint16).reshape(unit.shape)) == (1, 0, 0)


def test_one_port_for_the_whole_image():
    with running(layout="windmill", ports="combined") as (xspd, client):
        assert [p["ref"] for p in client.get().json()["system"]["data-ports"]] == ["lambda"]
        client.set(n_frames=2)
        client.start()
        assert client.shape == (198, 198)
        for number, (_, image) in enumerate(client.frames(2)):
            np.testing.assert_array_equal(image, xspd.unit._drawing.whole(number))


def test_external_edges(two, unit):
    xspd, _ = two
    unit.set(trigger_mode="EXT_FRAMES", bit_depth=24, n_frames=3)
    assert xspd.edge() == 0, "nothing is busy"
    unit.start()
    unit.status("busy")
    edge = unit.http.post("/simulator/edge", json={"n": 2})
    assert edge.json() == {"taken": 2}
    assert numbers(unit.frames(2, 0, np.uint32)) == [1, 2]
    assert unit.value("lambda/status") == "busy"
    xspd.edge()
    assert numbers(unit.frames(1, 0, np.uint32)) == [3]
    unit.frames(3, 1, np.uint32)
    unit.status("ready")


def test_one_edge_for_all_frames_and_gates(two, unit):
    xspd, _ = two
    unit.set(trigger_mode="EXT_SEQUENCE", n_frames=3)
    unit.start()
    unit.status("busy")
    xspd.edge()
    assert numbers(unit.frames(3)) == numbers(unit.frames(3, 1)) == [1, 2, 3]
    unit.set(trigger_mode="EXT_FRAMES", gating_mode="ON", n_frames=2)
    unit.start()
    unit.status("busy")
    begun = time.monotonic()
    xspd.edge(2, width=0.1)
    assert numbers(unit.frames(2)) == [1, 2] and time.monotonic() - begun > 0.2


def test_the_course_of_exposures():
    ends = lambda course, now: [(e.number, round(e.stop, 6)) for e in course.due(now)]  # noqa: E731
    c = Course(Plan("SOFTWARE", 3, 1.0, 0.5), 10.0)
    assert c.next_at() == 11.0 and ends(c, 10.9) == [] and not c.edge(10.5)
    assert ends(c, 12.6) == [(0, 11.0), (1, 12.5)] and not c.complete
    assert ends(c, 99.0) == [(2, 14.0)] and c.complete
    c = Course(Plan("EXT_FRAMES", 2, 1.0, 0.5), 10.0)
    assert c.edge(10.0) and not c.edge(11.2) and c.skipped == 1 and c.free_at() == 11.5
    assert c.edge(11.5) and not c.edge(20.0) and ends(c, 99.0) == [(0, 11.0), (1, 12.5)]
    c = Course(Plan("EXT_FRAMES", 2, 1.0, continuous=True), 10.0)
    assert c.edge(10.0) and ends(c, 99.0) == [] and c.edge(10.3) and c.edge(10.4)
    assert ends(c, 99.0) == [(0, 10.3), (1, 10.4)] and c.complete and not c.edge(11.0)
    c = Course(Plan("EXT_FRAMES", 2, 1.0, gated=True, continuous=True), 10.0)
    assert c.edge(10.0, 0.3) and c.edge(10.4) and ends(c, 99.0) == [(0, 10.3), (1, 11.4)]
    c = Course(Plan("EXT_SEQUENCE", 2, 1.0), 10.0)
    assert c.next_at() is None and c.edge(12.0) and c.next_at() == 13.0
    c.stop()
    assert ends(c, 99.0) == [] and c.complete


# --- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["single", "pair", "square", "windmill", "ten"])
@pytest.mark.parametrize("chip", [16, 256])
def test_no_module_lies_over_another(name, chip):
    shape = layouts.module_shape(XspdOptions(layout=name, chip=chip))
    places = layouts.layout(name, shape)
    full = layouts.full_shape(places, shape)
    covered = np.zeros(full, np.uint8)
    for place in places:
        layouts.view(covered, place, shape)[:] += 1
    assert covered.max() == 1 and covered.sum() == len(places) * shape[0] * shape[1]
    if name == "ten" and chip == 256:
        assert shape == (516, 1554) and full == (3126, 3135), "as the real unit"
    if name == "windmill":
        assert {place.rotation for place in places} == {0, 90, 180, 270}


def test_parts_of_a_layout():
    with XspdSimulator(XspdOptions(layout="square", modules="3-4", chip=16)) as xspd:
        assert [place.number for place in xspd.unit.places] == [3, 4]
        assert xspd.unit.read("lambda/n_modules") == 2
    for wrong in ("0-1", "3-9", "a", "5"):
        with pytest.raises(ConfigError, match="modules"):
            XspdSimulator(XspdOptions(layout="square", modules=wrong))


def test_options_that_cannot_be():
    with pytest.raises(ConfigError, match="chip: 8 is not between.*layout: 'no'"):
        XspdOptions(chip=8, layout="no")
    with XspdSimulator(XspdOptions(chip=16)) as one:
        port = one.unit.data_ports[0]
        with pytest.raises(Exception, match="cannot bind a data port"):
            XspdSimulator(XspdOptions(chip=16, first_data_port=port)).__enter__()
        with pytest.raises(ConfigError, match="is the port in use"):
            XspdSimulator(XspdOptions(chip=16, port=int(one.address.rpartition(":")[2]))).__enter__()


# --- faults ----------------------------------------------------------------------------------------------------------


def told(two):
    return two[1].http.get("/simulator/failures").json()


def test_frames_that_are_lost_are_told(two, unit):
    two[0].fail(Failures(lose={2: [1]}, drop=1, drop_at=3, silent={1: 5}))
    unit.set(n_frames=7)
    unit.start()
    assert numbers(unit.frames(4)) == [1, 2, 3, 5]
    assert numbers(unit.frames(5, 1)) == [1, 3, 5, 6, 7]
    unit.status("ready")
    assert told(two)["lost"] == {"1": [3, 5, 6], "2": [1, 3]}


def test_a_share_is_the_same_for_the_same_seed(two, unit):
    lost = []
    for seed in (1, 1, 2):
        two[0].fail(Failures(lose_share={2: 0.1}, share_seed=seed))
        unit.set(n_frames=200, shutter_time=0.1)
        unit.start()
        unit.frames(200)
        unit.status("ready")
        lost.append(told(two)["lost"]["2"])
        unit.frames(200 - len(lost[-1]), 1)
    assert lost[0] == lost[1] != lost[2] and 5 <= len(lost[0]) <= 40


def test_incomplete_and_rolled_over(two, unit):
    two[0].fail(Failures(incomplete={1: [1]}, counter_at=(1 << 24) - 2))
    unit.set(n_frames=4)
    unit.start()
    frames = unit.frames(4)
    assert [int.from_bytes(header[4:8], "little") for header, _ in frames] == [0xFFFFFE, 0xFFFFFF, 0, 1]
    assert [header[2] for header, _ in frames] == [0, 1, 0, 0]
    assert not frames[1][1][18:].any() and frames[0][1][18:].any()


def test_late_modules(two, unit):
    two[0].fail(Failures(lag={2: 0.5}))
    unit.set(n_frames=1)
    begun = time.monotonic()
    unit.start()
    unit.frames(1)
    unit.status("ready", "lambda/1")
    unit.frames(1, 1)
    assert time.monotonic() - begun > 0.5
    two[0].fail(Failures(jitter=0.05))
    unit.set(n_frames=20)
    unit.start()
    assert numbers(unit.frames(20)) == numbers(unit.frames(20, 1)) == [*range(1, 21)], "in order all the same"


def test_modules_that_are_not_ready(two, unit):
    two[0].fail(Failures(never_ready=[2]))
    assert [unit.value(f"{of}/status") for of in ("lambda/1", "lambda/2", "lambda")] == ["ready", *["connected"] * 2]
    assert unit.command("start").json() == {"error": "start: not ready"}
    two[0].fail(Failures(no_ram=[2]))
    assert "module 2" in unit.command("start").json()["error"]
    two[0].fail(Failures(voltage_seconds=60))
    assert unit.value("lambda/1/voltage") < 50
    two[0].fail(Failures())
    assert unit.value("lambda/1/voltage") == 298.0


def test_starts_that_are_ignored_or_late(two, unit):
    two[0].fail(Failures(start_ignored=1, start_late=0.4))
    unit.set(n_frames=1, shutter_time=500)
    unit.start()
    assert unit.nothing_comes() and unit.value("lambda/status") == "ready"
    begun = time.monotonic()
    unit.start()
    unit.status("busy")
    assert time.monotonic() - begun > 0.3
    assert "start_ignored" in told(two)["happened"]
    unit.frames(1)


def test_requests_that_go_wrong(two, unit):
    xspd, _ = two
    xspd.fail(Failures(server_error="lambda/bit_depth", refuse="lambda/n_frames"))
    answers = [unit.get("/variables", path="lambda/bit_depth").status_code for _ in range(2)]
    assert answers == [500, 200]
    assert [unit.put("lambda/n_frames", "3").status_code for _ in range(2)] == [400, 200]
    xspd.fail(Failures(server_errors="variables"))
    assert [unit.get("/variables").status_code for _ in range(2)] == [500, 500]
    xspd.fail(Failures(hang="variables", hang_seconds=0.2))
    with pytest.raises(httpx.HTTPError):
        unit.get("/variables")
    assert told(two)["pending"] == {}


def test_a_restart_in_an_acquisition():
    with running(layout="pair") as (xspd, client):
        client.http.post("/simulator/failures", json={"restart_at": 3, "restart_seconds": 0.3}).raise_for_status()
        client.set(n_frames=100, thresholds="5")
        client.start()
        assert numbers(client.frames(3)) == [1, 2, 3]
        client.status("connected")
        client.status("ready")
        assert (client.value("lambda/thresholds"), client.value("lambda/n_frames")) == ([], 1)


@pytest.mark.parametrize(
    "told", [{"nothing": 1}, {"lose": [1]}, {"jitter": "a"}, {"lag": {"x": 1}}, {"restart_at": 0.5}]
)
def test_failures_that_cannot_be(unit, told):
    answer = unit.http.post("/simulator/failures", json=told)
    assert answer.status_code == 400 and next(iter(told)) in json.loads(answer.text)["error"]
