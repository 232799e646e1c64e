"""The high-water mark may be changed at any time, and nothing gets stuck."""

import threading
from random import Random

import pytest
import zmq

from tangods_receiver.inlet import Inlet

MARKS = [2, 3, 4, 12, 13, 64, 100, 256, 870, 1020]


@pytest.fixture
def pair():
    """A PUSH socket, and a PULL socket with the address to connect to."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as push, context.socket(zmq.PULL) as pull:
        push.linger = pull.linger = 0
        push.sndtimeo = pull.rcvtimeo = 5000
        yield push, pull, f"tcp://127.0.0.1:{push.bind_to_random_port('tcp://127.0.0.1')}"


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
    push, pull, address = pair
    inlet = Inlet(pull, 1020)
    pull.connect(address)
    for count in (before, 1500):
        sending = threading.Thread(target=lambda n=count: [push.send(b"x") for _ in range(n)])
        sending.start()
        take(inlet, count)
        sending.join()
        inlet.hold(mark)
    assert pull.rcvhwm == mark


@pytest.mark.parametrize("seed", range(3))
def test_any_marks_in_any_order(pair, seed):
    push, pull, address = pair
    rng = Random(seed)
    push.sndhwm = rng.choice([1, 5, 1000])
    inlet = Inlet(pull, rng.choice(MARKS))
    pull.connect(address)
    for _ in range(20):
        count = rng.choice([1, 3, 30, 100, 509, 510, 511, 700, 2000])
        sending = threading.Thread(target=lambda n=count: [push.send(b"x" * 100) for _ in range(n)])
        sending.start()
        take(inlet, count)
        sending.join()
        inlet.hold(rng.choice(MARKS))


def test_low_at_once_and_exact_soon(pair):
    push, pull, address = pair
    inlet = Inlet(pull, 1020)
    pull.connect(address)
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
