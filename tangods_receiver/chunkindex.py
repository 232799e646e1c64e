"""Chunk positions -> nodes of an HDF5 version-1 B-tree as bytes (HDF5 File Format Specification, III.A.1). Pure.

The tree is a fixed partition of the positions: leaf i holds positions 64 i ... 64 i + 63, a node of a higher level 64
nodes of the one below, empty ones left out. So a commit touches only the leaves of the new chunks and the nodes above
them, and a node whose positions are all there is written once and forgotten: its address lives on in its parent.
Nodes are never overwritten: a changed node goes to a new place, and so do its parents up to the root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

FANOUT = 64  # twice the rank K = 32 that a version-0 superblock implies
SHIFT = 6
UNDEFINED = 0xFFFF_FFFF_FFFF_FFFF

Place = Callable[[int], int]  # number of bytes -> address of free space in the file

_SLOT = np.dtype([("size", "<u4"), ("mask", "<u4"), ("first", "<u8"), ("end", "<u8"), ("child", "<u8")])


class _Node:
    """A node that may still change. `slots[i]` is child i: its first position, the one after its last, its address."""

    __slots__ = ("slots", "present", "final", "dirty")

    def __init__(self) -> None:
        self.slots = np.zeros(FANOUT, _SLOT)
        self.present = np.zeros(FANOUT, bool)
        self.final = np.zeros(FANOUT, bool)
        self.dirty = False


class ChunkIndex:
    """The index of one chunked dataset, grown by `add`, turned into nodes by `build`.

    A position counts chunks in row-major order. The dataset has `rank` dimensions; chunks advance along the first
    by `step` elements, and along the second by one where there are `modules` > 1 (chunk (1, 1, h, w))."""

    def __init__(self, rank: int, modules: int = 1, step: int = 1) -> None:
        self.rank, self.modules, self.step = rank, modules, step
        self._dtype = _node_dtype(rank)
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
        leaves = positions[order] >> np.uint64(SHIFT)
        bounds = [0, *(np.flatnonzero(np.diff(leaves)) + 1).tolist(), len(order)]
        for begin, end in zip(bounds, bounds[1:], strict=False):
            if not self._finished(0, leaf := int(leaves[begin])):
                chosen = order[begin:end]
                new[chosen] = self._fill(leaf, positions[chosen], addresses[chosen], sizes[chosen], masks[chosen])
        self.chunks += int(np.count_nonzero(new))
        return new

    def _fill(
        self, leaf: int, positions: NDArray, addresses: NDArray, sizes: NDArray, masks: NDArray
    ) -> NDArray[np.bool_]:
        node = self._levels[0].get(leaf)
        if node is None:
            node = self._levels[0][leaf] = _Node()
        places = (positions & np.uint64(FANOUT - 1)).astype(np.intp)
        new = ~node.present[places]
        new[1:] &= places[1:] != places[:-1]
        places = places[new]
        if len(places):
            slots = node.slots
            slots["size"][places] = sizes[new]
            slots["mask"][places] = masks[new]
            slots["first"][places] = positions[new]
            slots["end"][places] = positions[new] + np.uint64(1)
            slots["child"][places] = addresses[new]
            node.present[places] = node.final[places] = node.dirty = True
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
        """The changed nodes, children first, each with the address that `place` gave it; `root` is then the new one."""
        for level, nodes in enumerate(self._levels):
            top = level + 1 == len(self._levels)
            for number in sorted(n for n, node in nodes.items() if node.dirty):
                node = nodes[number]
                address = place(self.node_size)
                node.dirty = False
                yield address, self._bytes(level, node)
                if top:
                    self.root = address
                else:
                    self._link(level, number, node, address)

    def _link(self, level: int, number: int, node: _Node, address: int) -> None:
        above = self._levels[level + 1]
        parent = above.get(number >> SHIFT)
        if parent is None:
            parent = above[number >> SHIFT] = _Node()
        i = number & (FANOUT - 1)
        used = np.flatnonzero(node.present)
        first = node.slots[used[0]]
        parent.slots[i] = (first["size"], first["mask"], first["first"], node.slots["end"][used[-1]], address)
        parent.present[i] = parent.dirty = True
        if node.final.all():
            parent.final[i] = True
            del self._levels[level][number]

    def _bytes(self, level: int, node: _Node) -> bytes:
        """One node at its full size: header, then key, child, key, child, ..., key; what is not used is zero."""
        used = node.slots[node.present]
        out = np.zeros((), self._dtype)
        out["signature"], out["type"], out["level"], out["used"] = b"TREE", 1, level, len(used)
        out["siblings"] = UNDEFINED
        entries = out["entries"]
        entries["size"][: len(used)] = used["size"]
        entries["mask"][: len(used)] = used["mask"]
        entries["child"][: len(used)] = used["child"]
        keys = np.append(used["first"], used["end"][-1])
        entries["offset"][: len(keys), 0] = keys // np.uint64(self.modules) * np.uint64(self.step)
        if self.modules > 1:
            entries["offset"][: len(keys), 1] = keys % np.uint64(self.modules)
        return out.tobytes()[: self.node_size]


def node_size(rank: int) -> int:
    """Bytes of a node of a dataset with `rank` dimensions."""
    return _node_dtype(rank).itemsize - 8  # the last key has no child


def _node_dtype(rank: int) -> np.dtype:
    entry = [("size", "<u4"), ("mask", "<u4"), ("offset", "<u8", (rank + 1,)), ("child", "<u8")]
    head = [("signature", "S4"), ("type", "u1"), ("level", "u1"), ("used", "<u2"), ("siblings", "<u8", (2,))]
    return np.dtype([*head, ("entries", entry, (FANOUT + 1,))])


def most_nodes(leaves: int, highest: int) -> int:
    """At most so many nodes come from `build` after `leaves` leaves changed, none beyond position `highest`."""
    if not leaves:
        return 0
    total, above = leaves, (highest >> SHIFT) + 1
    while above > 1:
        above = (above + FANOUT - 1) >> SHIFT
        total += min(leaves, above) + 1  # one more: an old root that became a child
    return total
