"""Recorded streams and CBF files on their way to a receiver."""

import bz2
import gzip
import json
import os
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import fabio
import h5py
import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from tangods_detector.replay import cbf_metadata, cbf_series, disturb, open_files, open_recording, replay
from tangods_receiver.config import make
from tangods_receiver.engine import Engine
from tangods_receiver.errors import ConfigError, HardwareError, StreamError
from tangods_receiver.protocol import Frame, SeriesEnd, SeriesStart, dectris1, dectris2, recording, stins
from tests.receiver import dectris, dectris2_messages
from tests.waiting import wait_for

# Recordings of real detectors, which are not part of this repository.
DATA = Path(os.environ.get("DETECTOR_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
DATASET = "entry/instrument/detector/data"

HEADER = """###CBF: VERSION 1.5, CBFlib v0.7.8 - PILATUS detectors\r
data_x\r
_array_data.header_contents\r
;\r
# Detector: PILATUS3 6M, S/N 60-0119\r
# Pixel_size 172e-6 m x 173e-6 m\r
# Silicon sensor, thickness 0.000450 m\r
# Exposure_time 0.0190000 s\r
# Exposure_period 0.0200000 s\r
# Wavelength 0.96859 A\r
;\r
X-Binary-Size: {size}\r
X-Binary-Size-Fastest-Dimension: {columns}\r
X-Binary-Size-Second-Dimension: {rows}\r
\r
"""


def cbf(image: np.ndarray) -> bytes:
    """A miniCBF file in which every difference takes seven bytes: legal, and simple to write."""
    differences = np.diff(image.reshape(-1).astype(np.int64), prepend=0)
    body = b"".join(b"\x80\x00\x80" + int(d).to_bytes(4, "little", signed=True) for d in differences)
    text = HEADER.format(size=len(body), rows=image.shape[0], columns=image.shape[1])
    return text.encode() + b"\x0c\x1a\x04\xd5" + body


def series(count: int, filename: str = "/data/a.h5") -> list[list[bytes]]:
    """A STINS series of 2 x 3 pixel images, image k filled with k."""
    messages = [stins.encode_start(filename, 0, series=1, nframes=count)]
    for k in range(count):
        header = stins.encode_frame_header(k, (2, 3), "uint16", "none", k + 1, series=1)
        messages.append([header, np.full((2, 3), k, np.uint16).tobytes()])
    return [*messages, stins.encode_end(count + 1, series=1)]


def numbers(messages) -> list[int]:
    decoded = (stins.decode(parts) for parts in messages)
    return [message.number for message in decoded if isinstance(message, Frame)]


class Sink(threading.Thread):
    """A receiver that only keeps what comes, until the end message."""

    def __init__(self, endpoint: str, wait: float = 10.0) -> None:
        super().__init__(name="sink")
        self.messages: list[list[bytes]] = []
        self._endpoint, self._wait = endpoint, wait

    def run(self) -> None:
        with zmq.Context() as context, context.socket(zmq.PULL) as pull:
            pull.connect(self._endpoint)
            end = time.monotonic() + self._wait
            while time.monotonic() < end:
                if pull.poll(50):
                    self.messages.append(pull.recv_multipart())
                    if b"series_end" in self.messages[-1][0]:
                        return

    def __enter__(self) -> "Sink":
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.join()


@pytest.fixture
def endpoint():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    return f"tcp://127.0.0.1:{port}"


# --- disturbing ------------------------------------------------------------------------------------------------------


def test_nothing_is_changed_unless_asked():
    assert list(disturb(series(5))) == series(5)


@given(
    count=st.integers(0, 40),
    repeat=st.integers(1, 3),
    reorder=st.integers(0, 12),
    cut=st.integers(0, 9),
    seed=st.integers(0, 5),
)
def test_every_image_is_there_as_often_as_asked_and_near_its_place(count, repeat, reorder, cut, seed):
    sent = list(disturb(series(count), repeat=repeat, reorder=reorder, cut=cut, seed=seed))
    assert (sent[0], sent[-1]) == (series(count)[0], series(count)[-1])
    kept = [k for k in range(count) if not cut or (k + 1) % cut]
    assert Counter(numbers(sent)) == {k: repeat for k in kept}
    places = sorted(kept * repeat)
    window = max(reorder, 1)
    for first in range(0, len(places), window):
        assert sorted(numbers(sent)[first : first + window]) == places[first : first + window]
    assert sent == list(disturb(series(count), repeat=repeat, reorder=reorder, cut=cut, seed=seed))


def test_another_seed_gives_another_order():
    orders = {tuple(numbers(disturb(series(20), reorder=20, seed=seed))) for seed in range(5)}
    assert len(orders) == 5


def test_what_cannot_be_told_stays_in_its_place():
    odd = [[b"no json"], [b"{}"], [], [b"[1]"]]
    assert list(disturb(odd, repeat=3, cut=1)) == odd


# --- recordings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.bin", "a.bin.gz"])
def test_a_recording_is_read_as_it_was_written(tmp_path, name):
    recording.write(tmp_path / name, series(3))
    assert list(open_recording(tmp_path / name)) == series(3)
    assert list(open_recording(tmp_path / name, "/data/b.h5")) == series(3, "/data/b.h5")


def test_only_the_first_start_message_gets_the_name(tmp_path):
    recording.write(tmp_path / "a.bin", [*series(1), *series(1)])
    assert list(open_recording(tmp_path / "a.bin", "/b.h5")) == [*series(1, "/b.h5"), *series(1)]


@pytest.mark.parametrize(
    "user_data", [..., '{"label": "x", "filename": "old.h5"}', {"label": "x", "nframes": 3}, "remark"]
)
def test_the_name_is_in_the_user_data_of_stream_v2(tmp_path, user_data):
    """All else is as it was, byte for byte."""
    start = dectris2_messages.start(14, (4, 6), "all", user_data)
    image = dectris2_messages.image(14, 0, np.zeros((4, 6), np.uint16))
    recording.write(tmp_path / "v2.bin", [start, image, dectris2_messages.end(14)])
    first, *others = list(open_files([tmp_path / "v2.bin"], "new.h5"))
    before, after = dectris2.decode(start), dectris2.decode(first)
    assert (after.filename, after.nframes, others) == ("new.h5", before.nframes, [image, dectris2_messages.end(14)])
    kept = {key: value for key, value in before.metadata.items() if key != "appendix"}
    assert after.metadata == {**kept, **({"appendix": "remark"} if user_data == "remark" else {})}
    assert after.arrays == before.arrays
    assert list(open_files([tmp_path / "v2.bin"])) == [start, *others]


def test_images_of_stream_v2_are_cut_and_repeated():
    image = [dectris2_messages.image(1, n, np.zeros((4, 6), np.uint16)) for n in range(4)]
    start, end = dectris2_messages.start(1, (4, 6)), dectris2_messages.end(1)
    assert list(disturb([start, *image, end], cut=2)) == [start, image[0], image[2], end]
    assert list(disturb([start, *image[:1], end], repeat=2)) == [start, image[0], image[0], end]
    assert list(disturb([[b"\xd9\xd9\xf7\xff"], [b"\xd9\xd9\xf7\xa0"]], cut=1)) == [
        [b"\xd9\xd9\xf7\xff"],
        [b"\xd9\xd9\xf7\xa0"],
    ]


@pytest.mark.parametrize("detail", dectris.DETAILS)
@pytest.mark.parametrize("appendix", ["", {"filename": "old", "nframes": 3, "label": "x"}, "a remark"])
def test_the_name_is_in_the_appendix_of_a_dectris_start(tmp_path, detail, appendix):
    """What else is in it stays; it is made where there is none."""
    start, image = dectris.start(14, (4, 6), detail, appendix), dectris.image(14, 0, np.zeros((4, 6), np.uint16))
    recording.write(tmp_path / "a.bin", [start, image])
    first, second = open_recording(tmp_path / "a.bin", "/data/new.h5")
    assert first[:-1] == (start[:-1] if appendix else start) and second == image
    before, after = dectris1.decode(start), dectris1.decode(first)
    assert (after.filename, after.nframes, after.metadata) == ("/data/new.h5", before.nframes, before.metadata)
    assert [bytes(array.data) for array in after.arrays.values()] == [array.data for array in before.arrays.values()]


def test_a_recording_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="missing.bin: cannot be read"):
        list(open_recording(tmp_path / "missing.bin"))
    (tmp_path / "cut.bin").write_bytes(b"\x01\0\0\0\x09\0\0\0abc")
    with pytest.raises(StreamError, match="ends inside"):
        list(open_recording(tmp_path / "cut.bin"))


def test_recordings_and_cbf_files_are_not_mixed(tmp_path):
    with pytest.raises(ConfigError, match="not both"):
        open_files([tmp_path / "a.bin", tmp_path / "b.cbf"])
    with pytest.raises(ConfigError):
        open_files([])
    recording.write(tmp_path / "a.bin", series(1))
    assert numbers(open_files([tmp_path / "a.bin", tmp_path / "a.bin"])) == [0, 0]


# --- CBF -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "pack"),
    [(".cbf", bytes), (".cbf.bz2", bz2.compress), (".cbf.gz", gzip.compress), (".CBF", bytes)],
)
def test_cbf_files_become_a_series(tmp_path, ending, pack):
    images = [np.arange(12, dtype=np.int32).reshape(3, 4) * (k - 1) for k in range(3)]
    paths = [tmp_path / f"{k}{ending}" for k in range(3)]
    for path, image in zip(paths, images, strict=True):
        path.write_bytes(pack(cbf(image)))
    messages = list(open_files(paths, "/data/p.h5"))
    start, *frames, end = map(stins.decode, messages)
    assert isinstance(start, SeriesStart) and isinstance(end, SeriesEnd)
    assert (start.filename, start.nframes, start.shape, start.dtype) == ("/data/p.h5", 3, (3, 4), "int32")
    assert start.metadata["detector"]["detector_number"] == "60-0119"
    assert [(f.number, f.shape, f.codec) for f in frames] == [(k, (3, 4), "cbf") for k in range(3)]
    assert [bytes(f.data) for f in frames] == [cbf(image) for image in images]
    assert [message.serial for message in (start, *frames, end)] == [0, 1, 2, 3, 4]
    assert {message.series for message in map(stins.decode, cbf_series(paths, "", series=7))} == {7}


def test_no_file_no_message():
    assert list(cbf_series([], "x")) == []


def test_what_a_pilatus_says_goes_into_the_start_message():
    assert cbf_metadata(HEADER) == {
        "exptime": 0.019,
        "frame_time": 0.02,
        "wavelength": 0.96859,
        "detector": {
            "description": "PILATUS3 6M",
            "detector_number": "60-0119",
            "sensor_material": "Silicon",
            "sensor_thickness": 0.00045,
            "x_pixel_size": 172e-6,
            "y_pixel_size": 173e-6,
        },
    }
    assert cbf_metadata("# nothing known\n") == {}


def test_files_that_are_not_cbf(tmp_path):
    path = tmp_path / "a.cbf"
    with pytest.raises(ConfigError, match=r"a.cbf: cannot be read \(No such file"):
        list(cbf_series([path], ""))
    for content in (b"", b"II*\0", b"###CBF but no binary"):
        path.write_bytes(content)
        with pytest.raises(StreamError, match="a.cbf: not a miniCBF file"):
            list(cbf_series([path], ""))
    path.write_bytes(b"###CBF\r\n\x0c\x1a\x04\xd5")
    with pytest.raises(StreamError, match="rows and columns"):
        list(cbf_series([path], ""))
    for name in ("b.cbf.bz2", "b.cbf.gz"):
        (tmp_path / name).write_bytes(b"not compressed")
        with pytest.raises(ConfigError, match=f"{name}: cannot be read"):
            list(cbf_series([tmp_path / name], ""))


# --- sending ---------------------------------------------------------------------------------------------------------


def test_everything_arrives(endpoint):
    seen = []
    with Sink(endpoint) as sink:
        assert replay(series(50), endpoint, progress=seen.append) == 52
    assert sink.messages == series(50)
    assert seen == list(range(1, 53))


def test_big_messages_to_a_slow_receiver_arrive_too(endpoint):
    big = [[b'{"htype":"image"}', bytes(8 << 20)] for _ in range(20)]
    with Sink(endpoint) as sink:
        assert replay([*big, [b'{"htype":"series_end"}']], endpoint) == 21
    assert [len(parts) for parts in sink.messages] == [2] * 20 + [1]


def test_the_rate_is_kept(endpoint):
    with Sink(endpoint):
        times = []
        replay(series(18), endpoint, rate=50, progress=lambda sent: times.append(time.monotonic()))
    assert times[-1] - times[0] >= 19 / 50 - 0.001


def test_no_receiver_is_an_error_and_not_a_hang(endpoint):
    began = time.monotonic()
    with pytest.raises(HardwareError, match=f"no receiver connected to {endpoint} within 0.3 s"):
        replay(series(1), endpoint, peer_limit=0.3)
    assert time.monotonic() - began < 3


def test_a_receiver_that_takes_nothing_is_an_error(endpoint):
    with zmq.Context() as context, context.socket(zmq.PULL) as pull:
        pull.rcvhwm = 1
        pull.linger = 0
        pull.connect(endpoint)
        with pytest.raises(HardwareError, match="took nothing for 0.3 s"):
            replay(([b"x" * (4 << 20)] for _ in range(500)), endpoint, send_limit=0.3)


def test_an_endpoint_that_is_taken_or_none(endpoint):
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.bind(endpoint)
        with pytest.raises(ConfigError, match="is the port in use"):
            replay([], endpoint)
    with pytest.raises(ConfigError, match="cannot bind to nowhere"):
        replay([], "nowhere")


def test_the_end_of_the_messages_may_be_an_error(endpoint):
    def broken():
        yield series(1)[0]
        raise StreamError("recording cut short")

    with Sink(endpoint, wait=1.0), pytest.raises(StreamError, match="cut short"):
        replay(broken(), endpoint)


def test_an_iterator_of_paths_is_fine(tmp_path):
    (tmp_path / "a.cbf").write_bytes(cbf(np.zeros((2, 2), np.int32)))
    assert len(list(cbf_series(Path(tmp_path).glob("*.cbf"), ""))) == 3


# --- through the receiver --------------------------------------------------------------------------------------------


@pytest.fixture
def engine(endpoint, tmp_path):
    config = make({"root": str(tmp_path), "endpoints": [endpoint], "http": "", "end_timeout": 0.5, "workers": 2})
    with Engine(config) as engine:
        yield engine


def test_a_disturbed_series_is_written_in_order_and_the_books_tell(endpoint, engine, tmp_path):
    path = tmp_path / "a.h5"
    replay(series(60, str(path)), endpoint, repeat=2, reorder=15, cut=10, seed=3)
    wait_for(lambda: engine.snapshot().closed == 1)
    now = engine.snapshot()
    assert (now.written, now.repeated, now.missing, now.received) == (54, 54, 6, 108)
    with h5py.File(path) as file:
        lost = set(range(9, 60, 10))
        assert file[DATASET][:, 0, 0].tolist() == [0 if k in lost else k for k in range(60)]


def assert_as_fabio(file: Path, paths: list[Path]) -> None:
    with h5py.File(file) as h5:
        data = h5[DATASET]
        assert data.dtype == np.int32
        assert len(data) == len(paths)
        for number, path in enumerate(paths):
            with fabio.open(str(path)) as image:
                np.testing.assert_array_equal(data[number], image.data)


def test_cbf_images_are_decoded(endpoint, engine, tmp_path):
    chance = np.random.default_rng(1)
    paths = [tmp_path / f"{k}.cbf" for k in range(5)]
    for path in paths:
        image = fabio.cbfimage.CbfImage(data=chance.integers(-2, 2**20, (40, 30), dtype=np.int32))
        image.write(str(path))
    replay(cbf_series(paths, str(tmp_path / "p.h5")), endpoint, reorder=5)
    wait_for(lambda: engine.snapshot().closed == 1)
    assert engine.snapshot().error == ""
    assert_as_fabio(tmp_path / "p.h5", paths)


def test_real_pilatus_images_are_decoded_pixel_by_pixel(endpoint, engine, tmp_path):
    paths = sorted(DATA.glob("pilatus*.cbf.bz2"))
    if not paths:
        pytest.skip(f"no Pilatus images in {DATA}; DETECTOR_TEST_DATA names the folder of recordings")
    replay(cbf_series(paths, str(tmp_path / "p.h5")), endpoint)
    wait_for(lambda: engine.snapshot().closed == 1, timeout=60)
    assert engine.snapshot().error == ""
    assert_as_fabio(tmp_path / "p.h5", paths)
    with h5py.File(tmp_path / "p.h5") as h5:
        assert h5[DATASET].shape == (3, 2527, 2463)
        assert h5[DATASET].parent["count_time"][()] == pytest.approx(0.019)


def test_a_real_recording_is_read_and_renamed():
    path = DATA / "eiger1m_stream1.bin.gz"
    if not path.exists():
        pytest.skip(f"no Eiger recording in {DATA}; DETECTOR_TEST_DATA names the folder of recordings")
    plain, renamed = list(open_recording(path)), list(open_recording(path, "/data/new.h5"))
    assert len(plain) == len(renamed) == 10
    assert plain[1:] == renamed[1:]
    assert plain[0][:-1] == renamed[0][:-1]
    assert json.loads(renamed[0][-1])["filename"] == "/data/new.h5"
    assert len(list(disturb(plain, cut=3))) == 7, "its images are known as images"
