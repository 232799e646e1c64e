"""Who may connect to stream-pilatus: addresses and keys, the same as of all other ports."""

import os
from contextlib import closing

import pytest
import zmq

from tangods_detector.hw.pilatus_client import PilatusStreamer
from tangods_detector.hw.pilatus_guard import Guard
from tangods_detector.hw.pilatus_link import PilatusOptions
from tangods_detector.hw.pilatus_run import Options
from tangods_receiver import security
from tangods_receiver.errors import ConfigError, HardwareError
from tests.hw.pilatus_files import PATTERN, SHAPE, image, write
from tests.hw.test_pilatus_watcher_program import free_port, program
from tests.hw.test_pilatus_watcher_stream import Sink, collector, folder  # noqa: F401  fixtures
from tests.receiver.streaming import running, wait_closed


@pytest.fixture
def keys(tmp_path):
    """.key and .key_secret files of three, and a folder of who may connect: the receiver and the device."""
    for name in ("streamer", "known", "stranger"):
        security.generate(name, tmp_path)
    clients = tmp_path / "clients"
    clients.mkdir()
    (clients / "known.key").write_text((tmp_path / "known.key").read_text())
    return tmp_path


def credentials(keys, name):
    return security.Credentials(
        security.key_pair(keys / f"{name}.key_secret"), security.public_key(keys / "streamer.key")
    )


def test_only_holders_of_keys_give_orders_and_get_images(folder, keys, tmp_path):  # noqa: F811
    port = free_port()
    options = ["--stream", f"127.0.0.1:{port}"]
    options += ["--curve-key", str(keys / "streamer.key_secret"), "--curve-clients", str(keys / "clients")]
    own = {"curve_key": str(keys / "known.key_secret"), "curve_server_keys": [str(keys / "streamer.key")]}
    with program(folder, *options) as (_, address):
        for stranger in (None, credentials(keys, "stranger")):
            with closing(PilatusStreamer(address, 0.3, stranger)) as streamer:
                with pytest.raises(HardwareError, match="does not answer"):
                    streamer.ping()
        with closing(PilatusStreamer(address, 5.0, credentials(keys, "known"))) as streamer:
            with Sink(f"tcp://127.0.0.1:{port}") as stranger:
                with running(tmp_path, f"tcp://127.0.0.1:{port}", **own) as engine:
                    streamer.arm(1, "a.h5", PATTERN, 20, shape=SHAPE)
                    write(folder, range(20))
                    assert streamer.wait_over(20).sent == 20
                    assert wait_closed(engine, 1).written == 20
                assert stranger.messages == []


@pytest.mark.parametrize(("allowed", "comes"), [("127.0.0.1", True), ("10.9.8.7", False)])
def test_only_from_some_addresses(folder, allowed, comes):  # noqa: F811
    guard = Guard([allowed])
    with PilatusStreamer.here(Options(str(folder), port=0, arm_limit=0.5, guard=guard)) as streamer:
        with Sink(streamer.endpoint()) as sink:
            if not comes:
                with pytest.raises(HardwareError, match="no receiver connected"):
                    streamer.arm(1, "", PATTERN, 1, shape=SHAPE)
                assert sink.messages == []
                return
            streamer.arm(1, "", PATTERN, 1, shape=SHAPE)
            write(folder, range(1))
            assert streamer.wait_over(10).sent == 1
    assert image(0).shape == SHAPE


def test_what_is_wrong_with_keys(tmp_path, keys):
    secret, clients = str(keys / "streamer.key_secret"), str(keys / "clients")
    with pytest.raises(ValueError, match="goes with a folder"):
        Guard(key=secret)
    with pytest.raises(ValueError, match="nothing.key_secret cannot be read"):
        Guard(key=str(keys / "nothing.key_secret"), clients=clients)
    with pytest.raises(ValueError, match="holds no public key"):
        (keys / "empty").mkdir()
        Guard(key=secret, clients=str(keys / "empty"))
    with pytest.raises(ValueError, match="holds no secret key"):
        os.chmod(keys / "streamer.key", 0o600)
        Guard(key=str(keys / "streamer.key"), clients=clients)
    os.chmod(secret, 0o644)
    with pytest.raises(ValueError, match="others may read or change this secret key"):
        Guard(key=secret, clients=clients)
    with pytest.raises(ConfigError, match="curve_key, curve_server_key: both or none"):
        PilatusOptions(host="det", streamer="tcp://det:9998", curve_key=secret)
    assert zmq.has("curve")
