"""The HTTP side: paths and queries of xspd to calls of the unit."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tangods_detector.simulators.xspd.failures import Failures
from tangods_detector.simulators.xspd.unit import Unit
from tangods_detector.simulators.xspd.variables import COMMANDS, Refused
from tangods_receiver.errors import ConfigError

log = logging.getLogger(__name__)

API = {"api version": "1", "xspd version": "1.6.0"}


class App:
    """ASGI. `drop` closes the connection of a request."""

    def __init__(self, unit: Unit, drop: Callable[[Scope], None]) -> None:
        self._unit, self._drop = unit, drop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        if request.url.path.startswith("/simulator/"):
            response: Response | None = await self._bench(request)
        else:
            response = await self._answer(request)
        if response is None:
            self._drop(scope)
            await asyncio.sleep(0.02)  # the server must have seen it before it misses our response
        else:
            await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response | None:
        """None: the connection is to be dropped."""
        unit, failures = self._unit, self._unit.failures
        path = request.url.path + (f"?{unquote(request.url.query)}" if request.url.query else "")
        if failures.take_text("hang", path):
            unit.happened.append(f"hang {path}")
            await asyncio.sleep(failures.hang_seconds)
            return None
        if failures.take_text("server_error", path) or (failures.server_errors and failures.server_errors in path):
            unit.happened.append(f"server_error {path}")
            return problem(500, f"internal error: {path}")
        if request.method == "PUT" and failures.take_text("refuse", path):
            unit.happened.append(f"refuse {path}")
            return problem(400, f"command not accepted: {path}")
        return await run_in_threadpool(self._serve, request)

    def _serve(self, request: Request) -> Response:
        try:
            return reply(self._route(request, request.url.path.strip("/").split("/")))
        except Refused as exc:
            return problem(exc.status, exc.text)
        except Exception as exc:
            log.exception("%s %s", request.method, request.url)
            return problem(500, f"internal error: {exc!r}")

    def _route(self, request: Request, parts: list[str]) -> Any:
        unit, query, device = self._unit, request.query_params, self._unit.options.device
        method = "GET" if request.method == "HEAD" else request.method
        if method == "GET":
            if parts == ["api"]:
                return API
            if parts == ["api", "v1", "devices"]:
                href = f"{request.url.scheme}://{request.url.netloc}/api/v1/devices/{device}"
                return {"devices": [{"id": device, "type": "xsp", "href": href}]}
        if parts[:4] != ["api", "v1", "devices", device] or len(parts) > 5:
            raise Refused(404, f"not found: {request.url.path}")
        if method == "GET" and len(parts) == 4:
            return unit.described()
        kind = parts[4] if len(parts) == 5 else ""
        if kind == "variables" and method == "GET":
            return self._read(query.get("path"))
        if kind == "variables" and method == "PUT":
            path, value = needed(query.get("path"), "path"), needed(query.get("value"), "value")
            return {"path": path, "value": unit.write(path, value)}
        if kind == "commands" and method == "GET":
            return [
                {"path": f"{of}{name}", "description": words}
                for of in ("", "lambda/")
                for name, words in COMMANDS.items()
            ]
        if kind == "commands" and method == "PUT":
            return unit.command(needed(query.get("path"), "path"))
        raise Refused(404, f"not found: {method} {request.url.path}")

    def _read(self, path: str | None) -> Any:
        unit = self._unit
        if path is None:
            return unit.variables.listed()
        return {"path": path, "value": unit.info() if path == "info" else unit.read(path)}

    # --- test only ---------------------------------------------------------------------------------------------------

    async def _bench(self, request: Request) -> Response:
        """What a pulse generator or bad luck does; no part of the vendor's interface."""
        unit, path = self._unit, request.url.path
        try:
            told = json.loads(await request.body() or b"{}")
            if not isinstance(told, dict):
                raise ConfigError("the body is no JSON object")
            if path == "/simulator/edge" and request.method == "POST":
                taken = unit.edge(int(told.get("n", 1)), float(told.get("width", 0.0)), told.get("period"))
                return reply({"taken": taken})
            if path == "/simulator/failures":
                if request.method == "POST":
                    await run_in_threadpool(unit.fail, Failures.from_json(told))
                lost = unit.locked(lambda: {str(module): list(numbers) for module, numbers in unit.lost.items()})
                happened = list(unit.happened)
                return reply({"pending": unit.failures.pending(), "happened": happened, "lost": lost})
        except (ConfigError, ValueError, TypeError) as exc:
            return problem(400, str(exc))
        return problem(404, f"not found: {path}")


def needed(value: str | None, name: str) -> str:
    if value is None:
        raise Refused(400, f"{name}: missing in the query")
    return value


def reply(value: Any) -> Response:
    return Response(json.dumps(value, separators=(",", ":")), media_type="application/json")


def problem(status: int, what: str) -> Response:
    return Response(json.dumps({"error": what}), status, media_type="application/json")
