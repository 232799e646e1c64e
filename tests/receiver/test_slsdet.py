"""SLS detector package: headers, acquisitions on several ports, modules of an image, and the whole way into a file."""

import json
import random
import threading
from itertools import count

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import Frame, SeriesEnd, SeriesStart, recording, slsdet
from tangods_receiver.protocol.__main__ import describe
from tests.receiver import disturbed
from tests.receiver.senders import SlsPort, subscribed
from tests.receiver.streaming import DATASET, SHAPE, balanced, image, read, running, wait_closed
from tests.waiting import wait_for

EIGER, JUNGFRAU, MYTHEN3 = 1, 3, 6
#: As the package writes it, to the letter; of an Eiger quad, lower half.
GOLDEN = (
    b'{"jsonversion":4, "bitmode":16, "fileIndex":5, "detshape":[1, 2], "shape":[4, 2], "size":16, "acqIndex":101, '
    b'"frameIndex":1, "progress":20, "fname":"/data/run/scan", "data":1, "completeImage":1, "frameNumber":101, '
    b'"expLength":0, "packetNumber":64, "detSpec1":0, "timestamp":20000000, "modId":1, "row":1, "column":0, '
    b'"detSpec2":0, "detSpec3":0, "detSpec4":0, "detType":1, "version":2, "flipRows":1, "quad":1, '
    b'"addJsonHeader": {"exptime":"0.01", "nframes":"10"} , "rx_roi":[-1, -1, -1, -1]}\n'
)
PIXELS = np.arange(8, dtype="uint16").reshape(2, 4)


class Port:
    """One port without a socket: the messages that it sends, and what the decoder makes of them."""

    def __init__(self, decode, **values):
        self.decode = decode
        self.settings = SlsPort.__new__(SlsPort)
        base = {"bitmode": 16, "fileIndex": 0, "detshape": [1, 1], "shape": [SHAPE[1], SHAPE[0]], "fname": "/run"}
        base |= {"row": 0, "column": 0, "detType": JUNGFRAU, "flipRows": 0, "quad": 0}
        self.settings.settings = base | values
        self.settings.first = None

    def message(self, number, pixels=None, **more):
        pixels = image(number).tobytes() if pixels is None else pixels
        return [json.dumps(self.settings.header(number, **more)).encode(), pixels]

    def acquire(self, **values):
        self.settings.acquire(**values)

    def frame(self, number, pixels=None, **more):
        """What is decoded, always as a list."""
        return listed(self.decode(self.message(number, pixels, **more)))

    def end(self):
        return listed(self.decode([SlsPort.dummy()]))


def listed(decoded):
    return decoded if isinstance(decoded, list) else [decoded]


def one(**values):
    return Port(slsdet.decoders()(0, 1), **values)


def several(across, down, **values):
    """A port for each place."""
    make, places = slsdet.decoders(), [(row, column) for row in range(down) for column in range(across)]
    made = {"detshape": [across, down]} | values
    return [Port(make(k, len(places)), row=r, column=c, **made) for k, (r, c) in enumerate(places)]


# --- messages --------------------------------------------------------------------------------------------------------


def test_a_message_as_it_is_sent():
    ports = [slsdet.decoders()(k, 2) for k in range(2)]
    start, frame = ports[1]([GOLDEN, PIXELS.tobytes()])
    assert start == SeriesStart(
        "/data/run/scan_5.h5",
        series=1,
        nframes=10,
        shape=(2, 4),
        dtype="uint16",
        codec="none",
        modules=2,
        metadata={
            "exptime": 0.01,
            "detector": {
                "description": "Eiger",
                "bit_depth_readout": 16,
                "x": [0, 0],
                "y": [0, 2],
                "full_shape": [4, 4],
            },
            "slsdet": {
                "jsonversion": 4,
                "fileIndex": 5,
                "fname": "/data/run/scan",
                "detshape": [1, 2],
                "quad": 1,
                "rx_roi": [-1, -1, -1, -1],
                "version": 2,
            },
        },
    )
    assert frame._replace(data=b"") == Frame(1, (2, 4), "uint16", "none", b"", 1, series=1, timestamp=2.0)
    assert bytes(frame.data) == PIXELS[::-1].tobytes(), "rows are flipped"


@pytest.mark.parametrize(
    ("bits", "pixels", "dtype", "codec", "stored"),
    [
        (4, bytes([0x12, 0x34, 0xF0]), "uint8", "none", bytes([1, 2, 3, 4, 15, 0])),
        (8, bytes(range(6)), "uint8", "none", bytes(range(6))),
        (12, bytes(range(9)), "uint16", "mono12p", bytes(range(9))),
        (16, bytes(range(12)), "uint16", "none", bytes(range(12))),
        (32, bytes(range(24)), "uint32", "none", bytes(range(24))),
    ],
)
def test_bit_modes(bits, pixels, dtype, codec, stored):
    start, frame = one(bitmode=bits, shape=[2, 3]).frame(1, pixels)
    assert (start.shape, start.dtype, start.codec) == (frame.shape, frame.dtype, frame.codec) == ((3, 2), dtype, codec)
    assert bytes(frame.data) == stored


@pytest.mark.parametrize(("bits", "row"), [(4, 2), (8, 4), (12, 6), (16, 8), (32, 16)])
def test_flipped_rows_of_an_eiger(bits, row):
    """Of others they are not: the package flips those of Eiger alone."""
    pixels = bytes(range(3 * row))
    kept = one(bitmode=bits, shape=[4, 3]).frame(1, pixels)[1].data
    same = one(bitmode=bits, shape=[4, 3], flipRows=1).frame(1, pixels)[1].data
    turned = one(bitmode=bits, shape=[4, 3], detType=EIGER, flipRows=1).frame(1, pixels)[1].data
    size = len(kept) // 3
    assert bytes(same) == bytes(kept)
    assert bytes(turned) == b"".join(bytes(kept)[k * size : (k + 1) * size] for k in (2, 1, 0))


def test_a_line_detector():
    start, frame = one(shape=[1280, 1], bitmode=32, detType=MYTHEN3).frame(1, bytes(5120))
    assert frame.shape == (1, 1280) and start.metadata["detector"]["description"] == "Mythen3"


def test_times_and_incomplete_frames():
    port = one()
    start, frame = port.frame(1, timestamp=15_000_000, expLength=5000)
    assert start.times and frame.timestamp == 1.5 and frame.times.real == 0.0005 and np.isnan(frame.times.stop)
    assert not frame.incomplete and port.frame(2, completeImage=0)[0].incomplete
    start, frame = one(detType=EIGER).frame(1, expLength=5000)
    assert not start.times and frame.times is None, "a sub-frame number"


def test_old_headers_have_fewer_keys():
    header = {"bitmode": 16, "detshape": [1, 1], "shape": [4, 2], "frameIndex": 0, "frameNumber": 9, "size": 16}
    header |= {"row": 0, "column": 0}
    port = slsdet.decoders()(0, 1)
    start, frame = port([json.dumps(header).encode(), PIXELS.tobytes()])
    assert (start.filename, frame.number, frame.incomplete, frame.timestamp) == ("", 0, False, None)
    assert port([b'{"size": 0}']) == SeriesEnd(series=1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": None}, "data is None"),
        ({"data": "0"}, "data is '0', not 0 or 1"),
        ({"frameNumber": -1}, "frameNumber is -1"),
        ({"frameNumber": None}, "frameNumber is None"),
        ({"frameIndex": 1.5}, "frameIndex is 1.5"),
        ({"frameIndex": 102}, "frameIndex is 102, more than its frameNumber"),
        ({"shape": [4]}, "shape is [4]"),
        ({"shape": [0, 4]}, "shape is [0, 4]"),
        ({"shape": [2**20, 2**20]}, "more than"),
        ({"bitmode": 24}, "bitmode is 24, known are 4, 8, 12, 16, 32"),
        ({"bitmode": [16]}, "bitmode is [16]"),
        ({"detshape": [1, 3000]}, "detshape is"),
        ({"detshape": [1000, 1000]}, "1000 x 1000 ports"),
        ({"detshape": "1x2"}, "detshape is '1x2'"),
        ({"row": 2}, "row 2, column 0 of 2 x 1 ports"),
        ({"column": 1}, "row 1, column 1"),
        ({"row": None}, "row is None"),
        ({"detType": "Eiger"}, "detType is 'Eiger'"),
        ({"timestamp": 2**64}, "timestamp is"),
        ({"completeImage": "yes"}, "completeImage is 'yes'"),
        ({"flipRows": None}, "flipRows is None"),
        ({"addJsonHeader": 5}, "addJsonHeader is 5"),
        ({"addJsonHeader": {"nframes": "many"}}, "nframes is 'many'"),
        ({"addJsonHeader": {"nframes": "-1"}}, "nframes is -1"),
        ({"addJsonHeader": {"series": "1.5"}}, "series is 1.5"),
        ({"fname": 5}, "fname is 5"),
        ({"fileIndex": "a"}, "fileIndex is 'a'"),
        ({"shape": [3, 2], "bitmode": 4}, "bytes of pixels"),
    ],
)
def test_refused(changes, words):
    decode = slsdet.decoders()(0, 2)
    header = json.loads(GOLDEN) | changes
    with pytest.raises(StreamError) as refusal:
        decode([json.dumps(header).encode(), PIXELS.tobytes()])
    assert words in str(refusal.value) and len(str(refusal.value)) < 400


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([], "no part at all"),
        ([b"{"], "not JSON"),
        ([GOLDEN], "1 parts, not 2"),
        ([GOLDEN, b"", b""], "3 parts"),
        ([GOLDEN, bytes(15)], "15 bytes of pixels, 16 expected for 2 x 4 pixels of 16 bits"),
    ],
)
def test_refused_parts(parts, words):
    with pytest.raises(StreamError, match=words):
        slsdet.decoders()(0, 2)(parts)


def test_more_endpoints_than_ports():
    with pytest.raises(StreamError, match="detshape is 1 x 2 ports, for which 3 endpoints are configured"):
        slsdet.decoders()(0, 3)([GOLDEN, PIXELS.tobytes()])


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(0, 9) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
keys = st.sampled_from([*json.loads(GOLDEN), "x"])


@given(st.lists(st.tuples(st.dictionaries(keys, values, max_size=3), st.sets(keys, max_size=2)), max_size=4))
def test_nothing_but_a_stream_error(changes):
    decode = slsdet.decoders()(0, 2)
    good = json.loads(GOLDEN)
    for more, gone in changes:
        header = {key: value for key, value in (good | more).items() if key not in gone}
        try:
            found = listed(decode([json.dumps(header).encode(), PIXELS.tobytes()]))
        except StreamError as exc:
            assert 0 < len(str(exc)) < 1000
        else:
            assert all(isinstance(m, SeriesStart | Frame | SeriesEnd) for m in found)
    assert isinstance(listed(decode([GOLDEN, PIXELS.tobytes()]))[-1], Frame)


# --- file names and what the user says -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fname", "filename"),
    [
        ("//run", ""),  # the package's own, when nothing was set
        ("/run", ""),
        ("run", ""),
        ("", ""),
        ("/data/run", "/data/run_3.h5"),
        ("/data//run", "/data//run_3.h5"),
        ("sub/run", "sub/run_3.h5"),
        ("/data/../run", ""),
    ],
)
def test_file_names_of_the_package(fname, filename):
    assert one(fname=fname, fileIndex=3).frame(1)[0].filename == filename


def test_what_the_user_adds_to_the_header():
    added = {"filename": "7", "series": "40", "nframes": "5", "exptime": "1e-3", "save_raw": "false", "label": "a b"}
    added |= {"detector": '{"description": "my Eiger", "sensor_material": "Si"}', "overwrite": "true"}
    start = one(fname="/data/run").frame(1, addJsonHeader=added)[0]
    assert (start.filename, start.series, start.nframes, start.save) == ("7", 40, 5, False)
    assert (start.metadata["exptime"], start.metadata["label"], start.metadata["overwrite"]) == (0.001, "a b", True)
    assert start.metadata["detector"]["description"] == "my Eiger"
    assert start.metadata["detector"]["sensor_material"] == "Si" and start.metadata["detector"]["x"] == [0]


# --- acquisitions ----------------------------------------------------------------------------------------------------


def test_an_acquisition_on_one_port():
    port = one()
    assert port.end() == [], "the end of one that was over before"
    start, first = port.frame(1)
    assert (start.series, first.series, first.number) == (1, 1, 0)
    assert [port.frame(n)[0].number for n in (2, 3, 3, 7)] == [1, 2, 2, 6]
    assert port.end() == [SeriesEnd(series=1)] == port.end()
    port.acquire()
    start, first = port.frame(8)
    assert (start.series, first.number) == (2, 0)


@pytest.mark.parametrize(
    "change", [{"fileIndex": 1}, {"fname": "/data/b"}, {"addJsonHeader": {"series": "9"}}, {}], ids=repr
)
def test_an_end_that_was_dropped(change):
    """The next acquisition is seen by its headers; numbers go on, or begin anew where nothing else differs."""
    port = one()
    port.frame(1)
    port.frame(2)
    port.acquire(**change)
    start, frame = port.frame(1 if change in ({}, {"fileIndex": 1}) else 3)
    assert start.series == (9 if "addJsonHeader" in change else 2) and frame.number == 0


def test_late_to_an_acquisition():
    """A subscriber that comes in its middle: what was before is missing."""
    port = one()
    port.settings.first = 11
    assert port.frame(20)[1].number == 9


def test_ports_that_begin_at_different_frames():
    """One that lost its first counts `frameIndex` from its second; the image is told by `frameNumber`."""
    a, b = several(1, 2)
    assert a.frame(100)[1].number == 0
    a.frame(101)
    start, frame = b.frame(101)
    assert (frame.number, frame.module, frame.series, start.series) == (1, 1, 1, 1)
    assert b.frame(102)[0].number == 2


@pytest.mark.parametrize(
    ("said", "series"), [({}, 1), ({"save_raw": "0"}, 2), ({"overwrite": "true"}, 2), ({"filename": ""}, 2)]
)
def test_ports_that_lost_all_that_they_have_in_common(said, series):
    """Where it has a file of its own it can only be the same acquisition; else the next is as likely."""
    a, b = several(1, 2)
    for port in (a, b):
        port.acquire(fname="/data/run", addJsonHeader=said)
    a.frame(100)
    a.end()
    assert b.frame(105)[0].series == series


def test_the_first_port_to_come_lost_its_first_frame():
    a, b = several(1, 2)
    assert a.frame(101)[1].number == 0
    assert b.frame(100)[1].number == -1, "of no whole image"


def test_ids_agree_in_any_order_of_ports():
    """Ports that run ahead of each other, by less than an acquisition."""
    rng = random.Random(3)
    for _ in range(100):
        ports = several(2, 2)
        number = 1
        for series in range(1, 6):
            todo = {k: list(range(number, number + rng.randint(1, 4))) for k in range(4)}
            while any(todo.values()):
                k = rng.choice([k for k in range(4) if todo[k]])
                assert ports[k].frame(todo[k].pop(0))[-1].series == series
                if not todo[k] and rng.random() < 0.8:
                    ports[k].end()
            number += 5
            for port in ports:
                port.acquire()


def test_a_port_ahead_by_an_acquisition():
    a, b = several(1, 2)
    for port in (a, b):
        port.frame(1)
    b.end()
    b.acquire()
    assert b.frame(2)[0].series == 2, "b is at the next already"
    assert a.frame(2)[0].series == 1, "a is not"
    a.end()
    a.acquire()
    assert a.frame(3)[0].series == 2


def test_a_port_that_missed_a_whole_acquisition():
    """And is the first to come with the next one: by its numbers it cannot be of that which ended."""
    a, b = several(1, 2)
    a.frame(1)
    a.end()
    b.settings.first = 9
    assert b.frame(9)[0].series == 2
    a.acquire()
    assert a.frame(9)[0].series == 2


def test_a_detector_whose_numbers_begin_anew():
    """Mythen, and any after a restart of its server."""
    a, b = several(1, 2)
    for series in (1, 2, 3):
        for port in (a, b):
            port.acquire()
            assert [port.frame(n)[-1].series for n in (1, 2, 3)] == [series] * 3
            port.end()


def test_ids_of_the_user():
    """They decide; one that is used again at once is counted on."""
    port = one()
    found = []
    for k, series in enumerate(["40", "40", None, "7", "7"]):
        port.acquire(fileIndex=k, addJsonHeader={} if series is None else {"series": series})
        found.append(port.frame(1)[0].series)
        port.end()
    assert found == [40, 41, 42, 7, 8]


def test_a_wrong_start_begins_nothing():
    port = one(addJsonHeader={"nframes": "x"})
    for _ in range(2):
        with pytest.raises(StreamError, match="nframes"):
            port.frame(1)
    port.acquire(addJsonHeader={})
    assert port.frame(2)[0].series == 1


def test_ports_of_several_threads():
    """All begin at once: one acquisition."""
    for _ in range(20):
        ports = several(4, 2)
        barrier, found = threading.Barrier(len(ports)), []

        def begin(port, barrier=barrier, found=found):
            barrier.wait(5)
            found.append(port.frame(1)[0].series)

        threads = [threading.Thread(target=begin, args=(port,)) for port in ports]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
        assert found == [1] * 8


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 30), st.booleans()), max_size=40))
def test_any_order_of_frames_and_ends(steps):
    """Shuffled, lost, repeated, cut: a frame comes with a start of its own series before it, and ids never go back."""
    ports, known = several(1, 2), [set(), set()]
    for k, number, ends in steps:
        port = ports[k]
        if ends:
            port.end()
            port.acquire()
        elif port.settings.first is None or number >= port.settings.first:
            for message in port.frame(number):
                if isinstance(message, SeriesStart):
                    known[k].add(message.series)
                else:
                    assert message.series in known[k] and message.series == max(known[k])


# --- places ----------------------------------------------------------------------------------------------------------


def places(across, down, shape, detector, quad=0):
    port = several(across, down, shape=[shape[1], shape[0]], detType=detector, quad=quad)[0]
    detector = port.frame(1, bytes(2 * shape[0] * shape[1]))[0].metadata["detector"]
    return detector["x"], detector["y"], detector["full_shape"]


def test_places_of_ports():
    assert places(1, 2, (256, 512), EIGER, quad=1) == ([0, 0], [0, 258], [514, 514])
    assert places(2, 2, (256, 512), EIGER) == ([0, 516, 0, 516], [0, 0, 258, 258], [514, 1030])
    assert places(1, 1, (512, 1024), JUNGFRAU) == ([0], [0], [514, 1030])
    assert places(2, 2, (512, 1024), JUNGFRAU) == ([0, 1038, 0, 1038], [0, 0, 550, 550], [1064, 2068])
    assert places(1, 4, (256, 1024), JUNGFRAU)[1:] == ([0, 258, 550, 808], [1064, 1030])
    assert places(2, 1, (400, 400), 5) == ([0, 400], [0, 0], [400, 800]), "Moench: one chip"
    assert places(2, 1, (1, 1280), MYTHEN3) == ([0, 1280], [0, 0], [1, 2560])


def test_some_of_the_ports_are_modules_without_a_place():
    """Fewer endpoints than the detector has ports: in the order of the configuration."""
    make = slsdet.decoders()
    port = Port(make(0, 2), detshape=[2, 2], row=1, column=1)
    start, frame = port.frame(1)
    assert (start.modules, frame.module) == (2, 0) and "x" not in start.metadata["detector"]


# --- the whole way ---------------------------------------------------------------------------------------------------


def listening(root, *ports, **values):
    return running(root, *(p.endpoint for p in ports), protocol="slsdet", **values)


def heard(engine, *ports):
    """An end of an acquisition that was over before is not counted; a wrong header is."""
    subscribed(engine, *ports, beat=lambda port: port.parts([b"{}"]))
    engine.reset()


def test_a_series_on_one_port(tmp_path):
    with SlsPort() as port, listening(tmp_path, port) as engine:
        heard(engine, port)
        for series in (1, 2):
            port.acquire(fname=str(tmp_path / "run"), fileIndex=series, addJsonHeader={"exptime": "0.25"})
            for number in range(50):
                port.frame(100 * series + number, image(number).tobytes(), timestamp=number * 10**6, expLength=7)
            port.end()
            s = wait_closed(engine, series)
            assert (s.state, s.error, s.written, s.missing, s.dropped) == ("idle", "", 50, 0, 0)
            data, books = read(tmp_path / f"run_{series}.h5")
            assert (data == np.stack([image(n) for n in range(50)])).all()
            assert books["end_reason"] == b"complete" and books["count_time"] == 0.25
            assert np.allclose(books["timestamp"], np.arange(50) / 10)
            assert np.allclose(books["real_time"], 7e-7) and np.isnan(books["stop_time"]).all()
            assert books["description"] == b"Jungfrau" and books["bit_depth_readout"] == 16


def test_what_is_in_a_recording(tmp_path):
    """Of one port; the detector's own numbers are not in it."""
    port = one(fname="/data/run", fileIndex=3)
    sent = [port.message(7), port.message(9), [SlsPort.dummy()], [b"{}"]]
    recording.write(tmp_path / "a.bin", sent)
    lines = list(describe(str(tmp_path / "a.bin")))
    assert "slsdet: start, series 1, file '/data/run_3.h5'; image 0, series 1, (6, 10) uint16 none" in lines[1]
    assert "slsdet: image 2, series 1" in lines[2] and "slsdet: end, series 1" in lines[3]
    assert lines[4].endswith("bytes  {}")


def test_without_a_directory_it_is_only_shown(tmp_path):
    with SlsPort() as port, listening(tmp_path, port) as engine:
        heard(engine, port)
        port.frames([1, 2])
        port.end()
        s = wait_closed(engine, 1)
        assert (s.discarded, s.written, s.last_file) == (2, 0, "")


@pytest.mark.parametrize("workers", [1, 4])
def test_modules_of_an_image(tmp_path, workers):
    """Lost frames, incomplete ones, a port that is one frame late; the next acquisitions follow."""
    rng = random.Random(workers)
    made = [SlsPort(row, column, (2, 2)) for row in range(2) for column in range(2)]
    with made[0], made[1], made[2], made[3], listening(tmp_path, *made, workers=workers) as engine:
        heard(engine, *made)
        for series in (1, 2, 3):
            first = 1000 * series
            lost = {(rng.randrange(1, 99), k) for k in range(4) for _ in range(5)} | {(0, 3)}
            torn = {(rng.randrange(1, 99), 2) for _ in range(5)} - lost
            for port in made:
                port.acquire(fname=str(tmp_path / "run"), fileIndex=series)
            for number in range(100):
                for k, port in enumerate(made):
                    if (number, k) not in lost:
                        pixels = image(number + 1000 * k).tobytes()
                        port.frame(first + number, pixels, completeImage=int((number, k) not in torn))
                    if number == 0 and k == 0:
                        wait_for(lambda series=series: engine.snapshot().opened == series)
            for port in made:
                port.end()
            s = wait_closed(engine, series)
            assert s.written == 400 - len(lost) and s.missing == len({number for number, _ in lost})
            assert sum(loss.count for loss in s.lost if loss.kind == "incomplete") == len(torn)
            with h5py.File(tmp_path / f"run_{series}.h5") as file:
                data, whole = file[DATASET][()], file["entry/instrument/detector/assembled"][()]
                status = file["entry/instrument/detector/frame_status"][()]
            assert data.shape == (100, 4, *SHAPE) and whole.shape == (100, 12, 20)
            for number in range(100):
                parts = [np.zeros(SHAPE) if (number, k) in lost else image(number + 1000 * k) for k in range(4)]
                assert (data[number] == np.stack(parts)).all()
                assert (whole[number] == np.block([parts[:2], parts[2:]])).all()
                good = not any((number, k) in lost | torn for k in range(4))
                assert (status[number] == 1) == good, number


def test_whatever_happens_to_frames_on_their_way(tmp_path):
    """Of two ports, whose messages come in any order of the ports: modules that came whole are in the file, each in its
    place and once; what a port calls incomplete, or one did not bring, is marked."""
    ids = count(1)
    torn = st.sets(st.tuples(st.integers(0, 1), st.integers(0, disturbed.COUNT - 1)), max_size=4)

    def series(steps, order, torn):
        number = next(ids)
        first = disturbed.COUNT * number
        for port in ports:
            port.acquire(fname=str(tmp_path / "run"), fileIndex=number, addJsonHeader={"nframes": str(disturbed.COUNT)})
        todo = [[disturbed.Step(0), *steps[0]], list(steps[1])]
        expected = [disturbed.outcome(todo[k]) for k in (0, 1)]
        turns = [0] + order + [k for k in (0, 1) for _ in todo[k]]
        for turn, k in enumerate(turns):
            if todo[k]:
                step = todo[k].pop(0)
                header = ports[k].header(first + step.number, completeImage=int((k, step.number) not in torn))
                pixels = disturbed.cut([image(step.number + 100 * k).tobytes()], step.percent)
                ports[k].parts([json.dumps(header).encode(), *pixels])
            if turn == 0:
                wait_for(lambda: engine.snapshot().opened == number)
        for port in ports:
            port.end()
        s = wait_closed(engine, number)
        whole = expected[0].kept & expected[1].kept
        assert s.written == sum(len(e.kept) for e in expected) and s.missing == disturbed.COUNT - len(whole)
        if len(whole) < disturbed.COUNT:  # else it is over when all are there
            assert s.repeated == sum(e.repeated for e in expected) and s.rejected == sum(e.refused for e in expected)
        data, books = read(tmp_path / f"run_{number}.h5")
        for n in range(disturbed.COUNT):
            for k in (0, 1):
                assert (data[n, k] == (image(n + 100 * k) if n in expected[k].kept else 0)).all(), (n, k)
            came = [n in e.kept for e in expected]
            good = all(came) and not any((k, n) in torn for k in (0, 1))
            assert books["frame_status"][n] == (1 if good else 2 if any(came) else 0), n

    with SlsPort(0, 0, (1, 2)) as a, SlsPort(1, 0, (1, 2)) as b:
        ports = [a, b]
        with listening(tmp_path, *ports, end_timeout=0.5) as engine:
            heard(engine, *ports)
            both = st.tuples(disturbed.in_order, disturbed.in_order)
            disturbed.few(given(both, st.lists(st.integers(0, 1), max_size=30), torn)(series))()


def test_software_of_the_detector_that_is_started_again(tmp_path):
    """In the middle of an acquisition, with its counters at the beginning; the receiver goes on by itself."""
    with SlsPort() as port, listening(tmp_path, port) as engine:
        heard(engine, port)
        port.acquire(fname=str(tmp_path / "a"))
        port.frames([501, 502, 503])
        wait_for(lambda: engine.snapshot().written == 3)
        port.acquire(fname=str(tmp_path / "b"))
        port.frames([1, 2])
        port.end()
        s = wait_closed(engine, 2)
        assert s.written == 2 and s.missing == 0
    assert b"a new series began before its end" in read(tmp_path / "a_0.h5")[1]["end_reason"]
    assert (read(tmp_path / "b_0.h5")[0] == np.stack([image(1), image(2)])).all()


def test_an_announced_number_of_frames_ends_a_series_whose_end_was_dropped(tmp_path):
    with SlsPort() as port, listening(tmp_path, port) as engine:
        heard(engine, port)
        port.acquire(fname=str(tmp_path / "a"), addJsonHeader={"nframes": "3"})
        port.frames([1, 2, 3])
        assert wait_closed(engine, 1).missing == 0
        port.end()
        port.acquire(fname=str(tmp_path / "b"), addJsonHeader={"nframes": "4"})
        port.frames([4, 5, 7])
        port.end()
        s = wait_closed(engine, 2)
        balanced(engine)
        assert (s.missing, s.dropped) == (1, 1)
    assert b"1 of 4 frames missing: 2; a PUB socket drops" in read(tmp_path / "b_0.h5")[1]["end_reason"]


@pytest.mark.parametrize(("bits", "dtype"), [(4, "uint8"), (12, "uint16")])
def test_packed_pixels_in_the_file(tmp_path, bits, dtype):
    pixels = (np.arange(60).reshape(SHAPE) % 2**bits).astype(dtype)
    flat = pixels.reshape(-1, 2).astype(int)
    if bits == 4:
        sent = (flat[:, 0] << 4 | flat[:, 1]).astype("uint8").tobytes()
    else:
        sent = b"".join(int(a | b << 12).to_bytes(3, "little") for a, b in flat)
    with SlsPort(bits=bits) as port, listening(tmp_path, port) as engine:
        heard(engine, port)
        port.acquire(fname=str(tmp_path / "a"))
        port.frame(1, sent)
        port.end()
        assert wait_closed(engine, 1).state == "idle"
    data, _ = read(tmp_path / "a_0.h5")
    assert data.dtype == dtype and (data[0] == pixels).all()


def test_channels_of_a_line_detector(tmp_path):
    line = np.arange(1280, dtype="uint32")
    with SlsPort(shape=(1, 1280), detector=MYTHEN3, bits=32) as port, listening(tmp_path, port) as engine:
        heard(engine, port)
        port.acquire(fname=str(tmp_path / "a"))
        port.frame(1, line.tobytes())
        port.end()
        wait_closed(engine, 1)
    assert (read(tmp_path / "a_0.h5")[0] == line.reshape(1, 1, 1280)).all()
