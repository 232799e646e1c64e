"""The high-water mark may be changed at any time, and nothing gets stuck; a peer that breaks the protocol neither."""

import socket
import threading
import time
from contextlib import ExitStack, closing
from random import Random

import pytest
import zmq

from tangods_receiver import inlet as inlet_module
from tangods_receiver.inlet import Inlet
from tests.waiting import wait_for

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
WRONG = {
    "another mechanism": GREETING.replace(b"NULL", b"ELSE"),
    "another command": GREETING + b"\x04\x06\x05WRONG",
    "another socket": GREETING + b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03REQ",
}
MARKS = [2, 3, 4, 12, 13, 64, 100, 256, 870, 1020]


@pytest.fixture
def pair():
    """A PUSH socket, and a PULL socket with what makes it an inlet that is connected to the other, given the mark."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as push, context.socket(zmq.PULL) as pull:
        push.linger = pull.linger = 0
        push.sndtimeo = pull.rcvtimeo = 5000
        address = f"tcp://127.0.0.1:{push.bind_to_random_port('tcp://127.0.0.1')}"
        with ExitStack() as stack:

            def connected(mark):
                inlet = stack.enter_context(closing(Inlet(pull, mark)))
                inlet.connect(address)
                return inlet

            yield push, pull, connected


def take(inlet, messages):
    while messages:
        assert inlet.socket.poll(5000), f"stuck: {messages} to come, mark {inlet.socket.rcvhwm}"
        allowed = inlet.ready(min(64, messages))
        for _ in range(allowed):
            inlet.socket.recv()
        inlet.took(allowed)
        messages -= allowed


@pytest.mark.parametrize("before", [1, 30, 100, 509, 510, 511, 700])
@pytest.mark.parametrize("mark", [2, 12, 256])
def test_lowered_when_all_was_read(pair, before, mark):
    push, pull, connected = pair
    inlet = connected(1020)
    for count in (before, 1500):
        sending = threading.Thread(target=lambda n=count: [push.send(b"x") for _ in range(n)])
        sending.start()
        take(inlet, count)
        sending.join()
        inlet.hold(mark)
    assert pull.rcvhwm == mark


@pytest.mark.parametrize("seed", range(3))
def test_any_marks_in_any_order(pair, seed):
    push, pull, connected = pair
    rng = Random(seed)
    push.sndhwm = rng.choice([1, 5, 1000])
    inlet = connected(rng.choice(MARKS))
    for _ in range(20):
        count = rng.choice([1, 3, 30, 100, 509, 510, 511, 700, 2000])
        sending = threading.Thread(target=lambda n=count: [push.send(b"x" * 100) for _ in range(n)])
        sending.start()
        take(inlet, count)
        sending.join()
        inlet.hold(rng.choice(MARKS))


def test_low_at_once_and_exact_soon(pair):
    push, pull, connected = pair
    inlet = connected(1020)
    for _ in range(1000):
        push.send(b"x")
    take(inlet, 7)
    inlet.hold(100)
    take(inlet, 1)
    assert pull.rcvhwm <= 100
    take(inlet, 49)
    assert pull.rcvhwm == 100
    inlet.hold(500)
    take(inlet, 250)
    assert pull.rcvhwm == 500


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(inlet_module, "LOOK", 0.05)


@pytest.fixture
def lonely():
    """An inlet that nobody sends to yet, and the port where it looks for somebody; its context ends within 3 s."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        context = zmq.Context()
        inlet = Inlet(context.socket(zmq.PULL), 100)
        inlet.connect(f"tcp://127.0.0.1:{port}")
        yield inlet, server, port
    inlet.close()
    inlet.close()
    ending = threading.Thread(target=context.term, daemon=True)
    ending.start()
    ending.join(3)
    assert not ending.is_alive(), "a socket was left open"


def answer(server, says, times):
    server.settimeout(5)
    for _ in range(times):
        link, _ = server.accept()
        with link:
            link.sendall(says)
            link.settimeout(5)
            while link.recv(100):  # until the other side closes
                pass


def hears(inlet):
    inlet.mend()
    return inlet.socket.poll(0)


@pytest.mark.parametrize("says", WRONG.values(), ids=WRONG)
def test_wrong_peer_then_the_right_one(often, lonely, caplog, says):
    inlet, server, port = lonely
    answering = threading.Thread(target=answer, args=(server, says, 3))
    answering.start()
    wait_for(lambda: hears(inlet) or not answering.is_alive(), what="three tries")
    server.close()
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.linger, push.sndtimeo = 0, 5000
        push.bind(f"tcp://127.0.0.1:{port}")
        sending = threading.Thread(target=push.send, args=(b"x",))
        sending.start()
        wait_for(lambda: hears(inlet), what="the right sender")
        sending.join()
    warnings = [r.getMessage() for r in caplog.records]
    assert len(warnings) == 1 and warnings[0].startswith(f"tcp://127.0.0.1:{port}: ")


def test_pause_between_tries(lonely, monkeypatch):
    inlet, server, _ = lonely
    monkeypatch.setattr(inlet_module, "LOOK", 0.3)
    times = []

    def count_tries():
        for _ in range(3):
            answer(server, WRONG["another mechanism"], 1)
            times.append(time.monotonic())

    counting = threading.Thread(target=count_tries)
    counting.start()
    wait_for(lambda: hears(inlet) or not counting.is_alive(), what="three tries")
    assert times[1] - times[0] > 0.25 and times[2] - times[1] > 0.25


def test_sender_that_only_comes_and_goes_is_left_to_libzmq(often, lonely, caplog, monkeypatch):
    inlet, server, _ = lonely
    monkeypatch.setattr(Inlet, "_connect_anew", lambda self: pytest.fail("it would have connected by itself"))
    server.settimeout(5)
    for _ in range(3):
        link, _ = server.accept()
        link.close()
    server.close()
    end = time.monotonic() + 0.5  # nobody is there: refused, again and again
    while time.monotonic() < end:
        inlet.mend()
        time.sleep(0.01)
    assert not caplog.records


@pytest.mark.parametrize("seed", range(3))
def test_messages_too_large_at_any_mark(often, pair, seed):
    """What came before them is taken; the messages are counted anew, so nothing gets stuck later."""
    push, pull, connected = pair
    rng = Random(seed)
    pull.maxmsgsize = 1000
    inlet = connected(rng.choice(MARKS))
    for _ in range(5):
        for count in (rng.choice([1, 3, 30, 509, 700]), 1500):
            sending = threading.Thread(target=lambda n=count: [push.send(b"x" * 100) for _ in range(n)])
            sending.start()
            take(inlet, count)
            sending.join()
            inlet.hold(rng.choice(MARKS))
        push.send(b"last")
        push.send(bytes(2000))
        wait_for(lambda: pull.poll(0), what="what came before")
        time.sleep(0.1)  # the connection is closed already
        inlet.mend()
        take(inlet, 1)
        wait_for(lambda: push.poll(0, zmq.POLLOUT) == 0, what="the connection was closed")
        wait_for(lambda: hears(inlet) or push.poll(0, zmq.POLLOUT), what="connected anew")
