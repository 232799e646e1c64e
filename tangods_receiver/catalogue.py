"""What a commit writes, where and in which order: index, per-frame arrays, lengths. No I/O.

`add` takes the headers of records that lie in the file, `writes` gives (offset, bytes) that must reach the file in
this order: new nodes, then the root that leads to them, then what tells readers that there is more. The writer uses it
at each commit, recovery for all records at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from .chunkindex import ChunkIndex, Place, most_nodes, node_size, runs
from .nexus import ALL_COLUMNS, MISSING_TYPE, RANGE_BLOCK, TIME_COLUMNS, Places
from .records import INCOMPLETE, ImageLayout, Part, aligned

Write = tuple[int, bytes]

#: Column -> field of the record's header.
_FIELDS = {
    "timestamp": "timestamp",
    "arrival_time": "arrived",
    "sequence_number": "frame",
    "message_number": "serial",
    "frame_status": "status",
}
#: Column -> field of `records.TIMES`.
TIME_FIELDS = dict(zip(TIME_COLUMNS, ("stop", "real"), strict=True))
_STATUS = "frame_status"


class _Block:
    """The per-frame values of `size` consecutive frames; `low:high` are those that changed since they were written."""

    __slots__ = ("values", "modules", "incomplete", "low", "high", "new")

    def __init__(self, size: int, columns: Iterable[str]) -> None:
        self.values = {name: np.full(size, ALL_COLUMNS[name][1], ALL_COLUMNS[name][0]) for name in columns}
        self.modules = np.zeros(size, np.uint16)
        self.incomplete = np.zeros(size, bool)  # the sender said so of a module that came
        self.low, self.high = size, 0
        self.new = True


class Catalogue:
    """Everything about the frames of one file that readers find through the index."""

    def __init__(self, places: Places, layout: ImageLayout | None, length: int, part: Part | None = None) -> None:
        """`length`: of the datasets as they are in the file, in frames."""
        self._places = places
        self._part = part
        self._modules = layout.modules if layout else 1
        self._channels = len(layout.channels) if layout else 0
        # One, with all modules, or one for each channel.
        self._indexes = [
            ChunkIndex(layout.rank if layout else 3, 1 if self._channels else self._modules)
            for _ in range(self._channels or 1)
        ]
        self._columns = {name: ChunkIndex(1, step=places.block) for name in places.columns}
        self._blocks: dict[int, _Block] = {}  # those that may still change
        self._addresses: dict[int, int] = {}  # of all blocks
        self._late: list[Write] = []
        self._length = self._published = length
        self.complete = 0  # frames of which all modules are there

    @property
    def length(self) -> int:
        return self._length

    @property
    def block_size(self) -> int:
        """Bytes in the file for the per-frame arrays of one block of frames."""
        return aligned(self._places.block * sum(ALL_COLUMNS[name][0].itemsize for name in self._columns))

    def add(self, headers: NDArray, addresses: NDArray[np.uint64], times: NDArray | None = None) -> NDArray[np.bool_]:
        """Note records and where their payloads are; True for those that are new (a repeated frame keeps its first).

        `times` (dtype `records.TIMES`) one for each record, where there are such columns."""
        new = self._add_chunks(headers, addresses)
        if new.any():
            if not new.all():
                headers, times = headers[new], times if times is None else times[new]
            frames = headers["frame"]
            if (frames[1:] < frames[:-1]).any():
                order = np.argsort(frames, kind="stable")
                headers, times = headers[order], times if times is None else times[order]
            self.extend(int(headers["frame"][-1]) + 1)
            self._add_columns(headers, times)
        return new

    def _add_chunks(self, headers: NDArray, addresses: NDArray[np.uint64]) -> NDArray[np.bool_]:
        if not self._channels:
            positions = headers["frame"] * np.uint64(self._modules) + headers["module"]
            return self._indexes[0].add(positions, addresses, headers["size"], headers["mask"])
        new = np.zeros(len(headers), bool)
        for channel, index in enumerate(self._indexes):
            at = np.flatnonzero(headers["module"] == channel)
            own = headers[at]
            new[at] = index.add(own["frame"], addresses[at], own["size"], own["mask"])
        return new

    def extend(self, length: int) -> None:
        """Make the datasets at least this long, in frames."""
        self._length = max(self._length, length)

    def _add_columns(self, headers: NDArray, times: NDArray | None) -> None:
        size = self._places.block
        for number, begin, end in runs(headers["frame"] // np.uint64(size)):
            block = self._blocks.get(number)
            if block is None:
                block = self._blocks[number] = _Block(size, self._columns)
            part = headers[begin:end]
            at = (part["frame"] - np.uint64(number * size)).astype(np.intp)
            if times is not None:
                _fill_times(block, times[begin:end], at)
            self._fill(block, part, at)

    def _fill(self, block: _Block, headers: NDArray, at: NDArray[np.intp]) -> None:
        for name, field in _FIELDS.items():
            block.values[name][at] = headers[field]
        if self._part is not None:
            block.values["sequence_number"][at] = headers["frame"] * np.uint64(self._part.step) + np.uint64(
                self._part.first
            )
        if self._modules > 1:
            np.add.at(block.modules, at, 1)
            block.incomplete[at[headers["status"] == INCOMPLETE]] = True
            at = np.unique(at)
            whole = block.modules[at] == self._modules
            block.values[_STATUS][at[~whole | block.incomplete[at]]] = INCOMPLETE
            self.complete += int(np.count_nonzero(whole))
        else:
            block.modules[at] = 1
            self.complete += len(at)
        block.low, block.high = min(block.low, int(at[0])), max(block.high, int(at[-1]) + 1)

    def writes(self, place: Place, last: bool = False) -> Iterator[Write]:
        """What must be written, in this order; `place` gives free space in the file.

        `frame_status` follows one commit behind (but at the end): a reader that has looked up the index just before
        must not find a frame marked as written that this index does not hold yet."""
        late, self._late = self._late, []
        yield from late
        for index, image in zip(self._indexes, self._places.images, strict=False):  # none where nothing is defined
            yield from _rebuild(index, image.root, place)
        yield from self._column_writes(place)
        yield self._places.scalars["frames_received"][0], _u64(self.complete)
        if last:
            late, self._late = self._late, []
            yield from late
        if self._length > self._published:
            self._published = self._length
            for array in (*self._places.columns.values(), *self._places.images):
                yield array.length, _u64(self._length)

    def _column_writes(self, place: Place) -> Iterator[Write]:
        changed = sorted(n for n, block in self._blocks.items() if block.high)
        placed: list[int] = []
        try:
            for number in changed:
                if number not in self._addresses:
                    self._addresses[number] = place(self.block_size)
                    placed.append(number)
        finally:
            self._index_blocks(placed)
        for number in changed:
            block = self._blocks[number]
            if block.new:
                yield self._addresses[number], self._block_bytes(block)
            for name, offset in self._offsets(number):
                if name == _STATUS:
                    self._late.append(self._slice(block, name, offset))
                elif not block.new:
                    yield self._slice(block, name, offset)
            block.new, block.low, block.high = False, self._places.block, 0
            if (block.modules == self._modules).all():
                del self._blocks[number]
        for name, index in self._columns.items():
            yield from _rebuild(index, self._places.columns[name].root, place)

    def _index_blocks(self, numbers: Sequence[int]) -> None:
        positions = np.array(numbers, np.uint64)
        address = np.array([self._addresses[number] for number in numbers], np.uint64)
        for name, index in self._columns.items():
            size = np.full(len(numbers), self._places.block * ALL_COLUMNS[name][0].itemsize, np.uint32)
            index.add(positions, address, size, np.zeros_like(size))
            address = address + size

    @staticmethod
    def _slice(block: _Block, name: str, offset: int) -> Write:
        values = block.values[name]
        return offset + block.low * values.itemsize, values[block.low : block.high].tobytes()

    @staticmethod
    def _block_bytes(block: _Block) -> bytes:
        """The values of a new block behind each other, no frame marked as written yet."""
        return b"".join(
            bytes(values.nbytes) if name == _STATUS else values.tobytes() for name, values in block.values.items()
        )

    def _offsets(self, number: int) -> Iterator[tuple[str, int]]:
        """Where each column of a block is in the file."""
        address = self._addresses[number]
        for name in self._columns:
            yield name, address
            address += self._places.block * ALL_COLUMNS[name][0].itemsize

    def new_blocks(self, blocks: set[int]) -> int:
        """How many of these blocks of frames have no place in the file yet."""
        return sum(number not in self._addresses for number in blocks)

    def cost(self, leaves: int, blocks: int, highest: int) -> int:
        """Bytes that a commit takes at most: chunks in `leaves` leaves, `blocks` new blocks, up to frame `highest`."""
        trees = len(self._indexes)
        share = -(-leaves // trees)  # it takes most where all trees have grown alike
        nodes = trees * most_nodes(share, (highest + 1) * self._indexes[0].modules)
        images = nodes * aligned(self._indexes[0].node_size)
        columns = most_nodes(blocks, highest // self._places.block) * aligned(node_size(1)) * len(self._columns)
        return images + columns + blocks * self.block_size


def _fill_times(block: _Block, times: NDArray, at: NDArray[np.intp]) -> None:
    """A module that came without times leaves those of the others."""
    known = np.isfinite(times["stop"]) | np.isfinite(times["real"])
    for name, field in TIME_FIELDS.items():
        block.values[name][at[known]] = times[field][known]


def missing_cost(count: int) -> int:
    """Bytes that `missing_writes` takes for so many ranges."""
    blocks = -(-count // RANGE_BLOCK)
    return blocks * RANGE_BLOCK * 2 * MISSING_TYPE.itemsize + most_nodes(blocks, blocks) * aligned(node_size(2))


def missing_writes(places: Places, ranges: Sequence[tuple[int, int]], place: Place) -> Iterator[Write]:
    """Fill frames_missing, which is empty until now (or rewrite it), in order."""
    index = ChunkIndex(2, step=RANGE_BLOCK)
    blocks = range(0, len(ranges), RANGE_BLOCK)
    size = RANGE_BLOCK * 2 * MISSING_TYPE.itemsize
    addresses: list[int] = []
    for first in blocks:
        rows = np.zeros((RANGE_BLOCK, 2), MISSING_TYPE)
        part = ranges[first : first + RANGE_BLOCK]
        rows[: len(part)] = part
        address = place(size)
        addresses.append(address)
        yield address, rows.tobytes()
    sizes = np.full(len(blocks), size, np.uint32)
    index.add(np.arange(len(blocks), dtype=np.uint64), np.array(addresses, np.uint64), sizes, np.zeros_like(sizes))
    yield from _rebuild(index, places.missing.root, place)
    yield places.missing.length, _u64(len(ranges))


def _rebuild(index: ChunkIndex, root: int, place: Place) -> Iterator[Write]:
    """The changed nodes, then the root where it moved."""
    before = index.root
    yield from index.build(place)
    if index.root is not None and index.root != before:
        yield root, _u64(index.root)


def _u64(value: int) -> bytes:
    return value.to_bytes(8, "little")
