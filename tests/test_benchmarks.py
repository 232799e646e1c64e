"""The benchmarks' own parts: what the generator sends, what the C sinks write, what the verifier finds, the medians."""

import json
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
import zmq

from tangods_receiver.protocol import Frame, SeriesEnd, SeriesStart, stins

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # they are scripts, not a package

import payloads  # noqa: E402
import summary  # noqa: E402
import verify  # noqa: E402
from contenders import contender  # noqa: E402

import build  # noqa: E402

ROWS, COLUMNS, FRAMES = 12, 20, 30
NBYTES = 2 * ROWS * COLUMNS


def tags(frames, series=1):
    found = np.zeros(len(frames), verify.TAG)
    found["frame"], found["series"] = frames, series
    return found


# --- pure parts ------------------------------------------------------------------------------------------------------


def test_every_kind_of_wrong_frame_is_named():
    places = np.arange(10)
    assert verify.judge(verify.Found(places, tags(places)), 10, 1) == []
    assert verify.judge(verify.Found(places[::-1], tags(places[::-1])), 10, 1) == []
    assert verify.judge(verify.Found(places[:8], tags(places[:8])), 10, 1) == ["2 missing: 8-9"]
    assert "10 without the tag of series 2: 0-9" in verify.judge(verify.Found(places, tags(places)), 10, 2)
    swapped = verify.judge(verify.Found(places, tags([1, 0, *range(2, 10)])), 10, 1)
    assert swapped == ["2 in the place of another: 0-1"]
    twice = verify.judge(verify.Found(np.full(10, -1), tags([0, 0, *range(2, 10)])), 10, 1)
    assert twice == ["1 more than once: 0", "1 missing: 1"]


def test_many_ranges_are_cut():
    assert verify.ranges(np.array([7, 1, 2, 3])) == "1-3, 7"
    assert verify.ranges(np.arange(0, 40, 2)) == "0, 2, 4, 6, 8, ..."


class Measured:
    def __init__(self, key, number, seconds, cpu):
        self.contender, self.size, self.round, self.frames = key, "s", number, 100
        self.seconds, self.cpu, self.memory = seconds, cpu, 5_000_000


TRIALS = [
    *[Measured("ref", n, seconds, 1.0) for n, seconds in enumerate((1.0, 2.0, 10.0))],
    *[Measured("ours", n, seconds, 1.5) for n, seconds in enumerate((2.0, 2.0, 5.0))],
]


def test_ratios_are_of_the_same_round():
    row = summary.summarise(TRIALS, "s", 1000, "ours", "ref")
    assert (row.rounds, row.rate, row.throughput, row.cpu, row.memory) == (3, 50, 0.05, 15_000, 5)
    assert row.ratio == (1.0, 0.5, 2.0) and row.cpu_ratio == 1.5


@pytest.mark.parametrize("bound, fine", [({"least": 1.0}, True), ({"least": 1.1}, False), ({"most": 1.4}, False)])
def test_bars(bound, fine):
    assert summary.judged(summary.Bar("", "s", "ours", "ref", **bound), TRIALS)[1] is fine
    assert summary.judged(summary.Bar("", "s", "ours", "other", **bound), TRIALS) is None


def test_contenders_are_named_by_their_options():
    found = contender("ours:w2:io4:shared:p2:k3:commit60")
    assert (found.workers, found.io_threads, found.shared, found.parts) == (2, 4, True, 2)
    assert (found.senders, found.commit_interval, found.writes) == (3, 60, True)
    assert not contender("ours:nofile").writes and not contender("null").writes


@pytest.mark.parametrize("key", ["theirs", "ours:w0", "ours:x", "h5py:w2", "pwrite:w4:p2", "chunk:nofile"])
def test_wrong_contenders_are_refused(key):
    with pytest.raises(ValueError, match=key.split(":")[0]):
        contender(key)


@pytest.mark.parametrize("shape", [(64, 64), (100, 123)])
def test_a_tag_in_a_compressed_payload_is_in_the_lowest_bits(tmp_path, shape):
    payload, at = payloads.bslz4(*shape, ratio=4)
    tag = tags([1234], series=9).tobytes()
    with h5py.File(tmp_path / "x.h5", "w") as file:
        images = file.create_dataset(
            "data", (1, *shape), "u2", chunks=(1, *shape), **hdf5plugin.Bitshuffle(cname="lz4")
        )
        images.id.write_direct_chunk((0, 0, 0), payload[:at] + tag + payload[at + len(tag) :])
        pixels = images[0].ravel()
    plain = payloads.noisy(pixels.size, 4)
    assert np.packbits((pixels[:128] & 1).astype(np.uint8), bitorder="little").tobytes() == tag
    assert np.array_equal(pixels[128:], plain[128:]) and np.array_equal(pixels | 1, plain | 1)


@pytest.mark.parametrize("layout", ["taking turns", "one after the other", "one file"])
def test_tags_are_found_through_a_virtual_dataset(tmp_path, layout):
    n = 10
    order = {"taking turns": [range(0, n, 2), range(1, n, 2)], "one file": [range(n)]}.get(
        layout, [range(7), range(7, n)]
    )
    virtual = h5py.VirtualLayout((n, 4, 4), "u2")
    for k, frames in enumerate(order):
        with h5py.File(tmp_path / f"part{k}.h5", "w") as file:
            images = file.create_dataset("data", (len(frames), 4, 4), "u2", chunks=(1, 4, 4))
            for place, frame in enumerate(frames):
                images.id.write_direct_chunk((place, 0, 0), tags([frame]).tobytes() + bytes(16))
        source = h5py.VirtualSource(f"part{k}.h5", "data", (len(frames), 4, 4))
        virtual[frames.start : frames.stop : frames.step] = source
    with h5py.File(tmp_path / "master.h5", "w") as file:
        file.create_virtual_dataset("data", virtual)
    found = verify.hdf5(tmp_path / "master.h5", "data", 0)
    assert verify.judge(found, n, 1) == []
    assert verify.judge(found, n + 1, 1) == ["1 missing: 10"]


# --- the C programs --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def programs():
    for tool in ("gcc", "pkg-config"):
        if not shutil.which(tool):
            pytest.skip(f"no {tool}: resources/install-apt bench")
    if subprocess.run(["pkg-config", "--exists", "libzmq", "hdf5"]).returncode:
        pytest.skip("no headers of libzmq and HDF5: resources/install-apt bench")
    return build.build()


@pytest.mark.parametrize("name", build.PROGRAMS)
def test_c_programs_compile_without_a_warning(programs, name):
    flags = subprocess.run(["pkg-config", "--cflags", *build.PROGRAMS[name]], capture_output=True, text=True).stdout
    strict = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    subprocess.run(["gcc", *strict, *flags.split(), str(BENCHMARKS / f"{name}.c")], check=True)


@contextmanager
def sending(programs, *options, frames=FRAMES):
    """A generator; its endpoints."""
    shape = ("-r", str(ROWS), "-c", str(COLUMNS), "-n", str(frames), "-d", "0", "-t", "60", "-i", "5")
    with subprocess.Popen([programs["generator"], *shape, *options], stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child.stdout.readline().split()[1]
            child.stdout.read()
            assert child.wait(10) == 0
        finally:
            child.kill()


def received(endpoints, count):
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.rcvtimeo = 10_000
        for endpoint in endpoints.split(","):
            socket.connect(endpoint)
        return [socket.recv_multipart() for _ in range(count)]


@pytest.mark.parametrize("senders", [1, 3])
def test_stins_of_the_generator(programs, senders):
    with sending(programs, "-k", str(senders), "-f", "/data/%ld.h5") as endpoints:
        messages = [stins.decode(parts) for parts in received(endpoints, FRAMES + 2)]
    start = next(m for m in messages if isinstance(m, SeriesStart))
    frames = [m for m in messages if isinstance(m, Frame)]
    assert (start.filename, start.series, start.nframes, start.shape) == ("/data/5.h5", 5, FRAMES, (ROWS, COLUMNS))
    assert sorted(m.serial for m in messages) == list(range(FRAMES + 2))
    assert next(m for m in messages if isinstance(m, SeriesEnd)).serial == FRAMES + 1
    for frame in frames:
        tag = np.frombuffer(bytes(frame.data)[:16], verify.TAG)[0]
        pixels = np.frombuffer(bytes(frame.data), "u2")[8:]
        assert (tag["frame"], tag["series"]) == (frame.number, 5)
        assert np.array_equal(pixels, (31 * np.arange(8, ROWS * COLUMNS) + tag["picture"]).astype("u2"))
    assert {frame.number for frame in frames} == set(range(FRAMES))


def test_pictures_are_not_changed_while_they_wait(programs):
    frames = 3000  # of a pool of 997, all received before the first is looked at
    with sending(programs, "-q", "10000", frames=frames) as endpoints:
        messages = received(endpoints, frames + 2)
    found = np.frombuffer(b"".join(parts[1][:16] for parts in messages[1:-1]), verify.TAG)
    assert verify.judge(verify.Found(np.arange(frames), found), frames, 5) == []


def test_dectris_stream_v1_of_the_generator(programs):
    with sending(programs, "-p", "dectris1", "-f", "/data/x.h5") as endpoints:
        start, *images, end = received(endpoints, FRAMES + 2)
    assert json.loads(start[0]) == {"header_detail": "basic", "htype": "dheader-1.0", "series": 5}
    settings = json.loads(start[1])
    assert settings["nimages"] * settings["ntrigger"] == FRAMES
    assert (settings["x_pixels_in_detector"], settings["y_pixels_in_detector"]) == (COLUMNS, ROWS)
    assert json.loads(start[2]) == {"filename": "/data/x.h5"}
    for k, parts in enumerate(images):
        head, about, blob, times = json.loads(parts[0]), json.loads(parts[1]), parts[2], json.loads(parts[3])
        assert (head["htype"], head["frame"], head["series"], len(head["hash"])) == ("dimage-1.0", k, 5, 32)
        assert (about["shape"], about["encoding"], about["size"]) == ([COLUMNS, ROWS], "<", len(blob))
        assert times["stop_time"] - times["start_time"] == times["real_time"]
        assert np.frombuffer(blob[:16], verify.TAG)["frame"] == k
    assert json.loads(end[0]) == {"htype": "dseries_end-1.0", "series": 5}


def test_the_rate_is_held(programs):
    with sending(programs, "-R", "100", frames=31) as endpoints:
        begun = time.monotonic()
        received(endpoints, 31 + 2)
    assert 0.25 < time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "protocol, mode, senders, options",
    [
        *[(protocol, mode, 1, []) for protocol in ("stins", "dectris1") for mode in ("null", "pwrite", "chunk")],
        ("stins", "pwrite", 2, ["-w", "2", "-s"]),
        ("dectris1", "pwrite", 2, ["-w", "2", "-f"]),
        ("stins", "chunk", 2, ["-w", "3"]),
    ],
)
def test_sinks_write_every_frame(programs, tmp_path, protocol, mode, senders, options):
    path = tmp_path / "x.h5"
    with sending(programs, "-p", protocol, "-k", str(senders), "-f", str(path)) as endpoints:
        sink = [programs["sink"], "-m", mode, "-e", endpoints, "-t", "60", *options]
        lines = subprocess.run(sink, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()
    assert lines[0] == "opened" and lines[1].startswith(f"closed {FRAMES} ")
    if mode == "null":
        assert not path.exists()
        return
    found = verify.flat(path, NBYTES, 0) if mode == "pwrite" else verify.hdf5(path, "data", 0)
    assert verify.judge(found, FRAMES, 5) == []
    if "-f" in options:
        assert path.with_name("x.h5.1").exists()


def test_a_prepared_payload_is_sent_as_it_is(programs, tmp_path):
    payload, at = payloads.bslz4(64, 64, ratio=4)
    (tmp_path / "payload").write_bytes(payload)
    prepared = ["-r", "64", "-c", "64", "-P", str(tmp_path / "payload"), "-C", "bslz4", "-T", str(at)]
    with sending(programs, *prepared) as endpoints:
        messages = [stins.decode(parts) for parts in received(endpoints, FRAMES + 2)]
    for frame in messages[1:-1]:
        data = bytes(frame.data)
        assert frame.codec == "bslz4" and data[:at] == payload[:at] and data[at + 16 :] == payload[at + 16 :]
        assert np.frombuffer(data[at : at + 16], verify.TAG)["frame"] == frame.number


def test_wrong_options_of_the_generator_are_refused(programs):
    for options in (["-p", "other"], ["-k", "0"], ["-r", "1", "-c", "2"]):
        assert subprocess.run([programs["generator"], *options], capture_output=True).returncode == 2
