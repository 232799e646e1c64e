"""An engine elsewhere, of this version, an older one, and none at all."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tangods_receiver.errors import HardwareError
from tangods_receiver.http import HttpServer
from tangods_receiver.remote import RemoteEngine
from tangods_receiver.stats import Snapshot
from tests.receiver.test_http import Engine
from tests.receiver.test_stats import FULL

OLDER = {  # what the first version answered
    **{"state": "running", "series": 4, "file": "/d/a.h5", "received": 9, "written": 8, "missing": 1, "repeated": 1},
    **{"foreign": 0, "rejected": 0, "discarded": 0, "bytes": 800, "expected": None, "opened": 4, "closed": 3},
    **{"last_file": "/d/b.h5", "rate": 10.5, "throughput": 1e3, "durable": False, "last_number": 8, "error": ""},
}


@contextmanager
def answering(body: bytes):
    """A server that answers everything so; its address."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_everything_of_an_engine_of_this_version():
    with HttpServer(Engine(FULL), "127.0.0.1:0") as server:
        with RemoteEngine(f"http://127.0.0.1:{server.port}") as remote:
            assert remote.snapshot() == FULL


def test_an_older_engine_has_no_workers_to_show():
    with answering(json.dumps(OLDER).encode()) as address, RemoteEngine(address) as remote:
        now = remote.snapshot()
    assert now == Snapshot(**OLDER)
    assert (now.workers, now.lost, now.longest_commit) == ((), (), 0.0)


def test_an_older_client_understands_this_version():
    """It keeps the keys that it knows, which are still there and mean the same."""
    now = FULL.as_dict()
    assert {key: type(now[key]) for key in OLDER if key != "expected"} == {
        key: type(value) for key, value in OLDER.items() if key != "expected"
    }


@pytest.mark.parametrize("body", [b"[]", b"hello", b'{"workers": 3}', b'{"workers": [7]}', b'{"lost": [{}]}'])
def test_what_is_no_engine_is_said(body):
    with answering(body) as address, RemoteEngine(address) as remote:
        with pytest.raises(HardwareError, match="is this the address of a receiver"):
            remote.snapshot()
