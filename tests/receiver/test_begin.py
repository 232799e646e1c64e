"""Series that the control side begins, by HTTP, from another engine's place and by Tango."""

import json
from pathlib import Path

import httpx
import pytest
import tango
import zmq

from tangods_receiver.device import StreamReceiver, series_to_begin
from tangods_receiver.errors import ConfigError, DaqError
from tangods_receiver.remote import RemoteEngine
from tests.receiver.senders import Array1
from tests.receiver.streaming import Sender, holds, read, running, wait_closed
from tests.tangocontext import started
from tests.waiting import wait_for


@pytest.fixture
def sender():
    with Array1(zmq.PUSH) as sender:
        yield sender


@pytest.fixture
def token(tmp_path_factory):
    return tmp_path_factory.mktemp("secret") / "token"


@pytest.fixture
def engine(tmp_path, sender, token):
    http = {"http": "127.0.0.1:0", "http_token_file": str(token)}
    with running(tmp_path, sender.endpoint, protocol="array1", **http) as engine:
        yield engine


def post(engine, body):
    token = Path(engine.config.http_token_file).read_text().strip()
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.post(f"http://127.0.0.1:{engine.http_port}/begin", json=body, headers=headers)


def test_by_http(engine, sender, tmp_path):
    reply = post(engine, {"filename": "a.h5", "nframes": 3, "metadata": {"exptime": 0.25}})
    assert (reply.status_code, reply.json()) == (200, {"series": 1})
    assert (tmp_path / "a.h5").exists(), "the file is there before the first image"
    sender.frames(range(3))
    wait_closed(engine, 1)
    assert holds(tmp_path / "a.h5", range(3))
    assert read(tmp_path / "a.h5")[1]["count_time"] == 0.25


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"filename": 5},
        {"filename": "a.h5", "nframes": -1},
        {"filename": "a.h5", "nframes": 2**41},
        {"filename": "a.h5", "nframes": "many"},
        {"filename": "a.h5", "metadata": [1]},
    ],
)
def test_what_is_no_series_is_refused(engine, tmp_path, body):
    reply = post(engine, body)
    assert reply.status_code == 422 and reply.json()["error"]
    assert engine.snapshot().opened == 0 and list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_made_is_refused(engine, sender, tmp_path):
    reply = post(engine, {"filename": "../a.h5"})
    assert reply.status_code >= 400 and "outside" in reply.json()["error"]
    assert reply.json()["reason"] == "WriteError"
    assert post(engine, {"filename": "a.h5", "nframes": 1}).json() == {"series": 2}
    sender.frame(0)
    assert wait_closed(engine, 2).state == "idle"


def test_who_has_no_token_is_refused(engine):
    reply = httpx.post(f"http://127.0.0.1:{engine.http_port}/begin", json={"filename": "a.h5"})
    assert reply.status_code == 401 and engine.snapshot().opened == 0


def test_a_stream_that_announces_its_series_is_refused(tmp_path, token):
    http = {"http": "127.0.0.1:0", "http_token_file": str(token)}
    with Sender() as sender, running(tmp_path, sender.endpoint, **http) as engine:
        reply = post(engine, {"filename": "a.h5"})
    assert reply.status_code >= 400 and "announces its series itself" in reply.json()["error"]


def test_of_an_engine_elsewhere(engine, sender, tmp_path, token):
    remote = RemoteEngine(f"http://127.0.0.1:{engine.http_port}", str(token))
    with remote:
        assert remote.begin("a.h5", 2, {"label": "x"}) == 1
        sender.frames(range(2))
        wait_for(lambda: remote.snapshot().closed == 1)
        with pytest.raises(DaqError, match="outside"):
            remote.begin("/etc/a.h5")
    assert holds(tmp_path / "a.h5", range(2))


# --- Tango -----------------------------------------------------------------------------------------------------------


def test_by_tango(sender, tmp_path):
    properties = {"Root": str(tmp_path), "Endpoints": [sender.endpoint], "Protocol": "array1", "EndTimeout": 0.3}
    context = started(StreamReceiver, properties=properties)
    try:
        device = context.device
        assert device.BeginSeries(json.dumps({"filename": "a.h5", "nframes": 3, "metadata": {"label": "x"}})) == 1
        assert device.state() == tango.DevState.RUNNING
        sender.frames([7, 8, 9])
        wait_for(lambda: device.SeriesClosed == 1)
        assert (device.nFramesWritten, device.nFramesDropped, device.LastFile) == (3, 0, str(tmp_path / "a.h5"))
        assert device.BeginSeries("") == 2
        device.Stop()
        wait_for(lambda: device.SeriesClosed == 2)
        with pytest.raises(tango.DevFailed) as refusal:
            device.BeginSeries('{"filename": "a.h5"}')
        assert refusal.value.args[0].reason == "WriteError" and "exists" in refusal.value.args[0].desc
        with pytest.raises(tango.DevFailed) as refusal:
            device.BeginSeries("nonsense")
        assert refusal.value.args[0].reason == "ConfigError"
    finally:
        context.stop()


def test_what_tango_says():
    assert series_to_begin("") == ("", None, {})
    assert series_to_begin('{"filename": "a", "nframes": 0}') == ("a", 0, {})
    assert series_to_begin('{"metadata": {"a": 1}}') == ("", None, {"a": 1})


@pytest.mark.parametrize(
    "what",
    ["x", "[]", "5", '{"filename": 5}', '{"nframes": -1}', '{"nframes": 1.5}', '{"nframes": true}', '{"metadata": []}']
    + ['{"file": "a"}', "[" * 5000, '{"filename": null}', '{"nframes": 99999999999999999}'],
)
def test_what_tango_does_not_take(what):
    with pytest.raises(ConfigError, match="BeginSeries takes"):
        series_to_begin(what)
