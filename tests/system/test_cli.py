"""`tangods-detector` as people type it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import httpx
import numpy as np
import pytest
import yaml

from tangods_detector.cli import progress_bar
from tangods_detector.localtango import LocalTango
from tangods_receiver.protocol import recording, stins
from tests.receiver import dectris
from tests.system.beamline import DATASET, wait_for

pytestmark = pytest.mark.system
PROGRAM = str(Path(sys.executable).parent / "tangods-detector")
SHAPE = (30, 40)


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **environment})


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def image(number: int) -> np.ndarray:
    return (np.arange(SHAPE[0] * SHAPE[1], dtype="u2").reshape(SHAPE) + number).astype("u2")


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A STINS stream of 12 images on disk."""
    messages = [stins.encode_start("/elsewhere/a.h5", 0, nframes=12, shape=SHAPE, dtype="uint16", codec="none")]
    for n in range(12):
        messages.append([stins.encode_frame_header(n, SHAPE, "uint16", "none", n + 1), image(n).tobytes()])
    messages.append(stins.encode_end(13))
    path = tmp_path / "series.bin.gz"
    recording.write(path, messages)
    return path


@contextmanager
def receiving(tmp_path: Path, endpoint: str, **more: object) -> Iterator[tuple[str, Path, subprocess.Popen[str]]]:
    """`receive` in a process: (its HTTP address, root, process)."""
    root = tmp_path / "data"
    root.mkdir(exist_ok=True)
    http = f"127.0.0.1:{free_port()}"
    config = tmp_path / "receiver.yaml"
    config.write_text(yaml.safe_dump({"endpoints": [endpoint], "root": str(root), "http": http, **more}))
    process = subprocess.Popen([PROGRAM, "receive", str(config)], stderr=subprocess.PIPE, text=True)
    try:
        wait_for("the receiver to answer", lambda: answers(f"http://{http}/status"))
        yield f"http://{http}", root, process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(10)
        if process.stderr:
            process.stderr.close()


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def test_receive_and_replay(tmp_path: Path, recorded: Path) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with receiving(tmp_path, endpoint) as (address, root, process):
        sent = run("replay", recorded, "--endpoint", endpoint, "--filename", root / "a.h5", "--rate", 500)
        assert sent.returncode == 0, sent.stderr
        assert "14 messages sent" in sent.stdout
        wait_for("the series", lambda: httpx.get(f"{address}/status").json()["closed"] == 1)
        status = httpx.get(f"{address}/status").json()
        asked = {"state", "series", "file", "received", "written", "missing", "repeated", "rejected"}
        assert asked | {"opened", "closed", "error"} <= set(status)
        assert (status["state"], status["written"], status["missing"]) == ("idle", 12, 0)
        assert httpx.get(f"{address}/received_frames").json() == {"value": 12}
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert process.stderr
        log = process.stderr.read()
        assert f"series 1 opened {root / 'a.h5'}" in log
        assert f"series 1 closed {root / 'a.h5'}: 12 frames, 0 missing, 0 repeated" in log
    with h5py.File(root / "a.h5") as h5:
        np.testing.assert_array_equal(h5[DATASET][()], [image(n) for n in range(12)])
    checked = run("check", root / "a.h5")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "12" in checked.stdout


def test_records_for_what_collects_logs(tmp_path: Path, recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANGODS_LOG", "json")
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with receiving(tmp_path, endpoint) as (address, root, process):
        assert run("replay", recorded, "--endpoint", endpoint, "--filename", root / "a.h5").returncode == 0
        wait_for("the series", lambda: httpx.get(f"{address}/status").json()["closed"] == 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stderr
        told = [json.loads(line) for line in process.stderr.read().splitlines()]
    assert any(one["message"].startswith(f"series 1 closed {root / 'a.h5'}: 12 frames") for one in told)
    assert {one["level"] for one in told} == {"INFO"} and all(one["time"] and one["logger"] for one in told)


def test_a_dectris_stream_is_replayed_and_received(tmp_path: Path) -> None:
    """Stream V1 without an end message: the name is put into the appendix, the time limit closes the file."""
    messages = [dectris.start(5, SHAPE, "all", nimages=12)]
    messages += [dectris.image(5, n, image(n)) for n in range(12) if n != 7]
    recording.write(tmp_path / "eiger.bin.gz", messages)
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with receiving(tmp_path, endpoint, protocol="dectris1", stall_timeout=0.5) as (address, root, _):
        sent = run("replay", tmp_path / "eiger.bin.gz", "--endpoint", endpoint, "--filename", root / "a.h5")
        assert sent.returncode == 0 and "12 messages sent" in sent.stdout, sent.stderr
        status = wait_for(
            "the series", lambda: s if (s := httpx.get(f"{address}/status").json())["closed"] == 5 else None
        )
        assert (status["written"], status["missing"]) == (11, 1)
    checked = run("check", root / "a.h5")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    with h5py.File(root / "a.h5") as h5:
        np.testing.assert_array_equal(h5[DATASET][()], [image(n) if n != 7 else 0 * image(0) for n in range(12)])
        np.testing.assert_array_equal(h5[DATASET].parent["flatfield"], dectris.flatfield(SHAPE))
        assert "nothing came for 0.5 s" in h5[DATASET].parent["end_reason"].asstr()[()]


def test_replay_cut_reordered_and_repeated(tmp_path: Path, recorded: Path) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with receiving(tmp_path, endpoint, end_timeout=0.3) as (address, root, _):
        disturbed = ("--cut", 4, "--reorder", 5, "--repeat", 2)
        sent = run("replay", recorded, "--endpoint", endpoint, "--filename", root / "a.h5", *disturbed)
        assert sent.returncode == 0, sent.stderr
        status = wait_for(
            "the series", lambda: s if (s := httpx.get(f"{address}/status").json())["closed"] == 1 else None
        )
        assert (status["written"], status["missing"], status["repeated"]) == (9, 3, 9)
    with h5py.File(root / "a.h5") as h5:
        assert h5[DATASET].parent["frames_missing"][()].tolist() == [[3, 3], [7, 7], [11, 11]]
        for n in (0, 1, 2, 4, 5, 6, 8, 9, 10):
            np.testing.assert_array_equal(h5[DATASET][n], image(n))


def test_sigterm_in_mid_series_closes_the_file(tmp_path: Path, recorded: Path) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    endless = tmp_path / "endless.bin"
    recording.write(endless, list(recording.read(recorded))[:-4])
    with receiving(tmp_path, endpoint) as (address, root, process):
        run("replay", endless, "--endpoint", endpoint, "--filename", root / "a.h5")
        wait_for("the frames", lambda: httpx.get(f"{address}/status").json()["written"] == 9)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    checked = run("check", root / "a.h5")
    assert checked.returncode == 0, checked.stdout
    with h5py.File(root / "a.h5") as h5:
        np.testing.assert_array_equal(h5[DATASET][8], image(8))


def test_recover_after_a_kill(tmp_path: Path, recorded: Path) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    endless = tmp_path / "endless.bin"
    recording.write(endless, list(recording.read(recorded))[:-4])
    with receiving(tmp_path, endpoint, commit_interval=1000.0) as (address, root, process):
        run("replay", endless, "--endpoint", endpoint, "--filename", root / "a.h5")
        wait_for("the frames", lambda: httpx.get(f"{address}/status").json()["written"] == 9)
        process.kill()
    assert run("check", root / "a.h5").returncode == 1
    recovered = run("recover", root / "a.h5")
    assert recovered.returncode == 0, recovered.stdout + recovered.stderr
    assert run("check", root / "a.h5").returncode == 0
    with h5py.File(root / "a.h5") as h5:
        np.testing.assert_array_equal(h5[DATASET][:9], [image(n) for n in range(9)])


@pytest.mark.parametrize("command", ["check", "recover"])
def test_check_and_recover_refuse_what_is_not_ours(tmp_path: Path, command: str) -> None:
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as h5:
        h5["x"] = 1
    before = other.read_bytes()
    for path in (other, tmp_path / "none.h5"):
        done = run(command, path)
        assert done.returncode != 0
        assert str(path) in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert "0/?" not in done.stderr, "a bar for work that was not done"
    assert other.read_bytes() == before


def test_all_mistakes_of_a_configuration_in_one_message(tmp_path: Path) -> None:
    config = tmp_path / "receiver.yaml"
    config.write_text("endpoints: [nowhere]\nroot: /nowhere/at/all\nworkers: none\nwrokers: 2\n")
    done = run("receive", config)
    assert done.returncode == 1
    for word in ("endpoints", "root", "workers", "wrokers", str(config)):
        assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_register_is_safe_to_repeat(local_tango: LocalTango, tmp_path: Path) -> None:
    arguments = ("register", "--instance", "cli", "--detector", "cli/det/1", "--receiver", "cli/rec/1")
    arguments += ("-o", "width = 100", "--endpoint", "tcp://127.0.0.1:9999", "--root", str(tmp_path))
    first = run(*arguments, TANGO_HOST=local_tango.tango_host)
    assert first.returncode == 0, first.stderr
    assert "cli/det/1: added to server Detector/cli" in first.stdout
    assert "nothing to change" in run(*arguments, TANGO_HOST=local_tango.tango_host).stdout
    held = local_tango.database.get_device_property("cli/det/1", ["BackendOptions", "Receiver"])
    assert list(held["BackendOptions"]) == ["width = 100"]
    assert list(held["Receiver"]) == ["cli/rec/1"]
    changed = run(*arguments, "-o", "height = 50", TANGO_HOST=local_tango.tango_host)
    assert changed.stdout.strip() == "cli/det/1: BackendOptions = width = 100, height = 50"


def test_register_from_a_file(local_tango: LocalTango, tmp_path: Path) -> None:
    entry = {"properties": {"Backend": "simulator"}, "alias": "file-det"}
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump({"servers": {"Detector": {"file": {"Detector": {"file/det/1": entry}}}}}))
    assert run("register", file, TANGO_HOST=local_tango.tango_host).returncode == 0
    assert "nothing to change" in run("register", file, TANGO_HOST=local_tango.tango_host).stdout
    assert local_tango.database.get_device_from_alias("file-det") == "file/det/1"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("servers: {Detector: {a: {Detector: {nonsense: {}}}}}", "nonsense"),
        ("severs: {}", "severs"),
        ("servers: [", "line 1"),
        ("servers: {Other: {a: {Other: {file/det/9: {}, taken/det/1: {}}}}}", "taken/det/1"),
    ],
)
def test_register_refuses_mistakes(local_tango: LocalTango, tmp_path: Path, content: str, word: str) -> None:
    taken = tmp_path / "taken.yaml"
    taken.write_text("servers: {Detector: {taken: {Detector: {taken/det/1: {}}}}}")
    assert run("register", taken, TANGO_HOST=local_tango.tango_host).returncode == 0
    file = tmp_path / "r.yaml"
    file.write_text(content)
    done = run("register", file, TANGO_HOST=local_tango.tango_host)
    assert done.returncode == 1
    assert word in done.stderr and "Traceback" not in done.stderr
    assert "file/det/9" not in list(local_tango.database.get_device_name("*", "Other")), "all or nothing"


def test_register_without_a_database(tmp_path: Path) -> None:
    host = f"127.0.0.1:{free_port()}"
    done = run("register", "--root", tmp_path, "--endpoint", "tcp://127.0.0.1:9999", TANGO_HOST=host)
    assert done.returncode == 1
    assert "TANGO_HOST" in done.stderr and "Traceback" not in done.stderr


def test_an_interrupt_is_raised_at_the_next_step_and_a_second_one_at_once() -> None:
    """Python drops one that happens to come in a weak reference's callback."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="^$"), progress_bar("working") as step:
        step(1, 3)
        signal.raise_signal(signal.SIGINT)  # wherever Python is
        step(2, 3)
        pytest.fail("not raised")
    with pytest.raises(KeyboardInterrupt), progress_bar("working"):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("not raised")
    assert signal.getsignal(signal.SIGINT) is before
