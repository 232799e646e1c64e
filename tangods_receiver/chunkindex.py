"""Chunk positions -> nodes of an HDF5 version-1 B-tree as bytes (HDF5 File Format Specification, III.A.1). Pure.

The tree is a fixed partition of the positions: leaf i holds positions 64 i ... 64 i + 63, a node of a higher level 64
nodes of the one below, empty ones left out. So a commit touches only the leaves of the new chunks and the nodes above
them, and a node whose positions are all there is written once and forgotten: its address lives on in its parent.
Nodes are never overwritten: a changed node goes to a new place, and so do its parents up to the root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

FANOUT = 64  # twice the rank K = 32 that a version-0 superblock implies
SHIFT = 6
UNDEFINED = 0xFFFF_FFFF_FFFF_FFFF

Place = Callable[[int], int]  # number of bytes -> address of free space in the file

#: A child of a node: size and filter mask of its first chunk, its first position, the one after its last, its address.
_SLOT = np.dtype([("size", "<u4"), ("mask", "<u4"), ("first", "<u8"), ("end", "<u8"), ("child", "<u8")])
_INSIDE = np.uint64(FANOUT - 1)


class _Node:
    """A node that may still change: its children, which of them are there, which will not change any more."""

    __slots__ = ("slots", "present", "final", "dirty")

    def __init__(self) -> None:
        self.slots = np.zeros(FANOUT, _SLOT)
        self.present = np.zeros(FANOUT, bool)
        self.final = np.zeros(FANOUT, bool)
        self.dirty = False

    def put(self, places: NDArray[np.intp], slots: NDArray, final: NDArray[np.bool_] | bool) -> None:
        self.slots[places] = slots
        self.present[places] = self.dirty = True
        self.final[places] = final


class ChunkIndex:
    """The index of one chunked dataset, grown by `add`, turned into nodes by `build`.

    A position counts chunks in row-major order. The dataset has `rank` dimensions; chunks advance along the first
    by `step` elements, and along the second by one where there are `modules` > 1 (chunk (1, 1, h, w))."""

    def __init__(self, rank: int, modules: int = 1, step: int = 1) -> None:
        self.rank, self.modules, self.step = rank, modules, step
        self.node_size = node_size(rank)
        self._levels: list[dict[int, _Node]] = [{}]
        self.root: int | None = None
        self.chunks = 0

    def add(
        self, positions: NDArray[np.uint64], addresses: NDArray[np.uint64], sizes: NDArray, masks: NDArray
    ) -> NDArray[np.bool_]:
        """Note chunks; True for those that are new. A position that is already there keeps its first chunk."""
        new = np.zeros(len(positions), bool)
        if not len(positions):
            return new
        self._grow(int(positions.max()))
        order = np.argsort(positions, kind="stable")
        slots = np.empty(len(order), _SLOT)
        slots["size"], slots["mask"], slots["child"] = sizes[order], masks[order], addresses[order]
        slots["first"] = positions[order]
        slots["end"] = slots["first"] + np.uint64(1)
        is_new = self._add_sorted(slots)
        new[order] = is_new
        self.chunks += int(np.count_nonzero(is_new))
        return new

    def _add_sorted(self, slots: NDArray) -> NDArray[np.bool_]:
        first = np.ascontiguousarray(slots["first"])
        new = np.ones(len(slots), bool)
        new[1:] = first[1:] != first[:-1]
        places = (first & _INSIDE).astype(np.intp)
        for leaf, begin, end in runs(first >> np.uint64(SHIFT)):
            if self._finished(0, leaf):
                new[begin:end] = False
                continue
            node = self._levels[0].get(leaf)
            if node is None:
                node = self._levels[0][leaf] = _Node()
            else:
                new[begin:end] &= ~node.present[places[begin:end]]
            if not new[begin:end].all():
                chosen = new[begin:end]
                node.put(places[begin:end][chosen], slots[begin:end][chosen], True)
            else:
                node.put(places[begin:end], slots[begin:end], True)
        return new

    def _grow(self, highest: int) -> None:
        """Add levels until the root covers the highest position; the old root becomes its first child at `build`."""
        while highest >> (SHIFT * len(self._levels)):
            if old := self._levels[-1].get(0):
                old.dirty = True
            self._levels.append({})

    def _finished(self, level: int, number: int) -> bool:
        """Whether this node was complete, written and forgotten."""
        if number in self._levels[level] or level + 1 == len(self._levels):
            return False
        parent = self._levels[level + 1].get(number >> SHIFT)
        if parent is None:
            return self._finished(level + 1, number >> SHIFT)
        return bool(parent.final[number & (FANOUT - 1)])

    def build(self, place: Place) -> Iterator[tuple[int, bytes]]:
        """The changed nodes, children first, each with the address that `place` gave it; `root` is then the new one.

        When `place` raises, what is left comes with the next `build`."""
        for level, nodes in enumerate(self._levels):
            numbers = sorted(number for number, node in nodes.items() if node.dirty)
            for begin in range(0, len(numbers), 1024):
                yield from self._build_some(level, numbers[begin : begin + 1024], place)

    def _build_some(self, level: int, numbers: Sequence[int], place: Place) -> Iterator[tuple[int, bytes]]:
        nodes = [self._levels[level][number] for number in numbers]
        present, slots = np.empty((len(nodes), FANOUT), bool), np.empty((len(nodes), FANOUT), _SLOT)
        for row, node in enumerate(nodes):
            present[row], slots[row] = node.present, node.slots
        raw = self._bytes(level, slots, present)
        addresses: list[int] = []
        try:
            for node, data in zip(nodes, raw, strict=True):
                addresses.append(place(self.node_size))
                node.dirty = False
                yield addresses[-1], data
        finally:
            if level + 1 < len(self._levels):
                self._link(level, numbers, nodes, slots, present, addresses)
            elif addresses:
                self.root = addresses[0]

    def _link(
        self,
        level: int,
        numbers: Sequence[int],
        nodes: Sequence[_Node],
        slots: NDArray,
        present: NDArray[np.bool_],
        addresses: Sequence[int],
    ) -> None:
        """Tell the parents of the nodes that got an address; forget those that will not change any more."""
        count = len(addresses)
        rows = np.arange(count)
        first, last = present[:count].argmax(axis=1), FANOUT - 1 - present[:count, ::-1].argmax(axis=1)
        links = slots[rows, first]
        links["end"] = slots["end"][rows, last]
        links["child"] = addresses
        final = np.array([node.final.all() for node in nodes[:count]], bool)
        above = self._levels[level + 1]
        here = np.array(numbers[:count], np.uint64)
        places = (here & _INSIDE).astype(np.intp)
        for number, begin, end in runs(here >> np.uint64(SHIFT)):
            parent = above.get(number)
            if parent is None:
                parent = above[number] = _Node()
            parent.put(places[begin:end], links[begin:end], final[begin:end])
        for number in here[final].tolist():
            del self._levels[level][number]

    def _bytes(self, level: int, slots: NDArray, present: NDArray[np.bool_]) -> list[bytes]:
        """Nodes at their full size: header, then key, child, key, child, ..., key; what is not used is zero."""
        used = present.sum(axis=1)
        for row in np.flatnonzero(used < FANOUT):  # the children that are there move to the front
            slots_there = slots[row][present[row]]
            slots[row] = 0
            slots[row, : len(slots_there)] = slots_there
            present[row] = np.arange(FANOUT) < len(slots_there)
        out = np.zeros(len(slots), _node_dtype(self.rank))
        out["signature"], out["type"], out["level"], out["used"] = b"TREE", 1, level, used
        out["siblings"] = UNDEFINED
        entries = out["entries"]
        for name in ("size", "mask", "child"):
            entries[name][:, :FANOUT] = slots[name]
        keys = np.zeros((len(slots), FANOUT + 1), np.uint64)
        keys[:, :FANOUT] = slots["first"]
        rows = np.arange(len(slots))
        keys[rows, used] = slots["end"][rows, used - 1]
        entries["offset"][:, :, 0] = keys // np.uint64(self.modules) * np.uint64(self.step)
        if self.modules > 1:
            entries["offset"][:, :, 1] = keys % np.uint64(self.modules)
        raw, whole = out.tobytes(), out.itemsize
        return [raw[at : at + self.node_size] for at in range(0, len(raw), whole)]


def node_size(rank: int) -> int:
    """Bytes of a node of a dataset with `rank` dimensions."""
    return _node_dtype(rank).itemsize - 8  # the last key has no child


@cache
def _node_dtype(rank: int) -> np.dtype:
    entry = [("size", "<u4"), ("mask", "<u4"), ("offset", "<u8", (rank + 1,)), ("child", "<u8")]
    head = [("signature", "S4"), ("type", "u1"), ("level", "u1"), ("used", "<u2"), ("siblings", "<u8", (2,))]
    return np.dtype([*head, ("entries", entry, (FANOUT + 1,))])


def runs(numbers: NDArray) -> Iterator[tuple[int, int, int]]:
    """Each value of a sorted array, with the range where it stands."""
    bounds = [0, *(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist(), len(numbers)]
    for begin, end in zip(bounds, bounds[1:], strict=False):
        if begin < end:
            yield int(numbers[begin]), begin, end


def most_nodes(leaves: int, highest: int) -> int:
    """At most so many nodes come from `build` after `leaves` leaves changed, none beyond position `highest`."""
    if not leaves:
        return 0
    total, above = leaves, (highest >> SHIFT) + 1
    while above > 1:
        above = (above + FANOUT - 1) >> SHIFT
        total += min(leaves, above) + 1  # one more: an old root that became a child
    return total
