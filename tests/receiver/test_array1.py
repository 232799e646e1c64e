"""array-1.0: messages, the whole way into a file, and series that the control side begins."""

import json
import shutil
import subprocess
import sys
import threading
from itertools import count
from pathlib import Path

import h5py
import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from tangods_receiver import config
from tangods_receiver.device import series_to_begin
from tangods_receiver.engine import Engine
from tangods_receiver.errors import ConfigError, StreamError, WriteError
from tangods_receiver.protocol import Frame, array1
from tests.receiver import disturbed
from tests.receiver.senders import Array1, subscribed, total
from tests.receiver.streaming import DATASET, SHAPE, balanced, holds, image, read, running, wait_closed
from tests.waiting import wait_for

PAGE = Path(__file__).parents[2] / "resources" / "streams" / "array1.md"


def message(number=7, pixels=None, **more):
    return Array1.message(number, image(number) if pixels is None else pixels, **more)


# --- messages --------------------------------------------------------------------------------------------------------


def test_a_message_as_it_is_sent():
    """To the letter, as Python's json writes it."""
    parts = [b'{"htype": "array-1.0", "shape": [2, 3], "type": "uint16", "frame": 5}', bytes(range(12))]
    assert array1.decode(parts) == Frame(5, (2, 3), "uint16", "none", parts[1])


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "float32"])
def test_types(dtype):
    pixels = image(3, dtype=dtype)
    frame = array1.decode(message(3, pixels))
    assert (frame.dtype, frame.shape, bytes(frame.data)) == (dtype, SHAPE, pixels.tobytes())


def test_keys_that_others_send():
    """A list of types, as the early ones; the time; what nobody knows is kept."""
    head = {"htype": ["array-1.0"], "tag": "", "source": "cam", "endianess": "little", "timestamp": 12, "pulse_id": 99}
    frame = array1.decode(message(**head))
    assert frame.timestamp == 12.0
    assert frame.extra == {"tag": "", "source": "cam", "endianess": "little", "pulse_id": 99}


def test_a_line_of_pixels_is_one_row():
    frame = array1.decode(message(pixels=np.arange(10, dtype="int32")))
    assert frame.shape == (1, 10)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([], "0 parts"),
        ([b"{}"], "1 parts, not 2"),
        ([*message(), b""], "3 parts"),
        ([b"{", b""], "not JSON"),
        ([b"[]", b""], "not a JSON object"),
        (message(htype="image"), "htype is 'image'"),
        (message(htype=["array-1.0", "x"]), "htype is"),
        (message(frame=-1), "frame is -1"),
        (message(frame=1.0), "frame is 1.0"),
        (message(frame=True), "frame is True"),
        (message(frame=2**63), "frame is"),
        (message(shape=None), "image 7: shape is None"),
        (message(shape=[0, 5]), "shape is [0, 5]"),
        (message(shape=[1, 6, 10]), "shape is [1, 6, 10], not [rows, columns]"),
        (message(shape=[True, 60]), "shape is [True, 60]"),
        (message(shape=[2**20, 2**20]), "more than"),
        (message(type="float"), "image 7: type is 'float', known are"),
        (message(type=["uint16"]), "type is"),
        (message(endianess="big"), "endianess is 'big'"),
        (message(endianness=["big"]), "endianess is"),
        (message(encoding="lz4"), "encoding is 'lz4'; send plain pixels"),
        (message(compression={}), "compression is {}"),
        (message(timestamp="now"), "timestamp is 'now'"),
        (message(timestamp=1e300), "timestamp is"),
        (message()[:1] + [bytes(119)], "image 7: 119 bytes of pixels, 120 expected"),
    ],
)
def test_refused(parts, words):
    with pytest.raises(StreamError) as refusal:
        array1.decode(parts)
    assert words in str(refusal.value) and len(str(refusal.value)) < 400


def test_bytes_have_no_order():
    assert array1.decode(message(pixels=image(1, dtype="uint8"), endianess="big")).dtype == "uint8"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
keys = st.sampled_from(["htype", "shape", "type", "frame", "timestamp", "endianess", "encoding", "compression", "x"])


@given(st.dictionaries(keys, values), st.sets(keys), st.binary(max_size=200) | st.just(image(7).tobytes()))
def test_nothing_but_a_stream_error(changes, gone, data):
    head = json.loads(message()[0]) | changes
    parts = [json.dumps({key: head[key] for key in head if key not in gone}).encode(), data]
    try:
        frame = array1.decode(parts)
    except StreamError as exc:
        assert 0 < len(str(exc)) < 1000
    else:
        assert len(frame.data) == np.prod(frame.shape) * np.dtype(frame.dtype).itemsize


# --- the whole way ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["push", "pub"])
def sender(request):
    with Array1(zmq.PUSH if request.param == "push" else zmq.PUB) as sender:
        sender.socket_name = "" if request.param == "push" else "sub"
        yield sender


def listening(root, *senders, **values):
    """An engine for these senders."""
    kind = senders[0].socket_name
    return running(root, *(s.endpoint for s in senders), protocol="array1", socket=kind, **values)


def heard(engine, *senders, number=1000):
    """Each sender has a connection; images before a series are only shown."""
    subscribed(engine, *senders, beat=lambda sender: sender.frame(number))


def test_a_series_from_begin_to_its_last_frame(tmp_path, sender):
    """Numbers count from the first frame after `begin`; what comes before and afterwards is shown and not stored."""
    with listening(tmp_path, sender) as engine:
        heard(engine, sender)
        assert engine.snapshot().state == "idle" and engine.last_frame() is not None
        assert engine.begin(str(tmp_path / "a.h5"), 5, {"exptime": 0.5, "label": "water"}) == 1
        for number in range(5000, 5009):
            sender.frame(number, image(number - 5000))
        s = wait_closed(engine, 1)
        assert (s.state, s.error, s.missing, s.written) == ("idle", "", 0, 5)
        wait_for(lambda: engine.snapshot().discarded == 4)
        s = balanced(engine)
        assert s.state == "idle" and s.foreign == s.rejected == s.dropped == 0
    assert holds(tmp_path / "a.h5", range(5))
    data, books = read(tmp_path / "a.h5")
    assert books["count_time"] == 0.5 and books["end_reason"] == b"complete"


def test_a_series_until_stop(tmp_path, sender):
    with listening(tmp_path, sender) as engine:
        heard(engine, sender)
        engine.begin("sub.h5")
        sender.frames(range(3))
        wait_for(lambda: engine.snapshot().written == 3)
        engine.stop()
        s = wait_closed(engine, 1)
        assert (s.state, s.missing) == ("idle", 0)
    assert holds(tmp_path / "sub.h5", range(3))


def test_frames_that_never_came_are_missing(tmp_path, sender):
    with listening(tmp_path, sender) as engine:
        heard(engine, sender)
        engine.begin("a.h5", 10)
        sender.frames([0, 1, 4, 5, 9])
        wait_for(lambda: engine.snapshot().written == 5)
        engine.stop()
        s = wait_closed(engine, 1)
        assert s.missing == 5 and s.dropped == (5 if sender.socket_name else 0)
    reason = read(tmp_path / "a.h5")[1]["end_reason"]
    assert b"5 of 10 frames missing: 2-3, 6-8" in reason
    assert (b"a PUB socket drops" in reason) is bool(sender.socket_name)
    assert holds(tmp_path / "a.h5", [0, 1, 4, 5, 9], 10)


def test_repeated_shuffled_and_older_frames(tmp_path, sender):
    """In the place that its number gives; one that is older than the first has none."""
    with listening(tmp_path, sender) as engine:
        heard(engine, sender)
        engine.begin("a.h5", 6)
        for number in (10, 13, 12, 12, 9, 11, 15, 14):
            sender.frame(number, image(number - 10))
        s = wait_closed(engine, 1)
        assert (s.written, s.repeated, s.foreign, s.missing) == (6, 1, 1, 0)
        assert any("older than the first" in loss.sentence for loss in s.lost)
    assert holds(tmp_path / "a.h5", range(6))


def test_whatever_happens_to_images_on_their_way(tmp_path):
    """Those that came whole are in the file, each in its place and once; all are counted. The first one comes first."""
    ids, sent = count(1), []

    def series(steps):
        number = next(ids)
        steps = [disturbed.Step(0), *steps]
        expected = disturbed.outcome(steps)
        engine.begin(f"{number}.h5", disturbed.COUNT)
        for k, percent in steps:
            sender.parts(disturbed.cut(Array1.message(1000 * number + k, image(k)), percent))
        sent.extend(steps)
        wait_for(lambda: total(engine) == len(sent))  # also what comes when all are there
        engine.stop()
        s = wait_closed(engine, number)
        assert s.written == len(expected.kept) and s.missing == disturbed.COUNT - len(expected.kept)
        if len(expected.kept) < disturbed.COUNT:  # else it may be over before the last of them
            assert (s.repeated, s.rejected) == (expected.repeated, expected.refused)
        assert holds(tmp_path / f"{number}.h5", expected.kept, disturbed.COUNT)

    with Array1(zmq.PUSH) as sender, running(tmp_path, sender.endpoint, protocol="array1") as engine:
        disturbed.few(given(disturbed.shuffled)(series))()


def test_several_senders_are_modules_of_one_image(tmp_path):
    """One origin for all of them: an image that began before all modules did is no whole one."""
    with Array1() as a, Array1() as b:
        a.socket_name = b.socket_name = "sub"
        with listening(tmp_path, a, b, workers=2) as engine:
            heard(engine, a, b)
            engine.begin("a.h5", 4, {"x": [0, 10], "y": [0, 0]})
            a.frame(100, image(0))
            wait_for(lambda: engine.snapshot().written == 1)
            for number in (99, 100, 101, 102, 103):
                b.frame(number, image(number))
            for number in (101, 102, 103):
                a.frame(number, image(number - 100))
            s = wait_closed(engine, 1)
            assert (s.written, s.missing, s.foreign) == (8, 0, 1)
    with h5py.File(tmp_path / "a.h5") as file:
        data, whole = file[DATASET][()], file["entry/instrument/detector/assembled"][()]
    assert data.shape == (4, 2, *SHAPE)
    for k in range(4):
        assert (data[k, 0] == image(k)).all() and (data[k, 1] == image(100 + k)).all()
        assert (whole[k] == np.hstack([image(k), image(100 + k)])).all()


def test_malformed_messages_are_counted_and_are_no_gap(tmp_path):
    with Array1() as sender:
        sender.socket_name = "sub"
        with listening(tmp_path, sender) as engine:
            heard(engine, sender)
            engine.begin("a.h5")
            sender.frames([0, 1])
            sender.frame(2, type="smoke")
            sender.frames([3])
            wait_for(lambda: engine.snapshot().written == 3)
            s = balanced(engine)
            assert (s.rejected, s.dropped, s.state) == (1, 0, "error") and "type is 'smoke'" in s.error
            engine.reset()
            sender.frame(4, np.zeros((3, 3), "uint16"))
            wait_for(lambda: engine.snapshot().rejected == 2)
            engine.stop()
            assert wait_closed(engine, 1).missing == 1
    assert holds(tmp_path / "a.h5", [0, 1, 3], 4)
    assert b"PUB" not in read(tmp_path / "a.h5")[1]["end_reason"]


def test_live_only_counts_what_was_dropped(tmp_path):
    """Without a series too; a sender that counts anew has dropped nothing."""
    with Array1() as sender:
        sender.socket_name = "sub"
        with listening(tmp_path, sender) as engine:
            heard(engine, sender, number=0)
            sender.frames([1, 2, 5, 6, 10])
            sender.frames([0, 1, 3])
            sender.frame(4 * 10**6)  # another numbering
            before = total(engine)
            sender.frame(4 * 10**6 + 1)
            wait_for(lambda: total(engine) > before and engine.snapshot().last_number == 4 * 10**6 + 1)
            s = balanced(engine)
            assert (s.dropped, s.state, s.opened) == (2 + 3 + 1, "idle", 0)


# --- begin -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def quiet(tmp_path):
    """An engine whose sender sends when it is told."""
    with Array1(zmq.PUSH) as sender, running(tmp_path, sender.endpoint, protocol="array1") as engine:
        yield engine, sender


def test_a_stream_that_announces_its_series_cannot_be_begun(tmp_path):
    with Array1(zmq.PUSH) as sender, running(tmp_path, sender.endpoint) as engine:
        with pytest.raises(ConfigError, match="stins announces its series itself"):
            engine.begin("a.h5")


def test_begin_without_a_file_is_live_view_only(quiet, tmp_path):
    engine, sender = quiet
    assert engine.begin("", 2) == 1
    assert engine.begin("x.h5", 2, {"save_raw": False}) == 2
    sender.frames(range(2))
    s = wait_closed(engine, 2)
    assert (s.discarded, s.written, s.missing) == (2, 0, 0) and list(tmp_path.iterdir()) == []


def test_begin_of_no_frames_is_over_at_once(quiet, tmp_path):
    engine, _ = quiet
    engine.begin("none.h5", 0)
    assert wait_closed(engine, 1).state == "idle"
    with h5py.File(tmp_path / "none.h5") as file:
        assert file["entry/instrument/detector/end_reason"][()] == b"complete"
        assert DATASET not in file


@pytest.mark.parametrize("name", ["../a.h5", "/etc/a.h5", "there.h5", "no/such/folder/a.h5", "a\0.h5"])
def test_begin_is_refused_with_a_reason_and_the_next_is_not(quiet, tmp_path, name):
    engine, sender = quiet
    (tmp_path / "there.h5").write_bytes(b"there before")
    with pytest.raises(WriteError) as refusal:
        engine.begin(name, 1)
    assert len(str(refusal.value)) > 10
    wait_for(lambda: engine.snapshot().state == "error" and engine.snapshot().error == str(refusal.value))
    engine.begin("good.h5", 1)
    sender.frame(0)
    wait_closed(engine, 2)
    assert engine.snapshot().state == "idle" and holds(tmp_path / "good.h5", [0])
    assert (tmp_path / "there.h5").read_bytes() == b"there before"


def test_begin_overwrites_where_both_sides_allow_it(tmp_path):
    with Array1(zmq.PUSH) as sender:
        with running(tmp_path, sender.endpoint, protocol="array1", allow_overwrite=True) as engine:
            for series in (1, 2):
                engine.begin("a.h5", 1, {"overwrite": True})
                sender.frame(series, image(0))
                wait_closed(engine, series)
            assert holds(tmp_path / "a.h5", [0])


def test_begin_ends_what_was_open(quiet, tmp_path):
    engine, sender = quiet
    engine.begin("a.h5", 5)
    sender.frames(range(2))
    wait_for(lambda: engine.snapshot().written == 2)
    engine.begin("b.h5", 1)
    sender.frame(0)
    wait_closed(engine, 2)
    assert read(tmp_path / "a.h5")[1]["end_reason"].startswith(b"a new series began before its end; 3 of 5")
    assert holds(tmp_path / "b.h5", [0])


def test_many_begin_at_once(quiet, tmp_path):
    """Each has a series and a file of its own, one after the other."""
    engine, sender = quiet
    found = []
    threads = [threading.Thread(target=lambda k=k: found.append(engine.begin(f"{k}.h5"))) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(found) == list(range(1, 9))
    sender.frames(range(3))
    wait_for(lambda: engine.snapshot().written == 3)
    engine.stop()
    wait_closed(engine, 8)
    assert len(list(tmp_path.glob("*.h5"))) == 8


def test_begin_when_the_engine_goes_down(quiet):
    engine, _ = quiet
    engine._reception.halt()
    with pytest.raises(ConfigError, match="being shut down"):
        engine.begin("a.h5")


def test_several_workers_cannot_share_a_push_stream(tmp_path):
    said = {"endpoints": ["tcp://127.0.0.1:1"], "root": tmp_path, "protocol": "array1", "workers": 2}
    with pytest.raises(ConfigError, match="in the order in which they were sent"):
        config.make(said)
    with pytest.raises(ConfigError, match="at most one worker for each endpoint"):
        config.make(said | {"socket": "sub"})


# --- the page --------------------------------------------------------------------------------------------------------


def blocks(language):
    """Examples of the page, in their order."""
    text = PAGE.read_text()
    return [part.partition("```")[0] for part in text.split(f"```{language}\n")[1:]]


def test_the_sender_of_the_page(tmp_path):
    """It runs as it stands there, in a process of its own, and its images are in the file."""
    sender, yaml = blocks("python")[0], blocks("yaml")[0]
    assert len([line for line in sender.splitlines() if line.strip()]) == 9
    with Array1(zmq.PUSH) as free:
        port = free.port  # nobody else has it now
    assert "tcp://*:9999" in sender and "tcp://detector:9999" in yaml and "/data" in yaml
    code = sender.replace("tcp://*:9999", f"tcp://127.0.0.1:{port}")
    made = yaml.replace("detector:9999", f"127.0.0.1:{port}").replace("/data", str(tmp_path))
    (tmp_path / "receiver.yaml").write_text(made.replace("127.0.0.1:8000", "127.0.0.1:0"))
    with Engine(config.load(tmp_path / "receiver.yaml")) as engine:
        engine.begin("run1.h5", 100)
        with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as process:
            try:
                wait_closed(engine, 1)
            finally:
                process.kill()
    with h5py.File(tmp_path / "run1.h5") as file:
        data = file[DATASET][()]
    assert data.shape == (100, 512, 1024) and (data[:, 0, 0] == np.arange(100)).all()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_calls_of_the_page(tmp_path):
    """curl and Tango say the same, and it is what the receiver takes."""
    shell, tango = blocks("sh")[0], blocks("py")[0]
    assert "BeginSeries" in tango and series_to_begin(tango.split("'")[1])[:2] == ("run1.h5", 100)
    token = tmp_path / ".token"
    values = {"http": "127.0.0.1:0", "http_token_file": str(token), "protocol": "array1"}
    with Array1(zmq.PUSH) as sender, running(tmp_path, sender.endpoint, **values) as engine:
        call = shell.replace("127.0.0.1:8000", f"127.0.0.1:{engine.http_port}").replace("/data/.token", str(token))
        done = subprocess.run(["bash", "-c", call.replace("curl", "curl -sS", 1)], capture_output=True, text=True)
        assert done.returncode == 0 and json.loads(done.stdout) == {"series": 1}, done
        assert engine.snapshot().file == str(tmp_path / "run1.h5")
