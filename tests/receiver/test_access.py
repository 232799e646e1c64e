"""Who may use the HTTP side: hosts, pages of others, tokens."""

import contextlib
import os
import stat
import time

import httpx
import numpy as np
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tangods_receiver import http
from tangods_receiver.access import Names, TokenFile, host_of
from tangods_receiver.errors import ConfigError, HardwareError
from tangods_receiver.http import HttpServer
from tangods_receiver.remote import RemoteEngine
from tests.receiver.test_http import Engine, Shot
from tests.waiting import wait_for

POSTS = [("/stop", {}), ("/reset", None), ("/begin", {"filename": "a.h5"})]
TOKEN = "abcdefghijklmnopqrstuvwxyz0123456789"


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return path


def address(server):
    return f"http://127.0.0.1:{server.port}"


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


# --- the token -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "body"), POSTS)
def test_without_a_configured_token_it_is_read_only(engine, path, body):
    with HttpServer(engine, "127.0.0.1:0") as server:
        for headers in ({}, bearer(TOKEN)):
            reply = httpx.post(address(server) + path, json=body, headers=headers)
            assert reply.status_code == 403
            assert "configure http_token_file (Tango property TokenFile)" in reply.json()["error"]
        assert httpx.get(f"{address(server)}/status").status_code == 200
    assert engine.calls == []


@pytest.mark.parametrize(("path", "body"), POSTS)
def test_the_token_opens_what_changes_something(engine, token_file, path, body):
    with HttpServer(engine, "127.0.0.1:0", (), token_file) as server:
        for headers in (
            {},
            bearer(TOKEN[:-1]),
            {"Authorization": "Bearer"},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": TOKEN},
        ):
            reply = httpx.post(address(server) + path, json=body, headers=headers)
            assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
            assert "http_token_file" in reply.json()["error"]
        two = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", f"Bearer {TOKEN}")]
        assert httpx.post(address(server) + path, json=body, headers=two).status_code == 401
        assert engine.calls == []
        assert httpx.post(address(server) + path, json=body, headers=bearer(TOKEN)).status_code == 200
    assert len(engine.calls) == 1


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_every_method_that_does_not_read_needs_it(engine, method):
    with HttpServer(engine, "127.0.0.1:0") as server:
        assert httpx.request(method, f"{address(server)}/status").status_code == 403


def test_a_new_token_counts_at_once_and_the_old_no_longer(engine, token_file):
    with HttpServer(engine, "127.0.0.1:0", (), token_file) as server, httpx.Client() as client:
        reset = f"{address(server)}/reset"
        assert client.post(reset, headers=bearer(TOKEN)).status_code == 200
        later = token_file.with_name("later")
        later.write_text(TOKEN[::-1])
        later.chmod(0o600)
        later.rename(token_file)
        assert client.post(reset, headers=bearer(TOKEN)).status_code == 401
        assert client.post(reset, headers=bearer(TOKEN[::-1])).status_code == 200
        token_file.write_text(TOKEN)  # in place, of the same length
        os.utime(token_file, ns=(1, 1))
        assert client.post(reset, headers=bearer(TOKEN)).status_code == 200


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.chmod(0o640), "others can use it (mode 640): chmod 600"),
        (lambda path: path.chmod(0o602), "others can use it (mode 602)"),
        (lambda path: path.unlink(), "cannot be read (No such file"),
        (lambda path: path.write_text(""), "holds no token"),
        (lambda path: path.write_text("short"), "at least 16 characters"),
        (lambda path: path.write_text("two words and more"), "holds no token"),
        (lambda path: path.write_bytes(b"\xff" * 40), "holds no token"),
        (lambda path: (path.unlink(), path.mkdir(mode=0o700)), "not a plain file"),
        (lambda path: (path.unlink(), os.mkfifo(path, 0o600)), "not a plain file"),
    ],
)
def test_a_token_file_that_is_of_no_use_opens_nothing(engine, token_file, spoil, words):
    with HttpServer(engine, "127.0.0.1:0", (), token_file) as server:
        spoil(token_file)
        reply = httpx.post(f"{address(server)}/reset", headers=bearer(TOKEN))
        assert reply.status_code == 503 and words in reply.json()["error"]
        assert httpx.get(f"{address(server)}/status").status_code == 200
    if token_file.exists():
        with pytest.raises(ConfigError, match="token file"):
            HttpServer(engine, "127.0.0.1:0", (), token_file).start()


def test_a_token_is_made_where_there_is_none(engine, tmp_path):
    path = tmp_path / "new"
    old = os.umask(0)
    try:
        with HttpServer(engine, "127.0.0.1:0", (), path) as server:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            token = path.read_text().strip()
            assert httpx.post(f"{address(server)}/reset", headers=bearer(token)).status_code == 200
    finally:
        os.umask(old)
    with HttpServer(engine, "127.0.0.1:0", (), path):
        assert path.read_text().strip() == token
    assert TokenFile(tmp_path / "another").create()
    assert (tmp_path / "another").read_text().strip() != token


def test_a_token_file_that_cannot_be_made(engine, tmp_path):
    with pytest.raises(ConfigError, match="cannot be made .No such file or directory.; name another place"):
        HttpServer(engine, "127.0.0.1:0", (), tmp_path / "nowhere" / "token").start()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="token file"):
        HttpServer(engine, "127.0.0.1:0", (), tmp_path / "link").start()
    assert not (tmp_path / "elsewhere").exists()


def test_a_guess_that_is_nearly_right_takes_no_longer(token_file):
    """Of a comparison that ends at the first difference, the good guess would take longest; it is too fast to be seen,
    so what is compared is told: `hmac.compare_digest` is asked about the whole of it."""
    asked = []
    file = TokenFile(token_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hmac.compare_digest", lambda a, b: asked.append((a, b)) or a == b)
        assert file.fits(f"Bearer {TOKEN}") and not file.fits("Bearer " + "x" * 36) and not file.fits("")
    assert [b for _, b in asked] == [TOKEN.encode()] * 3


def test_an_engine_elsewhere_is_commanded_with_the_token(engine, token_file, tmp_path):
    with HttpServer(engine, "127.0.0.1:0", (), token_file) as server:
        with RemoteEngine(address(server), str(token_file)) as remote:
            remote.stop(4)
            remote.reset()
            assert remote.begin("a.h5", 7, {"a": 1}) == 8
        assert engine.calls == [("stop", 4), ("reset",), ("begin", "a.h5", 7, {"a": 1})]
        with RemoteEngine(address(server)) as remote:
            remote.snapshot()
            with pytest.raises(HardwareError, match="http_token_file"):
                remote.stop()
        with RemoteEngine(address(server), str(tmp_path / "none")) as remote:
            with pytest.raises(ConfigError, match="token file .* cannot be read"):
                remote.reset()


# --- hosts -----------------------------------------------------------------------------------------------------------


def asked_as(server, host, **headers):
    return httpx.get(f"{address(server)}/status", headers={"Host": host, **headers})


def test_only_names_of_this_computer_are_answered(engine):
    import socket

    own = socket.gethostname()
    with HttpServer(engine, "127.0.0.1:0", ["Beamline7.example.org"]) as server:
        good = ["127.0.0.1", f"localhost:{server.port}", "LOCALHOST:9000", "[::1]:80", "127.0.0.1.", own, f"{own}:1"]
        for host in [*good, "beamline7.example.org", "BEAMLINE7.EXAMPLE.ORG.:8000"]:
            assert asked_as(server, host).status_code == 200, host
        for host in [
            "evil.example",
            "localhost.evil.example",
            "192.0.2.1",
            "127.0.0.2",
            "example.org",
            "[::2]",
            "a b",
            "",
        ]:
            reply = asked_as(server, host)
            assert reply.status_code == 421, host
            assert "add yours to http_hosts" in reply.json()["error"]


def test_the_name_service_is_asked_once(engine, monkeypatch):
    asked = []
    monkeypatch.setattr("socket.getfqdn", lambda: asked.append(1) or "dcu7.example.org")
    names = Names("0.0.0.0")
    assert names.know("localhost", "") and not asked
    assert names.know("dcu7.example.org", "") and names.know("dcu7", "") and not names.know("other", "")
    assert len(asked) == 1


def test_an_address_counts_where_the_connection_arrived():
    names = Names("0.0.0.0")
    assert names.know("192.0.2.7", "192.0.2.7") and names.know("::ffff:192.0.2.7", "192.0.2.7")
    assert not names.know("192.0.2.8", "192.0.2.7")


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("localhost:80", "localhost"),
        ("[::1]:8000", "::1"),
        ("a.b-c_d", "a.b-c_d"),
        ("a:b", ""),
        ("a/b", ""),
        ("user@host", ""),
        ("", ""),
    ],
)
def test_host_headers(header, host):
    assert host_of(header) == host


# --- pages -----------------------------------------------------------------------------------------------------------

STRANGERS = [
    "http://evil.example",
    "http://127.0.0.1:1",
    "null",
    "https://127.0.0.1",
    "file://",
    "http://localhost.evil",
]


@pytest.mark.parametrize("origin", STRANGERS)
def test_a_page_of_another_host_may_not_change_anything(engine, token_file, origin):
    with HttpServer(engine, "127.0.0.1:0", (), token_file) as server:
        reply = httpx.post(f"{address(server)}/reset", headers={**bearer(TOKEN), "Origin": origin})
        assert reply.status_code == 403 and "may not use this receiver" in reply.json()["error"]
        own = httpx.post(f"{address(server)}/reset", headers={**bearer(TOKEN), "Origin": address(server)})
        assert own.status_code == 200
        assert "access-control-allow-origin" not in own.headers
    assert engine.calls == [("reset",)]


@pytest.mark.parametrize("origin", STRANGERS)
def test_a_page_of_another_host_may_not_watch(engine, origin):
    with HttpServer(engine, "127.0.0.1:0") as server:
        with pytest.raises(InvalidStatus) as refused:
            connect(f"ws://127.0.0.1:{server.port}/ws", additional_headers={"Origin": origin}).close()
        assert refused.value.response.status_code == 403
        with connect(f"ws://127.0.0.1:{server.port}/ws", additional_headers={"Origin": address(server)}) as own:
            assert "status" in own.recv(5)
        with pytest.raises(InvalidStatus) as refused:
            connect(f"ws://evil.example:{server.port}/ws", sock=_socket(server)).close()
        assert refused.value.response.status_code == 421


def _socket(server):
    import socket

    return socket.create_connection(("127.0.0.1", server.port))


def test_a_refused_post_does_not_wait_for_its_body(engine):
    with HttpServer(engine, "127.0.0.1:0") as server, _socket(server) as half:
        half.sendall(b"POST /stop HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n{")
        half.settimeout(5)
        began = time.monotonic()
        assert half.recv(100).startswith(b"HTTP/1.1 403")
        assert time.monotonic() - began < 4


def test_what_browsers_are_told(engine):
    with HttpServer(engine, "127.0.0.1:0") as server:
        page = httpx.get(f"{address(server)}/")
        policy = dict(rule.strip().split(" ", 1) for rule in page.headers["content-security-policy"].split(";"))
        assert (policy["default-src"], policy["script-src"], policy["connect-src"]) == ("'none'", "'self'", "'self'")
        assert "unsafe" not in page.headers["content-security-policy"]
        assert (policy["frame-ancestors"], policy["form-action"], policy["base-uri"]) == ("'none'",) * 3
        for path in ("/", "/live.js", "/status"):
            reply = httpx.get(address(server) + path)
            assert reply.status_code == 200
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert reply.headers["cross-origin-resource-policy"] == "same-origin"
            assert "server" not in reply.headers


def test_behind_a_proxy_that_has_a_name_and_speaks_tls(engine, token_file):
    name = "receiver.example.org"
    headers = {"Host": name, "Origin": f"https://{name}"}
    with HttpServer(engine, "127.0.0.1:0", [name], token_file) as server:
        assert asked_as(server, name).status_code == 200
        post = httpx.post(f"{address(server)}/reset", headers={**headers, **bearer(TOKEN)})
        assert post.status_code == 200
        with connect(f"ws://{name}/ws", sock=_socket(server), origin=headers["Origin"]) as viewer:
            assert "status" in viewer.recv(5)


# --- too much --------------------------------------------------------------------------------------------------------

LONG = "1" * 50_000


@pytest.mark.parametrize(
    "question",
    [
        f"/last_frame?region={LONG},0,1,1",
        f"/last_frame?size={LONG}",
        f"/last_frame?newer={LONG}:1",
        f"/last_frame?format={LONG}",
        f"/pixel?row={LONG}&column=0",
        "/pixel?row=1e400&column=0",
        "/last_frame?format=png&max=1e999",
        "/last_frame?downsample=99999999999999999999999",
    ],
)
def test_questions_beyond_all_measure_get_a_short_sentence(engine, question):
    engine.shot = Shot(1, 3, np.arange(48, dtype=np.uint16).reshape(6, 8))
    with HttpServer(engine, "127.0.0.1:0") as server:
        reply = httpx.get(address(server) + question)
        assert reply.status_code == 422 and len(reply.content) < 1000
        assert httpx.get(f"{address(server)}/last_frame").status_code == 200


@pytest.mark.parametrize(
    "question",
    [
        "/last_frame?region=0,0,9999999,9999999&size=99999x99999",
        "/last_frame?region=9999999,9999999,9999999,9999999",
        "/last_frame?downsample=10000",
        "/last_frame?size=0",
        "/last_frame?size=0x5",
        "/last_frame?format=png&min=1e-300&max=1e308&log=true",
        "/last_frame?format=png&min=1e308&log=true",
        "/last_frame?format=png&min=1e308&max=-1e308",
        "/last_frame?format=png&min=-1e308&max=1e308&log=true",
        "/last_frame?format=jpeg&saturation=1e308&colormap=hot",
    ],
)
def test_what_is_beyond_the_image_is_the_image(engine, question):
    engine.shot = Shot(1, 3, np.arange(48, dtype=np.uint16).reshape(6, 8))
    with HttpServer(engine, "127.0.0.1:0") as server:
        assert httpx.get(address(server) + question).status_code == 200


def test_a_request_without_end_is_refused(engine):
    with HttpServer(engine, "127.0.0.1:0") as server, _socket(server) as endless:
        endless.settimeout(5)
        endless.sendall(b"GET /status?" + b"a" * 200_000)
        assert endless.recv(100).startswith(b"HTTP/1.1 400")


def test_two_hundred_connections_are_enough(engine):
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(HttpServer(engine, "127.0.0.1:0"))
        idle = [stack.enter_context(_socket(server)) for _ in range(200)]
        wait_for(lambda: httpx.get(f"{address(server)}/status").status_code == 503)
        for one in idle:
            one.close()
        wait_for(lambda: httpx.get(f"{address(server)}/status").status_code == 200)


def test_descriptors_are_left_for_files_however_many_connect(engine):
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(HttpServer(engine, "127.0.0.1:0"))
        many = [stack.enter_context(_socket(server)) for _ in range(400)]
        for one in many[http.OPEN :]:
            one.settimeout(5)
            with contextlib.suppress(ConnectionResetError):
                assert one.recv(1) == b""  # cut off
        assert len(server._server.server_state.connections) == http.OPEN


def test_who_connects_and_asks_nothing_is_cut_off(engine, monkeypatch):
    monkeypatch.setattr(http, "SILENT", 0.3)
    engine.shot = Shot(1, 1, np.zeros((6, 8), np.uint16))
    with HttpServer(engine, "127.0.0.1:0") as server, _socket(server) as silent, _socket(server) as half:
        half.sendall(b"GET /status HTTP/1.1\r\nHost: local")
        with connect(f"ws://127.0.0.1:{server.port}/ws") as viewer, httpx.Client() as client:
            assert client.get(f"{address(server)}/last_frame?newer=1:1&wait=1").status_code == 204
            for one in (silent, half):
                one.settimeout(5)
                with contextlib.suppress(ConnectionResetError):
                    assert one.recv(1) == b""
            for _ in range(4):  # who asked stays
                assert "status" in viewer.recv(5)
