"""A client of the simulated control unit: HTTP on one side, PULL sockets on the other. It knows nothing of ours."""

import time
from contextlib import contextmanager

import httpx
import zmq

from tangods_detector.simulators.eiger import EigerOptions, EigerSimulator

SMALL = "EIGER2 500K"


class Client:
    def __init__(self, dcu, timeout=20.0):
        self.dcu = dcu
        self.api = dcu.options.api
        self.http = httpx.Client(base_url=f"http://{dcu.address}", timeout=timeout, verify=False, trust_env=False)

    def url(self, where):
        """`detector/config/count_time` -> `/detector/api/1.8.0/config/count_time`"""
        module, _, rest = where.partition("/")
        return f"/{module}/api/{self.api}/{rest}"

    def get(self, where):
        answer = self.http.get(self.url(where))
        assert answer.status_code == 200, answer.text
        return answer.json()

    def value(self, where):
        return self.get(where)["value"]

    def put(self, where, value=None, **more):
        return self.http.put(self.url(where), **({} if value is None else {"json": {"value": value}}), **more)

    def set(self, where="detector/config", **values):
        """In the order given; `_1_` in a name stands for /1/."""
        for name, value in values.items():
            answer = self.put(f"{where}/{name.replace('_1_', '/1/').replace('_2_', '/2/')}", value)
            assert answer.status_code == 200, answer.text

    def command(self, name, value=None):
        answer = self.put(f"detector/command/{name}", value)
        assert answer.status_code == 200, f"{name}: {answer.status_code} {answer.text}"
        return answer.json()

    def stream(self, format="cbor", **values):
        if self.api != "1.6.0":
            values = {"format": format, **values}
        self.set("stream/config", mode="enabled", **values)

    @property
    def state(self):
        return self.value("detector/status/state")

    def wait_state(self, state, limit=5.0):
        end = time.monotonic() + limit
        while (found := self.state) != state:
            assert time.monotonic() < end, f"{found}, not {state}"
            time.sleep(0.005)


class Puller:
    """One PULL socket."""

    def __init__(self, context, endpoint):
        self.socket = context.socket(zmq.PULL)
        self.socket.rcvhwm = 100_000
        self.socket.connect(endpoint)

    def message(self, limit=5.0):
        assert self.socket.poll(int(limit * 1000)), f"nothing came in {limit} s"
        return self.socket.recv_multipart()

    def messages(self, n, limit=10.0):
        return [self.message(limit) for _ in range(n)]

    def rest(self, quiet=0.1):
        found = []
        while self.socket.poll(int(quiet * 1000)):
            found.append(self.socket.recv_multipart())
        return found

    def until(self, is_end, limit=10.0):
        """All up to the end message."""
        found = []
        while True:
            found.append(self.message(limit))
            if is_end(found[-1]):
                return found


@contextmanager
def running(model=SMALL, pull=True, **options):
    """(simulator, client, puller of V1, puller of V2)"""
    context = zmq.Context()
    with EigerSimulator(EigerOptions(model=model, **{"speed": 0.00005, **options})) as dcu:
        client = Client(dcu)
        try:
            pullers = [Puller(context, e) for e in (dcu.endpoint_v1, dcu.endpoint_v2)] if pull else [None, None]
            yield dcu, client, *pullers
        finally:
            client.http.close()
            context.destroy(linger=0)
