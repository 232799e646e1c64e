"""Keys in files, who may connect, and what the receiver does when it is refused: real sockets, real files."""

import logging
import os
import socket
import stat
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network
from types import SimpleNamespace

import pytest
import zmq
import zmq.auth
from hypothesis import given
from hypothesis import strategies as st

from tangods_detector.settings import Series, Settings
from tangods_detector.streamer import Streamer
from tangods_receiver import config, refusals, security
from tangods_receiver.engine import Engine
from tangods_receiver.errors import ConfigError, HardwareError
from tangods_receiver.gate import secure_server
from tangods_receiver.inlet import Inlet
from tangods_receiver.metrics import Exposition
from tangods_receiver.refusals import Refusals
from tangods_receiver.stats import Snapshot
from tests.receiver.streaming import SHAPE, Sender, image, read, running, wait_closed, wait_opened
from tests.waiting import wait_for

FRAMES = 12


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path):
    """Pairs of a sender, a receiver and a stranger; in `clients` the sender lets the receiver in."""
    folder = tmp_path / "keys"
    folder.mkdir()
    made = {name: security.generate(name, folder) for name in ("sender", "receiver", "stranger")}
    clients = folder / "clients"
    clients.mkdir()
    (clients / "receiver.key").write_bytes(made["receiver"][0].read_bytes())
    names = {f"{name}_{kind}": str(path) for name, pair in made.items() for kind, path in zip("ps", pair, strict=True)}
    return SimpleNamespace(folder=folder, clients=clients, **names)


def let_in(keys, name):
    """As an administrator would: the file appears at once as a whole."""
    fresh = keys.folder / "fresh"
    fresh.write_bytes((keys.folder / f"{name}.key").read_bytes())
    fresh.rename(keys.clients / f"{name}.key")


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_pair_is_made_with_safe_permissions_and_never_replaced(tmp_path, umask):
    before = os.umask(umask)
    try:
        public, secret = security.generate("dcu1", tmp_path)
        token = security.generate_token(tmp_path / "token")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (public, secret, token)]
    assert modes == [0o644, 0o600, 0o600]
    pair = security.key_pair(secret)
    assert pair.public == security.public_key(public) == zmq.curve_public(pair.secret)
    assert pair.secret.decode() not in repr(pair)
    content = secret.read_bytes()
    for left in (public, secret):
        with pytest.raises(ConfigError, match="already"):
            security.generate("dcu1", tmp_path)
        left.unlink()
        if left is public:
            with pytest.raises(ConfigError, match="dcu1.key_secret already"):
                security.generate("dcu1", tmp_path)
            assert secret.read_bytes() == content and not public.exists()
    with pytest.raises(ConfigError, match="already"):
        security.generate_token(token)
    assert len(token.read_text().strip()) >= 40 and token.read_text().count("\n") == 1


def test_the_files_are_those_of_pyzmq(tmp_path):
    """In both directions."""
    public, secret = security.generate("ours", tmp_path)
    pair = security.key_pair(secret)
    assert zmq.auth.load_certificate(public) == (pair.public, None)
    assert zmq.auth.load_certificate(secret) == (pair.public, pair.secret)
    public, secret = zmq.auth.create_certificates(tmp_path, "theirs", {b"place": b"b7"})
    os.chmod(secret, 0o600)
    assert security.key_pair(secret).public == security.public_key(public)


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".hidden", "-x", "a b", "x" * 200, "ü"])
def test_a_name_that_is_no_file_name(tmp_path, name):
    with pytest.raises(ConfigError, match="letters"):
        security.generate(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_half_a_pair_is_not_left_behind(tmp_path, monkeypatch):
    create = security._create

    def full_disk(path, content, mode):
        if path.suffix == ".key":
            raise ConfigError(f"{path} cannot be written (No space left on device)")
        create(path, content, mode)

    monkeypatch.setattr(security, "_create", full_disk)
    with pytest.raises(ConfigError, match="No space"):
        security.generate("dcu1", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written .No such file"):
        security.generate("dcu1", tmp_path / "nowhere")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610, 0o602])
def test_a_secret_that_others_can_reach_is_refused(keys, mode):
    os.chmod(keys.sender_s, mode)
    with pytest.raises(ConfigError, match=f"chmod 600 .its permissions are {mode:04o}"):
        security.key_pair(keys.sender_s)


def test_a_public_key_that_everybody_may_change_is_refused(keys):
    os.chmod(keys.sender_p, 0o646)
    with pytest.raises(ConfigError, match="chmod o-w"):
        security.public_key(keys.sender_p)


def test_keys_that_are_mixed_up(keys, tmp_path):
    with pytest.raises(ConfigError, match="holds no secret key: give the .key_secret file"):
        os.chmod(keys.sender_p, 0o600)
        security.key_pair(keys.sender_p)
    with pytest.raises(ConfigError, match="belongs to one machine only: give the .key file"):
        security.public_key(keys.sender_s)
    with pytest.raises(ConfigError, match="No such file"):
        security.public_key(tmp_path / "nowhere.key")
    with pytest.raises(ConfigError, match="is no file"):
        security.public_key(tmp_path)
    os.mkfifo(tmp_path / "pipe.key")
    with pytest.raises(ConfigError, match="is no file"):  # at once, although nobody writes into it
        security.public_key(tmp_path / "pipe.key")
    with pytest.raises(ConfigError, match="cannot be read"):
        security.public_key("a\0b")


def written(path, text):
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_keys_that_are_damaged(keys, tmp_path):
    mine, other = security.key_pair(keys.sender_s), security.key_pair(keys.stranger_s)
    file = tmp_path / "x.key_secret"
    both = 'public-key = "{}"\nsecret-key = "{}"\n'
    written(file, both.format(other.public.decode(), mine.secret.decode()))
    with pytest.raises(ConfigError, match="do not belong together"):
        security.key_pair(file)
    written(file, both.format("short", mine.secret.decode()))
    with pytest.raises(ConfigError, match="the public key is not 40 characters"):
        security.key_pair(file)
    written(file, f'public-key = "{mine.public.decode()}"\n' * 2)
    with pytest.raises(ConfigError, match="more than one public key"):
        security.public_key(file)
    written(file, f"secret-key={mine.secret.decode()}\n")  # the public one follows from it
    assert security.key_pair(file) == mine


KEY_LINES = st.one_of(
    st.binary(max_size=60),
    st.tuples(st.sampled_from([b"public-key", b" secret-key", b"# public-key"]), st.binary(max_size=50)).map(
        b" = ".join
    ),
    st.sampled_from(
        [b'public-key = "' + b"0" * 40 + b'"', b"secret-key = '" + b"#" * 40 + b"'", b"curve", b"metadata"]
    ),
)


@given(st.lists(KEY_LINES, max_size=6).map(b"\n".join))
def test_any_file_is_a_key_or_a_sentence(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "any.key"
    file.write_bytes(content)
    file.chmod(0o600)
    for load in (security.public_key, security.key_pair):
        try:
            loaded = load(file)
        except ConfigError as exc:
            assert str(file) in str(exc)
        else:
            assert len(loaded if isinstance(loaded, bytes) else loaded.secret) == 40


# --- addresses -------------------------------------------------------------------------------------------------------


@given(st.one_of(st.text(max_size=30), st.ip_addresses().map(str), st.from_regex(r"[0-9a-f.:]{1,20}/\d{1,3}\Z")))
def test_any_text_is_a_network_or_a_sentence(text):
    try:
        found = security.network(text)
    except ValueError as exc:
        assert repr(text) in str(exc)
    else:
        assert ip_network(text.strip()) == found


@given(st.ip_addresses(), st.ip_addresses(v=4))
def test_who_is_admitted(peer, other):
    assert security.Guard().admits(str(peer))
    exact = security.Guard(allowed=(security.network(str(peer)),))
    assert exact.admits(str(peer)) and exact.admits(str(other)) == (peer == other)
    assert security.Guard(allowed=(security.network(str(other)),)).admits(f"::ffff:{other}")  # over an IPv6 socket


def test_networks():
    guard = security.Guard(allowed=(security.network("10.0.3.0/24"), security.network("fd00::/8")))
    assert guard.admits("10.0.3.255") and guard.admits("fd12::1")
    assert not any(map(guard.admits, ["10.0.4.0", "fe80::1", "", "localhost", "10.0.3"]))
    for wrong in ("10.0.3.7/24", "dcu1", "", "10.0.3.0/33"):
        with pytest.raises(ValueError, match="no address or network"):
            security.network(wrong)


# --- what is configured ----------------------------------------------------------------------------------------------


def settings(tmp_path, **values):
    """A receiver's configuration with keys, also those for a forwarding port that this module does not need."""
    one = {"endpoints": ["tcp://a:1", "tcp://b:1"], "root": tmp_path, "http": ""}
    made = config.make(one | {k: v for k, v in values.items() if k != "forward"})
    return SimpleNamespace(**{**{name: getattr(made, name) for name in type(made).model_fields}, **values})


def test_one_key_for_all_or_one_for_each(keys, tmp_path):
    assert security.of_receiver(settings(tmp_path)) == security.Security()
    own, sender, stranger = (security.public_key(k) for k in (keys.receiver_p, keys.sender_p, keys.stranger_p))
    one = security.of_receiver(settings(tmp_path, curve_key=keys.receiver_s, curve_server_keys=[keys.sender_p]))
    assert [(c.own.public, c.server) for c in one.inputs] == [(own, sender)] * 2 and one.guard is None
    each = [keys.sender_p, keys.stranger_p]
    two = security.of_receiver(settings(tmp_path, curve_key=keys.receiver_s, curve_server_keys=each))
    assert [c.server for c in two.inputs] == [sender, stranger]


def test_the_forwarding_port_has_a_guard(keys, tmp_path):
    port = {"forward": "tcp://*:9998", "curve_key": keys.sender_s, "curve_clients": str(keys.clients)}
    made = security.of_receiver(settings(tmp_path, **port, allow_peers=("127.0.0.0/8",)))
    assert made.inputs == () and made.guard.own == security.key_pair(keys.sender_s)
    assert made.guard.clients.name(security.public_key(keys.receiver_p)) == ("receiver", [])
    assert made.guard.clients.name(security.public_key(keys.stranger_p)) == ("", [])
    assert made.guard.allowed == (ip_network("127.0.0.0/8"),)
    addresses = security.of_receiver(settings(tmp_path, forward="tcp://*:9998", allow_peers=("127.0.0.1",)))
    assert (
        addresses.guard.own is addresses.guard.clients is None and ip_address("127.0.0.1") in addresses.guard.allowed[0]
    )


def test_all_mistakes_in_one_message(keys, tmp_path):
    os.chmod(keys.receiver_s, 0o644)
    empty = tmp_path / "empty"
    empty.mkdir()
    wrong = settings(
        tmp_path,
        curve_key=keys.receiver_s,
        curve_server_keys=(keys.sender_s, str(tmp_path / "nowhere.key"), keys.sender_p),
        curve_clients=str(empty),
        allow_peers=("10.0.0.1/8", "dcu1"),
        forward="tcp://*:9998",
    )
    with pytest.raises(ConfigError) as told:
        security.of_receiver(wrong)
    for words in (
        "curve_key: ", "chmod 600", "curve_server_keys: 3 for 2 endpoints", "give the .key file", "nowhere.key",
        "curve_clients: ", "holds no public key", "allow_peers: '10.0.0.1/8'", "allow_peers: 'dcu1'",
    ):  # fmt: skip
        assert words in str(told.value)


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"curve_key": "receiver_s"}, "curve_key: is not used without"),
        ({"curve_server_keys": ["sender_p"]}, "curve_key: missing"),
        ({"curve_clients": "clients", "forward": "tcp://*:1"}, "curve_key: missing"),
        ({"curve_key": "receiver_s", "curve_clients": "clients"}, "curve_clients: is for the forwarding port"),
        ({"allow_peers": ["10.0.0.0/8"]}, "allow_peers: is for the forwarding port"),
        ({"curve_key": "receiver_s", "curve_clients": "folder/no", "forward": "x"}, "no cannot be read"),
    ],
)
def test_what_does_not_go_together(keys, tmp_path, given_, words):
    def path(value):
        name, _, rest = value.partition("/")
        return os.path.join(str(getattr(keys, name)), rest) if hasattr(keys, name) else value

    values = {k: [path(v) for v in value] if isinstance(value, list) else path(value) for k, value in given_.items()}
    with pytest.raises(ConfigError, match=words):
        security.of_receiver(settings(tmp_path, **values))


def test_of_a_sender(keys):
    assert security.guard("", "", ()) is None
    for arguments, words in (
        ((keys.sender_s, "", ()), "curve_key: needs curve_clients"),
        (("", str(keys.clients), ()), "curve_key: missing"),
        ((keys.sender_p, str(keys.clients), ("x",)), "curve_key: .*chmod 600.*; allow_peers: 'x'"),
    ):
        with pytest.raises(ConfigError, match=words):
            security.guard(*arguments)


def test_an_engine_does_not_start_with_a_wrong_key(keys, tmp_path):
    os.chmod(keys.receiver_s, 0o640)
    values = {"endpoints": "tcp://127.0.0.1:9", "root": tmp_path, "http": "", "curve_key": keys.receiver_s}
    with pytest.raises(ConfigError, match="^curve_key: .*chmod 600"):
        Engine(config.make(values | {"curve_server_keys": keys.sender_p}))


@pytest.mark.parametrize("trouble", ["damaged", "secret", "open"])
def test_a_bad_file_lets_nobody_in(keys, trouble):
    clients = security.Clients(keys.clients)
    receiver = security.public_key(keys.receiver_p)
    assert clients.name(receiver) == ("receiver", [])
    if trouble == "open":
        keys.clients.chmod(0o777)
    else:
        secret = security.key_pair(keys.stranger_s).secret.decode()
        text = "public-key = 'x'" if trouble == "damaged" else f"secret-key = '{secret}'"
        (keys.clients / "bad.key").write_text(text)
    name, problems = clients.name(receiver)
    assert len(problems) == 1 and name == ("" if trouble == "open" else "receiver")
    assert clients.name(receiver) == (name, [])  # told once
    with pytest.raises(ConfigError):
        security.Clients(keys.clients)


def test_a_directory_that_vanishes_lets_nobody_in(keys):
    clients = security.Clients(keys.clients)
    keys.clients.rename(keys.folder / "elsewhere")
    name, problems = clients.name(security.public_key(keys.receiver_p))
    assert name == "" and "cannot be read" in problems[0]


# --- counting and telling --------------------------------------------------------------------------------------------


def test_the_log_is_told_at_once_and_then_once_a_minute(caplog):
    now = [1000.0]
    refused = Refusals(lambda: now[0])
    for _ in range(500):
        refused.add("10.0.0.1", "no key")
        now[0] += 0.1
    assert [r.getMessage() for r in caplog.records] == ["10.0.0.1: no key"]
    refused.add("10.0.0.2", "no address")
    now[0] += 10.1
    refused.tell()
    told = [r.getMessage() for r in caplog.records[1:]]
    assert told == ["10.0.0.1: no key (499 times)", "10.0.0.2: no address"]
    now[0] += 3600
    refused.tell()  # nothing new
    assert len(caplog.records) == 3 and refused.total == 501
    assert refused.remark() == "10.0.0.1: no key; 10.0.0.2: no address"
    refused.clear("10.0.0.1")
    assert refused.remark() == "10.0.0.2: no address"


def test_many_addresses_cost_no_memory(caplog):
    now = [0.0]
    refused = Refusals(lambda: now[0])
    for k in range(1, 5001):
        refused.add(f"10.0.{k // 256}.{k % 256}", "no key")
    now[0] += 61
    refused.tell()
    assert refused.total == 5000 and len(refused._present) <= refusals.MOST
    assert len(caplog.records) == 1 + refusals.MOST + 1
    assert caplog.records[-1].getMessage().startswith(f"and {5000 - 1 - refusals.MOST} more")


# --- ports of ours ---------------------------------------------------------------------------------------------------


@contextmanager
def guarded(guard, sends=True):
    """A PUSH socket with this guard, its port, and its gate; something is always there to be had."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.linger = 0
        with secure_server(push, guard) as door:
            port = push.bind_to_random_port("tcp://127.0.0.1")
            stop = threading.Event()

            def send():
                while not stop.is_set():
                    if not push.poll(20, zmq.POLLOUT):
                        continue
                    with suppress(zmq.Again):  # who was there a moment ago is refused, or gone
                        push.send(b"x", zmq.NOBLOCK)
                    stop.wait(0.002)

            sending = threading.Thread(target=send)
            sending.start()
            try:
                yield port, door
            finally:
                stop.set()
                sending.join()


@contextmanager
def listening(port, credentials=None, source=""):
    """A PULL socket that is connected there."""
    with zmq.Context() as context, context.socket(zmq.PULL) as pull:
        pull.linger, pull.rcvhwm = 0, 10
        if credentials:
            security.secure_client(pull, credentials)
        pull.connect(f"tcp://{source}127.0.0.1:{port}")
        yield pull


def credentials(keys, own="receiver", server="sender"):
    return security.Credentials(
        security.key_pair(keys.folder / f"{own}.key_secret"), security.public_key(keys.folder / f"{server}.key")
    )


def hears(pull, limit=5000):
    return pull.poll(limit) and pull.recv() == b"x"


def refused_for(door, words, times=1):
    wait_for(lambda: door.refusals.total >= times and words in door.refusals.remark(), what=words)


def test_the_right_key_is_let_in_and_a_wrong_one_not(keys, caplog):
    with guarded(security.guard(keys.sender_s, str(keys.clients), ())) as (port, door):
        with listening(port, credentials(keys)) as right, listening(port, credentials(keys, "stranger")) as wrong:
            assert hears(right)
            key = security.public_key(keys.stranger_p).decode()
            refused_for(door, f"127.0.0.1: refused, its public key {key} is not in {keys.clients}")
            assert not hears(wrong, 200) and hears(right)
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1 and warnings[0].startswith("127.0.0.1: refused, its public key")
    assert security.key_pair(keys.stranger_s).secret.decode() not in caplog.text


@pytest.mark.parametrize(
    ("who", "words"),
    [
        ("another server", "refused, for it expects another key here"),
        ("no CURVE", "speak"),  # whoever sees it first closes: `speaks no CURVE`, or `may speak no CURVE`
        ("nobody", "127.0.0.1: left in the handshake"),
        ("nonsense", "127.0.0.1: refused, for it broke the protocol of ZeroMQ"),
    ],
)
def test_other_strangers(keys, who, words):
    with guarded(security.guard(keys.sender_s, str(keys.clients), ())) as (port, door):
        if who == "nonsense":
            with socket.create_connection(("127.0.0.1", port)) as link:
                link.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00CURVE" + bytes(47))
                link.recv(64)
                time.sleep(0.2)  # whose address it is can be asked only while it is there
                link.sendall(b"\x04\x06\x05WRONG")
                refused_for(door, words)
        elif who == "nobody":
            with socket.create_connection(("127.0.0.1", port)):
                time.sleep(0.2)
            refused_for(door, words)
        else:
            theirs = credentials(keys, server="stranger") if who == "another server" else None
            with listening(port, theirs) as pull:
                refused_for(door, words)
                assert not hears(pull, 200)
        with listening(port, credentials(keys)) as right:
            assert hears(right)


@pytest.mark.parametrize("greeting", [b"\x01\x00\x02\x00a", b"\xff" + bytes(8) + b"\x7f\x01\x07\x00\x00"])
@pytest.mark.parametrize("curve", [False, True])
def test_no_way_round_by_an_older_protocol(keys, curve, greeting):
    """Before ZMTP 3 there was no handshake to be refused in."""
    guard = security.guard(*((keys.sender_s, str(keys.clients)) if curve else ("", "")), ("127.0.0.2",))
    with guarded(guard) as (port, _), socket.create_connection(("127.0.0.1", port), 5) as link:
        link.sendall(greeting)
        heard = b""
        with suppress(ConnectionResetError):
            while data := link.recv(100):  # until it is closed
                heard += data
        assert b"\x01\x00x" not in heard


def test_a_port_without_curve_tells_who_speaks_it(keys):
    with guarded(security.Guard(allowed=(security.network("127.0.0.1"),))) as (port, door):
        with listening(port, credentials(keys)) as pull:
            refused_for(door, "speak")
            assert not hears(pull, 100)


@pytest.mark.parametrize("curve", [False, True])
def test_addresses(keys, curve):
    """Whatever key it has."""
    allowed = ("127.0.0.1", "127.0.0.16/28")
    guard = security.guard(*((keys.sender_s, str(keys.clients)) if curve else ("", "")), allowed)
    theirs = credentials(keys) if curve else None
    with guarded(guard) as (port, door):
        with listening(port, theirs) as near, listening(port, theirs, "127.0.0.17:0;") as network:
            assert hears(near) and hears(network)
            with listening(port, theirs, "127.0.0.2:0;") as far:
                refused_for(door, "127.0.0.2: refused, this address is not in allow_peers")
                assert not hears(far, 200) and hears(near)
            assert door.refusals.total >= 1  # it comes again


def test_keys_come_and_go_while_the_port_is_in_use(keys, caplog):
    with guarded(security.guard(keys.sender_s, str(keys.clients), ())) as (port, door):
        with listening(port, credentials(keys, "stranger")) as early:
            refused_for(door, "not in")
            let_in(keys, "stranger")
            with listening(port, credentials(keys, "stranger")) as later:
                assert hears(later) and not hears(early, 100)  # libzmq alone tries only once
            (keys.clients / "stranger.key").unlink()
            with listening(port, credentials(keys, "stranger")):
                refused_for(door, "not in", times=2)
            (keys.clients / "bad.key").write_text("nothing")
            with listening(port, credentials(keys)) as right:
                assert hears(right)
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR] == [
        f"{keys.clients}/bad.key holds no public key: give the .key file that `tangods-detector keygen` made"
    ]


def test_without_the_gate_nobody_is_let_in(keys):
    """libzmq's own habit is to let everybody in when nobody answers."""
    for guard, theirs in (
        (security.guard(keys.sender_s, str(keys.clients), ()), credentials(keys)),
        (security.guard("", "", ("127.0.0.1",)), None),
    ):
        with zmq.Context() as context, context.socket(zmq.PUSH) as push:
            push.linger = 0
            secure_server(push, guard)
            port = push.bind_to_random_port("tcp://127.0.0.1")
            with listening(port, theirs) as pull:
                assert not push.poll(300, zmq.POLLOUT)
                assert not pull.poll(0)


def test_one_gate_in_a_context(keys):
    guard = security.guard("", "", ("127.0.0.1",))
    with zmq.Context() as context, context.socket(zmq.PUSH) as one, context.socket(zmq.PUSH) as two:
        with secure_server(one, guard), pytest.raises(ConfigError, match="did not start"):
            secure_server(two, guard).__enter__()


def test_a_greeting_without_end_takes_no_memory(keys):
    """Who is not known yet may not make us keep 100 MB."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        secure_server(push, security.guard("", "", ("127.0.0.1",)))
        assert 0 < push.maxmsgsize <= 65536


def test_a_flood_of_strangers_disturbs_nobody(keys):
    with guarded(security.guard(keys.sender_s, str(keys.clients), ())) as (port, door):
        with listening(port, credentials(keys)) as right:
            assert hears(right)
            for _ in range(15):
                with listening(port, credentials(keys, "stranger")):
                    before = door.refusals.total
                    wait_for(lambda n=before: door.refusals.total > n, what="refused")
                assert hears(right)
            assert door.refusals.total >= 15


# --- a series, end to end --------------------------------------------------------------------------------------------


@contextmanager
def streaming(guard, port=0):
    streamer = Streamer("127.0.0.1", port, 1_000_000, 1000, guard=guard)
    try:
        yield streamer
    finally:
        streamer.close()


def send_series(streamer, number, path, limit=5.0):
    form = {"shape": SHAPE, "dtype": "uint16", "codec": "none"}
    series = Series(number, Settings(n_triggers=FRAMES), filename=str(path))
    streamer.begin(series, {}, **form, limit=limit)
    for k in range(FRAMES):
        assert streamer.frame(k, image(k).tobytes(), **form, limit=5)
    assert streamer.end()


def is_right(path):
    data, _ = read(path)
    return len(data) == FRAMES and all((data[k] == image(k)).all() for k in range(FRAMES))


def own_keys(keys, **other):
    return {"curve_key": keys.receiver_s, "curve_server_keys": [keys.sender_p]} | other


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr("tangods_receiver.inlet.LOOK", 0.05)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("shared", [True, False])
def test_a_series_with_curve(keys, tmp_path, caplog, workers, shared):
    guard = security.guard(keys.sender_s, str(keys.clients), ("127.0.0.0/8",))
    more = {"workers": workers, "context_per_worker": not shared}
    with streaming(guard) as streamer, running(tmp_path, streamer.endpoint, **own_keys(keys), **more) as engine:
        for number in (1, 2):
            send_series(streamer, number, tmp_path / f"{number}.h5")
            now = wait_closed(engine, number)
        assert (now.written, now.missing, now.refused, now.error, streamer.refused) == (FRAMES, 0, 0, "", 0)
    assert is_right(tmp_path / "1.h5") and is_right(tmp_path / "2.h5")
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_the_stream_is_encrypted(keys, tmp_path):
    """What passes by on the cable holds neither the pixels nor the file name; without CURVE it does."""
    for curve in (False, True):
        guard = security.guard(keys.sender_s, str(keys.clients), ()) if curve else None
        with streaming(guard) as streamer, tapped(streamer.port) as (port, seen):
            values = own_keys(keys) if curve else {}
            with running(tmp_path, f"tcp://127.0.0.1:{port}", **values) as engine:
                send_series(streamer, 1, tmp_path / f"clear{curve}.h5")
                assert wait_closed(engine, 1).written == FRAMES
        passed = b"".join(seen)
        assert len(passed) > FRAMES * 120
        assert (image(3).tobytes() in passed, b"clear" in passed) == ((not curve,) * 2)
        assert is_right(tmp_path / f"clear{curve}.h5")


@contextmanager
def tapped(port):
    """A cable to the port, and what passes on it."""
    seen, stop = [], threading.Event()

    def pump(source, sink):
        while data := source.recv(65536):
            seen.append(data)
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)

    def carry(server):
        link, _ = server.accept()
        with link, socket.create_connection(("127.0.0.1", port)) as far:
            other = threading.Thread(target=pump, args=(link, far))
            other.start()
            try:
                pump(far, link)
            except OSError:
                pass
            link.close()
            other.join()

    def run(server):
        try:
            carry(server)
        except OSError:
            stop.set()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=run, args=(server,))
        thread.start()
        yield server.getsockname()[1], seen
    thread.join()


def test_refused_by_the_sender_until_it_lets_us_in(keys, tmp_path, caplog, often):
    """It is counted, shown and told, the other receiver goes on; and when the key is there, it connects by itself."""
    guard = security.guard(keys.sender_s, str(keys.clients), ())
    mine = own_keys(keys, curve_key=keys.stranger_s)
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    with streaming(guard) as streamer, running(first, streamer.endpoint, **mine) as engine:
        wait_for(lambda: engine.snapshot().refused >= 2, what="refused")
        now = engine.snapshot()
        assert now.state == "idle" and now.error.startswith(f"{streamer.endpoint}: the sender refuses this receiver")
        assert Snapshot.from_dict(now.as_dict()) == now
        text, _ = Exposition(engine.snapshot).encode()
        told = [
            line for line in text.decode().splitlines() if line.startswith("stream_receiver_refused_connections_total")
        ]
        assert float(told[0].split()[1]) >= 2
        with running(second, streamer.endpoint, **own_keys(keys)) as other:
            send_series(streamer, 1, second / "1.h5")
            assert wait_closed(other, 1).written == FRAMES
        wait_for(lambda: streamer.refused >= 2, what="refused")
        assert is_right(second / "1.h5") and engine.snapshot().opened == 0
        let_in(keys, "stranger")
        wait_for(lambda: not engine.snapshot().error, what="let in")
        send_series(streamer, 2, first / "2.h5")
        assert wait_closed(engine, 2).written == FRAMES
    assert is_right(first / "2.h5")
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len([w for w in warnings if "the sender refuses this receiver" in w]) == 1
    assert len([w for w in warnings if "is not in" in w]) == 1 and len(warnings) == 2


def test_another_sender_is_not_listened_to_until_it_has_its_key(keys, tmp_path, caplog, often):
    """An impostor at the sender's address gets no receiver, and its start message does not leave."""
    impostor = security.guard(keys.stranger_s, str(keys.clients), ())
    with streaming(impostor) as streamer:
        port = streamer.port
        with running(tmp_path, streamer.endpoint, **own_keys(keys)) as engine:
            with pytest.raises(HardwareError, match="Refused were: .*: refused, for it expects another key"):
                send_series(streamer, 1, tmp_path / "1.h5", limit=0.7)
            wait_for(lambda: "holds another key than its own" in engine.snapshot().error, what="told")
            streamer.close()
            with streaming(security.guard(keys.sender_s, str(keys.clients), ()), port) as right:
                send_series(right, 2, tmp_path / "2.h5")
                assert wait_closed(engine, 2).written == FRAMES
                wait_for(lambda: not engine.snapshot().error, what="no error any more")
        streamer._context.term()
    assert is_right(tmp_path / "2.h5") and not (tmp_path / "1.h5").exists()
    assert len([r for r in caplog.records if "another key than its own" in r.getMessage()]) == 1


def test_one_side_only_then_both(keys, tmp_path, caplog, often):
    """CURVE here and none there, and the other way round: nothing comes, both sides say why, and it mends itself."""
    curve = security.guard(keys.sender_s, str(keys.clients), ())
    with streaming(None) as clear:
        port = clear.port
        with running(tmp_path, clear.endpoint, **own_keys(keys)) as engine:
            wait_for(lambda: "speaks no CURVE" in engine.snapshot().error, what="told")
            with pytest.raises(HardwareError, match="no receiver"):
                send_series(clear, 1, tmp_path / "1.h5", limit=0.3)
            clear.close()
            with streaming(curve, port) as streamer:
                send_series(streamer, 2, tmp_path / "2.h5")
                assert wait_closed(engine, 2).written == FRAMES
    with streaming(curve) as streamer:
        port = streamer.port
        with running(tmp_path, streamer.endpoint) as engine:
            wait_for(lambda: "no CURVE" in streamer._remark(), what="told")
            with pytest.raises(HardwareError, match="no receiver"):
                send_series(streamer, 1, tmp_path / "1.h5", limit=0.3)
            streamer.close()
            with streaming(None, port) as clear:
                send_series(clear, 3, tmp_path / "3.h5")
                assert wait_closed(engine, 3).written == FRAMES
                wait_for(lambda: not engine.snapshot().error, what="no error any more")
    assert is_right(tmp_path / "2.h5") and is_right(tmp_path / "3.h5")


def test_an_address_that_the_sender_does_not_allow(keys, tmp_path, often):
    with streaming(security.guard("", "", ("127.0.0.2",))) as streamer:
        with running(tmp_path, streamer.endpoint) as engine:
            wait_for(lambda: "its allow_peers lacks this machine's address" in engine.snapshot().error, what="told")
            assert engine.snapshot().refused >= 1 and "curve_clients" not in engine.snapshot().error
            with pytest.raises(HardwareError, match="Refused were: 127.0.0.1: refused, this address is not in allow_p"):
                send_series(streamer, 1, tmp_path / "1.h5", limit=0.3)


def test_each_endpoint_has_its_key(keys, tmp_path, often):
    """Two senders with keys of their own; mixed up, neither is listened to."""
    one = security.guard(keys.sender_s, str(keys.clients), ())
    two = security.guard(keys.stranger_s, str(keys.clients), ())
    with streaming(one) as first, streaming(two) as second:
        right = own_keys(keys, curve_server_keys=[keys.sender_p, keys.stranger_p])
        with running(tmp_path, first.endpoint, second.endpoint, **right) as engine:
            form = {"shape": SHAPE, "dtype": "uint16", "codec": "none"}
            series = Series(1, Settings(n_triggers=2), filename=str(tmp_path / "1.h5"))
            first.begin(series, {}, **form, limit=5)
            wait_opened(engine, 1)
            second.begin(replace(series), {}, **form, limit=5)
            first.frame(0, image(0).tobytes(), **form)
            second.frame(1, image(1).tobytes(), **form)
            first.end(), second.end()
            assert wait_closed(engine, 1).written == 2
        with running(tmp_path, second.endpoint, first.endpoint, **right) as engine:
            wait_for(lambda: engine.snapshot().error.count("holds another key") == 2, what="both told")


def test_a_subscriber_with_curve(keys, tmp_path):
    """SUB sockets take the same keys."""
    with zmq.Context() as context, context.socket(zmq.PUB) as pub:
        pub.linger = 0
        with secure_server(pub, security.guard(keys.sender_s, str(keys.clients), ())):
            port = pub.bind_to_random_port("tcp://127.0.0.1")
            with listener(port, credentials(keys)) as inlet:
                wait_for(lambda: pub.send(b"x") or inlet.socket.poll(10), what="published")


@contextmanager
def listener(port, theirs):
    with zmq.Context() as context:
        inlet = Inlet(context.socket(zmq.SUB), 100)
        inlet.socket.subscribe(b"")
        inlet.connect(f"tcp://127.0.0.1:{port}", theirs)
        try:
            yield inlet
        finally:
            inlet.close()


# --- the forwarding port, and receivers in a chain -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["push", "pub"])
def test_receivers_in_a_chain(keys, tmp_path, caplog, often, kind):
    """The first speaks plainly with the detector and CURVE with the second; a stranger gets nothing and holds nobody
    up."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    port = {"endpoint": "tcp://127.0.0.1:0", "socket": kind, "filename": str(second / "{name}.h5")}
    guard = {"curve_key": keys.sender_s, "curve_clients": str(keys.clients), "allow_peers": ["127.0.0.0/8"]}
    with Sender() as sender, running(first, sender.endpoint, forward=[port], **guard) as engine:
        endpoint = engine.forward_endpoints[0]
        mine = own_keys(keys, socket="sub" if kind == "pub" else "pull")
        strange = mine | {"curve_key": keys.stranger_s}
        with running(second, endpoint, **mine) as chained, running(second, endpoint, **strange) as stranger:
            wait_for(lambda: engine.snapshot().peers_refused and stranger.snapshot().refused, what="refused")
            if kind == "push":
                wait_for(lambda: engine.snapshot().forward[0].peers == 1, what=f"{engine.snapshot().forward}")
            else:
                time.sleep(0.3)  # a subscription on its way
            for number in (1, 2):
                sender.start(first / f"{number}.h5", number, nframes=FRAMES)
                sender.frames(range(FRAMES))
                sender.end()
                assert wait_closed(engine, number).written == FRAMES
                assert wait_closed(chained, number).written == FRAMES
            assert stranger.snapshot().opened == 0
            now = engine.snapshot()
            assert now.forward[0].refused == now.peers_refused >= 1 and now.refused == 0
            assert Snapshot.from_dict(now.as_dict()) == now
            text, _ = Exposition(engine.snapshot).encode()
            assert "stream_receiver_refused_peers_total" in text.decode()
    assert is_right(first / "2.h5") and is_right(second / "1.h5") and is_right(second / "2.h5")
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 2  # one on each side


@pytest.mark.parametrize("kind", [zmq.PULL, zmq.SUB])
def test_who_has_no_right_key_gets_nothing_of_what_is_sent_on(keys, tmp_path, caplog, kind):
    """A wrong key, none at all, and one for another server: each is counted, told once, and costs no frame."""
    port = {"endpoint": "tcp://127.0.0.1:0", "socket": "pub" if kind == zmq.SUB else "push"}
    guard = {"curve_key": keys.sender_s, "curve_clients": str(keys.clients)}
    with ExitStack() as stack:
        sender = stack.enter_context(Sender())
        engine = stack.enter_context(running(tmp_path, sender.endpoint, forward=[port], **guard))
        context = stack.enter_context(zmq.Context())
        wrong = [credentials(keys, "stranger"), None, credentials(keys, server="stranger")]
        clients = []
        for theirs in (credentials(keys), *wrong):
            client = stack.enter_context(context.socket(kind))
            client.linger = 0
            if kind == zmq.SUB:
                client.subscribe(b"")
            if theirs:
                security.secure_client(client, theirs)
            client.connect(engine.forward_endpoints[0])
            clients.append(client)
        wait_for(lambda: engine.snapshot().peers_refused >= 3, what="refused")
        wait_for(lambda: engine.snapshot().forward[0].peers == 1, what="let in")
        time.sleep(0.1)  # for the subscription
        sender.start("a.h5", 1, nframes=FRAMES)
        sender.frames(range(FRAMES))
        sender.end()
        now = wait_closed(engine, 1)
        assert (now.written, now.missing, now.error) == (FRAMES, 0, "") and now.forward[0].frames == FRAMES
        told = [clients[0].recv_multipart() for _ in range(FRAMES + 2) if clients[0].poll(5000)]
        assert [parts[1] for parts in told[1:-1]] == [image(k).tobytes() for k in range(FRAMES)]
        assert not any(client.poll(100) for client in clients[1:])
    assert is_right(tmp_path / "a.h5")
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1 and ("refused" in warnings[0] or "left in" in warnings[0])  # the others within a minute


def test_the_forwarding_port_keeps_to_its_addresses(tmp_path):
    """Without CURVE, too; each port has a guard."""
    ports = [{"endpoint": "tcp://127.0.0.1:0"}, {"endpoint": "tcp://127.0.0.1:0", "socket": "pub"}]
    with Sender() as sender, running(tmp_path, sender.endpoint, forward=ports, allow_peers=["127.0.0.2"]) as engine:
        for index, kind in enumerate((zmq.PULL, zmq.SUB)):
            port = int(engine.forward_endpoints[index].rpartition(":")[2])
            with zmq.Context() as context, context.socket(kind) as client:
                client.linger = 0
                client.connect(f"tcp://127.0.0.1:{port}")
                wait_for(lambda k=index: engine.snapshot().forward[k].refused, what="refused")
        with listening(int(engine.forward_endpoints[0].rpartition(":")[2]), source="127.0.0.2:0;") as client:
            wait_for(lambda: engine.snapshot().forward[0].peers == 1, what="let in")
            sender.start("", 1, nframes=1)
            sender.frames([0])
            assert client.poll(5000) and b"header" in client.recv()
        assert engine.snapshot().peers_refused == 2


def test_without_keys_nothing_is_different(tmp_path):
    """No thread, no option, no field but zeros."""
    with Sender() as sender, running(tmp_path, sender.endpoint) as engine:
        assert not [t for t in threading.enumerate() if t.name == "gate"]
        sender.start(tmp_path / "a.h5", 1, nframes=3)
        sender.frames(range(3))
        sender.end()
        now = wait_closed(engine, 1)
        assert (now.written, now.refused, now.peers_refused) == (3, 0, 0)
        [worker] = engine._workers
        [inlet] = worker._inlets
        assert inlet.socket.mechanism == zmq.NULL
    with streaming(None) as streamer:
        assert streamer.refused == 0 and streamer._gate is None
