"""The receiver's HTTP side: status, check, stop, last image and metrics, served by uvicorn in one thread."""

from __future__ import annotations

import io
import logging
import socket
import threading
import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import uvicorn
from fastapi import Body, FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from PIL import Image
from starlette.exceptions import HTTPException

from tangods_receiver import __version__
from tangods_receiver.errors import ConfigError, DaqError
from tangods_receiver.metrics import Exposition
from tangods_receiver.protocol.stins import MAX_FRAMES
from tangods_receiver.stats import Snapshot

log = logging.getLogger(__name__)

START_LIMIT = 10.0  # s, importing and binding on a busy machine included
PICTURES = 4  # images decoded at a time: each takes several times its size in memory
PICTURE_WAIT = 1.0  # s for a turn
STOP_LIMIT = 0.5  # s that open connections have to end by themselves


class Picture(Protocol):
    """An image and where it comes from: `array` rows x columns, decoded; `timestamp` s, nan when not known."""

    @property
    def number(self) -> int: ...
    @property
    def series(self) -> int: ...
    @property
    def array(self) -> np.ndarray: ...
    @property
    def timestamp(self) -> float: ...


class Receiver(Protocol):
    """What of an engine is shown here; every method may be called from any thread and returns soon."""

    def snapshot(self) -> Snapshot: ...
    def stop(self, series: int | None = None) -> None: ...
    def begin(self, filename: str, nframes: int | None = None, metadata: Mapping[str, Any] | None = None) -> int: ...
    def reset(self) -> None: ...
    def check(self, path: str, nbytes: int, overwrite: bool = False) -> str: ...
    def last_frame(self) -> Picture | None: ...


def create_app(engine: Receiver) -> FastAPI:
    """The routes. They are plain functions, which FastAPI runs in threads: none can hold up the event loop."""
    turns = threading.BoundedSemaphore(PICTURES)
    exposition = Exposition(engine.snapshot)
    app = FastAPI(title="StreamReceiver", version=__version__, docs_url=None, redoc_url=None)

    @app.get("/status")
    def status() -> dict[str, Any]:
        return engine.snapshot().as_dict()

    @app.get("/received_frames")
    def received_frames() -> dict[str, int]:
        return {"value": engine.snapshot().received}

    @app.get("/check")
    def check(path: str, nbytes: int = Query(0, ge=0), overwrite: bool = False) -> dict[str, str]:
        return {"value": engine.check(path, nbytes, overwrite)}

    @app.post("/stop")
    def stop(series: int | None = Body(None, embed=True)) -> dict[str, Any]:
        engine.stop(series)
        return engine.snapshot().as_dict()

    @app.post("/begin")
    def begin(
        filename: Annotated[str, Body(embed=True)],
        nframes: Annotated[int | None, Body(embed=True, ge=0, le=MAX_FRAMES)] = None,
        metadata: Annotated[dict[str, Any] | None, Body(embed=True)] = None,
    ) -> dict[str, int]:
        return {"series": engine.begin(filename, nframes, metadata)}

    @app.post("/reset")
    def reset() -> dict[str, Any]:
        engine.reset()
        return engine.snapshot().as_dict()

    @app.get("/last_frame")
    def last_frame(format: Literal["npy", "png"] = "npy") -> Response:
        if not turns.acquire(timeout=PICTURE_WAIT):
            return _error(503, f"{PICTURES} images are being fetched already: ask again")
        try:
            return picture_response(format)
        finally:
            turns.release()

    def picture_response(format: str) -> Response:
        picture = engine.last_frame()
        if picture is None:
            return _error(404, "no image has been received yet")
        media, encode = ("application/x-npy", encode_npy) if format == "npy" else ("image/png", encode_png)
        headers = {
            "X-Frame": str(picture.number),
            "X-Series": str(picture.series),
            "X-Timestamp": repr(float(picture.timestamp)),
            "Cache-Control": "no-store",
        }
        return Response(encode(picture.array), media_type=media, headers=headers)

    @app.get("/metrics")
    def metrics(accept: str = Header("")) -> Response:
        text, media = exposition.encode(accept)
        return Response(text, media_type=media)

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


def _error(code: int, sentence: str, reason: str = "") -> JSONResponse:
    return JSONResponse({"error": sentence, **({"reason": reason} if reason else {})}, code)


def encode_npy(array: np.ndarray) -> bytes:
    """NumPy's own file format; never a pickle, which would let a server run code in its clients."""
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


def encode_png(array: np.ndarray) -> bytes:
    """Eight-bit grey for the eye: from the lowest value to the 99.9th percentile; masked pixels and gaps are black."""
    if array.ndim == 3:  # modules below each other
        array = array.reshape(-1, array.shape[-1])
    out = io.BytesIO()
    Image.fromarray(_grey(array)).save(out, "png", compress_level=1)
    return out.getvalue()


def _grey(array: np.ndarray) -> np.ndarray:
    """Values to 0..255. Unsigned maximum, negative counts and not-a-number mark pixels without a value."""
    if array.dtype.kind == "u":
        valid = array != np.iinfo(array.dtype).max if array.dtype.itemsize > 1 else np.ones(array.shape, bool)
    else:
        valid = np.isfinite(array) & (array >= 0)
    if not valid.any():
        return np.zeros(array.shape, np.uint8)
    step = max(1, array.size // 250_000)  # a sample is enough to find the contrast
    sample = array.reshape(-1)[::step][valid.reshape(-1)[::step]]
    if sample.size == 0:
        sample = array[valid]
    low, high = float(sample.min()), float(np.percentile(sample, 99.9))
    scaled = (np.where(valid, array, low).astype(np.float32) - low) * (255.0 / max(high - low, 1.0))
    return np.clip(scaled, 0, 255).astype(np.uint8)


class HttpServer:
    """Serves `engine` at "host:port" from `start` to `stop`; port 0 takes a free one, `port` tells which."""

    def __init__(self, engine: Receiver, address: str) -> None:
        self.address = address
        self.port = 0
        self._engine = engine
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Accepts connections when it returns; ConfigError when the address is not one or is taken."""
        sock = _bind(self.address)
        self.port = sock.getsockname()[1]
        config = uvicorn.Config(
            create_app(self._engine),
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            limit_concurrency=100,
            timeout_graceful_shutdown=STOP_LIMIT,  # type: ignore[arg-type]  # asyncio takes fractions
        )
        server = self._server = uvicorn.Server(config)  # installs no signal handlers outside the main thread
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
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, int(port)))
    except OSError as exc:
        sock.close()
        raise ConfigError(
            f"http {address}: {exc.strerror or exc}; end what uses this port, or choose another (0: any free one)"
        ) from exc
    return sock
