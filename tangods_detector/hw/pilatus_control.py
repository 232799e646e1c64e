"""Orders for the Pilatus stream over a REP socket, JSON in and out; and the program. Python 3.6, see pilatus_stream.

Request: {"command": ..., "client": any text that tells one controller from another, ...}. Reply: {"ok": true, ...} or
{"ok": false, "error": a sentence}. See resources/detectors/pilatus_stream.md."""

import argparse
import json
import logging
import os
import platform
import signal
import sys
import threading
import time
from typing import Any, Callable, Dict, List, Optional, Tuple, Type

import zmq

from tangods_detector import __version__
from tangods_detector.hw.pilatus_guard import NOBODY_IS_REFUSED, Guard
from tangods_detector.hw.pilatus_run import Options, Series
from tangods_detector.hw.pilatus_stream import PilatusStream, Refused
from tangods_detector.hw.pilatus_watcher import Pattern

log = logging.getLogger(__name__)

LOOK = 0.1  # s
LARGEST = 1 << 20  # bytes of a request
MAX_IMAGES = 1000000  # of a series; camserver takes 999 999
PRESENT = ("refuse", "send", "delete", "delete_all")

Request = Dict[str, Any]


class Orders:
    """Requests -> replies. Whoever gives an order has control until it `release`s it or says nothing for `lease` s; the
    series goes on without it. Everybody may ask for the status. Calls come from one thread at a time."""

    def __init__(self, stream: PilatusStream, lease: float = 10.0) -> None:
        self._stream = stream
        self._lease = lease
        self._holder = ""
        self._heard = 0.0

    def answer(self, request: Any) -> Request:
        """Never raises."""
        try:
            if not isinstance(request, dict):
                raise Refused('a request is a JSON object, such as {"command": "status"}')
            rest = dict(request)
            name, client = rest.pop("command", None), _text(rest, "client", "")
            force = _flag(rest, "force", False)
            command = self._commands().get(name) if isinstance(name, str) else None
            if command is None:
                raise Refused("command is {}, known are {}".format(_show(name), ", ".join(sorted(self._commands()))))
            self._take_control(name, client, force)
            return dict(command(rest) or {}, ok=True)
        except Refused as exc:
            return {"ok": False, "error": str(exc)}
        except Exception as exc:  # the controller shall hear of it, and the next request be answered
            log.exception("request")
            return {"ok": False, "error": f"{type(exc).__name__}: {exc}"}

    def _commands(self) -> Dict[str, Callable[[Request], Optional[Request]]]:
        return {
            "ping": self._ping,
            "status": self._status,
            "arm": self._arm,
            "finish": self._finish,
            "stop": self._stop,
            "closed": self._closed,
            "release": self._release,
        }

    def _take_control(self, command: str, client: str, force: bool) -> None:
        now = time.monotonic()
        if self._holder and now - self._heard > self._lease:
            log.warning("%s was not heard of for %g s: it has no control any more", self._holder, self._lease)
            self._holder = ""
        if client and client == self._holder:
            self._heard = now
        if command in ("ping", "status"):
            return
        if not client:
            raise Refused(f"{command}: who are you? say so by the key client")
        if self._holder not in ("", client) and not force:
            raise Refused(
                f"{command}: {self._holder} has control, heard of {now - self._heard:.1f} s ago; it ends "
                f"{self._lease:g} s after its last word, or give force: true"
            )
        self._holder, self._heard = client, now

    def _ping(self, rest: Request) -> Request:
        _nothing_else("ping", rest)
        options = self._stream.options
        return {
            "program": "stream-pilatus",
            "version": __version__,
            "python": platform.python_version(),
            "zmq": zmq.zmq_version(),
            "pid": os.getpid(),
            "folder": options.folder,
            "endpoint": self._stream.endpoint,
            "holder": self._holder,
        }

    def _status(self, rest: Request) -> Request:
        _nothing_else("status", rest)
        return dict(self._stream.status(), holder=self._holder)

    def _arm(self, rest: Request) -> None:
        self._stream.arm(series_of(rest, self._stream.options.folder))

    def _finish(self, rest: Request) -> None:
        frames = _whole(rest, "frames", 0) if rest.get("frames") is not None else rest.pop("frames", None)
        _nothing_else("finish", rest)
        self._stream.finish(frames)

    def _stop(self, rest: Request) -> None:
        keep = _flag(rest, "keep", True)
        _nothing_else("stop", rest)
        self._stream.stop(keep)

    def _closed(self, rest: Request) -> None:
        _nothing_else("closed", rest)
        self._stream.closed()

    def _release(self, rest: Request) -> None:
        _nothing_else("release", rest)
        self._holder = ""


# --- what a request says ---------------------------------------------------------------------------------------------


def series_of(request: Request, root: str) -> Series:
    """Refused: what is wrong with it. `request` is used up."""
    rest = request
    first = _whole(rest, "first", 0, 0)
    try:
        pattern = Pattern.parse(_text(rest, "pattern"), first)
    except ValueError as exc:
        raise Refused(f"arm: {exc}") from None
    endless = "nframes" in rest and rest["nframes"] is None
    if endless:
        del rest["nframes"]
    found = Series(
        series=_whole(rest, "series", 0),
        filename=_text(rest, "filename"),
        folder=_folder(_text(rest, "folder", ""), root),
        pattern=pattern,
        first=first,
        nframes=MAX_IMAGES if endless else _whole(rest, "nframes", 1),
        endless=endless,
        shape=_shape(rest.pop("shape", None)),
        metadata=_object(rest, "metadata"),
        present=_text(rest, "present", "refuse"),
        resume=_flag(rest, "resume", False),
        expect=_object(rest, "expect"),
    )
    _nothing_else("arm", rest)
    if found.nframes > MAX_IMAGES:
        raise Refused(f"arm: nframes is {found.nframes}, more than {MAX_IMAGES}")
    if found.nframes > 1 and not pattern.digits:
        raise Refused(
            f"arm: pattern is {pattern.before!r} for {found.nframes} images; it needs a number, like test_%05d.cbf"
        )
    if found.present not in PRESENT:
        raise Refused(f"arm: present is {_show(found.present)}, not one of {', '.join(PRESENT)}")
    return found


def _folder(text: str, root: str) -> str:
    """Below the root, whatever links there are."""
    top = os.path.realpath(root)
    path = os.path.realpath(os.path.join(top, text))
    if path != top and not path.startswith(top.rstrip("/") + "/"):
        raise Refused(f"arm: folder is {_show(text)}, not below {top}")
    return path


def _shape(value: Any) -> Optional[Tuple[int, int]]:
    if value is None:
        return None
    if not (isinstance(value, list) and len(value) == 2 and all(type(n) is int and 0 < n < 1 << 16 for n in value)):
        raise Refused(f"arm: shape is {_show(value)}, not [rows, columns]")
    return value[0], value[1]


def _whole(rest: Request, key: str, least: int, default: Optional[int] = None) -> int:
    value = rest.pop(key, default)
    if type(value) is not int or not least <= value < 1 << 63:
        raise Refused(f"{key} is {_show(value)}, not a whole number from {least}")
    return value


def _text(rest: Request, key: str, default: Optional[str] = None) -> str:
    return _typed(rest, key, str, "a text", default)


def _flag(rest: Request, key: str, default: bool) -> bool:
    return _typed(rest, key, bool, "true or false", default)


def _object(rest: Request, key: str) -> Dict[str, Any]:
    return _typed(rest, key, dict, "a JSON object", {})


def _typed(rest: Request, key: str, kind: Type[Any], what: str, default: Any) -> Any:
    value = rest.pop(key, default)
    if not isinstance(value, kind):
        raise Refused("{} is {}, not {}".format(key, "missing" if value is None else _show(value), what))
    return value


def _nothing_else(command: str, rest: Request) -> None:
    if rest:
        raise Refused("{}: unknown key {}".format(command, ", ".join(sorted(map(str, rest)))))


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# --- the socket ------------------------------------------------------------------------------------------------------


class Control:
    """A thread with a REP socket. A controller that goes in the middle of a request harms nobody."""

    def __init__(self, orders: Orders, host: str, port: int, guard: Guard = NOBODY_IS_REFUSED) -> None:
        """Refused: the port is not to be had."""
        self._orders = orders
        self._closing = threading.Event()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.REP)
        self._socket.linger = 500
        self._socket.setsockopt(zmq.MAXMSGSIZE, LARGEST)
        self._authenticator = guard.protect(self._context, self._socket)
        try:
            self._socket.bind("tcp://{}:{}".format(host, port or "*"))
        except zmq.ZMQError as exc:
            self._close()
            raise Refused(f"cannot listen at tcp://{host}:{port}: {exc}; is the port in use?") from exc
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._thread = threading.Thread(target=self._work, name="pilatus-control")

    def __enter__(self) -> "Control":
        self._thread.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._closing.set()
        self._thread.join()

    def _work(self) -> None:
        try:
            while not self._closing.is_set():
                if self._socket.poll(int(LOOK * 1000)):
                    self._socket.send(self._answer(self._socket.recv_multipart()))
        finally:
            self._close()

    def _close(self) -> None:
        self._socket.close()
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.term()

    def _answer(self, parts: List[bytes]) -> bytes:
        try:
            request = json.loads(b"".join(parts).decode("utf-8"))
        except (ValueError, RecursionError) as exc:
            reply: Request = {"ok": False, "error": f"the request is not JSON ({exc})"}
        else:
            reply = self._orders.answer(request)
        return json.dumps(reply).encode("ascii")


# --- the program -----------------------------------------------------------------------------------------------------


def _address(text: str) -> Tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isdigit() and int(port) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 127.0.0.1:9999")
    return host, int(port)


def _parser(program: Optional[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Send the images that camserver writes into FOLDER, a RAM disk, to a StreamReceiver, and delete "
        "them. A Detector device says when, by the control address. Until SIGINT or SIGTERM.",
    )
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="images are read in it, and below it")
    add("--stream", default="127.0.0.1:9999", type=_address, metavar="HOST:PORT", help="images (default %(default)s)")
    add("--control", default="127.0.0.1:9998", type=_address, metavar="HOST:PORT", help="orders (default %(default)s)")
    add(
        "--keep",
        default=10,
        type=int,
        metavar="N",
        help="files that stay behind those being sent (default %(default)s)",
    )
    add("--queue", default=8, type=int, metavar="N", help="images that wait in the socket (default %(default)s)")
    add(
        "--md5-share",
        default=0.05,
        type=float,
        metavar="S",
        help="of the time that may go into the sums of images; 1: all are checked, 0: none (default %(default)s)",
    )
    add("--file-wait", default=3.0, type=float, metavar="S", help="for files after the end (default %(default)s s)")
    add("--lease", default=10.0, type=float, metavar="S", help="of a silent controller (default %(default)s s)")
    add("--allow", action="append", default=[], metavar="ADDRESS", help="may connect, others may not; may be repeated")
    add("--curve-key", default="", metavar="FILE", help="own .key_secret file: both ports are encrypted")
    add("--curve-clients", default="", metavar="FOLDER", help="with a .key file of each who may connect then")
    add("--poll", action="store_true", help="read the folder again and again: its file system tells no events")
    add("-v", "--verbose", action="store_true", help="log decisions, too")
    add("--version", action="version", version=__version__)
    return parser


def main(arguments: Optional[List[str]] = None, program: Optional[str] = None) -> int:
    """0: ended by a signal; 1: could not begin, and why is on stderr."""
    parser = _parser(program)
    given = parser.parse_args(arguments)
    if given.keep < 0 or not 0 <= given.md5_share <= 1 or given.queue < 1:
        parser.error("--keep is a number from 0, --queue from 1, --md5-share from 0 to 1")
    logging.basicConfig(
        level=logging.DEBUG if given.verbose else logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s"
    )
    try:
        guard = Guard(given.allow, given.curve_key, given.curve_clients)
    except ValueError as exc:
        sys.stderr.write(f"Error: {exc}\n")
        return 1
    options = Options(
        os.path.abspath(given.folder),
        given.stream[0],
        given.stream[1],
        queue=given.queue,
        keep=given.keep,
        polling=True if given.poll else None,
        md5_share=given.md5_share,
        file_wait=given.file_wait,
        guard=guard,
    )
    stop = threading.Event()
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, lambda *_: stop.set())
    try:
        with PilatusStream(options) as stream:
            with Control(Orders(stream, given.lease), given.control[0], given.control[1], guard) as control:
                sys.stdout.write(f"images of {options.folder}: {stream.endpoint}, orders: {control.endpoint}\n")
                sys.stdout.flush()
                while not stop.wait(0.2):
                    if not stream.alive:
                        raise Refused("the stream's thread has ended; see the log")
    except Refused as exc:
        sys.stderr.write(f"Error: {exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
