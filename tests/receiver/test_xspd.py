"""xspd: messages, numbers from eight bits, several ports, and the whole way into a file."""

import random
import zlib
from itertools import count as counted

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangods_receiver import config
from tangods_receiver.errors import ConfigError, StreamError
from tangods_receiver.protocol import Frame, Images, xspd
from tests.receiver import disturbed
from tests.receiver.senders import Xspd, subscribed, total
from tests.receiver.streaming import DATASET, SHAPE, balanced, holds, image, read, running, wait_closed
from tests.waiting import wait_for

IMAGES = {"shape": list(SHAPE)}


def port(**values):
    """Of a detector that has one."""
    return xspd.decoders(Images(SHAPE, **values))(0, 1)


def ports(count, **values):
    make = xspd.decoders(Images(SHAPE, **values))
    return [make(k, count) for k in range(count)]


def message(number=1, pixels=None, **more):
    return Xspd.message(number, image(number) if pixels is None else pixels, **more)


# --- messages --------------------------------------------------------------------------------------------------------


def test_a_message_as_it_is_sent():
    parts = [b"", bytes([7, 1, 0, 16]), image(3).tobytes()]
    assert port()(parts) == Frame(7, SHAPE, "uint16", "none", parts[2])


def test_a_header_may_be_longer():
    assert port()([b"lambda", bytes([7, 1, 0, 16]) + bytes(60), image(3).tobytes()]).number == 7


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_type_by_size(dtype):
    """The depth of the counters may change from series to series, and the type with it."""
    pixels = image(3, dtype=dtype)
    assert port()(message(3, pixels)).dtype == dtype
    frame = port(compression="zlib")(message(3, pixels, compressed=True))
    assert (frame.dtype, frame.codec, bytes(frame.data)) == (dtype, "none", pixels.tobytes())


def test_a_type_that_is_configured():
    assert port(dtype="int16")(message()).dtype == "int16"
    with pytest.raises(StreamError, match="120 bytes of pixels are no image of 6 x 10 uint32"):
        port(dtype="uint32")(message())


def test_status_that_is_not_good():
    assert port()(message(status=1)).incomplete and not port()(message()).incomplete


@pytest.mark.parametrize(
    ("values", "parts", "words"),
    [
        ({}, [], "0 parts, not 3"),
        ({}, message()[1:], "2 parts"),
        ({}, [*message(), b""], "4 parts"),
        ({}, [b'{"htype": "dimage-1.0"}', *message()[1:]], "another kind of detector"),
        ({}, [b"", b"\1\1\0", image(1).tobytes()], "a header of 3 bytes"),
        ({}, [*message()[:2], b""], "0 bytes of pixels are no image of 6 x 10"),
        ({}, [*message()[:2], bytes(119)], "119 bytes"),
        ({}, [*message()[:2], bytes(180)], "180 bytes"),
        ({}, [*message()[:2], bytes(480)], "frame_height, frame_width and compressor"),
        ({"compression": "zlib"}, message(), "no zlib"),
        ({"compression": "zlib"}, [*message()[:2], zlib.compress(bytes(120))[:-5]], "cut"),
        ({"compression": "zlib"}, [*message()[:2], zlib.compress(bytes(120)) + b"x"], "cut"),
        ({"compression": "zlib"}, [*message()[:2], zlib.compress(bytes(1 << 26))], "no image of the size"),
        ({"compression": "zlib"}, [*message()[:2], zlib.compress(bytes(121))], "121 bytes of pixels"),
        ({"compression": "zlib"}, [*message()[:2], b""], "cut"),
    ],
)
def test_refused(values, parts, words):
    with pytest.raises(StreamError) as refusal:
        port(**values)(parts)
    assert words in str(refusal.value)


@given(st.lists(st.binary(max_size=200), max_size=5), st.sampled_from(["none", "zlib"]))
def test_nothing_but_a_stream_error(parts, compression):
    decode = port(compression=compression)
    for message in (parts, [b"", *parts], [b"", bytes(4), *parts], [b"", bytes(4), zlib.compress(b"".join(parts))]):
        try:
            frame = decode(message)
        except StreamError as exc:
            assert 0 < len(str(exc)) < 1000
        else:
            assert len(frame.data) == 60 * np.dtype(frame.dtype).itemsize


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_numbers_go_on_beyond_eight_bits():
    decode = port()
    assert [decode(message(n)).number for n in range(1, 1001)] == [*range(1, 1001)]


@given(st.lists(st.integers(1, 256), min_size=1, max_size=50), st.integers(0, 255))
def test_gaps_of_less_than_a_turn_are_exact(steps, first):
    decode, number = port(), first
    assert decode(message(first)).number == first
    for step in steps:
        number += step
        assert decode(message(number)).number == number


def test_a_refused_message_changes_no_number():
    decode = port()
    assert decode(message(5)).number == 5
    with pytest.raises(StreamError):
        decode([b"", bytes([9, 0, 0, 0]), b"x"])
    assert decode(message(6)).number == 6


@given(st.data())
def test_ports_agree_whatever_one_of_them_loses(data):
    """Frames of the same number are one image, also where a port lost several turns, or comes late."""
    decode = ports(3)
    last = data.draw(st.integers(1, 900))
    lost = [data.draw(st.tuples(st.integers(0, 900), st.integers(0, 900))) for _ in range(2)]
    for number in range(1, last + 1):
        assert decode[0](message(number)).number == number  # it loses nothing
        for k, (first, count) in enumerate(lost, 1):
            if not first <= number < first + count:
                assert decode[k](message(number)).number == number


def test_a_detector_that_is_started_again_goes_on():
    """Its numbers begin anew; all ports find the same."""
    decode = ports(2)
    for number in range(1, 40):
        assert decode[0](message(number)).number == decode[1](message(number)).number == number
    found = [(decode[0](message(n)).number, decode[1](message(n)).number) for n in (1, 2, 3)]
    assert found == [(257, 257), (258, 258), (259, 259)]


def test_two_images_of_the_same_number():
    """Both counters of DUAL mode, one image after the other; a lost pair are two, a lost second one is one."""
    decode = port(counters=2)
    sent = [(1, 2), (1, 3), (2, 4), (2, 5), (4, 8), (4, 9), (5, 10), (6, 12), (6, 13)]
    assert [decode(message(n)).number for n, _ in sent] == [expected for _, expected in sent]


# --- configuration ---------------------------------------------------------------------------------------------------


def made(tmp_path, **values):
    return config.make({"endpoints": ["tcp://127.0.0.1:1"], "root": tmp_path, "protocol": "xspd"} | values)


def test_images_are_configured(tmp_path):
    assert made(tmp_path, images={"shape": [516, 1556]}).image_kind == Images((516, 1556))
    text = "{shape: [516, 1556], type: uint16, compression: zlib, counters: 2}"
    assert made(tmp_path, images=text).image_kind == Images((516, 1556), "uint16", "zlib", 2)
    assert made(tmp_path, images=IMAGES).subscribes


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (None, "images: missing; messages of protocol xspd do not tell how images are"),
        ({}, "images.shape: missing"),
        ({"shape": [516]}, "images.shape: [516] is not [rows, columns]"),
        ({"shape": [0, 5]}, "is not [rows, columns]"),
        ({"shape": [True, 5]}, "is not [rows, columns]"),
        ({"shape": [2**20, 2**20]}, "is not [rows, columns]"),
        ({"shape": "516x1556"}, "is not [rows, columns]"),
        ({**IMAGES, "type": "uint12"}, "images.type: 'uint12' is not known"),
        (
            {**IMAGES, "compression": "blosc/lz4"},
            "'blosc/lz4' cannot be unpacked here: set the detector's compressor to",
        ),
        ({**IMAGES, "counters": 0}, "images.counters"),
        ({**IMAGES, "depth": 12}, "images.depth: unknown key"),
        ("{shape: [1", "is not like {shape: [516, 1556]}"),
        ("[1, 2]", "images"),
    ],
)
def test_wrong_images(tmp_path, images, words):
    with pytest.raises(ConfigError) as refusal:
        made(tmp_path, **({} if images is None else {"images": images}))
    assert words in str(refusal.value)


def test_images_where_messages_tell(tmp_path):
    with pytest.raises(ConfigError, match="messages of protocol stins tell how images are; leave it out"):
        made(tmp_path, protocol="stins", images=IMAGES)


# --- the whole way ---------------------------------------------------------------------------------------------------


@pytest.fixture
def sender():
    with Xspd() as sender:
        yield sender


def listening(root, *senders, images=IMAGES, **values):
    return running(root, *(s.endpoint for s in senders), protocol="xspd", images=images, **values)


def heard(engine, *senders):
    subscribed(engine, *senders, beat=lambda sender: sender.frame(1))


def test_a_series_of_more_than_a_turn(tmp_path, sender):
    with listening(tmp_path, sender) as engine:
        heard(engine, sender)
        for series in (1, 2):  # the detector is started again
            engine.begin(f"{series}.h5", 600)
            for number in range(600):
                sender.frame(number + 1, image(number))
            s = wait_closed(engine, series)
            assert (s.state, s.error, s.written, s.missing, s.dropped) == ("idle", "", 600, 0, 0)
            assert holds(tmp_path / f"{series}.h5", range(600))


def test_lost_frames_leave_their_places_empty(tmp_path, sender):
    with listening(tmp_path, sender) as engine:
        heard(engine, sender)
        engine.begin("a.h5", 500)
        kept = [n for n in range(500) if n == 0 or n == 499 or not (n % 7 == 3 or 100 <= n < 300)]
        for number in kept:
            sender.frame(number + 1, image(number))
        wait_for(lambda: engine.snapshot().written == len(kept))
        engine.stop()
        s = wait_closed(engine, 1)
        assert s.missing == s.dropped == 500 - len(kept)
    assert holds(tmp_path / "a.h5", kept, 500)
    assert b"a PUB socket drops" in read(tmp_path / "a.h5")[1]["end_reason"]


def test_zlib_and_incomplete_frames(tmp_path, sender):
    with listening(tmp_path, sender, images={**IMAGES, "compression": "zlib"}) as engine:
        subscribed(engine, sender, beat=lambda sender: sender.frame(1, compressed=True))
        engine.begin("a.h5", 3)
        for number in range(3):
            sender.frame(number + 1, image(number), status=number == 1, compressed=True)
        s = wait_closed(engine, 1)
        assert (s.written, s.missing) == (3, 0) and any(loss.kind == "incomplete" for loss in s.lost)
    assert read(tmp_path / "a.h5")[1]["frame_status"].tolist() == [1, 2, 1]
    assert holds(tmp_path / "a.h5", range(3))


def test_a_change_of_depth_is_another_series(tmp_path, sender):
    """24 bits after 12: the type follows without a change of the configuration, but not within a series."""
    with listening(tmp_path, sender) as engine:
        heard(engine, sender)
        for series, dtype in ((1, "uint16"), (2, "uint32")):
            engine.begin(f"{series}.h5", 2)
            for number in range(2):
                sender.frame(number + 1, image(number, dtype=dtype))
            wait_closed(engine, series)
        engine.begin("3.h5", 2)
        sender.frame(1, image(0))
        sender.frame(2, image(1, dtype="uint32"))
        wait_for(lambda: engine.snapshot().rejected == 1)
        assert "6 x 10 uint32 none, the series has 6 x 10 uint16" in engine.snapshot().error
    assert read(tmp_path / "2.h5")[0].dtype == "uint32"


def test_whatever_happens_to_frames_on_their_way(tmp_path):
    """Of two ports, whose messages come in any order of the ports: modules that came whole are in the file, each in its
    place. (None comes twice: a number that is the same again would be 256 frames later.)"""
    ids, sent = counted(1), []

    def series(lost, broken, order):
        number = next(ids)
        engine.begin(f"{number}.h5", disturbed.COUNT)
        todo = [[n for n in range(disturbed.COUNT) if (k, n) not in lost or (k, n) == (0, 0)] for k in (0, 1)]
        broken -= {(0, 0)}
        kept = [[n for n in numbers if (k, n) not in broken] for k, numbers in enumerate(todo)]
        for k in [0] + order + [k for k in (0, 1) for _ in range(disturbed.COUNT)]:
            if todo[k]:
                n = todo[k].pop(0)
                whole = Xspd.message(n + 1, image(n + 100 * k))
                senders[k].parts(disturbed.cut(whole, 40) if (k, n) in broken else whole)
                sent.append(n)
                if n == k == 0:
                    wait_for(lambda: engine.snapshot().written == 1)
        wait_for(lambda: total(engine) == before + len(sent))
        engine.stop()
        s = wait_closed(engine, number)
        assert s.written == sum(map(len, kept)) and s.missing == disturbed.COUNT - len({*kept[0]} & {*kept[1]})
        data, _ = read(tmp_path / f"{number}.h5")
        for n in range(disturbed.COUNT):
            for k in (0, 1):
                assert (data[n, k] == (image(n + 100 * k) if n in kept[k] else 0)).all(), (n, k)

    places = st.sets(st.tuples(st.integers(0, 1), st.integers(0, disturbed.COUNT - 1)), max_size=8)
    with Xspd() as a, Xspd() as b:
        senders = [a, b]
        with listening(tmp_path, *senders) as engine:
            heard(engine, *senders)
            before = total(engine)
            disturbed.few(given(places, places, st.lists(st.integers(0, 1), max_size=30))(series))()


@pytest.mark.parametrize("workers", [1, 4])
def test_modules_of_several_ports(tmp_path, workers):
    """Each port a module; the frames that one of them loses are missing of that one, the others fit together."""
    rng = random.Random(workers)
    with Xspd() as a, Xspd() as b, Xspd() as c, Xspd() as d:
        senders = [a, b, c, d]
        with listening(tmp_path, *senders, workers=workers) as engine:
            heard(engine, *senders)
            metadata = {"x": [0, 10, 0, 10], "y": [0, 0, 6, 6], "full_shape": [12, 20]}
            engine.begin("a.h5", 300, metadata)
            a.frame(1, image(0))
            wait_for(lambda: engine.snapshot().written == 1)
            lost = {(rng.randrange(1, 299), k) for k in range(4) for _ in range(20)}
            for number in range(300):
                for k, sender in enumerate(senders):
                    if (number, k) != (0, 0) and (number, k) not in lost:
                        sender.frame(number + 1, image(number + 1000 * k))
            wait_for(lambda: engine.snapshot().written == 1200 - len(lost))
            engine.stop()
            s = wait_closed(engine, 1)
            assert s.missing == len({number for number, _ in lost}) and s.dropped == len(lost)
            balanced(engine)
    with h5py.File(tmp_path / "a.h5") as file:
        data, whole = file[DATASET][()], file["entry/instrument/detector/assembled"][()]
    assert data.shape == (300, 4, *SHAPE) and whole.shape == (300, 12, 20)
    for number in range(300):
        for k in range(4):
            expected = np.zeros(SHAPE) if (number, k) in lost else image(number + 1000 * k)
            assert (data[number, k] == expected).all(), (number, k)
