"""The Lambda unit as a program, and its orders."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from tangods_detector import __version__
from tangods_detector.hw.lambda_series import UnitOptions
from tangods_detector.hw.lambda_system import LambdaSystem
from tangods_detector.hw.lambda_unit import Unit
from tangods_detector.orders import (
    Act,
    Control,
    Orders,
    Protect,
    Refused,
    Request,
    flag,
    nobody_is_refused,
    number,
    show,
    table,
    text,
    whole,
)
from tangods_receiver import logs, security
from tangods_receiver.errors import DaqError, HardwareError
from tangods_receiver.gate import secure_server
from tangods_receiver.security import Guard

QUESTIONS = frozenset({"ping", "status", "get"})
MAX_FRAMES = 1 << 40


class UnitOrders(Orders):
    """Requests for one unit."""

    program = "stream-lambda"
    questions = QUESTIONS
    refusals = (Refused, HardwareError)

    def __init__(self, unit: Unit, lease: float = 10.0) -> None:
        super().__init__(lease)
        self._unit = unit

    def commands(self) -> dict[str, Callable[[Request], Act]]:
        unit = self._unit
        return {
            "status": lambda rest: unit.status,
            "describe": lambda rest: lambda: {"description": asdict(unit.describe())},
            "get": self._get,
            "set": self._set,
            "configure": self._configure,
            "arm": self._arm,
            "start": lambda rest: lambda: {"start": unit.start()},
            "stop": lambda rest: unit.stop,
            "reset": lambda rest: unit.reset,
        }

    def about(self) -> Request:
        return {"endpoints": self._unit.endpoints, "first": self._unit.options.first}

    def _get(self, rest: Request) -> Act:
        name, module = text(rest, "name"), _module(rest)
        return lambda: {"value": self._unit.get(name, module)}

    def _set(self, rest: Request) -> Act:
        return partial(self._unit.set, text(rest, "name"), _value(rest.pop("value", None), "value"), _module(rest))

    def _configure(self, rest: Request) -> Act:
        wanted = {name: _value(value, name) for name, value in table(rest, "settings").items()}
        return partial(self._unit.configure, wanted)

    def _arm(self, rest: Request) -> Act:
        nframes = whole(rest, "nframes", 1)
        if nframes > MAX_FRAMES:
            raise Refused(f"arm: nframes is {nframes}, more than {MAX_FRAMES}")
        return partial(
            self._unit.arm,
            series=whole(rest, "series", 0),
            filename=text(rest, "filename"),
            nframes=nframes,
            modules=whole(rest, "modules", 1),
            metadata=table(rest, "metadata"),
            per_start=whole(rest, "frames_per_start", 1, nframes),
            endless=flag(rest, "endless", False),
            ready_limit=number(rest, "ready_limit", 30.0),
            receiver_limit=number(rest, "receiver_limit", 10.0),
        )


def _module(rest: Request) -> int | None:
    if rest.get("module") is None:
        rest.pop("module", None)
        return None
    return whole(rest, "module", 0)


def _value(value: Any, name: str) -> Any:
    """What the vendor's interface can take."""
    kinds = (int, float, str)
    if type(value) in kinds or (isinstance(value, list | tuple) and all(type(one) in kinds for one in value)):
        return list(value) if isinstance(value, tuple) else value
    raise Refused(f"{name} is {show(value)}, not a number, a text, or a list of them")


# --- the program -----------------------------------------------------------------------------------------------------


def _address(words: str) -> tuple[str, int]:
    host, colon, port = words.rpartition(":")
    if not (colon and host and port.isdigit() and int(port) < 65536):
        raise argparse.ArgumentTypeError(f"{words!r} is not like 127.0.0.1:9010")
    return host, int(port)


def _protect(guard: Guard | None) -> Protect:
    """The same guard as of the streams."""
    if guard is None:
        return nobody_is_refused
    return lambda context, socket: secure_server(socket, guard).__enter__().close


def _parser(program: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Send the frames of the modules of one Lambda control unit to a StreamReceiver, each module at a "
        "port of its own. A Detector device says when, by the control address. Until SIGINT or SIGTERM.",
    )
    add = parser.add_argument
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--xspd", metavar="HOST[:PORT]", help="the unit's xspd (port 8008)")
    way.add_argument("--libxsp", metavar="LIBRARY", help="the wrapper of libxsp; resources/lambda/README.md builds it")
    add("--config", default="", metavar="FILE", help="libxsp: its system.yml [default: where libxsp looks for it]")
    add("--device", default="", metavar="ID", help="xspd: which device [default: the first]")
    add(
        "--stream",
        default="127.0.0.1:9010",
        type=_address,
        metavar="HOST:PORT",
        help="first module (default %(default)s)",
    )
    add("--control", default="127.0.0.1:9009", type=_address, metavar="HOST:PORT", help="orders (default %(default)s)")
    add(
        "--first",
        default=0,
        type=int,
        metavar="N",
        help="number of the first module in the image (default %(default)s)",
    )
    add(
        "--memory",
        default=512,
        type=int,
        metavar="MB",
        help="of frames on their way, each module (default %(default)s)",
    )
    add("--lag", default=10.0, type=float, metavar="S", help="waits for a silent module (default %(default)s s)")
    add("--lease", default=10.0, type=float, metavar="S", help="of a silent controller (default %(default)s s)")
    add("--curve-key", default="", metavar="FILE", help="own .key_secret: streams and orders are encrypted (CURVE)")
    add("--curve-clients", default="", metavar="DIR", help="public keys of those who may connect then")
    add("--allow-peers", default="", metavar="LIST", help="addresses, networks that may connect [default: all]")
    add("-v", "--verbose", action="store_true", help="log decisions, too")
    add("--version", action="version", version=__version__)
    return parser


def _system(given: argparse.Namespace) -> LambdaSystem:
    if given.libxsp:
        from tangods_detector.hw.lambda_libxsp import LambdaLibxsp, LibxspOptions

        return LambdaLibxsp(LibxspOptions(given.libxsp, given.config))
    from tangods_detector.hw.lambda_xspd import LambdaXspd, XspdOptions

    return LambdaXspd(XspdOptions(url=given.xspd, device=given.device))


def main(arguments: list[str] | None = None, program: str | None = None) -> int:
    """0: ended by a signal; 1: could not begin, and why is on stderr."""
    parser = _parser(program)
    given = parser.parse_args(arguments)
    if given.first < 0 or given.memory < 1:
        parser.error("--first is a number from 0, --memory from 1")
    logs.of_a_program(given.verbose)
    (host, port), (control_host, control_port) = given.stream, given.control
    peers = [peer.strip() for peer in given.allow_peers.split(",") if peer.strip()]
    stop = threading.Event()
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, lambda *_: stop.set())
    try:
        options = UnitOptions(
            host=host,
            port=port,
            first=given.first,
            memory=given.memory << 20,
            lag=given.lag,
            guard=security.guard(given.curve_key, given.curve_clients, peers),
        )
        protect = _protect(options.guard)
        with Unit(_system(given), options) as unit:
            with Control(UnitOrders(unit, given.lease), control_host, control_port, protect) as control:
                try:
                    names = ", ".join(module.name for module in unit.describe().modules)
                    sys.stdout.write(f"{names}: {', '.join(unit.endpoints)}, orders: {control.endpoint}\n")
                except HardwareError as exc:  # it is looked for again when the device asks
                    sys.stdout.write(f"no modules ({exc}), orders: {control.endpoint}\n")
                sys.stdout.flush()
                while not stop.wait(0.2):
                    if not unit.alive:
                        raise Refused("the unit's thread has ended; see the log")
    except (Refused, DaqError) as exc:
        sys.stderr.write(f"Error: {exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
