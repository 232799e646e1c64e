"""The chunk index against the readers of two HDF5 libraries, in every order and with gaps."""

from __future__ import annotations

import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tangods_receiver import h5fields
from tangods_receiver.chunkindex import FANOUT, ChunkIndex, most_nodes, node_size


def make(path: Path, shape: tuple[int, ...], chunk: tuple[int, ...]) -> int:
    with h5py.File(path, "w", libver="earliest") as h5:
        data = h5.create_dataset("d", shape=shape, maxshape=(None, *shape[1:]), chunks=chunk, dtype="<u4")
        return h5py.h5o.get_info(data.id).addr


class Indexed:
    """A file whose dataset `d` gets its chunks and its index from us."""

    def __init__(self, path: Path, length: int, modules: int = 1, step: int = 1, rank: int = 3) -> None:
        if rank == 1:
            shape, chunk = (length,), (step,)
        elif modules > 1:
            shape, chunk = (length, modules, 1, 2), (1, 1, 1, 2)
        else:
            shape, chunk = (length, 1, 2), (1, 1, 2)
        address = make(path, shape, chunk)
        self.path, self.chunk_bytes = path, 4 * int(np.prod(chunk))
        self.index = ChunkIndex(len(shape), modules, step)
        raw = path.read_bytes()
        self.fields = h5fields.array_fields(lambda at, size: raw[at : at + size], address)
        self.end = len(raw)
        self.nodes = 0

    def place(self, size: int) -> int:
        self.end, start = self.end + size, self.end
        self.nodes += size == self.index.node_size
        return start

    def commit(self, positions: list[int]) -> np.ndarray:
        """Chunk p is filled with p + 1; returns which positions were new."""
        with self.path.open("r+b") as file:
            addresses = []
            for p in positions:
                addresses.append(self.place(self.chunk_bytes))
                file.seek(addresses[-1])
                file.write(np.full(self.chunk_bytes // 4, p + 1, "<u4").tobytes())
            n = len(positions)
            new = self.index.add(
                np.array(positions, np.uint64),
                np.array(addresses, np.uint64),
                np.full(n, self.chunk_bytes, np.uint32),
                np.zeros(n, np.uint32),
            )
            for address, node in self.index.build(self.place):
                file.seek(address)
                file.write(node)
            if self.index.root is not None:
                file.seek(self.fields.root)
                file.write(self.index.root.to_bytes(8, "little"))
            file.seek(h5fields.END_OF_FILE)
            file.write(self.end.to_bytes(8, "little"))
            file.truncate(self.end)
        return new

    def read(self) -> np.ndarray:
        with h5py.File(self.path, "r") as h5:
            values = h5["d"][()]
        return values.reshape(-1, values.shape[-1])[:, 0] if values.ndim > 1 else values


def h5tool(*command: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


@settings(max_examples=25)
@given(
    data=st.data(),
    length=st.integers(1, 300),
    modules=st.sampled_from([1, 1, 2, 5]),
)
def test_any_order_any_commits_any_gaps(tmp_path_factory, data, length: int, modules: int) -> None:
    total = length * modules
    positions = data.draw(st.lists(st.integers(0, total - 1), unique=True, max_size=200))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(positions)), max_size=5)))
    file = Indexed(tmp_path_factory.mktemp("index") / "a.h5", length, modules)
    expected = np.zeros(total, np.uint32)
    for begin, end in zip([0, *cuts], [*cuts, len(positions)], strict=True):
        assert file.commit(positions[begin:end]).all()
        expected[positions[begin:end]] = np.array(positions[begin:end]) + 1
        np.testing.assert_array_equal(file.read(), expected)
    assert file.index.chunks == len(positions)


@pytest.mark.slow
def test_wide_gaps_and_growing_height(tmp_path: Path) -> None:
    length = 64**3 + 5
    file = Indexed(tmp_path / "a.h5", length)
    positions = [5000, 3, 64**3 + 1, 64, 63, 64**2, 64**2 - 1, 64**3 - 1, 0]
    for done in range(len(positions)):
        file.commit(positions[done : done + 1])
        with h5py.File(file.path, "r") as h5:
            values = [int(h5["d"][p, 0, 0]) for p in positions]
        assert values == [p + 1 for p in positions[: done + 1]] + [0] * (len(positions) - done - 1)
    assert np.count_nonzero(file.read()) == len(positions)


def test_first_of_a_repeated_position_stays(tmp_path: Path) -> None:
    file = Indexed(tmp_path / "a.h5", 200)
    assert file.commit([1, 2, 1, 2, 2]).tolist() == [True, True, False, False, False]
    assert file.commit(list(range(200))).sum() == 198
    assert not file.commit(list(range(200))).any()  # most leaves are written and forgotten by now
    np.testing.assert_array_equal(file.read(), np.arange(1, 201))


def test_nothing_is_nothing() -> None:
    index = ChunkIndex(3)
    assert not len(index.add(*(np.zeros(0, np.uint64),) * 4))
    assert list(index.build(lambda size: 0)) == [] and index.root is None


@pytest.mark.parametrize("step", [1, 7])
def test_one_dimension(tmp_path: Path, step: int) -> None:
    file = Indexed(tmp_path / "a.h5", 500 * step, step=step, rank=1)
    for begin in (100, 0, 400):
        file.commit(list(range(begin, begin + 100)))
    values = file.read()[::step]
    for begin, there in ((0, True), (100, True), (200, False), (300, False), (400, True)):
        expected = np.arange(begin + 1, begin + 101) if there else np.zeros(100)
        np.testing.assert_array_equal(values[begin : begin + 100], expected)


def commit_costs(start: int, step: int, count: int) -> list[int]:
    """Nodes that each of some commits writes, beginning at a frame number."""
    index, end = ChunkIndex(3), [0]

    def place(size: int) -> int:
        end[0] += size
        return end[0] - size

    def commit(first: int, n: int) -> int:
        positions = np.arange(first, first + n, dtype=np.uint64)
        index.add(positions, positions, np.ones(n, np.uint32), np.zeros(n, np.uint32))
        return sum(1 for _ in index.build(place))

    if start:
        commit(0, start)
    return [commit(first, step) for first in range(start, start + count * step, step)]


def test_a_late_frame_costs_what_an_early_one_costs() -> None:
    early, late = commit_costs(1_000, 640, 10), commit_costs(1_000_000, 640, 10)
    assert max(early) <= 640 / FANOUT + 1 + 3
    assert max(late) <= max(early) + 2


def test_memory_does_not_grow_with_complete_leaves() -> None:
    index, end = ChunkIndex(3), [0]

    def place(size: int) -> int:
        end[0] += size
        return end[0] - size

    for first in range(0, 100_000, 1000):
        positions = np.arange(first, first + 1000, dtype=np.uint64)
        index.add(positions, positions, np.ones(1000, np.uint32), np.zeros(1000, np.uint32))
        for _ in index.build(place):
            pass
        assert sum(map(len, index._levels)) <= 6


@given(st.lists(st.integers(0, 20_000), min_size=1, max_size=100), st.lists(st.integers(0, 20_000), max_size=100))
def test_the_cost_is_never_more_than_announced(before: list[int], after: list[int]) -> None:
    index, end = ChunkIndex(3), [0]

    def place(size: int) -> int:
        assert size == node_size(3)
        end[0] += size
        return end[0]

    highest = 0
    for positions in (before, after):
        new = np.array(positions, np.uint64)
        highest = max([highest, *positions])
        index.add(new, new, new, new)
        nodes = sum(1 for _ in index.build(place))
        assert nodes <= most_nodes(len({p // FANOUT for p in positions}), highest)


def test_a_failed_place_loses_nothing(tmp_path: Path) -> None:
    file = Indexed(tmp_path / "a.h5", 300)
    place, left = file.place, [3]

    def short(size: int) -> int:
        if size == file.index.node_size:
            left[0] -= 1
            if left[0] < 0:
                raise OSError("full")
        return place(size)

    file.place = short  # type: ignore[method-assign]
    with pytest.raises(OSError, match="full"):
        file.commit(list(range(300)))
    # The nodes that came before were lost with the exception; a writer keeps and writes them. So only count here.
    left[0] = 1000
    assert sum(1 for _ in file.index.build(short)) >= 3
    assert file.index.root is not None


@pytest.mark.slow
def test_300_000_chunks_shuffled_by_all_tools(tmp_path: Path) -> None:
    n = 300_000
    file = Indexed(tmp_path / "a.h5", n)
    order = np.arange(n).reshape(-1, 20)
    np.random.default_rng(1).permuted(order, axis=1, out=order)  # as several connections shuffle it
    for part in np.array_split(order.ravel(), 10):
        file.commit(part.tolist())
    np.testing.assert_array_equal(file.read(), np.arange(1, n + 1))
    assert f"{{{n}/Inf, 1, 2}}" in h5tool("h5ls", file.path)
    dumped = h5tool("h5dump", "-d", "/d", "-s", "299990,0,0", "-c", "10,1,2", file.path)
    assert "(299999,0,0): 300000, 300000" in dumped
    assert "Total raw data size" in h5tool("h5stat", file.path) or "Raw data" in h5tool("h5stat", file.path)
    repacked = tmp_path / "b.h5"
    h5tool("h5repack", file.path, repacked)
    assert h5tool("h5diff", file.path, repacked) == ""


def test_hdf5_writes_on(tmp_path: Path) -> None:
    """A file of ours taken on by h5py: chunks in the gaps, before and behind; longer and shorter."""
    file = Indexed(tmp_path / "a.h5", 1000)
    file.commit([p for p in range(100, 900) if p % 3])
    with h5py.File(file.path, "r+") as h5:
        h5["d"].resize(1200, axis=0)
        for p in (0, 99, 102, 300, 897, 900, 1100):
            h5["d"][p] = p + 1
    expected = np.zeros(1200, np.uint32)
    for p in [*(p for p in range(100, 900) if p % 3), 0, 99, 102, 300, 897, 900, 1100]:
        expected[p] = p + 1
    np.testing.assert_array_equal(file.read(), expected)
    with h5py.File(file.path, "r+") as h5:
        h5["d"].resize(150, axis=0)
    np.testing.assert_array_equal(file.read(), expected[:150])
