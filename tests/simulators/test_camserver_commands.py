"""camserver's text protocol: replies word for word, control, order, side effects."""

import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tangods_detector.simulators.camserver import CamserverOptions, CamserverSimulator, models
from tangods_detector.simulators.camserver.commands import HANDLERS
from tangods_receiver.errors import ConfigError
from tests.simulators.camserver import DATE, Client, ask, controlling, images, running


@pytest.fixture(scope="module")
def shared():
    with running() as both:
        yield both


@pytest.fixture
def client(shared):
    """Of a detector that is as at its start."""
    assert shared[1].say("resetcam") == "15 OK"
    return shared[1]


# --- replies ---------------------------------------------------------------------------------------------------------


def test_the_transcript(shared, client):
    cam = shared[0]
    for command, reply in (
        ("nimages 10", "15 OK N images set to: 10"),
        ("exptime 0.197", "15 OK Exposure time set to: 0.1970000 sec."),
        ("expperiod 0.2", "15 OK Exposure period set to: 0.2000000 sec"),
        ("imgpath ramdisk/images", f"10 OK {cam.folder}/ramdisk/images/"),
        ("foo", "1 ERR *** Unrecognized command: foo"),
    ):
        assert client.say(command) == reply
    client.set(exptime=0.001, expperiod=0.002)
    reply = client.say("extmtrigger s_00000.cbf")
    assert re.fullmatch(rf"15 OK  Starting externally multi-triggered exposure\(s\): {DATE}", reply)
    cam.edge(10)
    assert client.reply() == f"7 OK {cam.folder}/ramdisk/images/s_00009.cbf"
    assert images(cam, "ramdisk/images") == [f"s_{k:05d}.cbf" for k in range(10)]


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        ("nimages", "15 OK N images set to: 1"),
        ("exptime 0.997", "15 OK Exposure time set to: 0.9970000 sec."),
        ("expperiod 1", "15 OK Exposure period set to: 1.0000000 sec"),
        ("nexpframe 4294967295", "15 OK Exposures per frame set to: 4294967295"),
        ("nexpframe 1", "15 OK Exposures per frame set to: 1"),
        ("delay 0", "15 OK Delay time set to: 0.000 sec"),
        ("setthreshold", "15 OK Threshold has not been set"),
        ("setthreshold low 5000", "15 ERR ERROR: unknown gain setting: low 5000"),
        ("setthreshold 6000", "15 OK /tmp/setthreshold.cmd"),
        ("readouttime", "15 OK Detector readout time [ms]: 0.95"),
        ("setretriggermode 1", "15 OK Retrigger mode is set"),
        ("gapfill -1", "15 OK Detector gap-fill is: -1"),
        ("gapfill 0", "15 OK Detector gap-fill is: 0"),
        ("version", "24 OK Code release: 7.9.0"),
        ("thread 0", "215 OK Channel 0: Temperature = 31.4C, Rel. Humidity = 22.1%"),
        (
            "thread",
            "215 OK Channel 0: Temperature = 31.4C, Rel. Humidity = 22.1%;\n"
            "Channel 1: Temperature = 28.0C, Rel. Humidity = 18.4%;\nChannel 2: Temperature = -99.0C, "
            "Rel. Humidity = -99.0%",
        ),
        ("threshold", "1 ERR *** Unrecognized command: threshold"),
        ("k", "1 ERR *** Unrecognized command: k"),
        ("tau 1e-7", "1 ERR *** Unrecognized command: tau 1e-7"),  # of a PILATUS2
        ("resetmodulepower", "1 ERR *** Unrecognized command: resetmodulepower"),  # CdTe
    ],
)
def test_replies_word_for_word(client, command, reply):
    assert client.say(command) == reply


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        ("df", r"5 OK \d+"),
        ("expend", rf"6 OK {DATE}"),
        ("showpid", r"16 OK PID = \d+"),
        ("ratecorrlutdir ContinuousStandard_v1.1", "15 OK Rate correction is on; .*"),
        ("ratecorrlutdir 0", "15 OK Rate correction is off"),
        (
            "camsetup",
            r"2 OK \n    Camera definition:\n[\s\S]*Camera name: PILATUS3 100K, S/N 1-0127\n[\s\S]*idle[\s\S]*",
        ),
        ("telemetry", r"18 OK === Telemetry at .* ===\nImage format: 487\(w\) x 195\(h\) pixels\n[\s\S]*"),
        ("mxsettings Wavelength 0.9763 Beam_xy 1,2", "15 OK [\\s\\S]*"),
        ("setackint 0", "15 OK .*"),
        ("debtime 0.001", "15 OK .*"),
        ("discardmultim 1", "15 OK .*"),
        ("headerstring hello", "15 OK .*"),
        ("dbglvl 1", "15 OK .*"),
        ("setroi 0", "15 OK .*"),
        ("ldbadpixmap none", "15 OK .*"),
        ("ldflatfield 0", "15 OK .*"),
        ("ldflatfield /nowhere/x.tif", "15 ERR .*"),
        ("setroi C18", "15 ERR .*"),  # a 100K has none
        ("mxsettings Wavelength far", "15 ERR .*"),
        ("mxsettings Colour red", "15 ERR .*"),
        ("imgpath /proc/nowhere", "10 ERR .*"),
        ("exposure", "15 ERR .*"),
        ("exposure nowhere/a.cbf", "15 ERR .*"),
        ("exttrigger a.cbf", "15 ERR .*"),  # the period is as bad as in `setup`
    ],
)
def test_replies(client, command, reply):
    client.set(exptime=1, expperiod=1)
    assert re.fullmatch(reply, client.say(command))


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("exposure", "0.0020000 second background"),
        ("exp", "0.0020000 second background"),
        ("exttrigger", "externally triggered exposure(s)"),
        ("extmtrigger", "externally multi-triggered exposure(s)"),
        ("extenable", "externally enabled exposure(s)"),
    ],
)
def test_each_exposure_command_starts_and_ends(shared, client, mode, words):
    cam = shared[0]
    client.set(nimages=3, exptime=0.002, expperiod=0.004)
    reply = client.say(f"{mode} {mode}.cbf")
    assert re.fullmatch(rf"15 OK  Starting {re.escape(words)}: {DATE}", reply)
    if mode.startswith("ext"):
        client.silent(0.05)
        cam.edge(1 if mode == "exttrigger" else 3)
    assert client.reply() == f"7 OK {cam.folder}/{mode}_00002.cbf"
    assert [name for name, _ in cam.written] == [f"{mode}_{k:05d}.cbf" for k in range(3)]


@pytest.mark.parametrize("end", [b"\n", b"\0", b"\x18", b"\r\n"])
def test_terminators(client, end):
    client.send(b"nimages 7" + end + b"  NImages  " + end + end + b"EXPT 0.5" + end)
    assert [client.reply() for _ in range(3)] == [
        "15 OK N images set to: 7",
        "15 OK N images set to: 7",
        "15 OK Exposure time set to: 0.5000000 sec.",
    ]


def test_a_command_that_arrives_in_pieces(client):
    for piece in ("ni", "mages", " 1", "2", "\nexpp"):
        client.send(piece)
        time.sleep(0.01)
    assert client.reply() == "15 OK N images set to: 12"
    assert client.say("eriod 2") == "15 OK Exposure period set to: 2.0000000 sec"


@pytest.mark.parametrize(
    ("short", "name"), [("ni 3", "N images"), ("expt 1", "Exposure time"), ("expp 2", "Exposure period")]
)
def test_abbreviations(client, short, name):
    assert client.say(short).startswith(f"15 OK {name} set to: ")


def test_an_abbreviation_that_is_not_clear_is_no_command(client):
    assert client.say("ext a.cbf") == "1 ERR *** Unrecognized command: ext a.cbf"  # trigger, enable


@pytest.mark.parametrize(
    "command",
    ["nimages 0", "nimages 1000000", "nimages x", "exptime 5184001", "exptime 0", "exptime nan", "expperiod 0.0019",
     "delay 64", "delay -1", "nexpframe 4294967296", "gapfill 1", "setenergy 100", "setenergy many",
     "setthreshold autog", "setthreshold energy 12000 autog 6000 7"],
)  # fmt: skip
def test_values_outside_the_limits_change_nothing(client, command):
    word = command.split()[0]
    before = client.say(word)
    assert client.say(command).startswith("15 ERR ")
    assert client.say(word) == before


def test_nothing_that_is_sent_ends_it():
    with running(speed=0.0001) as (cam, client):

        @settings(max_examples=100)
        @given(
            st.binary(max_size=300),
            st.sampled_from([*HANDLERS]),
            st.binary(max_size=20),
        )
        def check(data, command, args):
            if command in ("exit", "quit", "imgpath"):
                command = "mxsettings"
            with Client(cam.port) as looker, suppress(EOFError, ConnectionError):  # q is quit
                looker.send(data + b"\n" + data[:5] + b"\0version\n")
                while not looker.reply().startswith("24 OK"):
                    pass
            args = args.translate(None, b"\n\0\x18")
            client.send(command.encode() + b" " + args + b"\ncamcmd k\nversion\n")
            while not (reply := client.reply()).startswith("24 OK"):
                assert re.match(r"\d+ (OK|ERR)( |$)", reply)

        check()
        assert cam.unit.controller is not None


# --- threshold -------------------------------------------------------------------------------------------------------


def test_a_threshold_resets_what_was_set(client):
    client.set(nimages=5, gapfill=-1, exptime=0.25)
    client.set(setenergy=12600)
    assert client.say("nimages") == "15 OK N images set to: 1"
    assert client.say("gapfill") == "15 OK Detector gap-fill is: 0"
    assert client.say("exptime") == "15 OK Exposure time set to: 0.2500000 sec."
    lines = client.say("setthreshold").split("\n")
    assert lines[0] == "15 OK Energy setting: 12600 eV"
    assert lines[1] == " Settings: auto gain; threshold: 6300 eV; vcmp: 0.654 V"
    assert lines[2] == " Trim file:" and re.fullmatch(r"  /\S+_E12600_T6300\.bin", lines[3])
    client.set(gapfill=-1)
    client.set(setthreshold="energy 16100 midg 11000")
    assert client.say("setenergy").startswith(
        "15 OK Energy setting: 16100 eV\n Settings: mid gain; threshold: 11000 eV"
    )
    assert client.say("gapfill") == "15 OK Detector gap-fill is: 0"
    client.set(setthreshold=0)
    assert client.say("setenergy") == "15 OK Threshold has not been set"


def test_a_threshold_takes_its_time_and_commands_wait():
    with running("100K", speed=0.18) as (_, client):  # 1 module of 60: 1.6 s -> 0.29 s
        begun = time.monotonic()
        client.send("setthreshold 6000\nnimages\n")
        assert client.reply() == "15 OK /tmp/setthreshold.cmd"
        assert 0.28 < time.monotonic() - begun < 3
        assert client.reply() == "15 OK N images set to: 1"


@pytest.mark.parametrize("version", ["7.4.3", "7.9.0"])
def test_old_versions_take_a_threshold_only_after_it_was_cleared(version):
    with running(version=version) as (_, client):
        client.set(setenergy=8000)
        client.set(setenergy=12000)
        energy = 8000 if version == "7.4.3" else 12000
        assert client.say("setenergy").startswith(f"15 OK Energy setting: {energy} eV")
        client.set(setthreshold=0)
        client.set(setenergy=12000)
        assert client.say("setenergy").startswith("15 OK Energy setting: 12000 eV")


def test_a_pilatus2():
    with running("300K", kind="PILATUS2", version="tvx-7.3.13-121212") as (cam, client):
        assert client.say("version") == "24 OK Code release: tvx-7.3.13-121212"
        assert client.say("tau 1.2e-7") == "15 OK Rate correction is on; tau = 1.2e-07 s, cutoff = 1009797 counts"
        assert client.say("setretriggermode 1").startswith("1 ERR *** Unrecognized command")
        assert client.say("nimages 65536").startswith("15 ERR")
        client.set(setthreshold=6300)
        assert " Settings: mid gain; threshold: 6300 eV; vcmp: 0.654 V\n Trim file:\n" in client.say("setthr")
        head = client.series("a.cbf", 1).read_bytes()[:3000].decode("latin-1")
        assert head.startswith("###CBF: VERSION 1.5, CBFlib v0.7.8 - SLS/DECTRIS PILATUS detectors\r\n")
        assert '"SLS_1.0"' in head and "# Tau = 1.2e-07 s\r\n" in head and "Retrigger" not in head


# --- limits ----------------------------------------------------------------------------------------------------------


def test_times_are_checked_only_at_the_exposure(client):
    client.set(exptime=0.1, expperiod=0.1)
    assert client.say("exposure a.cbf").startswith("15 ERR ")
    client.set(expperiod=0.10094)
    assert client.say("exposure a.cbf").startswith("15 ERR ")
    client.set(expperiod=0.10095)  # the read-out is 0.95 ms
    assert client.say("exposure a.cbf").startswith("15 OK  Starting 0.1000000 second background: ")
    client.end()


@pytest.mark.parametrize(
    ("model", "kind", "rates"),
    [
        ("2M", "PILATUS3 X", {"0": 250, "C12": 250}),
        ("100K", "PILATUS3 S", {"0": 25}),
    ],
)
def test_no_faster_than_the_detector_is(model, kind, rates):
    with running(model, kind=kind) as (_, client):
        for pattern, rate in rates.items():
            client.set(gapfill=-1, setroi=pattern, exptime=0.0001, expperiod=1 / rate - 1e-5)
            assert client.say("exposure a.cbf").startswith("15 ERR ")
            client.set(expperiod=1 / rate)
            assert client.say("exposure a.cbf").startswith("15 OK ")
            client.end()


@pytest.mark.parametrize(
    ("size", "rates"),
    [
        ("6M", {"0": 100, "C18": 200, "C2": 500}),
        ("2M", {"0": 250, "C2": 500}),
        ("1M", {"0": 500}),
        ("300K", {"0": 500}),
        ("100K", {"0": 500}),
    ],
)
def test_rates(size, rates):
    assert {pattern: models.model("PILATUS3 X", size).rate(pattern) for pattern in rates} == rates
    assert models.model("PILATUS3 S", size).rate("0") == 25


def test_more_images_than_the_disk_holds_are_refused():
    with running(capacity=95_000 * 10) as (_, client):
        assert client.say("nimages 10") == "15 OK N images set to: 10"
        assert client.say("nimages 11").startswith("15 ERR ")
        assert client.say("nimages") == "15 OK N images set to: 10"
        assert client.say("df") == f"5 OK {95_000 * 10 // 1024}"


# --- control ---------------------------------------------------------------------------------------------------------


def test_the_first_client_has_control_and_others_look():
    with running() as (cam, first), Client(cam.port) as second:
        first.set(nimages=4, exptime=0.01)
        assert second.say("nimages") == "15 OK N images set to: 4"
        assert second.say("version").startswith("24 OK")
        for command in ("nimages 5", "exposure a.cbf", "k", "imgpath x", "setenergy 8000", "camcmd k", "resetcam"):
            assert second.say(command) == "1 ERR access denied"
        first.set(exptime=0.01, expperiod=0.05)
        assert first.say("exposure a.cbf").startswith("15 OK")
        first.socket.close()
        time.sleep(0.02)
        assert second.say("nimages 5") == "1 ERR access denied"  # control goes to who connects next
        with Client(cam.port) as third:
            assert third.reply() == f"7 OK {cam.folder}/a_00003.cbf"  # the series went on
            assert third.say("expperiod") == "15 OK Exposure period set to: 0.0500000 sec"
            assert third.say("nimages 6") == "15 OK N images set to: 6"
            assert second.say("nimages") == "15 OK N images set to: 6"


def test_exit_leaves_the_connection():
    with running() as (cam, client):
        client.send("exit\n")
        with pytest.raises(EOFError):
            client.reply()
        with controlling(cam) as next_one:
            assert next_one.say("nimages 2") == "15 OK N images set to: 2"


def test_a_line_without_an_end_closes_the_connection():
    with running() as (_, client), pytest.raises((EOFError, OSError)):
        client.send("x" * 200_000)
        client.reply()


# --- stop ------------------------------------------------------------------------------------------------------------


def start(client, n=1000, period=0.01):
    client.set(nimages=n, exptime=0.001, expperiod=period)
    assert client.say("exposure a.cbf").startswith("15 OK")


@pytest.mark.parametrize("command", ["k", "camcmd k"])
@pytest.mark.parametrize("order", ["ERR OK", "OK ERR", "OK", "ERR"])
def test_a_kill_in_the_middle(command, order):
    with running(kill_order=order) as (cam, client):
        start(client)
        time.sleep(0.1)
        assert client.say(command) == "13 ERR kill"
        found = [client.reply() for _ in order.split()]
        last = Path(cam.folder) / cam.written[-1][0]
        assert found == [{"ERR": "7 ERR kill", "OK": f"7 OK {last}"}[word] for word in order.split()]
        assert re.fullmatch(r"16 OK PID = \d+", client.say("showpid"))
        assert 2 <= len(cam.written) < 60 and images(cam) == [name for name, _ in cam.written]
        assert client.series("b.cbf") == Path(cam.folder) / "b_00002.cbf"  # the next one is a good one


def test_an_external_series_without_edges_waits_until_it_is_killed():
    with running() as (cam, client):
        client.set(nimages=3, exptime=0.001, expperiod=0.002)
        cam.edge(2)  # before it is armed: lost
        assert client.say("extmtrigger a.cbf").startswith("15 OK")
        client.silent(0.1)
        assert images(cam) == []
        assert client.say("camcmd k") == "13 ERR kill"
        assert client.reply() == "7 ERR kill"  # there is no last file
        assert client.say("showpid").startswith("16 OK")


@pytest.mark.parametrize(("idle", "reply"), [("ERR", "1 ERR *** Unrecognized command: k"), ("OK", "1 OK"), ("", "16")])
def test_a_kill_of_nothing(idle, reply):
    with running(idle_kill=idle) as (_, client):
        client.send("k\nshowpid\n")
        assert client.reply().startswith(reply)


@pytest.mark.parametrize("busy", ["answer", "never"])
def test_commands_during_an_exposure(busy):
    with running(busy=busy) as (_, client):
        start(client)
        client.send("nimages\ncamcmd k\n")
        if busy == "answer":
            assert client.reply() == "15 OK N images set to: 1000"
        assert client.reply() == "13 ERR kill" and client.reply() == "7 ERR kill"


def test_a_command_that_is_answered_only_after_the_exposure():
    with running(busy="late") as (cam, client):
        start(client, 20)
        client.send("nimages\n")
        assert client.reply() == f"7 OK {cam.folder}/a_00019.cbf"
        assert client.reply() == "15 OK N images set to: 20"


def test_a_second_exposure_at_the_same_time_is_refused(client):
    start(client, 20)
    assert client.say("exposure b.cbf").startswith("15 ERR ")
    client.end()


def test_progress(client):
    client.set(setackint=2)
    start(client, 5)
    assert [client.reply() for _ in range(2)] == ["15 OK img 2", "15 OK img 4"]
    client.end()
    client.set(setackint=0)


# --- the process -----------------------------------------------------------------------------------------------------


def test_the_process():
    words = ["tangods-detector", "simulate", "pilatus", "--model", "100K", "--failures", '{"missing": [1]}']
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        found = re.fullmatch(r"PILATUS3 100K 127.0.0.1:(\d+) 127.0.0.1:(\d+) (\S+)\n", process.stdout.readline())
        port, test_port, folder = int(found[1]), int(found[2]), found[3]
        with Client(port) as client:
            client.set(nimages=3, exptime=0.001, expperiod=0.002)
            assert client.say("extmtrigger a.cbf").startswith("15 OK")

            class There:
                pass

            There.test_port = test_port
            assert ask(There, edge=3)["exposing"]
            assert client.end() == Path(folder) / "a_00002.cbf"
            told = ask(There, written=True)
            assert told["happened"] == ["missing 1"] and [n for n, _ in told["written"]] == [
                "a_00000.cbf",
                "a_00002.cbf",
            ]
            assert "is not known" in ask(There, fail={"nonsense": 1})["error"]
            assert ask(There, fail={"two_sevens": True})["pending"] == {"two_sevens": True}
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert not os.path.exists(folder)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_options_that_cannot_be():
    with pytest.raises(ConfigError, match="port: 70000.*model: '5M'"):
        CamserverOptions(port=70000, model="5M")
    with pytest.raises(ConfigError, match="kill_order"):
        CamserverOptions(kill_order="never")
    with running() as (cam, _), pytest.raises(ConfigError, match="in use"):
        CamserverSimulator(CamserverOptions(model="100K", port=cam.port)).__enter__()
    with pytest.raises(ConfigError, match="images"):
        CamserverSimulator(CamserverOptions(images="/nowhere.cbf"))
