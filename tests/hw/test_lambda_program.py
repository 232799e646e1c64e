"""The Lambda unit as a program: its orders, its controllers, its addresses, a kill in the middle."""

import json
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  the filters
import pytest
import zmq

from tangods_detector.hw.lambda_client import LambdaUnit, UnitOptions
from tangods_detector.hw.lambda_control import UnitOrders, main
from tangods_detector.hw.lambda_libxsp import LambdaLibxsp, LibxspOptions
from tangods_detector.hw.lambda_units import LambdaOptions
from tangods_receiver import security
from tangods_receiver.errors import ConfigError, HardwareError
from tests.contract import Listener
from tests.hw.fake_lambda import LONG, SHAPE, arm, config, image, library, over, set_up, two_ports
from tests.receiver.streaming import DATASET, running, wait_closed, wait_opened
from tests.waiting import wait_for

PROGRAM = [str(Path(sys.executable).parent / "tangods-detector"), "stream-lambda"]


@pytest.fixture(scope="module")
def path():
    return library()


@contextmanager
def program(built, config_file, *options, stream=0, control=0):
    """(process, address of its orders)"""
    where = ["--stream", f"127.0.0.1:{stream}", "--control", f"127.0.0.1:{control}"]
    command = [*PROGRAM, "--libxsp", str(built), "--config", config_file, *where, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said = process.stdout.readline()
        assert "orders: tcp://127.0.0.1:" in said, said or process.stderr.read()
        yield process, said
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=LONG)


def test_a_process_that_is_told_what_to_do(path, tmp_path):
    with program(path, config(tmp_path, lose_one=[3, 0]), "--first", "1") as (process, said):
        with LambdaUnit(said.rpartition(" ")[2].strip(), 1.0) as client:
            assert said.startswith("lambda/1, lambda/2: tcp://127.0.0.1:")
            about = client.ping()
            assert (about["program"], about["pid"], about["first"]) == ("stream-lambda", process.pid, 1)
            assert [m.shape for m in client.describe().modules] == [SHAPE, SHAPE]
            set_up(client, 50)
            with running(tmp_path, *client.endpoints()) as engine:
                arm(client, 1, "a.h5", 50, modules=3)
                wait_opened(engine, 1)
                with LambdaUnit(said.rpartition(" ")[2].strip(), LONG) as other:
                    with pytest.raises(HardwareError, match="stop: .* has control, heard of"):
                        other.stop()
                    assert other.status().phase == "armed", "everybody may ask"
                client.start()
                status = client.wait_over(LONG)
                assert (status.phase, status.message) == ("done", "lambda/1: 1 of 50 frames missing: 2")
                assert wait_closed(engine, 1).missing == 50, "there is no module 0 here"
            with h5py.File(tmp_path / "a.h5") as file:
                for number, pixels in enumerate(file[DATASET]):
                    assert (pixels[2] == image(1, number + 1)).all()
                    assert (pixels[1] == (0 if number == 2 else image(0, number + 1))).all()
            process.send_signal(signal.SIGTERM)
            assert process.wait(LONG) == 0
            with pytest.raises(HardwareError, match="does not answer within 1 s; does stream-lambda run"):
                client.status()


def test_a_process_that_is_killed_and_started_again(path, tmp_path):
    """By the same addresses; the receiver and the device stay as they are."""
    with socket.socket() as one:
        ports = {"stream": two_ports(one) - 1}
    with program(path, config(tmp_path, 1), **ports) as (process, said):
        address = said.rpartition(" ")[2].strip()
        with LambdaUnit(address, 1.0) as client, Listener(client.endpoints()) as listener:
            set_up(client, 100_000)
            arm(client, 1, "", 100_000, modules=1)
            client.start()
            wait_for(lambda: len(listener.frames(1)) > 20, LONG)
            process.kill()
            process.wait(LONG)
            with pytest.raises(HardwareError, match="does not answer within 1 s"):
                client.status()
            with program(path, config(tmp_path, 1), **ports, control=int(address.rpartition(":")[2])):
                assert (client.status().phase, client.status().series) == ("idle", -1)
                set_up(client, 20)
                arm(client, 2, "", 20, modules=1)
                client.start()
                assert over(client, listener, 2, 1).phase == "done"
    assert {f.number for f in listener.frames(2)} == {*range(20)}
    assert not listener.ended(1)


def test_only_holders_of_keys_give_orders_and_get_frames(path, tmp_path):
    for name in ("unit", "known", "stranger"):
        security.generate(name, tmp_path)
    clients = tmp_path / "clients"
    clients.mkdir()
    shutil.copy(tmp_path / "known.key", clients)
    keys = ["--curve-key", str(tmp_path / "unit.key_secret"), "--curve-clients", str(clients)]
    known = {"curve_key": str(tmp_path / "known.key_secret")}
    server = str(tmp_path / "unit.key")
    with program(path, config(tmp_path, 1), *keys) as (_, said):
        address = said.rpartition(" ")[2].strip()
        stranger = security.Credentials(
            security.key_pair(tmp_path / "stranger.key_secret"), security.public_key(server)
        )
        for credentials in (None, stranger):
            with LambdaUnit(address, 0.3, credentials) as client:
                with pytest.raises(HardwareError, match="does not answer within 0.3 s"):
                    client.ping()
        (client,) = LambdaOptions(units=(address,), timeout=LONG, curve_server_keys=(server,), **known).open()
        with client, running(tmp_path, *client.endpoints(), curve_server_keys=[server], **known) as engine:
            set_up(client, 20)
            arm(client, 1, "a.h5", 20, modules=1)
            client.start()
            assert client.wait_over(LONG).phase == "done"
            assert wait_closed(engine, 1).written == 20


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"curve_key": "me.key_secret"}, "curve_key, curve_server_keys: both or none"),
        ({"curve_server_keys": ("a.key",)}, "curve_key, curve_server_keys: both or none"),
        ({"curve_key": "me.key_secret", "curve_server_keys": ("a.key",) * 3}, "3 files for 2 units; give one for all"),
    ],
)
def test_keys_that_do_not_fit(options, words):
    with pytest.raises(ConfigError, match=words):
        LambdaOptions(units=("tcp://dcu1:9009", "tcp://dcu2:9009"), **options)


def test_an_order_with_an_unknown_key_is_not_carried_out(path, tmp_path):
    with LambdaUnit.here(LambdaLibxsp(LibxspOptions(str(path), config(tmp_path, 1))), UnitOptions(port=0)) as client:
        set_up(client, 5)
        orders = UnitOrders(client._unit)
        request = {"command": "arm", "client": "a", "series": 1, "filename": "", "nframes": 5, "modules": 1}
        refused = orders.answer({**request, "frames_per_start": 5, "nfarmes": 7})
        assert refused == {"ok": False, "error": "arm: unknown key nfarmes"}
        assert client.status().phase == "idle"


def test_a_process_whose_detector_comes_later(path, tmp_path):
    later = tmp_path / "system.yml"
    with program(path, str(later)) as (_, said):
        assert said.startswith("no modules (libxsp: opening ")
        with LambdaUnit(said.rpartition(" ")[2].strip()) as client:
            assert client.endpoints() == [] and client.status().phase == "error"
            with pytest.raises(HardwareError, match="2 configuration .*No such file"):
                client.describe()
            config(tmp_path, 3)
            assert len(client.describe().modules) == 3
            assert (len(client.endpoints()), client.status().phase) == (3, "idle")


def test_a_process_that_cannot_begin(path, tmp_path, capsys):
    for options, words in (
        (["--libxsp", "a.so", "--first", "-1"], "--first is a number from 0"),
        (["--libxsp", "a.so", "--control", "9009"], "'9009' is not like 127.0.0.1:9010"),
        ([], "one of the arguments --xspd --libxsp is required"),
    ):
        with pytest.raises(SystemExit):
            main(options)
        assert words in capsys.readouterr().err
    with zmq.Context() as context, context.socket(zmq.REP) as other:
        port = other.bind_to_random_port("tcp://127.0.0.1")
        line = [*PROGRAM, "--libxsp", str(path), "--stream", "127.0.0.1:0", "--control", f"127.0.0.1:{port}"]
        done = subprocess.run(line, capture_output=True, text=True, timeout=LONG)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"Error: cannot listen at tcp://127.0.0.1:{port}: Address already in use" in done.stderr


def test_orders_that_are_none(path, tmp_path):
    with program(path, config(tmp_path)) as (_, said), zmq.Context() as context:
        with context.socket(zmq.REQ) as line:
            line.linger = 0
            line.connect(said.rpartition(" ")[2].strip())
            for request, words in (
                (b"hello", "the request is not JSON"),
                (b"[1]", "a request is a JSON object"),
                (b'{"command": "fly", "client": "a"}', "command is 'fly', known are arm, configure, describe"),
                (b'{"command": "stop"}', "stop: who are you"),
                (b'{"command": "arm", "client": "a", "nframes": 0}', "nframes is 0, not a whole number from 1"),
                (b'{"command": "get", "client": "a", "name": "colour"}', "get: colour is not one of bit_depth"),
                (b'{"command": "stop", "client": "a", "hard": 1}', "stop: unknown key hard"),
                (b'{"command": "set", "client": "a", "name": "n_frames", "value": null}', "value is None"),
            ):
                line.send(request)
                assert line.poll(1000 * LONG)
                reply = json.loads(line.recv())
                assert reply["ok"] is False and words in reply["error"], reply
