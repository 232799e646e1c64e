"""The Pilatus stream as a program, and its orders. Python 3.6, see pilatus_stream.

What they are and what they answer: resources/detectors/pilatus_stream.md."""

import argparse
import logging
import os
import signal
import sys
import threading
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Tuple

from tangods_detector import __version__
from tangods_detector.hw.pilatus_guard import Guard
from tangods_detector.hw.pilatus_run import Options, Series
from tangods_detector.hw.pilatus_stream import PilatusStream
from tangods_detector.hw.pilatus_watcher import Pattern
from tangods_detector.orders import Act, Control, Orders, Refused, Request, flag, show, table, text, whole

MAX_IMAGES = 1000000  # of a series; camserver takes 999 999
PRESENT = ("refuse", "send", "delete", "delete_all")


class StreamOrders(Orders):
    """Requests for one stream."""

    program = "stream-pilatus"

    def __init__(self, stream: PilatusStream, lease: float = 10.0) -> None:
        super().__init__(lease)
        self._stream = stream

    def commands(self) -> Dict[str, Callable[[Request], Act]]:
        stream = self._stream
        return {
            "status": lambda rest: lambda: dict(stream.status(), holder=self.holder),
            "arm": lambda rest: partial(stream.arm, series_of(rest, stream.options.folder)),
            "finish": lambda rest: partial(stream.finish, _frames(rest)),
            "stop": lambda rest: partial(stream.stop, flag(rest, "keep", True)),
            "closed": lambda rest: stream.closed,
        }

    def about(self) -> Request:
        return {"folder": self._stream.options.folder, "endpoint": self._stream.endpoint}


# --- what a request says ---------------------------------------------------------------------------------------------


def series_of(rest: Request, root: str) -> Series:
    """Refused: what is wrong with it. What is known is taken out of the request."""
    first = whole(rest, "first", 0, 0)
    try:
        pattern = Pattern.parse(text(rest, "pattern"), first)
    except ValueError as exc:
        raise Refused(f"arm: {exc}") from None
    endless = "nframes" in rest and rest["nframes"] is None
    if endless:
        del rest["nframes"]
    found = Series(
        series=whole(rest, "series", 0),
        filename=text(rest, "filename"),
        folder=_folder(text(rest, "folder", ""), root),
        pattern=pattern,
        first=first,
        nframes=MAX_IMAGES if endless else whole(rest, "nframes", 1),
        endless=endless,
        shape=_shape(rest.pop("shape", None)),
        metadata=table(rest, "metadata"),
        present=text(rest, "present", "refuse"),
        resume=flag(rest, "resume", False),
        expect=table(rest, "expect"),
    )
    if found.nframes > MAX_IMAGES:
        raise Refused(f"arm: nframes is {found.nframes}, more than {MAX_IMAGES}")
    if found.nframes > 1 and not pattern.digits:
        raise Refused(
            f"arm: pattern is {pattern.before!r} for {found.nframes} images; it needs a number, like test_%05d.cbf"
        )
    if found.present not in PRESENT:
        raise Refused(f"arm: present is {show(found.present)}, not one of {', '.join(PRESENT)}")
    return found


def _folder(words: str, root: str) -> str:
    """Below the root, whatever links there are."""
    top = os.path.realpath(root)
    path = os.path.realpath(os.path.join(top, words))
    if path != top and not path.startswith(top.rstrip("/") + "/"):
        raise Refused(f"arm: folder is {show(words)}, not below {top}")
    return path


def _shape(value: Any) -> Optional[Tuple[int, int]]:
    if value is None:
        return None
    if not (isinstance(value, list) and len(value) == 2 and all(type(n) is int and 0 < n < 1 << 16 for n in value)):
        raise Refused(f"arm: shape is {show(value)}, not [rows, columns]")
    return value[0], value[1]


def _frames(rest: Request) -> Optional[int]:
    if rest.get("frames") is None:
        rest.pop("frames", None)
        return None
    return whole(rest, "frames", 0)


# --- the program -----------------------------------------------------------------------------------------------------


def _address(words: str) -> Tuple[str, int]:
    host, colon, port = words.rpartition(":")
    if not (colon and host and port.isdigit() and int(port) < 65536):
        raise argparse.ArgumentTypeError(f"{words!r} is not like 127.0.0.1:9999")
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
    host, port = given.control
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
            with Control(StreamOrders(stream, given.lease), host, port, guard.protect) as control:
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
