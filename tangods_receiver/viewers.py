"""Viewers on WebSockets: each says what it wants to see, and gets a picture when it has shown the one before.

A slow viewer gets fewer pictures, never a queue of them; viewers that look at the same share its decoding and cutting
out. All of this runs in the event loop of the HTTP side; what takes time runs in its threads."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Coroutine
from functools import partial
from typing import Annotated, Any, Protocol

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.websockets import WebSocket, WebSocketDisconnect

from tangods_receiver import __version__, pictures
from tangods_receiver.errors import DaqError
from tangods_receiver.imaging import Method
from tangods_receiver.live import Kind, LastFrame
from tangods_receiver.protocol import SeriesStart
from tangods_receiver.stats import Snapshot

log = logging.getLogger(__name__)

MOST = 24  # viewers at a time
WAIT = 0.1  # s that a thread waits for a new image; a viewer that changes its mind waits as long
STATUS_PERIOD = 0.5  # s
RENDERED = 2  # views cut out at a time
TRY_LATER = 1013  # close code
ALIGN = 8  # bytes: the pixels in a message begin at a multiple of it

Side = Annotated[int, Field(ge=0, le=1_000_000)]
Length = Annotated[int, Field(ge=1, le=pictures.SIDE)]


class Wish(BaseModel):
    """What a viewer says; what it leaves out stays as it was. `region` first row, first column, row and column after
    the last, in pixels of the detector (null: all); `size` rows and columns of its window; `rate` pictures per second
    at most; `saturation` the value from which a pixel is marked (null: what the stream says); `pixel` row and column
    of which it wants the value; `shown` the id of the picture that it has shown, upon which it gets the next."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind = "last"
    channel: Annotated[int, Field(ge=0, le=1000)] = 0
    region: tuple[Side, Side, Side, Side] | None = None
    size: tuple[Length, Length] = (1024, 1024)
    method: Method = "mean"
    rate: Annotated[float, Field(ge=0.1, le=50)] = 10.0
    saturation: Annotated[float | None, Field(allow_inf_nan=False)] = None
    pixel: tuple[Side, Side] | None = None
    shown: int = 0


class Shown(Protocol):
    """What of an engine viewers see."""

    def snapshot(self) -> Snapshot: ...
    def announced(self, series: int) -> SeriesStart | None: ...
    def silence(self) -> float: ...
    def last_frame(
        self, kind: Kind = ..., newer_than: tuple[int, ...] | None = ..., wait: float = ..., channel: int = ...
    ) -> LastFrame | None: ...


class Shot:
    """An image that viewers share, and the views of it that were cut out already."""

    def __init__(self, image: LastFrame, start: SeriesStart | None, age: float) -> None:
        self.image = image
        self.known = pictures.knowledge(image.masked, start)
        self.channels = () if start is None else start.channels
        self.id = image.id
        self.came = time.monotonic() - age
        self.views: dict[tuple[Any, ...], asyncio.Task[pictures.View]] = {}

    def knowledge(self, wish: Wish) -> pictures.Knowledge:
        return self.known if wish.saturation is None else self.known._replace(saturation=wish.saturation)

    def pixel(self, wish: Wish) -> dict[str, Any] | None:
        """The value that a viewer asked for; None: it did not, or there is no such pixel."""
        if wish.pixel is None:
            return None
        try:
            return pictures.pixel(self.image.array, *wish.pixel, self.knowledge(wish))
        except IndexError:
            return None


class Hub:
    """The newest image of each kind that somebody looks at."""

    def __init__(self, engine: Shown) -> None:
        self.engine = engine
        self._viewers = 0
        self._shots: dict[tuple[Kind, int], Shot] = {}
        self._fetching: dict[tuple[Kind, int], asyncio.Task[None]] = {}
        self._errors: dict[tuple[Kind, int], str] = {}
        self._turns = asyncio.Semaphore(RENDERED)

    async def serve(self, socket: WebSocket) -> None:
        """One viewer, until it goes or the server ends."""
        await socket.accept()
        if self._viewers >= MOST:
            await socket.close(TRY_LATER, f"{MOST} viewers are looking already")
            return
        self._viewers += 1
        try:
            await Viewer(self, socket).run()
        finally:
            self._viewers -= 1
            if not self._viewers:  # images are large
                self._shots.clear()

    async def newer(self, wish: Wish, seen: tuple[int, ...] | None) -> Shot | None:
        """An image of that kind that is not `seen`; None: there is none for now. It waits a little."""
        key = wish.kind, wish.channel
        shot = self._shots.get(key)
        if shot is None or shot.id == seen:
            await asyncio.shield(self._fetch(key))
            shot = self._shots.get(key)
        return None if shot is None or shot.id == seen else shot

    def _fetch(self, key: tuple[Kind, int]) -> asyncio.Task[None]:
        """One thread looks for a newer image, however many wait for it."""
        task = self._fetching.get(key)
        if task is None:
            task = self._fetching[key] = asyncio.create_task(self._look(key))
            task.add_done_callback(lambda _: self._fetching.pop(key, None))
        return task

    async def _look(self, key: tuple[Kind, int]) -> None:
        kind, channel = key
        before = self._shots.get(key)
        ask = partial(self.engine.last_frame, kind, before.id if before else None, WAIT, channel)
        try:
            image = await run_in_threadpool(ask)
        except DaqError as exc:  # a damaged image, or no such channel
            image, self._errors[key] = None, str(exc)
        else:
            self._errors.pop(key, None)
        if image is None:
            if before is None or key in self._errors:
                await asyncio.sleep(WAIT)
        elif self._viewers and (before is None or before.id != image.id):
            self._shots[key] = Shot(image, self.engine.announced(image.series), self.engine.silence())

    def error(self, wish: Wish) -> str:
        """Why there is no image of that kind; "": for no fault."""
        return self._errors.get((wish.kind, wish.channel), "")

    async def view(self, shot: Shot, wish: Wish) -> pictures.View:
        """What the viewer wants of it; cut out once for all who want the same."""
        key = wish.region, wish.size, wish.method, wish.saturation
        task = shot.views.get(key)
        if task is None:
            task = shot.views[key] = asyncio.create_task(self._cut_out(shot, wish))
        return await asyncio.shield(task)

    async def _cut_out(self, shot: Shot, wish: Wish) -> pictures.View:
        cut = partial(pictures.view, shot.image.array, wish.region, 0, wish.size, wish.method, shot.knowledge(wish))
        async with self._turns:
            view = await run_in_threadpool(cut)
        return view._replace(pixels=pictures.plain(view.pixels))


class Viewer:
    """One connection."""

    def __init__(self, hub: Hub, socket: WebSocket) -> None:
        self._hub = hub
        self._socket = socket
        self._wish = Wish()
        self._told = asyncio.Event()  # it said something
        self._sent = 0  # id of the last picture
        self._shot: Shot | None = None  # that it sees

    async def run(self) -> None:
        """Three tasks; when one ends, all do."""
        tasks = [asyncio.create_task(part) for part in (self._listen(), self._pictures(), self._status())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception) and not isinstance(end, WebSocketDisconnect | OSError | RuntimeError):
                log.error("a viewer's connection ended: %s: %s", type(end).__name__, end, exc_info=end)

    async def _listen(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text") or message.get("bytes") or b""
            try:
                said = Wish.model_validate_json(text)
            except ValidationError as exc:
                wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'message'}: {e['msg']}" for e in exc.errors())
                await self._send({"type": "error", "error": wrong[:1000]})
                continue
            self._wish = self._wish.model_copy(update={name: getattr(said, name) for name in said.model_fields_set})
            if "pixel" in said.model_fields_set and self._shot is not None:
                shot = self._shot
                await self._send(
                    {"type": "pixel", "series": shot.id[0], "number": shot.id[1], **_pixel(shot, self._wish)}
                )
            self._told.set()

    async def _pictures(self) -> None:
        seen: tuple[int, ...] | None = None
        error = ""
        before: tuple[Any, ...] = ()
        due = 0.0
        await self._told.wait()  # before that nobody knows how large its window is
        while True:
            self._told.clear()
            wish = self._wish
            if wish.shown != self._sent:
                await self._told.wait()
                continue
            wanted = wish.kind, wish.channel, wish.region, wish.size, wish.method, wish.saturation
            if wanted == before and (early := due - time.monotonic()) > 0:
                await _within(early, self._told.wait())
                continue
            shot = await self._hub.newer(wish, seen if wanted == before else None)
            if error != (error := self._hub.error(wish)) and error:
                await self._send({"type": "error", "error": error})
            if shot is None:
                continue
            view = await self._hub.view(shot, wish)
            self._sent += 1
            self._shot, seen, before = shot, shot.id, wanted
            due = time.monotonic() + 1.0 / wish.rate
            await self._socket.send_bytes(message(self._sent, shot, self._wish, view))

    async def _status(self) -> None:
        while True:
            await self._send({"type": "status", "version": __version__, **self._hub.engine.snapshot().as_dict()})
            await asyncio.sleep(STATUS_PERIOD)

    async def _send(self, values: dict[str, Any]) -> None:
        await self._socket.send_text(orjson.dumps(values).decode())


async def _within(seconds: float, what: Coroutine[Any, Any, Any]) -> None:
    """Not `wait_for`, which before Python 3.12 may take no notice of being cancelled: its viewer would remain."""
    task = asyncio.create_task(what)
    try:
        await asyncio.wait((task,), timeout=seconds)
    finally:
        task.cancel()


def _pixel(shot: Shot, wish: Wish) -> dict[str, Any]:
    return {"pixel": shot.pixel(wish)}


def message(number: int, shot: Shot, wish: Wish, view: pictures.View) -> bytes:
    """Length of the header (4 bytes, little-endian), the header as JSON, blanks up to a multiple of 8, the pixels, and
    a byte for each pixel that says whether it is marked, if any is."""
    image = shot.image
    header = {
        "type": "picture",
        "id": number,
        "kind": wish.kind,
        "channel": wish.channel,
        "channels": shot.channels,
        "series": image.series,
        "number": image.number,
        "frames": image.frames,
        "timestamp": None if math.isnan(image.timestamp) else image.timestamp,
        "age": round(time.monotonic() - shot.came, 3),
        "shape": view.pixels.shape,
        "dtype": view.pixels.dtype.name,
        "source": image.array.dtype.name,
        "region": view.region,
        "full": view.full,
        "factor": view.factor,
        "method": wish.method,
        "marks": view.marks is not None,
        **_pixel(shot, wish),
    }
    text = orjson.dumps(header)
    text += b" " * (-(4 + len(text)) % ALIGN)
    marks = b"" if view.marks is None else view.marks.tobytes()
    return b"".join([len(text).to_bytes(4, "little"), text, view.pixels.data.cast("B"), marks])
