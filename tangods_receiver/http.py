"""The receiver's HTTP side, served by uvicorn in one thread: status, control, images, live view, metrics."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import re
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import numpy as np
import uvicorn
from fastapi import Body, Depends, FastAPI, Header, Query, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

from tangods_receiver import __version__, pictures
from tangods_receiver.access import Guard, Names, TokenFile
from tangods_receiver.errors import ConfigError, DaqError
from tangods_receiver.imaging import Method
from tangods_receiver.live import Kind, LastFrame
from tangods_receiver.metrics import Exposition
from tangods_receiver.pictures import encode_npy, encode_png, encode_raw
from tangods_receiver.protocol import SeriesStart
from tangods_receiver.protocol.stins import MAX_FRAMES
from tangods_receiver.rois import COLUMNS, Values
from tangods_receiver.stats import LiveStats, Past, Snapshot
from tangods_receiver.viewers import Hub

__all__ = ["HttpServer", "Receiver", "create_app", "encode_npy", "encode_png"]

log = logging.getLogger(__name__)

START_LIMIT = 10.0  # s, importing and binding on a busy machine included
PICTURES = 4  # images decoded at a time: each takes several times its size in memory
PICTURE_WAIT = 1.0  # s for a turn
NEW_WAIT = 0.02  # s between looks for a new image
STALLED = 30.0  # s that a peer may read nothing of what waits for it
SILENT = 20.0  # s that a new connection may take to ask something
ANSWERED, OPEN = 200, 250  # connections that are answered, and that may be open
STOP_LIMIT = 0.5  # s that open connections have to end by themselves
WISH_BYTES = 4096  # of a viewer's message
WEB = Path(__file__).parent / "web"

_HEADERS = [
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
]
_MEDIA = {"npy": "application/x-npy", "raw": "application/octet-stream", "png": "image/png", "jpeg": "image/jpeg"}


class Receiver(Protocol):
    """What of an engine is shown here; every method may be called from any thread and returns soon."""

    def snapshot(self) -> Snapshot: ...
    def history(self) -> list[Past]: ...
    def announced(self, series: int) -> SeriesStart | None: ...
    def silence(self) -> float: ...
    def stop(self, series: int | None = None) -> None: ...
    def begin(self, filename: str, nframes: int | None = None, metadata: Mapping[str, Any] | None = None) -> int: ...
    def reset(self) -> None: ...
    def check(self, path: str, nbytes: int, overwrite: bool = False) -> str: ...
    def set_rois(self, rois: Iterable[object]) -> None: ...
    def roi_history(self) -> np.ndarray[Any, Any]: ...
    def last_frame(
        self, kind: Kind = ..., newer_than: tuple[int, ...] | None = ..., wait: float = ..., channel: int = ...
    ) -> LastFrame | None: ...


class Failure(BaseModel):
    """What every refusal says: a sentence, and for errors of the receiver their kind."""

    error: str
    reason: str = ""


class Number(BaseModel):
    value: int


class Sentence(BaseModel):
    """Empty: fine; else what is in the way and what to do."""

    value: str


class Begun(BaseModel):
    series: int


class SeriesList(BaseModel):
    """Newest first."""

    series: list[Past]


class RoiHistory(BaseModel):
    """Rows: the last images in which regions of interest were measured, the oldest first. null: there is no value."""

    columns: list[str]
    rows: list[list[float | None]]


class Pixel(BaseModel):
    """`value` null: not a number."""

    series: int
    number: int
    row: int
    column: int
    value: int | float | None
    masked: bool
    saturated: bool


class Colormap(BaseModel):
    """`colours`: base64 of 256 times red, green, blue."""

    title: str
    colours: str


class Colormaps(BaseModel):
    """The colours of masked and saturated pixels are the same in all maps."""

    maps: dict[str, Colormap]
    masked: tuple[int, int, int]
    saturated: tuple[int, int, int]


_REGION = r"\d{1,7},\d{1,7},\d{1,7},\d{1,7}"
_ABOUT_IMAGE = {
    "X-Series": "id of the series",
    "X-Frame": "number of the image in its series",
    "X-Frames": "images that went into it (sum, max, average)",
    "X-Timestamp": "seconds, the detector's; nan: not known",
    "X-Region": "first row, first column, row and column after the last: what part of the image this is",
    "X-Factor": "by which it was made smaller",
    "X-Shape": "raw only: rows, columns (or modules, rows, columns)",
    "X-Dtype": "raw only: NumPy's name, such as <u2",
}
_IMAGE_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {media: {"schema": {"type": "string", "format": "binary"}} for media in _MEDIA.values()},
        "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in _ABOUT_IMAGE.items()},
        "description": "The image.",
    },
    204: {"description": "`newer` was given, and nothing newer came within `wait` seconds."},
    404: {"model": Failure, "description": "No image has been received yet."},
}


def create_app(
    engine: Receiver, bound: str = "127.0.0.1", hosts: Iterable[str] = (), token_file: TokenFile | None = None
) -> FastAPI:
    """The routes. Those that ask the engine run in threads: none can hold up the event loop.

    `bound` is the host that is listened at, `hosts` are more names for it, `token_file` holds what a POST needs."""
    turns = threading.BoundedSemaphore(PICTURES)
    exposition = Exposition(engine.snapshot)
    hub = Hub(engine)
    app = FastAPI(
        title="StreamReceiver",
        version=__version__,
        description="Status, control and images of a receiver. The live view is a WebSocket at /ws.",
        docs_url=None,
        redoc_url=None,
        responses={
            422: {"model": Failure, "description": "The question is not understood."},
            503: {"model": Failure, "description": "Not now; the sentence says why."},
            421: {"model": Failure, "description": "The Host is no name of this receiver."},
        },
    )
    app.add_middleware(Guard, names=Names(bound, hosts), token_file=token_file)
    changing: dict[str, Any] = {
        "dependencies": [Depends(HTTPBearer(auto_error=False, description="The token in http_token_file."))],
        "responses": {
            400: {"model": Failure, "description": "The receiver refuses; the sentence says why."},
            401: {"model": Failure, "description": "No token, or another."},
            403: {"model": Failure, "description": "Read-only (no token is configured), or a page of another host."},
        },
    }

    @app.get("/status", response_model=None, responses={200: {"model": Snapshot}})
    def status() -> dict[str, Any]:
        """Everything countable at one moment."""
        return engine.snapshot().as_dict()

    @app.get("/received_frames")
    def received_frames() -> Number:
        """Frames that came in the present or last series."""
        return Number(value=engine.snapshot().received)

    @app.get("/series")
    def series() -> SeriesList:
        """The last 50 series that are over."""
        return SeriesList(series=engine.history())

    @app.get("/check", responses={400: {"model": Failure}})
    def check(path: str, nbytes: int = Query(0, ge=0), overwrite: bool = False) -> Sentence:
        """Can a series of so many bytes be written to this file?"""
        return Sentence(value=engine.check(path, nbytes, overwrite))

    @app.post("/stop", response_model=None, **_with_200(changing, Snapshot))
    def stop(series: int | None = Body(None, embed=True)) -> dict[str, Any]:
        """Close the open series (if it has this id) with what came."""
        engine.stop(series)
        return engine.snapshot().as_dict()

    @app.post("/begin", **changing)
    def begin(
        filename: Annotated[str, Body(embed=True)],
        nframes: Annotated[int | None, Body(embed=True, ge=0, le=MAX_FRAMES)] = None,
        metadata: Annotated[dict[str, Any] | None, Body(embed=True)] = None,
    ) -> Begun:
        """Open a series of a stream that announces none."""
        return Begun(series=engine.begin(filename, nframes, metadata))

    @app.post("/reset", response_model=None, **_with_200(changing, Snapshot))
    def reset() -> dict[str, Any]:
        """Acknowledge the error."""
        engine.reset()
        return engine.snapshot().as_dict()

    def image(kind: Kind, channel: int, newer_than: tuple[int, int] | None = None) -> LastFrame | None:
        """Decoding takes memory: a few at a time."""
        if not turns.acquire(timeout=PICTURE_WAIT):
            raise HTTPException(503, f"{PICTURES} images are being fetched already: ask again")
        try:
            return engine.last_frame(kind, newer_than, 0.0, channel)
        finally:
            turns.release()

    @app.get("/last_frame", response_class=Response, responses=_IMAGE_RESPONSE)
    async def last_frame(
        format: Literal["npy", "png", "jpeg", "raw"] = "npy",
        kind: Kind = "last",
        channel: Annotated[int, Query(ge=0)] = 0,
        region: Annotated[
            str | None,
            Query(pattern=f"^{_REGION}$", description="first row,first column,row and column after the last"),
        ] = None,
        downsample: Annotated[int | None, Query(ge=1, le=10_000)] = None,
        size: Annotated[
            str | None, Query(pattern=r"^\d{1,5}(x\d{1,5})?$", description="rows x columns it shall fit into: 512x768")
        ] = None,
        method: Method = "mean",
        log: bool = False,
        colormap: pictures.Colours | None = None,
        min: Annotated[float | None, Query(allow_inf_nan=False)] = None,
        max: Annotated[float | None, Query(allow_inf_nan=False)] = None,
        saturation: Annotated[float | None, Query(allow_inf_nan=False)] = None,
        newer: Annotated[str | None, Query(pattern=r"^\d{1,20}:-?\d{1,20}$", description="series:number")] = None,
        wait: Annotated[float, Query(ge=0, le=60)] = 0.0,
    ) -> Response:
        """The newest image, or the sum, maximum or average of those that the live view looked at.

        `npy` and `raw` are exact; `png` and `jpeg` have eight bits for the eye, from `min` to `max` (left out: all but
        the brightest 0.1 percent), on a logarithmic scale with `log`; without a `colormap` they are grey, and masked
        pixels black."""
        newer_than = None if newer is None else _pair(newer)
        end = time.monotonic() + wait
        while (picture := await run_in_threadpool(image, kind, channel, newer_than)) is None:
            if time.monotonic() >= end:
                if newer_than is None:
                    return _error(404, "no image has been received yet")
                return Response(status_code=204, headers={"Cache-Control": "no-store"})
            await asyncio.sleep(NEW_WAIT)
        wanted = _Wanted(format, region, downsample, size, method, log, colormap, min, max, saturation)
        return await run_in_threadpool(_image_response, picture, engine, wanted)

    @app.get("/pixel", responses={404: {"model": Failure, "description": "No image yet, or no such pixel."}})
    def pixel(
        row: Annotated[int, Query(ge=0)],
        column: Annotated[int, Query(ge=0)],
        kind: Kind = "last",
        channel: Annotated[int, Query(ge=0)] = 0,
    ) -> Pixel:
        """The exact value of a pixel of the newest image."""
        picture = image(kind, channel)
        if picture is None:
            raise HTTPException(404, "no image has been received yet")
        known = pictures.knowledge(picture.masked, engine.announced(picture.series))
        try:
            found = pictures.pixel(picture.array, row, column, known)
        except IndexError as exc:
            raise HTTPException(404, str(exc)) from exc
        return Pixel(series=picture.series, number=picture.number, **found)

    @app.get("/rois")
    def rois() -> LiveStats:
        """The regions of interest and what was measured in them last."""
        return engine.snapshot().live

    @app.post("/rois", **changing)
    def set_rois(rois: Annotated[list[dict[str, Any] | str], Body(embed=True)]) -> LiveStats:
        """Others from now on: objects of name, x, y, width, height, or lines with these words."""
        engine.set_rois(rois)
        return engine.snapshot().live

    @app.get("/rois/history")
    def roi_history() -> RoiHistory:
        """What was measured in the last images."""
        names = [f"{roi.name}.{what}" for roi in engine.snapshot().live.rois for what in Values._fields]
        table = engine.roi_history()
        rows = [[None if value != value else value for value in row] for row in table.tolist()]
        return RoiHistory(columns=[*COLUMNS, *names], rows=rows if table.shape[1] == len(COLUMNS) + len(names) else [])

    @app.get("/colormaps")
    def colormaps() -> Colormaps:
        """The colour maps of images and of the live page."""
        return Colormaps(**pictures.colormaps())

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def metrics(accept: str = Header("")) -> Response:
        """For Prometheus."""
        text, media = exposition.encode(accept)
        return Response(text, media_type=media)

    @app.websocket("/ws")
    async def ws(socket: WebSocket) -> None:
        await hub.serve(socket)

    _serve_page(app)

    @app.exception_handler(RequestValidationError)
    def not_valid(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, RequestValidationError)
        wrong = (f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in exc.errors())
        return _error(422, "; ".join(wrong))

    @app.exception_handler(HTTPException)
    def not_there(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)
        return _error(exc.status_code, f"{request.method} {request.url.path}: {exc.detail}")

    @app.exception_handler(DaqError)
    def refused(request: Request, exc: Exception) -> Response:
        return _error(400 if isinstance(exc, ConfigError) else 503, str(exc), type(exc).__name__)

    return app


def _with_200(more: dict[str, Any], model: Any) -> dict[str, Any]:
    return {**more, "responses": {200: {"model": model}, **more["responses"]}}


def _error(code: int, sentence: str, reason: str = "") -> JSONResponse:
    return JSONResponse({"error": sentence, **({"reason": reason} if reason else {})}, code)


# --- images ----------------------------------------------------------------------------------------------------------


class _Wanted(NamedTuple):
    """How an image is asked for; the query as it came."""

    format: str
    region: str | None
    downsample: int | None
    size: str | None
    method: Method
    log: bool
    colormap: pictures.Colours | None
    min: float | None
    max: float | None
    saturation: float | None


def _image_response(picture: LastFrame, engine: Receiver, wanted: _Wanted) -> Response:
    known = pictures.knowledge(picture.masked, engine.announced(picture.series))
    if wanted.saturation is not None:
        known = known._replace(saturation=wanted.saturation)
    drawn = wanted.format in ("png", "jpeg")
    if drawn or wanted.region or wanted.downsample or wanted.size:
        shown = pictures.view(
            picture.array, _region(wanted.region), wanted.downsample or 0, _size(wanted.size), wanted.method, known
        )
    else:  # as it came, modules and all
        rows, columns = pictures.flat(picture.array).shape
        shown = pictures.View(picture.array, None, (0, 0, rows, columns), 1, (rows, columns))
    headers = {
        "X-Frame": str(picture.number),
        "X-Series": str(picture.series),
        "X-Frames": str(picture.frames),
        "X-Timestamp": repr(float(picture.timestamp)),
        "X-Region": ",".join(map(str, shown.region)),
        "X-Factor": str(shown.factor),
        "Cache-Control": "no-store",
    }
    if drawn:
        image = pictures.drawn(shown, wanted.colormap, wanted.min, wanted.max, wanted.log)
        content = pictures.encode_picture(image, "png" if wanted.format == "png" else "jpeg")
    elif wanted.format == "raw":
        content, more = encode_raw(shown.pixels)
        headers |= more
    else:
        content = encode_npy(shown.pixels)
    return Response(content, media_type=_MEDIA[wanted.format], headers=headers)


def _pair(text: str) -> tuple[int, int]:
    first, _, second = text.partition(":")
    return int(first), int(second)


def _region(text: str | None) -> pictures.Region | None:
    if text is None:
        return None
    top, left, bottom, right = map(int, text.split(","))
    return top, left, bottom, right


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    rows, _, columns = text.partition("x")
    return int(rows), int(columns or rows)


# --- the page --------------------------------------------------------------------------------------------------------


def _serve_page(app: FastAPI) -> None:
    """One page and its script; nothing from elsewhere is allowed in it."""
    html, script = (WEB / "index.html").read_bytes(), (WEB / "live.js").read_bytes()
    styles = re.findall(rb"<style>(.*?)</style>", html, re.S)
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s).digest()).decode()}'" for s in styles)
    policy = (
        f"default-src 'none'; script-src 'self'; style-src {hashes}; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return Response(html, media_type="text/html; charset=utf-8", headers=headers)

    @app.get("/live.js", include_in_schema=False)
    def live_script() -> Response:
        return Response(script, media_type="text/javascript; charset=utf-8", headers={"Cache-Control": "no-cache"})


# --- the server ------------------------------------------------------------------------------------------------------


class _Connection(H11Protocol):
    """Cut off at once when there are too many, whose descriptors files would lack, and when nobody asks anything."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > OPEN:
            transport.abort()
        else:
            self.loop.call_later(SILENT, self._cut_silent)

    def _cut_silent(self) -> None:
        asked: object = self.cycle
        if asked is None and self in self.connections:  # a WebSocket is no longer in there
            self.transport.abort()


class _Server(uvicorn.Server):
    """Connections whose peer does not read are cut at the end: what waits for them would never leave."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for connection in list(self.server_state.connections):
            transport = connection.transport
            if transport is not None and transport.get_write_buffer_size():
                transport.abort()
        await super().shutdown(sockets)


class HttpServer:
    """Serves `engine` at "host:port" from `start` to `stop`; port 0 takes a free one, `port` tells which.

    `hosts` are names by which it may be asked besides its own; `token_file` makes POST possible: it is written, with
    a new token, where there is none yet."""

    def __init__(
        self, engine: Receiver, address: str, hosts: Iterable[str] = (), token_file: str | Path | None = None
    ) -> None:
        self.address = address
        self.port = 0
        self._engine = engine
        self._hosts = tuple(hosts)
        self._token_file = TokenFile(token_file) if token_file else None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Accepts connections when it returns; ConfigError when the address is not one or is taken, or when the token
        file cannot be used."""
        if self._token_file is not None:
            if self._token_file.create():
                log.info("a new token for HTTP is in %s", self._token_file.path)
            self._token_file.read()
        sock = _bind(self.address)
        self.port = sock.getsockname()[1]
        host = self.address.rpartition(":")[0]
        config = uvicorn.Config(
            create_app(self._engine, host, self._hosts, self._token_file),
            loop="asyncio",
            http=_Connection,
            ws="websockets-sansio",
            ws_max_size=WISH_BYTES,
            ws_per_message_deflate=False,  # pixels hardly shrink, and it costs more than sending them
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            headers=_HEADERS,
            limit_concurrency=ANSWERED,
            timeout_graceful_shutdown=STOP_LIMIT,  # type: ignore[arg-type]  # asyncio takes fractions
        )
        server = self._server = _Server(config)  # installs no signal handlers outside the main thread
        self._thread = threading.Thread(target=self._run, args=(server, sock), name=f"http {self.port}", daemon=True)
        self._thread.start()
        end = time.monotonic() + START_LIMIT
        while not server.started:
            if not self._thread.is_alive() or time.monotonic() > end:
                self.stop()
                raise ConfigError(f"http {self.address}: the server did not start in {START_LIMIT:g} s; see the log")
            time.sleep(0.005)
        log.info("HTTP at %s:%d", self.address.rpartition(":")[0], self.port)

    @staticmethod
    def _run(server: uvicorn.Server, sock: socket.socket) -> None:
        with sock:
            server.run(sockets=[sock])

    def stop(self) -> None:
        """Ends what is being served within `STOP_LIMIT`, then the thread; safe twice."""
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(STOP_LIMIT + 5)
        if self._thread.is_alive():
            log.warning("the HTTP thread did not end; a request is stuck")
        self._server = self._thread = None

    def __enter__(self) -> HttpServer:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


def _bind(address: str) -> socket.socket:
    """A socket bound to "host:port" ("[::1]:8000" for IPv6)."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f'http: {address!r} is not "host:port", for example 127.0.0.1:8000 (port 0: any free one)')
    host = host.strip("[]")
    # with the protocol named, asyncio sends at once (TCP_NODELAY): 4 ms for an answer on a kept connection, else 48
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # accepted sockets inherit it; else an image that nobody reads stays in memory as long as the peer likes
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * STALLED))
    try:
        sock.bind((host, int(port)))
    except OSError as exc:
        sock.close()
        raise ConfigError(
            f"http {address}: {exc.strerror or exc}; end what uses this port, or choose another (0: any free one)"
        ) from exc
    return sock
