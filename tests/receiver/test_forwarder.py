"""What is received is sent on, as STINS: whole, in order, to whoever is there, and never at the cost of the file."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import ExitStack, contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from tangods_receiver import codecs, forwarder, outlet, priority
from tangods_receiver.config import ForwardPort, make
from tangods_receiver.engine import Engine
from tangods_receiver.errors import ConfigError
from tangods_receiver.forwarder import Port, as_json, filename
from tangods_receiver.metrics import families
from tangods_receiver.outbox import OVERHEAD, Ending, Opening, Outbox
from tangods_receiver.protocol import Frame, SeriesEnd, SeriesStart, Times, stins
from tangods_receiver.stats import Snapshot
from tests.receiver.streaming import DATASET, Sender, balanced, holds, image, read, running, wait_closed, wait_opened
from tests.waiting import wait_for

PORT = "tcp://127.0.0.1:0"
BIG = (500, 1000)  # 1 MB
MB = 2**20


class Client:
    """Takes STINS from one port, in a context of its own."""

    def __init__(self, endpoint, kind=zmq.PULL, hwm=1000):
        self._context = zmq.Context()
        self.socket = self._context.socket(kind)
        self.socket.linger = 0
        self.socket.rcvhwm = hwm
        if kind == zmq.SUB:
            self.socket.subscribe(b"")
        self.socket.connect(endpoint)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.socket.close()
        self._context.term()

    def next(self, timeout=10.0):
        """None: nothing came."""
        return stins.decode(self.socket.recv_multipart()) if self.socket.poll(int(1000 * timeout)) else None

    def series(self, timeout=10.0):
        """All messages up to the end of a series."""
        found = []
        while not found or not isinstance(found[-1], SeriesEnd):
            message = self.next(timeout)
            assert message is not None, f"no end after frames {numbers(found)[-3:]}"
            found.append(message)
        return found

    def rest(self, timeout=0.2):
        found = []
        while (message := self.next(timeout)) is not None:
            found.append(message)
        return found


def port(engine, index=0):
    return engine.snapshot().forward[index]


def wait_peers(engine, *peers):
    wait_for(lambda: tuple(p.peers for p in engine.snapshot().forward) == peers, what=f"{peers} clients")


def numbers(messages):
    return [m.number for m in messages if isinstance(m, Frame)]


def pixels(frame):
    return codecs.decompress(frame.codec, frame.data, frame.shape, frame.dtype)


@contextmanager
def relay(root, *ports, **values):
    """A sender, and an engine that sends on."""
    with Sender() as sender, running(root, sender.endpoint, forward=list(ports) or [PORT], **values) as engine:
        yield sender, engine


# --- the queue, pure -------------------------------------------------------------------------------------------------


def frame(number, nbytes=1000, **more):
    return Frame(number, (1, nbytes), "uint8", "none", bytes(nbytes), **more)


def opening(series, nbytes=10):
    return Opening(SeriesStart("", series=series), bytes(nbytes))


def ending(series):
    return Ending(SeriesEnd(series=series), 0, 0)


def test_what_does_not_fit_is_refused_and_what_went_in_comes_out():
    box = Outbox(3 * (1000 + OVERHEAD) + OVERHEAD + 10)
    box.open(opening(1))
    assert [box.put(frame(k)) for k in range(5)] == [True, True, True, False, False]
    box.close(ending(1))
    assert not box.put(frame(6))
    assert box.put(frame(7), beyond=True)
    found = []
    while (item := box.first()) is not None:
        found.append(item)
        box.taken()
    assert numbers(found) == [0, 1, 2, 7] and isinstance(found[0], Opening) and isinstance(found[4], Ending)
    assert (box.nbytes, len(box)) == (0, 0)


def test_one_frame_fits_however_large_it_is():
    box = Outbox(1000)
    assert box.put(frame(0, 100_000)) and not box.put(frame(1, 1))
    box.taken()
    assert box.put(frame(2, 100_000, more=(bytes(10),))) and box.nbytes == 100_010 + OVERHEAD


def test_series_of_which_nothing_is_left_do_not_pile_up():
    box = Outbox(2000)
    box.put(frame(0))
    for series in range(1000):
        box.open(opening(series))
        assert not box.put(frame(1))
        box.close(ending(series))
    assert len(box) == 3 and box.nbytes < 10_000


@given(st.lists(st.one_of(st.integers(0, 3000), st.sampled_from(["open", "take", "take", "beyond"])), max_size=200))
def test_the_queue_keeps_order_and_bound_whatever_happens(steps):
    limit, box, accepted, out, series, number = 6000, Outbox(6000), deque(), [], 0, 0
    for step in steps:
        if step == "take":
            if box.first() is not None:
                out.append(box.first())
                box.taken()
        elif step == "open":
            if series:
                box.close(ending(series))
            series += 1
            box.open(opening(series))
        elif series:
            number += 1
            before = box.nbytes
            if box.put(frame(number, 100 if step == "beyond" else step, series=series), step == "beyond"):
                accepted.append(number)
                assert step == "beyond" or box.nbytes <= limit or before == box.nbytes - step - OVERHEAD
                if step != "beyond" and box.nbytes > limit:  # no other frame was there
                    assert numbers(item for item, _ in box._items) == [number]
            else:
                assert before + step + OVERHEAD > limit
    assert box.nbytes == sum(size for _, size in box._items)
    while (item := box.first()) is not None:
        out.append(item)
        box.taken()
    assert numbers(out) == list(accepted)  # none lost, none twice, in order
    current = 0
    for item in out:
        if isinstance(item, Opening):
            assert item.start.series > current
            current = item.start.series
        else:
            assert current == (item.end if isinstance(item, Ending) else item).series


# --- what the messages say -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "name", "expected"),
    [
        ("keep", "/data/a.h5", "/data/a.h5"),
        ("none", "/data/a.h5", ""),
        ("{directory}/{name}_2.h5", "/data/a.h5", "/data/a_2.h5"),
        ("/other/{series}-{name}.h5", "a.h5", "/other/7-a.h5"),
        ("{name}_2.h5", "", ""),
    ],
)
def test_file_names(wanted, name, expected):
    assert filename(wanted, SeriesStart(name, series=7)) == expected


@pytest.mark.parametrize(
    "given_frame",
    [
        Frame(3, (2, 3), "uint16", "none", bytes(12), serial=9, series=4, timestamp=1.5),
        Frame(3, (2, 3), "uint16", "none", bytes(12), module=2, serial=9, series=4, discard=True),
        Frame(3, (2, 3), "uint16", "none", bytes(12), 1, 9, 4, more=(bytes(12), bytes([1]) * 12)),
        Frame(3, (2, 3), "uint16", "mono12p", bytes(9), serial=9, series=4),
        Frame(3, (2, 3), "uint16", "mono12p", bytes(10), serial=9, series=4),
        Frame(3, (2, 3), "uint16", "padded", bytes(16), serial=9, series=4),
        Frame(3, (2, 3), "uint8", "lz4", bytes(9), serial=9, series=4, extra={"exposure_time": 0.1, "a": [1]}),
        Frame(3, (2, 3), "uint8", "none", bytes(6), 0, 9, 4, incomplete=True, times=Times(2.5, 0.25)),
    ],
)
def test_a_frame_arrives_as_it_was(given_frame):
    head = stins.encode_frame(given_frame, 3, 9, 4)
    assert stins.decode([head, given_frame.data, *given_frame.more]) == given_frame


def test_extra_keys_neither_displace_the_others_nor_must_they_be_json():
    odd = {"frame": 8, "module": 5, "discard": True, "image": b"\0", "huge": 10**30, "gain": 2, "chunks": [1]}
    one = Frame(3, (2, 3), "uint8", "none", bytes(6), extra=odd)
    found = stins.decode([stins.encode_frame(one, 3, 9, 4), one.data])
    assert (found.number, found.module, found.discard, found.extra) == (3, 0, False, {"gain": 2})


@pytest.mark.parametrize("times", [{"stop_time": "x", "real_time": 1}, {"stop_time": 1}, {"real_time": 10**30}])
def test_what_is_no_time_is_kept_as_it_is(times):
    head = {"htype": "image", "frame": 0, "shape": [2, 3], "type": "uint8", "compression": "none", **times}
    found = stins.decode([stins.dumps(head) if 10**30 not in times.values() else _json(head), bytes(6)])
    assert found.times is None and set(found.extra) == set(times)


def _json(value):
    import json

    return json.dumps(value).encode()


def test_channels_and_times_of_a_start_and_the_frames_of_an_end():
    told = stins.encode_start("", 1, modules=2, channels=("low", "high"), times=True)
    assert stins.decode(told).channels == ("low", "high") and stins.decode(told).times
    odd = stins.decode(stins.encode_start("", 1, modules=2, channels=("low",)))
    assert odd.channels == () and odd.metadata == {"channels": ["low"]}
    assert stins.decode(stins.encode_end(5, series=1, nframes=7)) == SeriesEnd(5, 1, 7)


def test_metadata_of_any_kind_becomes_json():
    nested = {"a": 1}
    for _ in range(2000):
        nested = {"a": nested}
    odd = {
        "when": object(),
        "raw": b"\0",
        3: (1, b"x"),
        "big": 10**40,
        "bad\ud800": "\ud800",
        "deep": nested,
        "n": None,
    }
    found = stins.decode([stins.encode_start("")[0], as_json(odd)]).metadata
    assert found["3"] == [1, None] and found["big"] == str(10**40) and "raw" not in found and "bad?" in found
    assert as_json({"a": np.arange(2)}) == b'{"a":[0,1]}'


# --- a client --------------------------------------------------------------------------------------------------------


def test_everything_arrives_as_it_was_sent(tmp_path):
    with relay(tmp_path) as (sender, engine), Client(engine.forward_endpoints[0]) as client:
        wait_peers(engine, 1)
        metadata = {"energy": 9.0, "user": {"sample": "x"}, "overwrite": True}
        sender.start("a.h5", 7, nframes=20, shape=(6, 10), dtype="uint16", codec="none", metadata=metadata)
        for k in range(20):
            sender.frame(k, timestamp=100.0 + k, discard=k == 5)
        sender.end()
        start, *frames, end = client.series()
        assert (start.filename, start.series, start.nframes) == ("a.h5", 7, 20)
        assert (start.shape, start.dtype, start.codec) == ((6, 10), "uint16", "none")
        assert start.metadata == {"energy": 9.0, "user": {"sample": "x"}}
        assert [f.number for f in frames] == list(range(20)) and [f.discard for f in frames].index(True) == 5
        assert all((pixels(f) == image(f.number)).all() and f.timestamp == 100.0 + f.number for f in frames)
        assert [f.serial for f in frames] == list(range(start.serial + 1, end.serial)) and {
            f.series for f in frames
        } == {7}
        assert (end.series, end.nframes) == (7, 20)
        wait_closed(engine, 7)
        wait_for(lambda: not port(engine).queued, what="the end is out of the queue")
        s = port(engine)
        assert (s.frames, s.bytes, s.dropped, s.unheard, s.left_out, s.queued) == (20, 20 * 120, 0, 0, 0, 0)


def test_after_the_pixel_work(tmp_path):
    steps = [{"rotate": 90}, "bslz4"]
    with relay(tmp_path, transforms=steps) as (sender, engine), Client(engine.forward_endpoints[0]) as client:
        wait_peers(engine, 1)
        sender.start("a.h5", 1, nframes=3, shape=(6, 10), dtype="uint16", codec="none")
        sender.frames(range(3))
        sender.end()
        start, *frames, _ = client.series()
        assert (start.shape, start.codec) == ((10, 6), "bslz4")
        assert all(f.codec == "bslz4" and (pixels(f) == np.rot90(image(f.number))).all() for f in frames)


def test_compressed_frames_go_through_untouched(tmp_path):
    chunks = [bytes(codecs.compress("bslz4", image(k))) for k in range(3)]
    with relay(tmp_path) as (sender, engine), Client(engine.forward_endpoints[0]) as client:
        wait_peers(engine, 1)
        sender.start("a.h5", 1)
        for k, chunk in enumerate(chunks):
            head = stins.encode_frame_header(k, (6, 10), "uint16", "bslz4", sender.serial, series=1)
            sender.parts([head, chunk])
        sender.end()
        assert [bytes(f.data) for f in client.series()[1:-1]] == chunks


def test_modules_one_by_one_and_together(tmp_path):
    with relay(tmp_path) as (sender, engine), Client(engine.forward_endpoints[0]) as client:
        wait_peers(engine, 1)
        sender.start("a.h5", 1, nframes=2, modules=2)
        parts = [image(k).tobytes() for k in range(4)]
        for module in (1, 0):
            sender.frame(0, image(module), module=module)
        head = stins.encode_frame_header(1, (2, 6, 10), "uint16", "none", sender.serial, series=1, chunks=[1, 6, 10])
        sender.parts([head, *parts[2:]])
        sender.end()
        start, *frames, end = client.series()
        assert start.modules == 2 and end.nframes == 2
        assert [(f.number, f.module, len(f.more)) for f in frames] == [(0, 1, 0), (0, 0, 0), (1, 0, 1)]
        assert bytes(frames[2].more[0]) == parts[3]
        wait_closed(engine, 1)
        assert port(engine).frames == 4


def test_repeated_foreign_and_refused_frames_are_not_sent_on(tmp_path):
    with relay(tmp_path) as (sender, engine), Client(engine.forward_endpoints[0]) as client:
        wait_peers(engine, 1)
        sender.start("a.h5", 5, nframes=4, modules=2)
        two = np.stack([image(0), image(1)])
        sender.frame(0, image(0), module=0)
        sender.frame(0, image(0), module=0)
        sender.frame(0, image(0), module=0, series=3)
        sender.frame(1, image(0, (3, 3)), module=0)
        head = stins.encode_frame_header(0, two.shape, "uint16", "none", sender.serial, series=5)
        sender.parts([head, two.tobytes()])  # only its second module is new
        sender.end()
        frames = client.series()[1:-1]
        assert [(f.number, f.module, len(f.more)) for f in frames] == [(0, 0, 0), (0, 1, 0)]
        assert bytes(frames[1].data) == image(1).tobytes()
        s = wait_closed(engine, 5)
        assert s.received - s.repeated - s.foreign - s.rejected == port(engine).frames == 2


def test_what_nobody_stores_is_sent_on(tmp_path):
    with relay(tmp_path) as (sender, engine), Client(engine.forward_endpoints[0]) as client:
        wait_peers(engine, 1)
        sender.start("", 1, nframes=2)
        sender.frames(range(2))
        sender.end()
        assert numbers(client.series()) == [0, 1]
        sender.start("gone/a.h5", 2, nframes=2)  # cannot be created: processing goes on without
        sender.frames(range(2))
        sender.end()
        assert numbers(client.series()) == [0, 1]
        assert list(tmp_path.iterdir()) == []


def test_two_series_and_one_that_is_aborted(tmp_path):
    with relay(tmp_path) as (sender, engine), Client(engine.forward_endpoints[0]) as client:
        wait_peers(engine, 1)
        for series, sent in ((1, 5), (2, 2), (3, 5)):
            sender.start(f"{series}.h5", series, nframes=5)
            sender.frames(range(sent))
            if sent == 5:
                sender.end()
            else:
                wait_opened(engine, 2)
                engine.stop()
            start, *frames, end = client.series()
            assert (start.series, len(frames), end.series, end.nframes) == (series, sent, series, 5)
            wait_closed(engine, series)


# --- who comes late --------------------------------------------------------------------------------------------------


def test_who_comes_late_gets_the_start_first(tmp_path):
    with relay(tmp_path) as (sender, engine):
        sender.start("a.h5", 1, nframes=6, metadata={"a": 1})
        sender.frames(range(3))
        wait_for(lambda: port(engine).unheard == 3)
        with Client(engine.forward_endpoints[0]) as client:
            wait_peers(engine, 1)
            sender.frames(range(3, 6))
            sender.end()
            start, *frames, end = client.series()
            assert start.series == 1 and start.metadata == {"a": 1} and numbers(frames) == [3, 4, 5]
            assert frames[0].serial == start.serial + 1 and end.nframes == 6
        wait_closed(engine, 1)
        with Client(engine.forward_endpoints[0]) as client:  # nothing is open
            wait_peers(engine, 1)
            assert client.rest() == []


def test_two_who_pull_share_the_frames_and_each_gets_start_and_end(tmp_path):
    with relay(tmp_path) as (sender, engine), Client(engine.forward_endpoints[0]) as one:
        wait_peers(engine, 1)
        sender.start("a.h5", 1, nframes=20)
        sender.frames(range(4))
        wait_for(lambda: port(engine).frames == 4)
        with Client(engine.forward_endpoints[0]) as two:
            wait_peers(engine, 2)
            sender.frames(range(4, 20))
            sender.end()
            first, second = one.series(), two.series()
            assert isinstance(second[0], SeriesStart) and isinstance(first[0], SeriesStart)
            assert numbers(second) and sorted(numbers(first) + numbers(second)) == list(range(20))
            assert {m.serial for m in (first[0], second[0])} == {first[0].serial}


def test_who_subscribes_gets_all_and_only_the_newcomer_gets_the_start_again(tmp_path):
    settings = {"endpoint": PORT, "socket": "pub"}
    with relay(tmp_path, settings) as (sender, engine), Client(engine.forward_endpoints[0], zmq.SUB) as one:
        wait_peers(engine, 1)
        time.sleep(0.1)  # for the subscription
        sender.start("a.h5", 1, nframes=20)
        sender.frames(range(4))
        wait_for(lambda: port(engine).frames == 4)
        with Client(engine.forward_endpoints[0], zmq.SUB) as two:
            assert isinstance(two.next(), SeriesStart)
            sender.frames(range(4, 20))
            sender.end()
            first, second = one.series(), two.series()
            assert numbers(first) == list(range(20)) and numbers(second) == list(range(4, 20))
            assert sum(isinstance(m, SeriesStart) for m in first) == 1
        wait_closed(engine, 1)
        wait_peers(engine, 1)


def test_clients_come_and_go(tmp_path):
    """Whoever it is, the first message is a start; the file misses nothing."""
    with relay(tmp_path, PORT, {"endpoint": PORT, "socket": "pub"}) as (sender, engine):
        sender.start("a.h5", 1)
        number = 0
        for turn in range(50):
            kind = (zmq.PULL, zmq.SUB)[turn % 2]
            with Client(engine.forward_endpoints[turn % 2], kind) as client:
                wait_peers(engine, *((1, 0) if kind == zmq.PULL else (0, 1)))
                sender.frames(range(number, number + 3))
                number += 3
                assert isinstance(client.next(), SeriesStart)
                if turn % 3:
                    assert isinstance(client.next(), Frame)
            wait_peers(engine, 0, 0)
        wait_for(lambda: not any(p.queued for p in engine.snapshot().forward), what="the queues emptied")
        wait_for(lambda: not any(p._audience for p in engine._forwarder._ports), what="their subscriptions ended")
        before = [p.unheard for p in engine.snapshot().forward]
        sender.frames(range(150, 160))  # each of those who went was noticed
        sender.end()
        s = wait_closed(engine, 1)
        assert (s.written, s.missing) == (160, 0)
        assert [p.unheard for p in s.forward] == [n + 10 for n in before]
        for p in s.forward:
            assert p.frames + p.dropped + p.unheard == 160


def test_who_is_no_zeromq_disturbs_nobody(tmp_path):
    import socket

    with relay(tmp_path) as (sender, engine):
        address = ("127.0.0.1", int(engine.forward_endpoints[0].rpartition(":")[2]))
        with socket.create_connection(address) as stranger, Client(engine.forward_endpoints[0]) as client:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
            with socket.create_connection(address):  # and one who says nothing
                wait_peers(engine, 1)
                sender.start("a.h5", 1, nframes=50)
                sender.frames(range(50))
                sender.end()
                assert numbers(client.series()) == list(range(50))


def test_strangers_who_knock_all_the_time_hold_nobody_up(tmp_path):
    """Frames wait while a client shakes hands, so that the start is the first that it gets; but not for ever."""
    import socket

    with relay(tmp_path) as (sender, engine), Client(engine.forward_endpoints[0]) as client, ExitStack() as stack:
        wait_peers(engine, 1)
        address = ("127.0.0.1", int(engine.forward_endpoints[0].rpartition(":")[2]))
        stop = threading.Event()

        def knock():
            while not stop.wait(0.02):
                stack.enter_context(socket.create_connection(address))

        with helper(knock):
            try:
                time.sleep(0.2)
                sender.start("a.h5", 1, nframes=300)
                sender.frames(range(300))
                sender.end()
                assert numbers(client.series(4.0)) == list(range(300))
            finally:
                stop.set()


# --- slow, stalled and dead clients ----------------------------------------------------------------------------------


def send_big(sender, count, series=1, name="a.h5"):
    sender.start(name, series, nframes=count)
    pictures = [image(k, BIG) for k in range(7)]
    for k in range(count):
        sender.frame(k, pictures[k % 7])
    sender.end()


@pytest.mark.parametrize("socket", ["push", "pub"])
def test_a_client_that_takes_nothing_costs_frames_but_not_the_recording(tmp_path, socket):
    """The queue keeps its bound, the file is whole, and who wakes up gets what was kept, in order."""
    count, limit = 150, 10 * MB
    settings = {"endpoint": PORT, "socket": socket, "queue_bytes": limit}
    with relay(tmp_path, settings) as (sender, engine):
        with Client(engine.forward_endpoints[0], zmq.SUB if socket == "pub" else zmq.PULL, hwm=2) as client:
            wait_peers(engine, 1)
            time.sleep(0.1)
            highest = 0
            sender.start("a.h5", 1, nframes=count)
            for k in range(count):
                sender.frame(k, image(k % 7, BIG))
                highest = max(highest, port(engine).queued)
            sender.end()
            s = wait_closed(engine, 1)
            assert (s.written, s.missing, s.error) == (count, 0, "") and highest <= limit + 2 * OVERHEAD
            if socket == "push":
                assert s.forward[0].dropped > 50 and highest > limit / 2
            else:
                wait_for(lambda: port(engine).passed_by, what="passed by")
            start, *frames = client.series() if socket == "push" else client.rest(1.0)
            got = numbers(frames)
            assert isinstance(start, SeriesStart) and got == sorted(set(got)) and 0 < len(got) < count
            assert all((pixels(f) == image(f.number % 7, BIG)).all() for f in frames if isinstance(f, Frame))
            if socket == "push":
                assert len(got) == port(engine).frames == count - port(engine).dropped
                assert frames[-1].nframes == count


@pytest.mark.parametrize("socket", ["push", "pub"])
def test_recording_keeps_its_pace_whatever_a_client_does(tmp_path, socket):
    """At a pace that the machine can keep: the same rate with a client that takes nothing as with none. A machine that
    others use may lose its pace at any time: three trials."""
    count, step, rates = 200, 0.005, []
    picture = image(1, BIG)
    settings = {"endpoint": PORT, "socket": socket, "queue_bytes": 4 * MB}

    def rate(series, sender, engine):
        sender.start(f"{series}.h5", series, nframes=count)
        wait_opened(engine, series)
        begun = time.monotonic()
        for k in range(count):
            time.sleep(max(0.0, begun + k * step - time.monotonic()))
            sender.frame(k, picture)
        wait_for(lambda: engine.snapshot().written == count)
        took = time.monotonic() - begun
        sender.end()
        s = wait_closed(engine, series)
        assert (s.written, s.missing, s.error) == (count, 0, "")
        return count / took

    with relay(tmp_path, settings, hwm_bytes=4 * MB) as (sender, engine):
        for trial in range(3):
            alone = rate(2 * trial + 1, sender, engine)
            with Client(engine.forward_endpoints[0], zmq.SUB if socket == "pub" else zmq.PULL, 2):
                wait_peers(engine, 1)
                time.sleep(0.1)
                before = port(engine)
                beside = rate(2 * trial + 2, sender, engine)
                assert port(engine).dropped - before.dropped > count / 2 or port(engine).passed_by  # it was stalled
            wait_peers(engine, 0)
            rates.append(round(beside / alone, 3))
            if rates[-1] >= 0.95:
                return
    pytest.fail(f"with a stalled client, of the rate without: {rates}")


@pytest.mark.parametrize("policy", ["drop", "lossless"])
def test_forwarding_gives_way_to_recording(tmp_path, policy):
    """The thread of the port and those of its ZeroMQ context, but not where recording waits for them."""

    def lower():
        own = os.getpriority(os.PRIO_PROCESS, os.getpid())
        tasks = [int(name) for name in os.listdir("/proc/self/task")]
        return sum(os.getpriority(os.PRIO_PROCESS, task) == min(19, own + priority.NICE) for task in tasks)

    with relay(tmp_path, {"endpoint": PORT, "policy": policy}):
        assert lower() == 1 + (3 if policy == "drop" else 0)  # the live view does always


def test_a_slow_subscriber_loses_frames_but_neither_end_nor_start(tmp_path):
    with relay(tmp_path, {"endpoint": PORT, "socket": "pub"}) as (sender, engine):
        with Client(engine.forward_endpoints[0], zmq.SUB, hwm=2) as client:
            wait_peers(engine, 1)
            time.sleep(0.1)
            for series in (1, 2):
                sender.start(f"{series}.h5", series)
                for k in range(150):
                    sender.frame(k, image(k % 7, BIG))
                wait_for(lambda: port(engine).queued == 0 and engine.snapshot().received == 150)
                sender.end()
                found = client.series()
                assert isinstance(found[0], SeriesStart) and found[0].series == series == found[-1].series
                assert len(numbers(found)) < 150 and found[-1].nframes == 150


def test_a_client_that_is_killed(tmp_path):
    code = (
        "import sys, time, zmq; s = zmq.Context().socket(zmq.PULL); s.rcvhwm = 2; s.connect(sys.argv[1])\n"
        "print(len(s.recv()), flush=True); time.sleep(600)"
    )
    with relay(tmp_path, {"endpoint": PORT, "queue_bytes": 20 * MB}) as (sender, engine):
        child = subprocess.Popen([sys.executable, "-c", code, engine.forward_endpoints[0]], stdout=subprocess.PIPE)
        try:
            wait_peers(engine, 1)
            sender.start("a.h5", 1, nframes=60)
            for k in range(40):
                sender.frame(k, image(k, BIG))
            assert child.stdout.readline()
            child.send_signal(signal.SIGKILL)
            child.wait()
            wait_peers(engine, 0)
            wait_for(lambda: port(engine).queued == 0, what="the queue emptied")
            for k in range(40, 60):
                sender.frame(k, image(k, BIG))
            sender.end()
            s = wait_closed(engine, 1)
            assert (s.written, s.missing) == (60, 0) and s.forward[0].unheard >= 20
            assert s.forward[0].frames + s.forward[0].dropped + s.forward[0].unheard == 60
        finally:
            child.kill()
            child.wait()
            child.stdout.close()


@pytest.mark.parametrize("socket", ["push", "pub"])
def test_lossless_waits_for_a_slow_client(tmp_path, socket):
    settings = {"endpoint": PORT, "socket": socket, "policy": "lossless", "queue_bytes": 2 * MB}
    kind = zmq.SUB if socket == "pub" else zmq.PULL
    with (
        relay(tmp_path, settings, hwm_bytes=4 * MB) as (sender, engine),
        Client(engine.forward_endpoints[0], kind, 2) as client,
    ):
        wait_peers(engine, 1)
        time.sleep(0.1)
        with helper(send_big, sender, 300):
            wait_for(lambda: engine.snapshot().written)
            wait_for(lambda: unchanged(lambda: engine.snapshot().written), what="recording waits")
            assert engine.snapshot().written < 200
            start, *frames, end = client.series(30)
            assert numbers(frames) == list(range(300)) and end.nframes == 300
        s = wait_closed(engine, 1)
        assert (s.written, s.forward[0].frames, s.forward[0].dropped) == (300, 300, 0) and s.forward[0].waited > 0.3


def unchanged(look, seconds=0.5):
    before = look()
    time.sleep(seconds)
    return look() == before


@contextmanager
def helper(work, *arguments):
    thread = threading.Thread(target=work, args=arguments)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(30)


def test_lossless_ends_with_the_series_and_with_the_engine(tmp_path, monkeypatch):
    monkeypatch.setattr(forwarder, "SLOW", 0.2)
    settings = {"endpoint": PORT, "policy": "lossless", "queue_bytes": 2 * MB}
    with Sender() as sender:
        with running(tmp_path, sender.endpoint, forward=[settings], hwm_bytes=4 * MB) as engine:
            with Client(engine.forward_endpoints[0], hwm=2) as client:
                wait_peers(engine, 1)
                with helper(send_big, sender, 100):
                    wait_for(lambda: "policy lossless" in engine.snapshot().error, what="the wait is told")
                    engine.stop()
                    s = wait_closed(engine, 1)
                    assert s.written < 100 or s.forward[0].dropped
                    wait_for(lambda: engine.snapshot().error.find("lossless") < 0)
                wait_for(lambda: port(engine).queued >= 2 * MB)
                sender.start("b.h5", 2, nframes=100)
                for k in range(20):
                    sender.frame(k, image(k, BIG))
                wait_opened(engine, 2)
                begun = time.monotonic()
                engine.__exit__(None, None, None)
                assert time.monotonic() - begun < 3.0
                assert client is not None
        with h5py.File(tmp_path / "b.h5") as file:
            assert len(file[DATASET]) == 100  # readable, with what had come


def test_lossless_goes_on_when_its_client_dies(tmp_path):
    settings = {"endpoint": PORT, "policy": "lossless", "queue_bytes": 2 * MB}
    with relay(tmp_path, settings, hwm_bytes=4 * MB) as (sender, engine):
        client = Client(engine.forward_endpoints[0], hwm=2).__enter__()
        try:
            wait_peers(engine, 1)
            with helper(send_big, sender, 100):
                wait_for(lambda: engine.snapshot().written)
                wait_for(lambda: unchanged(lambda: engine.snapshot().written), what="recording waits")
                assert engine.snapshot().written < 100
                client.__exit__()
                client = None
                s = wait_closed(engine, 1)
            assert (s.written, s.missing) == (100, 0) and s.forward[0].unheard > 0
        finally:
            if client:
                client.__exit__()


def test_the_end_does_not_wait_long_for_who_takes_nothing(tmp_path):
    with relay(tmp_path, PORT, {"endpoint": PORT, "socket": "pub"}) as (sender, engine):
        with Client(engine.forward_endpoints[0], hwm=2), Client(engine.forward_endpoints[1], zmq.SUB, 2):
            wait_peers(engine, 1, 1)
            send_big(sender, 100)
            wait_closed(engine, 1)
            assert port(engine).queued > 10 * MB
            begun = time.monotonic()
            engine.__exit__(None, None, None)
            assert time.monotonic() - begun < 3.0


# --- fewer of them ---------------------------------------------------------------------------------------------------


def test_every_third_frame_under_numbers_without_gaps(tmp_path):
    ports = [{"endpoint": PORT, "every": 3, "filename": "{name}_thin.h5"}]
    with relay(tmp_path, *ports) as (sender, engine), Client(engine.forward_endpoints[0]) as client:
        wait_peers(engine, 1)
        sender.start("a.h5", 1, nframes=20, metadata={"every": 2})
        sender.frames(range(20))
        sender.end()
        start, *frames, end = client.series()
        assert (start.filename, start.nframes, start.metadata["every"], end.nframes) == ("a_thin.h5", 7, 6, 7)
        assert numbers(frames) == list(range(7))
        assert all((pixels(f) == image(3 * f.number)).all() for f in frames)
        wait_closed(engine, 1)
        assert (port(engine).frames, port(engine).left_out) == (7, 13)


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_client_on_the_page_works(tmp_path):
    page = (Path(__file__).parents[2] / "resources/forwarding.md").read_text()
    program = page.split("```python\n")[1].split("```")[0]
    with relay(tmp_path) as (sender, engine):
        program = program.replace("tcp://127.0.0.1:9998", engine.forward_endpoints[0])
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        try:
            wait_for(lambda: port(engine).peers == 1, 30, "connected")
            sender.start("a.h5", 4, nframes=3)
            sender.frames(range(3))
            sender.end()
            lines = [child.stdout.readline().split() for _ in range(3)]
        finally:
            child.kill()
            child.wait()
            child.stdout.close()
    assert lines == [["4", str(k), str(image(k).sum())] for k in range(3)]


# --- receivers behind each other -------------------------------------------------------------------------------------


def same(one, other):
    """Two files hold the same but for when and under which message number it came."""
    (pixels_one, books_one), (pixels_other, books_other) = read(one), read(other)
    assert (pixels_one == pixels_other).all() and pixels_one.shape == pixels_other.shape
    with h5py.File(one) as a, h5py.File(other) as b:
        names_one, names_other = set(), set()
        a.visit(names_one.add)
        b.visit(names_other.add)
        assert names_one == names_other
    assert set(books_one) == set(books_other)
    assert all(
        np.array_equal(books_one[k], books_other[k], equal_nan=books_one[k].dtype.kind == "f")
        for k in books_one
        if "timestamp" in k or k in ("frame_status", "sequence_number")
    )
    return True


@pytest.mark.parametrize("workers", [1, 3])
def test_three_receivers_in_a_row(tmp_path, workers):
    roots = [tmp_path / name for name in ("a", "b", "c")]
    for root in roots:
        root.mkdir()
    with (
        relay(roots[0], workers=workers) as (sender, one),
        running(roots[1], one.forward_endpoints[0], forward=[PORT], workers=workers) as two,
        running(roots[2], two.forward_endpoints[0], workers=workers) as three,
    ):
        wait_peers(one, workers)
        wait_peers(two, workers)
        for series in (1, 2, 3):
            sender.start(f"{series}.h5", series, nframes=200 if series > 1 else None, metadata={"energy": 9.0})
            for k in range(200):
                sender.frame(k, timestamp=5.0 + k)
            sender.end()
            for engine in (one, two, three):
                s = wait_closed(engine, series)
                assert (s.written, s.missing, s.error, s.state) == (200, 0, "", "idle")
            assert same(roots[0] / f"{series}.h5", roots[1] / f"{series}.h5")
            assert same(roots[0] / f"{series}.h5", roots[2] / f"{series}.h5")


@pytest.mark.parametrize("nframes", [None, 12])
def test_the_next_receiver_knows_what_it_did_not_get(tmp_path, nframes):
    """Frames lost before the first, and frames that it dropped, also the last ones: the next is never complete."""
    roots = [tmp_path / name for name in ("a", "b")]
    for root in roots:
        root.mkdir()
    with relay(roots[0]) as (sender, one), running(roots[1], one.forward_endpoints[0]) as two:
        wait_peers(one, 1)
        outbox = one._forwarder._ports[0]._outbox
        put = outbox.put
        outbox.put = lambda frame, beyond: frame.number not in (4, 5, 10, 11) and put(frame, beyond)
        sender.start("a.h5", 1, nframes=nframes)
        for k in range(12):
            if k == 7:
                sender.lose()
            else:
                sender.frame(k)
        sender.end()
        s = wait_closed(one, 1)
        assert (s.written, s.missing, s.forward[0].dropped) == (11, 1, 4)
        s = wait_closed(two, 1)
        assert (s.written, s.missing) == (7, 5) and "4-5, 7, 10-11" in s.error


def test_the_next_receiver_of_every_third_frame_misses_nothing(tmp_path):
    roots = [tmp_path / name for name in ("a", "b")]
    for root in roots:
        root.mkdir()
    settings = {"endpoint": PORT, "every": 3, "socket": "pub"}
    with (
        relay(roots[0], settings) as (sender, one),
        running(roots[1], one.forward_endpoints[0], socket="sub") as two,
    ):
        wait_peers(one, 1)
        time.sleep(0.1)
        sender.start("a.h5", 1)
        sender.frames(range(20))
        sender.end()
        s = wait_closed(two, 1)
        assert (s.written, s.missing, s.error) == (7, 0, "")
        data, _ = read(roots[1] / "a.h5")
        assert all((data[k] == image(3 * k)).all() for k in range(7))


def test_the_next_receiver_does_not_touch_the_file_of_the_first(tmp_path):
    with (
        relay(tmp_path, allow_overwrite=True) as (sender, one),
        running(tmp_path, one.forward_endpoints[0], allow_overwrite=True) as two,
    ):
        wait_peers(one, 1)
        sender.start("a.h5", 1, nframes=5, metadata={"overwrite": True})
        sender.frames(range(5))
        sender.end()
        wait_closed(one, 1)
        wait_for(lambda: "exists" in two.snapshot().error)
        assert (read(tmp_path / "a.h5")[0] == [image(k) for k in range(5)]).all()


def test_a_receiver_that_was_restarted_begins_a_new_series(tmp_path):
    """Its numbers never repeat, so that the next receiver takes series 1 for another one."""
    roots = [tmp_path / name for name in ("a", "b")]
    for root in roots:
        root.mkdir()
    with Sender() as sender:
        with running(roots[0], sender.endpoint, forward=[PORT]) as one:
            where = one.forward_endpoints[0]
        with running(roots[1], where) as two:
            for turn in (1, 2):
                with running(roots[0], sender.endpoint, forward=[where]) as one:
                    wait_peers(one, 1)
                    sender.start(f"{turn}.h5", nframes=3)  # without ids: the first of each engine is 1
                    sender.frames(range(3))
                    sender.end()
                    wait_for(lambda turn=turn: two.snapshot().last_file.endswith(f"{turn}.h5"), what=f"turn {turn}")
                    assert balanced(two).missing == 0


@contextmanager
def receiver(root, endpoint):
    """As a process of its own, and the file where it tells what it does."""
    root.mkdir(exist_ok=True)
    settings, told = root / "receiver.yaml", root / "log"
    settings.write_text(f"endpoints: {endpoint}\nroot: {root}\nhttp: ''\nend_timeout: 0.3\n")
    with told.open("ab") as log:
        child = subprocess.Popen(["tangods-detector", "receive", settings], stderr=log)
    try:
        yield child, told
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("same_root", [False, True])
def test_the_next_receiver_is_killed_and_comes_back(tmp_path, same_root):
    """The first loses nothing. Restarted, the second takes part in the open series, in another file than that which it
    left behind (that one is kept, and the series refused, where the name is the same), and has all of the next."""
    roots = [tmp_path / name for name in ("a", "b", "b" if same_root else "c")]
    roots[0].mkdir()
    with relay(roots[0]) as (sender, one):
        sender.start("1.h5", 1, nframes=60)
        with receiver(roots[1], one.forward_endpoints[0]) as (child, _):
            wait_for(lambda: port(one).peers == 1, 30, "connected")
            sender.frames(range(20))
            wait_for(lambda: (roots[1] / "1.h5").exists(), what="the file")
            child.send_signal(signal.SIGKILL)
            child.wait()
            wait_peers(one, 0)
        left = (roots[1] / "1.h5").read_bytes()
        sender.frames(range(20, 40))
        with receiver(roots[2], one.forward_endpoints[0]) as (_, told):
            wait_for(lambda: port(one).peers == 1, 30, "connected again")
            sender.frames(range(40, 60))
            sender.end()
            s = wait_closed(one, 1)
            assert (s.written, s.missing, s.error) == (60, 0, "")
            if same_root:
                wait_for(lambda: "exists" in told.read_text(), what="refused")
            else:
                wait_for(lambda: "series 1 closed" in told.read_text(), what="closed")
            sender.start("2.h5", 2, nframes=60)
            sender.frames(range(60))
            sender.end()
            wait_closed(one, 2)
            wait_for(lambda: "series 2 closed" in told.read_text(), what="the next series")
    assert holds(roots[0] / "1.h5", range(60)) and same(roots[0] / "2.h5", roots[2] / "2.h5")
    assert (roots[1] / "1.h5").read_bytes() == left
    if not same_root:
        assert holds(roots[2] / "1.h5", range(40, 60))


def test_pixel_work_is_done_once_in_a_row(tmp_path):
    roots = [tmp_path / name for name in ("a", "b")]
    for root in roots:
        root.mkdir()
    steps = [{"rotate": 90}, "bslz4"]
    with relay(roots[0], transforms=steps) as (sender, one), running(roots[1], one.forward_endpoints[0]) as two:
        wait_peers(one, 1)
        sender.start("a.h5", 1, nframes=3, shape=(6, 10), dtype="uint16", codec="none", metadata={"rotate": 90})
        sender.frames(range(3))
        sender.end()
        wait_closed(one, 1)
        wait_closed(two, 1)
    for root in roots:
        assert (read(root / "a.h5")[0] == [np.rot90(image(k)) for k in range(3)]).all()


# --- settings, counters, faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        ("9998", "not like tcp://127.0.0.1:9998"),
        ("tcp://127.0.0.1:99999", "not like tcp://"),
        ("{endpoint", "not YAML"),
        ({"endpoint": PORT, "every": 0}, "forward.0.every"),
        ({"endpoint": PORT, "socket": "pull"}, "push"),
        ({"endpoint": PORT, "policy": "best"}, "lossless"),
        ({"endpoint": PORT, "queue_bytes": 5}, "queue_bytes"),
        ({"endpoint": PORT, "filename": "fixed.h5"}, "neither keep, none"),
        ({"endpoint": PORT, "filename": "{name"}, "neither keep, none"),
        ({"endpoint": PORT, "filename": "{name}{x}"}, "neither keep, none"),
        ({"endpoint": PORT, "speed": 1}, "speed: unknown key"),
        (["tcp://127.0.0.1:5000", "{endpoint: tcp://127.0.0.1:5000, socket: pub}"], "twice"),
        ([f"tcp://127.0.0.1:{n}" for n in range(5000, 5020)], "more than 16"),
        (7, "forward.0"),
    ],
)
def test_wrong_settings(tmp_path, forward, words):
    with pytest.raises(ConfigError, match=words):
        make({"endpoints": ["tcp://h:1"], "root": tmp_path, "forward": forward})


@pytest.mark.parametrize(
    "forward",
    [
        "endpoint: tcp://*:9998, socket: pub, every: 3",
        "{endpoint: 'tcp://*:9998', socket: pub, every: 3}",
        {"endpoint": "tcp://*:9998", "socket": "pub", "every": 3},
    ],
)
def test_settings_in_words(tmp_path, forward):
    config = make({"endpoints": ["tcp://h:1"], "root": tmp_path, "forward": [forward]})
    assert config.forward == (ForwardPort(endpoint="tcp://*:9998", socket="pub", every=3),)


def test_no_port_unless_one_is_wanted(tmp_path):
    with Sender() as sender, running(tmp_path, sender.endpoint, forward="") as engine:
        assert engine.forward_endpoints == [] and engine.snapshot().forward == ()


def test_a_port_that_is_taken(tmp_path):
    with Sender() as sender, Sender() as other:
        config = make({"endpoints": [sender.endpoint], "root": tmp_path, "http": "", "forward": other.endpoint})
        with pytest.raises(ConfigError, match="forward: .* cannot be bound"):
            Engine(config).__enter__()


def test_counters_for_all_to_see(tmp_path, caplog):
    caplog.set_level(logging.INFO, "tangods_receiver.forwarder")
    with relay(tmp_path) as (sender, engine), Client(engine.forward_endpoints[0]) as client:
        wait_peers(engine, 1)
        sender.start("a.h5", 1, nframes=4)
        sender.frames(range(4))
        sender.end()
        client.series()
        now = wait_closed(engine, 1)
        assert Snapshot.from_dict(now.as_dict()).forward == now.forward
        told = {s.name: s.value for family in families(now) for s in family.samples if "port" in s.labels}
        assert told["stream_receiver_forwarded_frames_total"] == 4 and told["stream_receiver_forward_peers"] == 1
    assert "4 frames, 0 dropped" in caplog.text


def test_one_message_that_cannot_be_sent_is_not_the_end(tmp_path, monkeypatch, caplog):
    encode = stins.encode_frame

    def encode_or_fail(frame, *numbers):
        if frame.number == 1:
            raise RuntimeError("unforeseen")
        return encode(frame, *numbers)

    monkeypatch.setattr(stins, "encode_frame", encode_or_fail)
    with relay(tmp_path) as (sender, engine), Client(engine.forward_endpoints[0]) as client:
        wait_peers(engine, 1)
        sender.start("a.h5", 1, nframes=3)
        sender.frames(range(3))
        sender.end()
        assert numbers(client.series()) == [0, 2] and wait_closed(engine, 1).written == 3
        assert port(engine).dropped == 1 and "unforeseen" in caplog.text


def test_a_port_that_never_ran_leaves_nothing():
    before = len(os.listdir("/proc/self/fd"))
    one = Port(ForwardPort(endpoint=PORT), "x")
    one.stop()
    one.join(1.0)
    assert len(os.listdir("/proc/self/fd")) == before


# --- the compiled sender and its twin --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [outlet.PythonSender, outlet.Sender])
def test_both_senders_send_alike(kind):
    with zmq.Context() as context, context.socket(zmq.PUSH) as push, context.socket(zmq.PULL) as pull:
        push.linger = pull.linger = 0
        push.sndhwm = pull.rcvhwm = 2
        sender = kind(push)
        push.bind("inproc://x")
        assert not sender.send(b"nobody", ())
        pull.connect("inproc://x")
        assert push.poll(10_000, zmq.POLLOUT)
        large = np.arange(100_000, dtype=np.uint8)
        for payload in ((), (b"one",), (b"", memoryview(b"12345")[1:3], large.data, bytearray(b"x"))):
            assert sender.send(b"head", payload)
            assert pull.recv_multipart() == [b"head", *map(bytes, payload)]
        sent = 0
        while sender.send(b"full", (b"more",)):
            sent += 1
        assert 0 < sent < 100
        for _ in range(sent):
            assert pull.recv_multipart() == [b"full", b"more"]
        assert push.poll(10_000, zmq.POLLOUT)
        if kind is not outlet.PythonSender:
            with pytest.raises(TypeError):
                sender.send(b"head", (5,))
        assert sender.send(b"still", ()) and pull.recv() == b"still"
        push.close()
        with pytest.raises(zmq.ZMQError):
            kind(push).send(b"closed", ())
