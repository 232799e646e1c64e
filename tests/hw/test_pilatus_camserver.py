"""camserver's replies: whatever comes, cut anywhere, is taken apart as it was sent."""

import re
import socket
import threading
import time
from contextlib import closing, contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangods_detector.hw import pilatus_camserver
from tangods_detector.hw import pilatus_replies as replies
from tangods_detector.hw.pilatus_camserver import Camserver, NoControl, Question, Refused
from tangods_detector.hw.pilatus_parameters import threshold_command
from tangods_detector.hw.pilatus_replies import NO_CODE, Replies, Reply, Threshold
from tangods_detector.hw.pilatus_series import Plan
from tangods_detector.settings import Settings, TriggerMode
from tangods_receiver.errors import HardwareError
from tests.waiting import wait_for

LATIN = st.text(st.characters(min_codepoint=1, max_codepoint=255, exclude_characters="\x18"), max_size=40)
WORDS = LATIN.map(lambda text: text.strip("\0\r\n").strip())
REPLY = st.builds(Reply, st.integers(0, 99999), st.booleans(), WORDS)


def sent(reply: Reply) -> bytes:
    return f"{reply.code} {'OK' if reply.ok else 'ERR'} {reply.text}".encode("latin-1") + b"\x18"


# --- taking apart ----------------------------------------------------------------------------------------------------


@given(st.lists(REPLY, max_size=8), st.data())
def test_replies_in_any_pieces_are_the_same(expected, data):
    stream = b"".join(map(sent, expected))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    parser, found = Replies(), []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += parser.feed(stream[begin:end])
    assert found == expected


@given(st.lists(st.binary(max_size=60), max_size=6), REPLY)
def test_noise_harms_no_reply_behind_it(noise, reply):
    parser = Replies()
    for data in noise:
        for one in parser.feed(data):
            assert isinstance(one, Reply)
    parser.feed(b"\x18")
    assert parser.feed(sent(reply)) == [reply]


@given(st.binary(max_size=200))
def test_what_is_no_reply_is_told_as_it_is(data):
    reply = replies.parse(data)
    if reply.code == NO_CODE:
        assert not reply.ok and reply.text == data.decode("latin-1").strip("\0\r\n")
    else:
        assert re.match(rb"[\s\0]*\d", data)


def test_an_endless_reply_is_let_go_by(monkeypatch):
    monkeypatch.setattr(replies, "LARGEST", 1000)
    parser = Replies()
    for _ in range(100):
        assert parser.feed(b"x" * 100) == []
    assert len(parser._rest) <= 1000
    assert [r.text for r in parser.feed(b"\x1815 OK fine\x18")][-1] == "fine"


@given(LATIN)
def test_values_of_any_text(text):
    """Nothing is found, or something sensible; nothing is raised."""
    assert replies.number(text, "set to:") is None or isinstance(replies.number(text, "set to:"), float)
    assert all(channel.temperature > -90 for channel in replies.climate(text))
    assert isinstance(replies.threshold(text), Threshold)
    assert len(replies.name_and_serial(text)) == 2
    assert replies.size(text) in ("", *replies.MODULES)
    assert replies.image_format(text) is None and len(replies.version(text)) <= 3


@given(st.floats(0, 1e6), st.sampled_from(["N images set to:", "Exposure time set to:", "Delay time set to:"]))
def test_the_number_behind_its_words(value, words):
    assert replies.number(f"{words} {value:.7f} sec.", words) == pytest.approx(value, abs=1e-6)


@given(st.lists(st.tuples(st.floats(-99, 99), st.floats(-99, 100)), max_size=5))
def test_channels(given_channels):
    lines = [
        f"Channel {k}: Temperature = {t:.1f}C, Rel. Humidity = {h:.1f}%" for k, (t, h) in enumerate(given_channels)
    ]
    found = replies.climate(";\n".join(lines))
    assert [c.number for c in found] == [k for k, (t, _) in enumerate(given_channels) if float(f"{t:.1f}") > -90]


def test_words_of_real_camservers():
    text = (
        "Energy setting: 12600 eV\n Settings: ultra high gain; threshold: 6300 eV; vcmp: 0.654 V\n Trim file:\n  /p.bin"
    )
    assert replies.threshold(text) == (12600, 6300, "uhighg")
    assert replies.threshold("Threshold has not been set") == (0, 0, "")
    setup = "\n    \n    Camera name: PILATUS 300K-W, S/N 3-0101\n    Camera state: idle"
    assert replies.name_and_serial(setup) == ("PILATUS 300K-W", "3-0101")
    assert replies.image_format("=== Telemetry ===\nImage format: 1475(w) x 195(h) pixels\n") == (195, 1475)
    assert replies.version("Code release: 7.9.0") == (7, 9, 0) and replies.version("tvx-7.3.13-121212") == (7, 3, 13)
    assert [replies.size(m) for m in ("PILATUS 300K-W", "PILATUS3 6M", "PILATUS3 300K", "XPAD")] == [
        "300K-W", "6M", "300K", "",
    ]  # fmt: skip
    assert replies.shape(*replies.MODULES["6M"]) == (2527, 2463) and replies.shape(1, 1) == (195, 487)


@pytest.mark.parametrize(
    ("model", "region", "readout", "rate"),
    [
        ("PILATUS3 6M", "0", 0.00095, 100),
        ("PILATUS3 6M", "C18", 0.00095, 200),
        ("PILATUS3 2M", "0", 0.00095, 250),
        ("PILATUS3 2M", "R8", 0.00095, 500),
        ("PILATUS3 300K", "0", 0.00095, 500),
        ("PILATUS3 1M", "0", 0.00204, 25),
        ("PILATUS 2M", "0", 0.00228, 500),
    ],
)
def test_images_per_second(model, region, readout, rate):
    assert replies.rate(model, region, readout) == rate


@pytest.mark.parametrize(
    ("wanted", "command"),
    [
        (Threshold(12000, 6000), "setenergy 12000"),
        (Threshold(12001, 6000.5), "setenergy 12001"),
        (Threshold(12000, 5000), "setthreshold energy 12000 5000"),
        (Threshold(12000, 6000, "highg"), "setthreshold energy 12000 highg 6000"),
    ],
)
def test_the_command_of_a_threshold(wanted, command):
    assert threshold_command(wanted) == command


@pytest.mark.parametrize(
    ("question", "reply", "taken"),
    [
        ((15, "N images"), Reply(15, True, "N images set to: 5"), True),
        ((15, "N images"), Reply(15, True, "Exposure time set to: 1.0 sec."), False),
        ((15, "N images"), Reply(15, False, "not enough space"), True),
        ((15, ""), Reply(1, False, "*** Unrecognized command: x"), True),
        ((15, ""), Reply(10, False, "cannot"), False),
        ((16, ""), Reply(1, False, "*** Unrecognized command: camcmd k"), False),
        ((16, ""), Reply(16, True, "PID = 5"), True),
        ((None, ""), Reply(5, True, "98765432"), True),
        ((None, ""), Reply(NO_CODE, False, "noise"), False),
    ],
)
def test_what_answers_a_question(question, reply, taken):
    assert Question(*question).takes(reply) is taken


# --- plans -----------------------------------------------------------------------------------------------------------


@given(st.sampled_from(TriggerMode), st.integers(1, 20), st.integers(1, 20), st.integers(0, 200_000))
def test_every_image_has_one_name_and_belongs_to_one_exposure(mode, triggers, each, series):
    settings = Settings(trigger_mode=mode, n_triggers=triggers, n_frames_per_trigger=each)
    plan = Plan.of(settings, series)
    assert plan.total == settings.n_frames
    for k in range(plan.exposures):
        command, name = plan.line(k).split(" ")
        assert command == plan.command and name == plan.pattern % (k * plan.nimages)
        for n in range(settings.n_frames):
            assert plan.belongs(k, f"/ramdisk/{plan.pattern % n}") == (n // plan.nimages == k)
    assert not plan.belongs(0, "/ramdisk/other_00000.cbf")


# --- a connection ----------------------------------------------------------------------------------------------------


class Server:
    """Answers as the test tells: a command begins with a key of `answers`, which has the bytes that come."""

    def __init__(self, answers):
        self.answers, self.heard = answers, []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self):
        self.peer, _ = self._socket.accept()
        with self.peer, self.peer.makefile("rb") as lines:
            try:
                for line in lines:
                    command = line.decode().strip()
                    self.heard.append(command)
                    for begin, answer in self.answers.items():
                        if command.startswith(begin):
                            self.say(answer)
            except OSError:
                pass

    def say(self, data):
        self.peer.sendall(data)

    def close(self):
        self._thread.join()
        self._socket.close()


@contextmanager
def talking(timeout=5.0, **answers):
    usual = {"showpid": b"16 OK PID = 1\x18"}
    server = Server(usual | {name.replace("_", " "): answer for name, answer in answers.items()})
    with closing(server), closing(Camserver("127.0.0.1", server.port, timeout)) as camserver:
        yield server, camserver


def test_an_answer_among_others():
    late = b"15 OK Exposure time set to: 1.0 sec.\x18garbage\x1815 OK img 3\x18"
    with talking(nimages=late + b"15 OK N images set to: 7\x18") as (_, camserver):
        assert camserver.ask("nimages 7", words="N images") == "N images set to: 7"


def test_errors_in_camservers_words():
    answers = {"nimages": b"15 ERR Not enough space\x18", "exptime": b"1 ERR access denied\x18"}
    with talking(**answers) as (_, camserver):
        with pytest.raises(Refused, match="'nimages 7': 15 ERR Not enough space"):
            camserver.ask("nimages 7")
        with pytest.raises(NoControl, match="another client has control"):
            camserver.ask("exptime 1")


def test_no_answer_at_all(monkeypatch):
    monkeypatch.setattr(pilatus_camserver, "FENCE", 0.2)
    with talking(0.2, showpid=b"") as (server, camserver):
        with pytest.raises(HardwareError, match="no answer to 'nimages 7' within 0.2 s"):
            camserver.ask("nimages 7")
        with pytest.raises(HardwareError, match="does not answer within 0.2 s; it is exposing, or has to be started"):
            camserver.settle()
    assert server.heard == ["nimages 7", "showpid", "showpid"]


def test_a_connection_that_is_closed_while_an_answer_is_waited_for():
    with talking() as (server, camserver):
        threading.Timer(0.1, lambda: server.peer.shutdown(socket.SHUT_RDWR)).start()
        begun = time.monotonic()
        with pytest.raises(HardwareError, match="it has closed the connection"):
            camserver.ask("nimages 7")
        assert time.monotonic() - begun < 4
        with pytest.raises(HardwareError, match="it has closed the connection"):
            camserver.ask("nimages 8")


BEGUN = b"15 OK  Starting externally triggered exposure(s): 2026-Jan-05T10:00:00.000\x18"


def belongs(name):
    return name.startswith("s2_")


@pytest.mark.parametrize(
    ("said", "failure", "ended"),
    [
        (b"7 OK /ramdisk/s2_00004.cbf\x18", "", True),
        (b"7 OK /ramdisk/s1_00004.cbf\x18", "", None),  # the second one of a series before
        (b"7 ERR /ramdisk/s2_00004.cbf\x18", "", False),
        (b"7 ERR kill\x18", "", False),
        (b"7 OK\x18", "", True),
        (b"15 ERR cannot write /ramdisk/s2_00001.cbf: No space left\x18", "15 ERR cannot write", None),
        (b"15 OK img 3\x18", "", None),
        (b"99 OK something new\x18", "", None),
    ],
)
def test_what_is_said_during_an_exposure(said, failure, ended):
    with talking(exttrigger=BEGUN + said + b"18 OK mark\x18") as (_, camserver):
        seen = []
        take = camserver.take
        camserver.take = lambda reply: (take(reply), seen.append(reply))
        camserver.expose("exttrigger s2_00000.cbf", belongs)
        wait_for(lambda: seen and seen[-1].code == 18)
        assert camserver.failure.startswith(failure) and bool(camserver.failure) == bool(failure)
        assert (camserver.end.ok if camserver.end else None) is ended
        assert camserver.exposing == (ended is None and not failure)
        camserver.exposing = False


def test_an_exposure_that_is_refused_is_none():
    with talking(exposure=b"15 ERR Exposure period too short\x18") as (_, camserver):
        with pytest.raises(Refused, match="too short"):
            camserver.expose("exposure s2_00000.cbf", belongs)
        assert not camserver.exposing


def test_an_end_that_comes_with_the_beginning_is_seen():
    with talking(exposure=BEGUN + b"7 OK /ramdisk/s2_00000.cbf\x18") as (_, camserver):
        camserver.expose("exposure s2_00000.cbf", belongs)
        wait_for(lambda: camserver.end)
        assert not camserver.exposing


def test_a_kill_waits_for_the_end_and_for_what_follows():
    both = b"13 ERR kill\x187 ERR kill\x187 OK /ramdisk/s2_00002.cbf\x18"
    with talking(exposure=BEGUN, camcmd_k=both) as (server, camserver):
        camserver.expose("exposure s2_00000.cbf", belongs)
        camserver.kill(5.0)
        assert not camserver.exposing and server.heard[-2:] == ["camcmd k", "showpid"]
        camserver.kill(5.0)  # nothing is exposed
        assert server.heard[-1] == "showpid"


def test_a_command_does_not_take_the_words_of_another():
    """Asked by two threads at once."""
    answers = {"nimages": b"15 OK N images set to: 7\x18", "exptime": b"15 OK Exposure time set to: 1.0 sec.\x18"}
    with talking(**answers) as (_, camserver):
        wrong = []

        def ask(command, words):
            for _ in range(100):
                if words not in camserver.ask(command):
                    wrong.append(command)

        threads = [threading.Thread(target=ask, args=a) for a in (("nimages 7", "N images"), ("exptime 1", "Exposure"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
