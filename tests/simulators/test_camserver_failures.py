"""Every fault of the simulated camserver is provoked and observed, and the next series is a good one."""

import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from fabio.compression import compByteOffset

from tangods_detector.simulators.camserver import Failures
from tangods_receiver import cbf
from tangods_receiver.errors import ConfigError, StreamError
from tests.simulators.camserver import Client, Watch, ask, controlling, images, running
from tests.simulators.test_camserver_files import checked


@pytest.fixture(scope="module")
def shared():
    with running() as both:
        yield both


@pytest.fixture
def unit(shared):
    """(simulator, client). Afterwards nothing is pending, and a series without faults is what it should be."""
    cam, client = shared
    cam.fail(Failures())
    cam.happened.clear()
    for path in Path(cam.folder).iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    client.say("resetcam")
    yield shared
    assert cam.unit.failures.pending() == {}
    client.silent(0.02)
    last = client.series("good.cbf", 2, period=0.004)
    assert last.name == "good_00001.cbf" and [name for name, _ in cam.written] == ["good_00000.cbf", last.name]
    checked(last, cam.image(1))


def start(client, name="a.cbf", n=5, exptime=0.002, period=0.01, mode="exposure"):
    client.set(nimages=n, exptime=exptime, expperiod=period)
    assert client.say(f"{mode} {name}").startswith("15 OK  Starting")


# --- the connection --------------------------------------------------------------------------------------------------


def test_replies_in_pieces(unit):
    cam, client = unit
    cam.fail(Failures(split=2))
    client.segments.clear()
    assert client.say("nimages 12") == "15 OK N images set to: 12"
    assert len(client.segments) > 5
    assert client.say("nimages") == "15 OK N images set to: 12"
    client.segments.clear()
    assert client.say("nimages") == "15 OK N images set to: 12" and len(client.segments) == 1
    assert cam.happened == ["split", "split"]


def test_replies_in_one_segment(unit):
    cam, client = unit
    start(client, n=1000)
    time.sleep(0.05)
    cam.fail(Failures(merge=2))
    client.segments.clear()
    assert client.say("k") == "13 ERR kill"
    assert client.reply() == "7 ERR kill" and client.reply().startswith("7 OK ")
    assert len(client.segments) == 1


def test_a_reply_that_is_kept_back_comes_by_itself(unit):
    cam, client = unit
    cam.fail(Failures(merge=1))
    begun = time.monotonic()
    assert client.say("nimages") == "15 OK N images set to: 1"
    assert time.monotonic() - begun > 0.05


def test_a_reply_is_missing(unit):
    cam, client = unit
    cam.fail(Failures(mute="N images"))
    client.send("nimages 3\nexptime 0.5\n")
    assert client.reply() == "15 OK Exposure time set to: 0.5000000 sec."
    assert client.say("nimages") == "15 OK N images set to: 3"  # it was done


def test_the_seven_is_missing(unit):
    cam, client = unit
    cam.fail(Failures(mute="7 OK"))
    start(client)
    time.sleep(0.1)
    client.silent(0.1)
    assert len(images(cam)) == 5 and not cam.unit.exposing


def test_noise(unit):
    cam, client = unit
    cam.fail(Failures(noise="99 OK what is this\nand that"))
    assert client.say("nimages") == "99 OK what is this\nand that"
    assert client.reply() == "15 OK N images set to: 1"


def test_the_connection_drops_at_a_command():
    with running() as (cam, client):
        cam.fail(Failures(disconnect="expperiod"))
        client.set(nimages=7)
        client.send("expperiod 3\n")
        with pytest.raises((EOFError, ConnectionError)):
            client.reply()
        with controlling(cam) as again:
            assert again.say("nimages") == "15 OK N images set to: 7"  # kept
            assert again.say("expperiod") == "15 OK Exposure period set to: 1.0500000 sec"  # not done
            assert again.series().name == "a_00002.cbf"


def test_the_connection_drops_in_a_series_which_goes_on():
    with running() as (cam, client):
        cam.fail(Failures(disconnect_at=1))
        start(client, n=10)
        with pytest.raises((EOFError, ConnectionError)):
            client.reply()
        with Client(cam.port) as again:
            assert again.reply() == f"7 OK {cam.folder}/a_00009.cbf"
            assert again.series("b.cbf").name == "b_00002.cbf"
        assert len([name for name in images(cam) if name.startswith("a_")]) == 10


def test_a_threshold_hangs_until_the_client_leaves():
    with running() as (cam, client):
        cam.fail(Failures(hang="setthreshold", hang_seconds=3600))
        client.send("setthreshold 6000\n")
        client.silent(0.2)
        client.socket.close()
        time.sleep(0.05)
        with controlling(cam) as again:
            assert again.series().name == "a_00002.cbf"


def test_a_threshold_that_comes_late(unit):
    cam, client = unit
    cam.fail(Failures(hang="setenergy", hang_seconds=0.3))
    begun = time.monotonic()
    assert client.say("setenergy 12000") == "15 OK /tmp/setthreshold.cmd"
    assert time.monotonic() - begun > 0.3


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "code"), [("imgpath x", 10), ("nimages 4", 15), ("exposure a.cbf", 15)])
def test_a_command_is_refused_once(unit, command, code):
    cam, client = unit
    cam.fail(Failures(refuse=command.split()[0]))
    client.set(exptime=0.002, expperiod=0.004)
    assert client.say(command).startswith(f"{code} ERR ")
    assert " OK" in client.say(command)
    if command.startswith("exposure"):
        client.end()


def test_a_threshold_that_resets_everything(unit):
    cam, client = unit
    client.set(exptime=0.25, nexpframe=3, setackint=5, delay=1)
    cam.fail(Failures(forget=True))
    client.set(setenergy=12000)
    assert client.say("exptime") == "15 OK Exposure time set to: 1.0000000 sec."
    assert client.say("nexpframe") == "15 OK Exposures per frame set to: 1"
    assert client.say("delay") == "15 OK Delay time set to: 0.000 sec"
    assert client.say("setenergy").startswith("15 OK Energy setting: 12000 eV")


def test_kills_that_are_ignored(unit):
    cam, client = unit
    cam.fail(Failures(kill_ignored=2))
    start(client, n=1000)
    client.send("k\ncamcmd k\n")
    client.silent(0.1)
    assert cam.unit.exposing
    assert client.say("camcmd k") == "13 ERR kill"
    assert client.reply() == "7 ERR kill" and client.reply().startswith("7 OK")


def test_a_series_that_ignores_its_kill_ends_by_itself(unit):
    cam, client = unit
    cam.fail(Failures(kill_ignored=1))
    start(client, n=10)
    client.send("k\n")
    assert client.end().name == "a_00009.cbf"


def test_k_is_less_sure_than_camcmd_k(unit):
    cam, client = unit
    cam.fail(Failures(k_ignored=1))
    start(client, n=1000)
    client.send("k\n")
    client.silent(0.05)
    assert client.say("camcmd k") == "13 ERR kill"
    assert client.reply() == "7 ERR kill" and client.reply().startswith("7 OK")


# --- the end of a series ---------------------------------------------------------------------------------------------


def test_the_end_is_an_error(unit):
    cam, client = unit
    cam.fail(Failures(seven_error=True))
    start(client)
    assert client.reply() == f"7 ERR {cam.folder}/a_00004.cbf"
    assert len(images(cam)) == 5


def test_two_sevens(unit):
    cam, client = unit
    cam.fail(Failures(two_sevens=True))
    start(client)
    assert [client.reply(), client.reply()] == [f"7 OK {cam.folder}/a_00004.cbf"] * 2


def test_a_full_disk_stops_the_series(unit):
    cam, client = unit
    cam.fail(Failures(full_at=2))
    start(client)
    assert client.reply() == f"15 ERR cannot write {cam.folder}/a_00002.cbf: No space left on device"
    client.silent(0.1)
    assert images(cam) == ["a_00000.cbf", "a_00001.cbf"] and not cam.unit.exposing


def test_a_disk_that_really_is_full():
    size = 102_000  # of one image
    with running(capacity=size * 3) as (cam, client):
        client.set(nimages=3)
        start(client, "b.tif", n=3)  # TIFF is four times as large
        assert client.reply().startswith(f"15 ERR cannot write {cam.folder}/b_00000.tif: No space")
        assert os.listdir(cam.folder) == []  # nothing half-done
        assert client.series("c.cbf", 2).name == "c_00001.cbf"
        assert (
            client.say("df") == f"5 OK {(size * 3 - sum(p.stat().st_size for p in Path(cam.folder).iterdir())) // 1024}"
        )


def test_a_folder_that_is_gone():
    with running() as (cam, client):
        client.set(imgpath="gone")
        start(client, n=50)
        time.sleep(0.05)
        folder = Path(cam.folder, "gone")
        folder.rename(folder.with_name("away"))
        assert re.fullmatch(rf"15 ERR cannot write {folder}/a_000\d\d.cbf: No such file or directory", client.reply())
        assert client.say("exposure a.cbf").startswith("15 ERR")
        client.set(imgpath="gone")
        assert client.series().name == "a_00002.cbf"


# --- edges -----------------------------------------------------------------------------------------------------------


def test_a_missed_trigger(unit):
    cam, client = unit
    cam.fail(Failures(skip_edges=1))
    start(client, n=3, mode="extmtrigger")
    cam.edge(3)
    client.silent(0.15)
    assert images(cam) == ["a_00000.cbf", "a_00001.cbf"]
    ask(cam, edge=1)
    assert client.end().name == "a_00002.cbf"


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_is_missing(unit):
    cam, client = unit
    cam.fail(Failures(missing=[0, 4]))
    start(client)
    assert client.end().name == "a_00004.cbf"  # named all the same
    assert images(cam) == ["a_00001.cbf", "a_00002.cbf", "a_00003.cbf"] == [name for name, _ in cam.written]


def test_a_file_is_truncated(unit):
    cam, client = unit
    cam.fail(Failures(truncated=[1]))
    start(client)
    client.end()
    data = Path(cam.folder, "a_00001.cbf").read_bytes()
    with pytest.raises(StreamError, match="X-Binary-Size says"):
        cbf.decode(data, cam.image(1).shape)
    assert [name for name, _ in cam.written] == [f"a_{k:05d}.cbf" for k in (0, 2, 3, 4)]
    assert len(images(cam)) == 5


def test_a_wrong_md5(unit):
    cam, client = unit
    cam.fail(Failures(wrong_md5=[2]))
    start(client)
    client.end()
    path, image = Path(cam.folder, "a_00002.cbf"), cam.image(2)
    decoded = cbf.decode(path.read_bytes(), image.shape)  # as long as it was
    assert not np.array_equal(decoded, image)
    with pytest.raises(AssertionError):
        checked(path, decoded)  # nor is its own checksum right
    assert "a_00002.cbf" not in dict(cam.written)
    checked(path.with_name("a_00003.cbf"), cam.image(3))


@pytest.mark.parametrize("number", [1, 4])
def test_a_file_is_renamed_late(unit, number):
    cam, client = unit
    cam.fail(Failures(late=[number], late_seconds=0.25))
    start(client)
    client.end()
    late, name = f"a_{number:05d}.cbf", f".a_{number:05d}.cbf.tmp"
    assert sorted(os.listdir(cam.folder)) == sorted([name, *(f"a_{k:05d}.cbf" for k in range(5) if k != number)])
    checked(Path(cam.folder, name), cam.image(number))  # complete, only not named
    time.sleep(0.35)
    assert late in images(cam) and not Path(cam.folder, name).exists()


@pytest.mark.parametrize("number", [1, 4])
def test_events_in_reversed_order(unit, number):
    cam, client = unit
    cam.fail(Failures(reorder=[number]))
    with Watch(cam.folder) as watch:
        start(client)
        client.end()
        order = watch.arrived()
    wanted = [0, 2, 1, 3, 4] if number == 1 else [0, 1, 2, 3, 4]  # the last one has no next one
    assert order == [f"a_{k:05d}.cbf" for k in wanted]


def test_old_files_of_an_earlier_series(unit):
    cam, client = unit
    cam.fail(Failures(old=2))
    start(client, n=3, mode="exttrigger")
    assert images(cam) == ["a_00001.cbf", "a_00002.cbf"]
    assert all(time.time() - Path(cam.folder, name).stat().st_mtime > 3000 for name in images(cam))
    cam.edge()
    last = client.end()
    assert time.time() - last.stat().st_mtime < 10
    checked(last, cam.image(2))


def test_pixels_that_need_all_escapes(unit):
    cam, client = unit
    cam.fail(Failures(wide=[1]))
    start(client, n=2)
    path = client.end()
    row = [0, 127, -1, 300, 33_000, 2**31 - 1, -2, -(2**31), 2**31 - 1, -1, 1 << 20, 0]
    image = cbf.decode(path.read_bytes(), cam.image(1).shape)
    assert image[-1, : len(row)].tolist() == row
    code = path.read_bytes().split(cbf.START, 1)[1]
    assert code.startswith(bytes(compByteOffset(image.astype(np.int64))))  # fabio's fast decoder knows no 64 bits
    assert b"\x80\x00\x80\x00\x00\x00\x80" in path.read_bytes()  # 64 bits


# --- how they are wished ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", [{"x": 1}, {"split": 1.5}, {"forget": 1}, {"full_at": "1"}, {"late": [True]}])
def test_failures_that_cannot_be(told):
    with pytest.raises(ConfigError):
        Failures.from_json(told)


def test_failures_by_the_test_port(unit):
    cam, _ = unit
    wished = {"late": [1], "full_at": 0, "noise": "x"}
    assert ask(cam, fail=wished)["pending"] == wished
    assert ask(cam, fail={})["pending"] == {}
    assert "error" in ask(cam, fail={"late": 1})
