"""The HTTP side: URLs of the SIMPLON API to calls of the control unit, exact bodies and plain-text errors."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tangods_detector.simulators.eiger import table
from tangods_detector.simulators.eiger.failures import Failures
from tangods_detector.simulators.eiger.parameters import TIFF, Parameters, Refused, Stream
from tangods_detector.simulators.eiger.unit import ControlUnit
from tangods_receiver.errors import ConfigError

log = logging.getLogger(__name__)

JSON = "application/json; charset=utf-8"
MODULES = ("detector", "stream", "filewriter", "monitor", "system")

Drop = Callable[[Scope], None]


class App:
    """ASGI. `drop` closes the connection of a request, whatever state it is in."""

    def __init__(self, unit: ControlUnit, drop: Drop) -> None:
        self._unit = unit
        self._drop = drop
        self._left: set[asyncio.Future[Any]] = set()  # requests that go on without a connection

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        path = request.url.path
        if self._unit.down:
            await self._dropped(scope)
            return
        if path.startswith("/simulator/"):
            response: Response | None = await self._bench(request)
        else:
            response = await self._answer(request, scope)
        if response is None:
            await self._dropped(scope)
        else:
            await response(scope, receive, send)

    async def _dropped(self, scope: Scope) -> None:
        self._drop(scope)
        await asyncio.sleep(0.02)  # the server must have seen it before it misses our response

    async def _answer(self, request: Request, scope: Scope) -> Response | None:
        """None: the connection is to be dropped."""
        unit, path = self._unit, request.url.path
        failures = unit.failures
        body = await request.body()
        if failures.take_text("hang", path):
            unit.luck.note(f"hang {path}")
            await asyncio.sleep(failures.hang_seconds)
            return None
        if failures.take_text("server_error", path):
            unit.luck.note(f"server_error {path}")
            return text(500, f"Internal server error: {path}")
        if request.method == "PUT" and failures.take_text("refuse", path):
            unit.luck.note(f"refuse {path}")
            return text(400, f"Value refused: {path}")
        limit = unit.options.web_limit
        drop = failures.take_text("drop_connection", path)
        if drop:
            unit.luck.note(f"drop_connection {path}")
            limit = failures.drop_after
        work = asyncio.ensure_future(run_in_threadpool(self._serve, request, body))
        await asyncio.wait({work}, timeout=limit)
        if work.done() and not drop and not unit.down:
            return work.result()
        self._left.add(work)
        work.add_done_callback(self._left.discard)
        return None

    # --- in a thread -------------------------------------------------------------------------------------------------

    def _serve(self, request: Request, body: bytes) -> Response:
        path = request.url.path
        try:
            return self._route(request, path, [part for part in path.split("/") if part], body)
        except Refused as exc:
            return text(exc.status, exc.text)
        except Exception as exc:
            log.exception("%s %s", request.method, path)
            return text(500, f"Internal server error: {exc!r}")

    def _route(self, request: Request, path: str, parts: list[str], body: bytes) -> Response:
        unit = self._unit
        method = "GET" if request.method == "HEAD" else request.method
        if parts[:1] == ["data"]:
            return self._files(method, path, parts[1:])
        if len(parts) < 3 or parts[0] not in MODULES or parts[1] != "api":
            raise not_found(path)
        module, version, rest = parts[0], parts[2], parts[3:]
        if version == "version" and not rest and method == "GET":
            return reply({"value": unit.options.api, "value_type": "string"})
        if version != unit.options.api or not rest:
            raise not_found(path)
        kind, key = rest[0], "/".join(rest[1:])
        if kind == "config" and module != "system":
            return self._config(request, module, key, body, method)
        if kind == "status" and method == "GET":
            return self._read(unit.status[module], key, path)
        if kind == "command":
            return self._command(module, key, method, path, body)
        if kind == "files" and module == "filewriter" and method == "GET":
            return reply([])
        if kind == "images" and module == "monitor" and method == "GET":
            return self._images(request, rest[1:], path)
        raise not_found(path)

    def _config(self, request: Request, module: str, key: str, body: bytes, method: str) -> Response:
        unit, path = self._unit, request.url.path
        parameters: Parameters = {
            "detector": unit.detector,
            "stream": unit.stream,
            "filewriter": unit.filewriter,
            "monitor": unit.monitor_config,
        }[module]
        if method == "GET":
            if key in parameters.keys and TIFF in request.headers.get("accept", ""):
                return Response(unit.detector.as_tiff(key), media_type=TIFF)
            return self._read(parameters, key, path)
        if method != "PUT":
            raise Refused(405, f"{method} is not possible: {path}")
        if isinstance(parameters, Stream):
            values = {key: value_of(body)} if key else several(body)
            if any(name not in parameters.keys for name in values):
                raise not_found(path)
            return reply(unit.write_stream(values))
        if key not in parameters.keys:
            raise not_found(path)
        if module != "detector":
            return reply(parameters.write(key, value_of(body)))
        as_tiff = request.headers.get("content-type", "").startswith(TIFF)
        return reply(unit.write(key, body if as_tiff else value_of(body)))

    def _read(self, parameters: Parameters, key: str, path: str) -> Response:
        if key == "keys":
            return reply(parameters.listed())
        if key not in parameters.keys:
            raise not_found(path)
        return reply(parameters.read(key))

    def _command(self, module: str, name: str, method: str, path: str, body: bytes) -> Response:
        unit = self._unit
        known = (
            table.detector_commands(unit.model, unit.new)
            if module == "detector"
            else table.MODULE_COMMANDS.get(module, ())
        )
        if name == "keys" and method == "GET":
            return reply(sorted(known))
        if name not in known:
            raise not_found(path)
        if method != "PUT":
            raise Refused(405, f"{method} is not possible: {path}")
        if module == "detector":
            return reply(unit.command(name, value_of(body) if body.strip() else None))
        return reply(unit.module_command(module, name))

    def _images(self, request: Request, rest: list[str], path: str) -> Response:
        monitor = self._unit.monitor
        if not rest:
            return reply(monitor.listed())
        if rest == ["monitor"]:
            return Response(monitor.latest(), media_type=TIFF)
        if rest == ["next"]:
            try:
                wait = float(request.query_params.get("timeout", 500))
            except ValueError:
                raise Refused(400, "timeout is not a number of milliseconds") from None
            return Response(monitor.next(wait), media_type=TIFF)
        if len(rest) == 2 and rest[0].isdigit() and rest[1].isdigit():
            return Response(monitor.get(int(rest[0]), int(rest[1])), media_type=TIFF)
        raise not_found(path)

    def _files(self, method: str, path: str, rest: list[str]) -> Response:
        """No file is ever written."""
        if not rest and method == "GET":
            return reply([])
        raise not_found(path)

    # --- test only ---------------------------------------------------------------------------------------------------

    async def _bench(self, request: Request) -> Response:
        """What a pulse generator or bad luck does; no part of the vendor's API."""
        unit, path = self._unit, request.url.path
        try:
            told = json.loads(await request.body() or b"{}")
            if not isinstance(told, dict):
                raise ConfigError("the body is no JSON object")
            if path == "/simulator/edge" and request.method == "POST":
                unit.edge(int(told.get("n", 1)), float(told.get("width", 0.0)), told.get("period"))
                return reply({})
            if path == "/simulator/failures":
                if request.method == "POST":
                    await run_in_threadpool(unit.fail, Failures.from_json(told))
                return reply({"pending": unit.failures.pending(), "happened": unit.luck.happened})
        except (ConfigError, ValueError, TypeError) as exc:
            return text(400, str(exc))
        return text(404, f"Not found: {path}")


def reply(value: Any) -> Response:
    return Response(json.dumps(value, separators=(",", ":"), sort_keys=True), media_type=JSON)


def text(status: int, what: str) -> Response:
    return Response(what, status, media_type="text/plain")


def not_found(path: str) -> Refused:
    return Refused(404, f"Not found: {path}")


def value_of(body: bytes) -> Any:
    """Of `{"value": x}`. Refused: it is not that."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON") from None
    if not isinstance(told, dict) or "value" not in told:
        raise Refused(400, 'the body has no "value"')
    return told["value"]


def several(body: bytes) -> dict[str, Any]:
    """Of `{"key": {"value": x}, ...}`."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON") from None
    if not isinstance(told, dict) or not told:
        raise Refused(400, "the body is no object of keys")
    return {key: value_of(json.dumps(value).encode()) for key, value in told.items()}
