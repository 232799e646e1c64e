"""The Pilatus streamer as a program: its orders, its controllers, a kill in the middle, an old Python."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  the filters
import pytest
import zmq

from tangods_detector.hw.pilatus_client import PilatusStreamer
from tangods_detector.hw.pilatus_control import StreamOrders
from tangods_detector.hw.pilatus_run import Options
from tangods_detector.hw.pilatus_stream import PilatusStream
from tangods_detector.orders import Control, Refused
from tangods_receiver.errors import HardwareError
from tests.hw.pilatus_files import PATTERN, SHAPE, image, write
from tests.hw.test_pilatus_watcher_stream import Sink, collector, files, folder  # noqa: F401  fixtures
from tests.receiver.streaming import DATASET, running, wait_closed
from tests.waiting import wait_for

TOP = Path(__file__).parents[2]
OLD = Path(os.environ.get("TANGODS_OLD_PYTHON", TOP / "build/old-python/bin/python"))
PROGRAM = [str(Path(sys.executable).parent / "tangods-detector"), "stream-pilatus"]
ARM = {"command": "arm", "client": "a", "series": 1, "filename": "", "pattern": PATTERN, "nframes": 3}


@contextmanager
def program(folder, *options, command=PROGRAM):  # noqa: F811
    """(process, address of its orders); it prints where it listens."""
    line = [
        *command,
        str(folder),
        "--stream",
        "127.0.0.1:0",
        "--control",
        "127.0.0.1:0",
        "--file-wait",
        "0.3",
        *options,
    ]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said = process.stdout.readline()
        assert said.startswith(f"images of {folder}: tcp://127.0.0.1:"), said or process.stderr.read()
        yield process, said.rpartition(" ")[2].strip()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


@pytest.fixture(scope="module")
def one_file(tmp_path_factory):
    target = tmp_path_factory.mktemp("zipapp") / "stream-pilatus.pyz"
    subprocess.run([sys.executable, TOP / "resources/make-pilatus-zipapp", target], check=True, timeout=60)
    return target


@pytest.fixture(params=["here", "installed", "one file, this Python", "one file, old Python"])
def streamer(request, folder):  # noqa: F811
    if request.param == "here":
        with PilatusStreamer.here(Options(str(folder), port=0, file_wait=0.3)) as streamer:
            yield streamer
        return
    command = PROGRAM
    if request.param != "installed":
        python = Path(sys.executable) if "this" in request.param else OLD
        if not python.exists():
            pytest.skip("no old Python here: resources/make-old-python makes one where the machine has it")
        command = [str(python), "-I", str(request.getfixturevalue("one_file"))]
    with program(folder, command=command) as (_, address), PilatusStreamer(address) as streamer:
        yield streamer


def test_a_series_in_every_way_it_can_run(streamer, folder, tmp_path):  # noqa: F811
    about = streamer.ping()
    assert (about["program"], about["folder"]) == ("stream-pilatus", str(folder))
    with running(tmp_path, about["endpoint"]) as engine:
        streamer.arm(3, "a.h5", PATTERN, 50, shape=SHAPE, metadata={"exptime": 0.099}, expect={"Exposure_time": 0.099})
        write(folder, [1, 0, *range(2, 20), *range(21, 50)])
        wait_for(lambda: streamer.status().sent == 49)
        streamer.finish()
        status = streamer.wait_over(10)
        assert (status.phase, status.sent, status.message) == ("done", 49, "1 of 50 images never came: 20")
        assert wait_closed(engine, 3).missing == 1
        streamer.closed()
        assert files(folder) == []
    with h5py.File(tmp_path / "a.h5") as file:
        for number, pixels in enumerate(file[DATASET]):
            assert (pixels == (image(number) if number != 20 else 0)).all()


def test_what_is_in_the_file_runs_with_python_3_6(one_file, tmp_path):
    with zipfile.ZipFile(one_file) as file:
        file.extractall(tmp_path)
        modules = [name for name in file.namelist() if name.endswith(".py")]
    assert "tangods_detector/hw/pilatus_run.py" in modules and "inotify_simple.py" in modules
    assert not any("pilatus_client" in name or "tangods_receiver" in name for name in modules)
    line = [
        str(Path(sys.executable).parent / "vermin"),
        "--no-tips",
        "--violations",
        "-t=3.6-",
        *(str(tmp_path / m) for m in modules),
    ]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    (tmp_path / "new.py").write_text("if (n := 3) > 2:\n    pass\n")
    newer = subprocess.run([*line, str(tmp_path / "new.py")], capture_output=True, text=True, timeout=60)
    assert newer.returncode != 0


def test_the_file_needs_zmq_only(one_file):
    """Nothing of this environment's is imported."""
    code = (
        f"import sys; sys.path.insert(0, {str(one_file)!r}); import tangods_detector.hw.pilatus_control as c;"
        "assert c.__file__.startswith(sys.path[0]), c.__file__;"
        "others = {m.partition('.')[0] for m in sys.modules} - sys.stdlib_module_names;"
        "print(' '.join(sorted(m for m in others if not m.startswith('_'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd="/")
    assert done.returncode == 0, done.stderr
    extra = set(done.stdout.split()) - {"tangods_detector", "inotify_simple", "zmq"}
    assert not {name for name in extra if name in ("numpy", "orjson", "tangods_receiver", "click", "tango", "h5py")}, (
        extra
    )


# --- a kill ----------------------------------------------------------------------------------------------------------


def test_a_streamer_that_is_killed_and_resumed_loses_nothing(folder, tmp_path):  # noqa: F811
    """Another process takes over: what had not left is still there; what had comes once more and is counted."""
    count = 300
    port = free_port()
    listen = ("--stream", f"127.0.0.1:{port}")
    with running(tmp_path, f"tcp://127.0.0.1:{port}", end_timeout=2.0) as engine:
        with program(folder, *listen) as (process, address), PilatusStreamer(address) as streamer:
            streamer.arm(1, "a.h5", PATTERN, count, shape=SHAPE)
            writer = threading.Thread(target=lambda: [(write(folder, [n]), time.sleep(0.002)) for n in range(count)])
            writer.start()
            wait_for(lambda: streamer.status().sent >= 100)
            process.kill()
            process.wait()
            streamer._client = "dead"
        with program(folder, *listen) as (_, address), PilatusStreamer(address) as streamer:
            streamer.arm(1, "a.h5", PATTERN, count, shape=SHAPE, present="send", resume=True)
            writer.join()
            streamer.finish()
            status = streamer.wait_over(20)
            done = wait_closed(engine, 1)
            assert (done.missing, done.written) == (0, count)
            assert status.phase == "done" and 0 < status.lost < count  # those that were deleted before
            assert status.message == "", "the receiver knows what is missing"
    with h5py.File(tmp_path / "a.h5") as file:
        assert file[DATASET][:, -1, -1].tolist() == list(range(count))


def free_port():
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        return socket.bind_to_random_port("tcp://127.0.0.1")


def test_a_signal_ends_the_series_and_the_program(folder):  # noqa: F811
    with program(folder) as (process, address), PilatusStreamer(address) as streamer:
        with Sink(streamer.endpoint()) as sink:
            streamer.arm(1, "", PATTERN, 100)
            write(folder, range(3))
            wait_for(lambda: sink.numbers() == [0, 1, 2])
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
            wait_for(sink.ended)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["/nowhere/at/all"], 1, "Error: /nowhere/at/all is not a folder"),
        (["/tmp", "--stream", "nonsense"], 2, "'nonsense' is not like 127.0.0.1:9999"),
        (["/tmp", "--stream", "127.0.0.1:0", "--control", "192.0.2.1:5"], 1, "cannot listen at tcp://192.0.2.1:5"),
        (["/tmp", "--stream", "192.0.2.1:5"], 1, "cannot bind the stream to tcp://192.0.2.1:5"),
        (["/tmp", "--queue", "0"], 2, "--queue from 1"),
        ([], 2, "FOLDER"),
    ],
)
def test_a_program_that_cannot_begin_says_why(arguments, code, words):
    done = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, timeout=30)
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


# --- orders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def orders(folder):  # noqa: F811
    with PilatusStream(Options(str(folder), port=0, arm_limit=0.2)) as stream:
        yield StreamOrders(stream, lease=0.3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"command": None}, "command is None, known are arm, closed, finish, ping, release, status, stop"),
        ({"command": "fly"}, "command is 'fly'"),
        ({"client": ""}, "arm: who are you?"),
        ({"client": 5}, "client is 5, not a text"),
        ({"series": -1}, "series is -1, not a whole number from 0"),
        ({"series": True}, "series is True"),
        ({"series": None}, "series is None"),
        ({"nframes": 0}, "nframes is 0, not a whole number from 1"),
        ({"nframes": 10**9}, "arm: nframes is 1000000000, more than 1000000"),
        ({"filename": None}, "filename is missing, not a text"),
        ({"pattern": "a.cbf"}, "arm: pattern is 'a.cbf' for 3 images; it needs a number"),
        ({"pattern": "../a_%d.cbf"}, "arm: pattern is '../a_%d.cbf'"),
        ({"folder": ".."}, "arm: folder is '..', not below"),
        ({"folder": "/etc"}, "arm: folder is '/etc', not below"),
        ({"shape": [3]}, "arm: shape is [3], not [rows, columns]"),
        ({"shape": [3, "x"]}, "arm: shape is"),
        ({"metadata": []}, "metadata is [], not a JSON object"),
        ({"present": "keep"}, "arm: present is 'keep', not one of refuse, send, delete, delete_all"),
        ({"resume": 1}, "resume is 1, not true or false"),
        ({"nfarmes": 3}, "arm: unknown key nfarmes"),
        ({"force": "yes"}, "force is 'yes'"),
    ],
)
def test_bad_orders_are_refused_with_a_sentence(orders, change, words):
    reply = orders.answer({**ARM, **change})
    assert reply["ok"] is False and reply["error"].startswith(words), reply
    assert orders.answer({"command": "status"})["phase"] == "idle"


@pytest.mark.parametrize(
    "request_", [None, [], "arm", 5, {}, {"command": ["arm"]}, {"command": "finish", "frames": "x"}]
)
def test_requests_that_are_none(orders, request_):
    assert orders.answer(request_)["ok"] is False


def test_a_link_does_not_lead_out_of_the_folder(orders, folder, tmp_path):  # noqa: F811
    (folder / "link").symlink_to(tmp_path)
    assert "not below" in orders.answer({**ARM, "folder": "link"})["error"]


def test_one_controller_at_a_time(orders):
    assert orders.answer(ARM)["ok"]
    refused = orders.answer({"command": "stop", "client": "b"})
    assert refused["error"].startswith("stop: a has control, heard of 0.")
    assert orders.answer({"command": "status", "client": "b"})["holder"] == "a"
    assert orders.answer({"command": "stop", "client": "b", "force": True})["ok"]
    assert orders.answer({"command": "ping"})["holder"] == "b"
    assert orders.answer({"command": "release", "client": "b"})["ok"]
    assert orders.answer({"command": "stop", "client": "a"})["ok"]


def test_a_controller_that_vanishes_loses_control_and_the_series_goes_on(folder):  # noqa: F811
    with PilatusStream(Options(str(folder), port=0)) as stream, Sink(stream.endpoint) as sink:
        orders = StreamOrders(stream, lease=0.3)
        assert orders.answer(ARM)["ok"]
        time.sleep(0.2)
        assert orders.answer({"command": "status", "client": "a"})["ok"]
        time.sleep(0.2)
        assert not orders.answer({"command": "stop", "client": "b"})["ok"]
        write(folder, range(3))
        wait_for(sink.ended)
        time.sleep(0.3)
        assert orders.answer({"command": "stop", "client": "b"})["ok"]


def test_whoever_sends_anything_to_the_socket_harms_nobody(folder):  # noqa: F811
    with (
        PilatusStream(Options(str(folder), port=0)) as stream,
        Control(StreamOrders(stream), "127.0.0.1", 0) as control,
    ):
        with zmq.Context() as context:
            for parts in ([b"{"], [b"\xff\xfe"], [b""], [b"[" * 100_000], [b'{"command":', b'"ping"}'], [b"NaN"]):
                with context.socket(zmq.REQ) as socket:
                    socket.linger = 0
                    socket.connect(control.endpoint)
                    socket.send_multipart(parts)
                    assert socket.poll(5000)
                    assert json.loads(socket.recv())["ok"] is (len(parts) == 2)
            with context.socket(zmq.REQ) as rude:
                rude.linger = 0
                rude.connect(control.endpoint)
                rude.send(b'{"command": "ping"}')  # and gone
            with context.socket(zmq.DEALER) as raw:
                raw.linger = 0
                raw.connect(control.endpoint)
                raw.send(b"no envelope")
                raw.send_multipart([b"", b"x" * (2 << 20)])
        with PilatusStreamer(control.endpoint) as streamer:
            assert streamer.status().phase == "idle"


def test_the_client_says_when_nobody_answers():
    with PilatusStreamer(f"tcp://127.0.0.1:{free_port()}", timeout=0.2) as streamer:
        for _ in range(2):
            with pytest.raises(HardwareError, match=r"does not answer within 0.2 s; does stream-pilatus run\?"):
                streamer.ping()


def phase(streamer):
    try:
        return streamer.status().phase
    except HardwareError:
        return None


def test_the_client_finds_a_streamer_that_came_back(folder):  # noqa: F811
    port = free_port()
    with PilatusStreamer(f"tcp://127.0.0.1:{port}", timeout=0.5) as streamer:
        with pytest.raises(HardwareError):
            streamer.status()
        with PilatusStream(Options(str(folder), port=0)) as stream, Control(StreamOrders(stream), "127.0.0.1", port):
            wait_for(lambda: phase(streamer) == "idle")
            streamer.stop()
            with pytest.raises(HardwareError, match="finish: no series is open"):
                streamer.finish()


def test_ports_that_are_taken(folder):  # noqa: F811
    with (
        PilatusStream(Options(str(folder), port=0)) as stream,
        Control(StreamOrders(stream), "127.0.0.1", 0) as control,
    ):
        port = int(stream.endpoint.rpartition(":")[2])
        with pytest.raises(Refused, match="cannot bind the stream to .* in use"):
            PilatusStream(Options(str(folder), port=port)).start()
        with pytest.raises(Refused, match="cannot listen at .* in use"):
            Control(StreamOrders(stream), "127.0.0.1", int(control.endpoint.rpartition(":")[2]))
        with pytest.raises(HardwareError, match="cannot bind the stream"):
            PilatusStreamer.here(Options(str(folder), port=port))


def test_by_default_everything_stays_on_this_machine():
    place = tempfile.mkdtemp()
    try:
        with PilatusStream(Options(place, port=0)) as stream, Control(StreamOrders(stream), "127.0.0.1", 0) as control:
            assert stream.endpoint.startswith("tcp://127.0.0.1:") and control.endpoint.startswith("tcp://127.0.0.1:")
    finally:
        shutil.rmtree(place)
    text = subprocess.run([*PROGRAM, "--help"], capture_output=True, text=True, timeout=30).stdout
    assert text.count("127.0.0.1:999") == 2
