"""The thread that fetches pictures from one receiver, over its WebSocket, and makes colours of them. No Qt.

The next picture is asked for when the last one has been drawn: a slow screen gets fewer, never a queue of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidURI, WebSocketException

from taurus_gui import pictures
from taurus_gui.mailbox import Mailbox
from taurus_gui.pictures import Look, Picture

log = logging.getLogger(__name__)

RETRY = (0.3, 0.6, 1.0, 2.0)  # s
LIMIT = 3.0  # s for a connection
WHOLE_LIMIT = 20.0  # s for a full image
MOST_BYTES = 256_000_000  # of a message
END = 5.0  # s
RATE = 15.0  # pictures per second at most


class ImageLink:
    """`point_at` a receiver's HTTP address, then `wish`; pictures, status and series come through the mailbox."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._box = mailbox
        self._wish: dict[str, Any] = {"rate": RATE, "kind": "last", "method": "mean", "size": [768, 768]}
        self._look = Look()
        self._address = ""
        self._last: Picture | None = None
        self._unseen: Picture | None = None  # that came last
        self._socket: ClientConnection | None = None
        self._sent = ""
        self._series_of: object = None
        self._held = False
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="images", daemon=True)

    # --- from the GUI: all return at once -----------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()
        self._ready.wait()

    def close(self) -> None:
        """Bounded."""
        if self._thread.is_alive():
            self._post(self._main.cancel)
            self._thread.join(END)

    def point_at(self, address: str) -> None:
        """Another receiver, or none ("")."""
        self._post(self._point_at, address)

    def wish(self, **values: Any) -> None:
        """What is wanted from now on, in the words of the receiver's /ws."""
        self._post(self._want, values)

    def shown(self, number: int) -> None:
        """The picture with this id has been drawn."""
        self._post(self._want, {"shown": number})

    def look(self, look: Look) -> None:
        """Other colours, of the last picture too."""
        self._post(self._recolour, look)

    def hold(self, kind: str) -> None:
        """Fetch the newest image whole, and show it until `resume`."""
        self._post(lambda: self._loop.create_task(self._fetch_whole(kind)))

    def resume(self) -> None:
        self._post(self._resume)

    def _post(self, what: Callable[..., object], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the GUI ends
            self._loop.call_soon_threadsafe(what, *arguments)

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._main = self._loop.create_task(self._serve())
        self._ready.set()
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._main)
        for task in (left := asyncio.all_tasks(self._loop)):
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    async def _serve(self) -> None:
        attempts = 0
        while True:
            self._changed.clear()
            if not (address := self._address):
                await self._changed.wait()
                continue
            try:
                async with connect(
                    address.replace("http", "ws", 1) + "/ws",
                    max_size=MOST_BYTES,
                    max_queue=2,
                    compression=None,
                    open_timeout=LIMIT,
                    close_timeout=0.5,
                    ping_interval=5,
                    ping_timeout=5,
                    proxy=None,
                ) as socket:
                    attempts = 0
                    await self._converse(socket)
            except (OSError, TimeoutError, WebSocketException, InvalidHandshake, InvalidURI, ValueError) as exc:
                self._box.put("images", "", f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__)
            finally:
                self._socket = None
            wait = RETRY[min(attempts, len(RETRY) - 1)]
            attempts += 1
            changed = self._loop.create_task(self._changed.wait())
            try:
                await asyncio.wait((changed,), timeout=wait)
            finally:
                changed.cancel()

    async def _converse(self, socket: ClientConnection) -> None:
        self._socket, self._sent = socket, ""
        self._wish.pop("shown", None)
        self._box.put("images", "", "")
        await self._say()
        leaving = self._loop.create_task(self._changed.wait())
        coming = self._loop.create_task(socket.recv())
        try:
            while True:
                await asyncio.wait((coming, leaving), return_when=asyncio.FIRST_COMPLETED)
                if leaving.done():
                    return
                self._hear(await coming)
                coming = self._loop.create_task(socket.recv())
        finally:
            for task in (coming, leaving):
                task.cancel()
            await asyncio.gather(coming, leaving, return_exceptions=True)

    def _hear(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            picture = pictures.parse(message)
            self._unseen = picture
            if not self._held:
                self._show(picture)
            return
        told = json.loads(message)
        if told["type"] == "status":
            self._box.put("status", "", told)
            if self._series_of != (seen := (self._address, told.get("closings"))):
                self._series_of = seen
                self._loop.create_task(self._fetch_series())
        elif told["type"] == "pixel":
            self._box.put("pixel", "", told)
        elif told["type"] == "error":
            self._box.put("images", "", str(told["error"]))

    def _show(self, picture: Picture) -> None:
        self._last = pictures.coloured(picture, self._look)
        self._box.put("picture", "", self._last)

    def _point_at(self, address: str) -> None:
        if address != self._address:
            self._address = address
            self._changed.set()

    def _want(self, values: dict[str, Any]) -> None:
        self._wish |= values
        if self._socket is not None:
            self._loop.create_task(self._say())

    async def _say(self) -> None:
        text = json.dumps(self._wish)
        if self._socket is None or text == self._sent:
            return
        self._sent = text
        with contextlib.suppress(WebSocketException, OSError):
            await self._socket.send(text)

    def _recolour(self, look: Look) -> None:
        self._look = look
        if self._last is not None:
            self._show(self._last)

    def _resume(self) -> None:
        self._held = False
        if self._unseen is not None:
            self._show(self._unseen)  # once it is drawn the next one comes

    async def _fetch_series(self) -> None:
        with contextlib.suppress(httpx.HTTPError, ValueError):
            async with httpx.AsyncClient(trust_env=False, timeout=LIMIT) as client:
                answer = await client.get(f"{self._address}/series")
                self._box.put("series", "", answer.json().get("series", []))

    async def _fetch_whole(self, kind: str) -> None:
        """Exact, all pixels, with the values that are marked."""
        asked = {"format": "raw", "kind": kind, "downsample": "1"}
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=WHOLE_LIMIT) as client:
                answer = await client.get(f"{self._address}/last_frame", params=asked)
        except httpx.HTTPError as exc:
            self._box.append("notes", f"The full image could not be fetched: {exc or type(exc).__name__}")
            return
        if answer.status_code != 200:
            self._box.append("notes", f"The full image could not be fetched: {_sentence(answer)}")
            return
        told = answer.headers
        rows, columns = _shape(told["X-Shape"])
        pixels = np.frombuffer(answer.content, np.dtype(told["X-Dtype"])).reshape(rows, columns)
        self._held = True
        before = self._last
        picture = Picture(
            pixels,
            None,
            (0, 0, rows, columns),
            (rows, columns),
            kind=kind,
            series=int(told["X-Series"]),
            number=int(told["X-Frame"]),
            frames=int(told["X-Frames"]),
            source=str(pixels.dtype),
            came=before.came if before and before.number == int(told["X-Frame"]) else time.monotonic(),
            whole=True,
        )
        self._last = await self._loop.run_in_executor(None, pictures.coloured, _marked(picture), self._look)
        self._box.put("picture", "", self._last)


def _shape(text: str) -> tuple[int, int]:
    """Rows and columns; modules below each other."""
    numbers = [int(n) for n in text.split(",")]
    return int(np.prod(numbers[:-1])), numbers[-1]


def _marked(picture: Picture) -> Picture:
    """The largest number of an unsigned type stands for a masked pixel."""
    if picture.pixels.dtype.kind != "u" or picture.pixels.dtype.itemsize == 1:
        return picture
    full = picture.pixels == np.iinfo(picture.pixels.dtype).max
    return replace(picture, marks=full.astype(np.uint8)) if full.any() else picture


def _sentence(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError):
        return f"HTTP {answer.status_code}"
