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
    """Puts the modules of an image together that come in messages of their own, from several senders, one ahead of the
    other. One image is waited for at a time; those that pass by meanwhile are not shown."""

    def __init__(self, series: int, modules: int) -> None:
        self.series = series
        self.modules = modules
        self._newest = [-1] * modules  # number that each module came to
        self._pieces: list[Piece | None] = [None] * modules
        self._absent: set[int] = set()  # modules that were waited for in vain; until they come
        self._number = -1  # of the image that is waited for; -1: any
        self._since = 0.0

    def add(self, frame: Frame, now: float) -> Shown | None:
        """The image that is complete with it, or as complete as it can be, or too late."""
        if self._number < 0:
            self._number, self._since = frame.number, now
        for module, data in enumerate((frame.data, *frame.more), frame.module):
            if module < self.modules:
                self._newest[module] = frame.number
                self._absent.discard(module)
                if frame.number == self._number:
                    self._pieces[module] = frame, data
        if all(newest >= self._number for m, newest in enumerate(self._newest) if m not in self._absent):
            return self._let_go(now)
        return self.overdue(now)

    def overdue(self, now: float) -> Shown | None:
        """What is there of an image whose other modules do not come."""
        if self._number < 0 or now - self._since <= LATE:
            return None
        self._absent = {module for module, newest in enumerate(self._newest) if newest < self._number}
        return self._let_go(now)

    def _let_go(self, now: float) -> Shown | None:
        """Next is one that no module has passed yet."""
        pieces, newest = tuple(self._pieces), max(self._newest)
        self._pieces = [None] * self.modules
        self._number, self._since = (newest + 1 if newest > self._number else -1), now
        first = next((piece for piece in pieces if piece is not None), None)
        return None if first is None else Shown(self.series, first[0], pieces)


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
