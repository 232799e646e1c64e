"""From the modules of an image, as they come, to one picture; and which of its pixels have no value. Pure."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tangods_receiver import imaging
from tangods_receiver.errors import ConfigError, StreamError
from tangods_receiver.geometry import Placement, from_metadata, place
from tangods_receiver.protocol import Buffer, Frame, SeriesStart
from tangods_receiver.transforms import Chain

log = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]
LATE = 1.0  # s that modules of an image are waited for

Piece = tuple[Frame, Buffer]  # a module: the message that it came in, and its own part of it


class Shown(NamedTuple):
    """The newest image: one message, or (`pieces`) the modules that came in messages of their own, None: it is lost."""

    series: int
    frame: Frame
    pieces: tuple[Piece | None, ...] = ()


class Collector:
    """Puts the modules of an image together that come in messages of their own, one sender or worker ahead of the
    other. Two images are waited for: one until it is whole, and the newest, which the next newer one displaces; so
    something is shown while the senders are far apart, and the last image is when they have ended."""

    def __init__(self, series: int, modules: int) -> None:
        self.series = series
        self.modules = modules
        self._waiting: dict[int, list[Piece | None]] = {}  # by number of the image
        self._absent: set[int] = set()  # modules that were waited for in vain; until they come
        self._last = -1  # number of the image that was shown last
        self._since: float | None = None  # that frames came and nothing was shown

    def add(self, frame: Frame, now: float) -> Shown | None:
        """The image that is whole with it, or is given up waiting for."""
        if self._since is None:
            self._since = now
        modules = range(frame.module, min(self.modules, frame.module + 1 + len(frame.more)))
        self._absent.difference_update(modules)
        if (pieces := self._place(frame.number)) is not None:
            for module, data in zip(modules, (frame.data, *frame.more), strict=False):
                pieces[module] = frame, data
            if all(piece is not None or module in self._absent for module, piece in enumerate(pieces)):
                return self._let_go(frame.number, now)
        return self.overdue(now)

    def overdue(self, now: float) -> Shown | None:
        """What is there of an image whose other modules do not come."""
        if self._since is None or now - self._since <= LATE:
            return None
        if not self._waiting:  # all that comes is older than what was shown: the sender began again
            self._last, self._since = -1, None
            return None
        images = self._waiting.values()
        self._absent = {module for module in range(self.modules) if all(pieces[module] is None for pieces in images)}
        return self._let_go(min(self._waiting), now)

    def _place(self, number: int) -> list[Piece | None] | None:
        """Where the modules of this image go; None: it is not waited for."""
        waiting = self._waiting
        if number not in waiting and number > max((self._last, *waiting)):
            if len(waiting) == 2:
                del waiting[max(waiting)]
            waiting[number] = [None] * self.modules
        return waiting.get(number)

    def _let_go(self, number: int, now: float) -> Shown | None:
        pieces = self._waiting[number]
        self._waiting = {other: found for other, found in self._waiting.items() if other > number}
        self._last, self._since = number, now if self._waiting else None
        first = next((piece for piece in pieces if piece is not None), None)
        return None if first is None else Shown(self.series, first[0], tuple(pieces))


class Mosaic:
    """What the start of a series says about its images: channels, the places of modules, the mask of pixels."""

    def __init__(self, start: SeriesStart | None = None, chain: Chain | None = None) -> None:
        self._start = start
        self._chain = chain or Chain()
        self._masks: dict[tuple[int, tuple[int, ...]], Array | None] = {}
        self._placement: tuple[tuple[int, ...], Placement | None] | None = None

    def chosen(self, modules: int, channel: int) -> range:
        """The modules that make the picture of this channel. ConfigError: there is no such channel."""
        names = self._start.channels if self._start is not None else ()
        channels = modules if names and modules > 1 else 1
        if not 0 <= channel < channels:
            has = f"channels 0 to {channels - 1} ({', '.join(names)})" if channels > 1 else "one channel, 0"
            raise ConfigError(f"channel {channel}: the stream has {has}")
        return range(channel, channel + 1) if channels > 1 else range(modules)

    def picture(self, modules: Sequence[Array | None]) -> Array:
        """One image: the module itself, or modules that are not turned where the start message says that they are;
        else (modules, rows, columns). Modules that are None, and the gaps, have no value."""
        known = next((module for module in modules if module is not None), None)
        if known is None:
            raise StreamError("no module of the image came")
        if any(module is not None and module.shape != known.shape for module in modules):
            raise StreamError("the modules of the image differ in size")
        if len(modules) == 1:
            return known
        placement = self._place(len(modules), known.shape)
        empty = imaging.no_value(known.dtype)
        shape = (len(modules), *known.shape) if placement is None else placement.full_shape
        image = np.empty(shape, known.dtype) if placement is None else np.full(shape, empty, known.dtype)
        rows, columns = known.shape
        for k, module in enumerate(modules):
            where: Any = k
            if placement is not None:
                row, column = placement.corners[k]
                where = slice(row, row + rows), slice(column, column + columns)
            image[where] = empty if module is None else module
        return image

    def masked(self, shape: tuple[int, ...], channel: int) -> Array | None:
        """True where the stream says that a pixel has no value; None: it does not say, or not for such an image."""
        key = channel, shape
        if key not in self._masks:
            self._masks[key] = self._read_mask(shape, channel)
        return self._masks[key]

    def _place(self, modules: int, shape: tuple[int, ...]) -> Placement | None:
        if self._placement is None or self._placement[0] != (modules, *shape):
            placement = None
            try:
                geometry = from_metadata(self._start.metadata, modules) if self._start is not None else None
                if geometry is not None and geometry.aligned and not geometry.planes:
                    placement = place(geometry, (shape[0], shape[1]))
            except ConfigError as exc:
                log.warning("the modules are shown below each other, their geometry is of no use: %s", exc)
            self._placement = (modules, *shape), placement
        return self._placement[1]

    def _read_mask(self, shape: tuple[int, ...], channel: int) -> Array | None:
        if self._start is None:
            return None
        arrays, names = self._start.arrays, self._start.channels
        own = f"{names[channel]}/pixel_mask" if channel < len(names) else ""
        found = arrays.get(own) or arrays.get("pixel_mask")
        if found is None:
            return None
        try:
            mask = np.frombuffer(found.data, np.dtype(found.dtype).newbyteorder("<")).reshape(found.shape) != 0
            mask = self._moved(mask)
            if mask.ndim == 3 and len(shape) == 2:
                mask = self.picture(list(mask))
        except (ValueError, TypeError, StreamError) as exc:
            log.warning("the pixel mask of the stream is of no use: %s", exc)
            return None
        if mask.size != np.prod(shape) or mask.shape[-1] != shape[-1]:
            return None
        return mask.reshape(shape)

    def _moved(self, mask: Array) -> Array:
        """Where the masked pixels are after the transforms."""
        if mask.ndim == 3:
            return np.stack([self._chain.moved(module, k) for k, module in enumerate(mask)])
        return self._chain.moved(mask, 0)
