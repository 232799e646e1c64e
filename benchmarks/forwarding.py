"""What forwarding and CURVE cost a receiver: frames/s and CPU per frame of one worker, with and without.

One series after the other, as fast as it is taken, into a file in memory: frames of 200 kB (uint16), or 4M images
(2070 x 2167 uint32, Poisson counts, bslz4). The engine runs in this process; sender and client are processes of their
own. In each round every way comes once, in an order shuffled anew; ratios are to the first of its kind in that round.

The client takes and forgets. It stands for a program on another computer: on the same one it would take cores from the
receiver, so it runs at the lowest priority (`--client-nice`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import payloads
import psutil
import zmq
from contenders import DATASET, LIMIT
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sizes import QUEUE_BYTES
from trial import SERIES, process

from build import HERE, build
from tangods_receiver import config, security
from tangods_receiver.engine import Engine
from tangods_receiver.gate import secure_server
from tangods_receiver.protocol import stins

ANY = "tcp://127.0.0.1:*"
DELAY = 1.0  # s between start message and first frame


@dataclass(frozen=True)
class Way:
    """`client` "" nobody, fast or stalled; `socket` of the port, "": there is none; `sender` generator.c, or Python."""

    name: str
    socket: str = ""
    client: str = ""
    sender: str = "C"
    curve: bool = False
    bar: float | None = None


WAYS = (
    Way("no port"),
    Way("no port, again"),  # what differs from run to run
    Way("PUSH, nobody", "push", bar=0.97),
    Way("PUSH, a client", "push", "fast", bar=0.90),
    Way("PUSH, a stalled client", "push", "stalled", bar=0.95),
    Way("PUB, a client", "pub", "fast", bar=0.90),
    Way("PUB, a stalled client", "pub", "stalled", bar=0.95),
    Way("Python sender", sender="Python"),
    Way("Python sender, CURVE", sender="Python", curve=True),
)


@dataclass(frozen=True)
class Load:
    """What is sent, and as how many frames; `file` holds one payload."""

    name: str
    shape: tuple[int, int]
    dtype: str
    codec: str
    frames: int
    file: Path
    size: int
    tag_at: int


@dataclass(frozen=True)
class Trial:
    load: str
    way: str
    rate: float  # frames/s
    cpu: float  # us of the receiver per frame, forwarding included
    forwarded: float  # of the frames
    dropped: float


def loads(folder: Path, frames: tuple[int, int]) -> Iterator[Load]:
    plain = np.random.default_rng(1).integers(0, 1 << 16, (250, 400), np.uint16)
    counts, tag_at = payloads.chunk(payloads.photons(2070, 2167, 2.0))
    for name, shape, dtype, codec, count, data, tag in (
        ("200 kB", plain.shape, "uint16", "none", frames[0], plain.tobytes(), 0),
        ("4M bslz4", (2070, 2167), "uint32", "bslz4", frames[1], counts, tag_at),
    ):
        file = folder / name.replace(" ", "-")
        file.write_bytes(data)
        yield Load(name, shape, dtype, codec, count, file, len(data), tag)


# --- processes of their own ------------------------------------------------------------------------------------------


def generator(load: Load, target: Path) -> list[str]:
    values = {"-r": load.shape[0], "-c": load.shape[1], "-n": load.frames, "-i": SERIES, "-t": LIMIT, "-f": target}
    values |= {"-P": load.file, "-C": load.codec, "-y": load.dtype, "-T": load.tag_at, "-d": DELAY}
    values |= {"-q": max(4, QUEUE_BYTES // load.size)}
    return [str(HERE / "build/generator"), *(str(text) for pair in values.items() for text in pair)]


def python_sender(load: Load, target: Path, keys: Path | None) -> list[str]:
    values = [*load.shape, load.dtype, load.codec, load.frames, load.file, target, keys or ""]
    return [sys.executable, __file__, "sender", *map(str, values)]


def send(rows: str, columns: str, dtype: str, codec: str, frames: str, file: str, target: str, keys: str) -> None:
    """As generator.c, one series; with `keys`, CURVE."""
    shape, count, payload = (int(rows), int(columns)), int(frames), Path(file).read_bytes()
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.linger, push.sndhwm = int(1000 * LIMIT), max(4, QUEUE_BYTES // len(payload))
        found = security.guard(f"{keys}/sender.key_secret", f"{keys}/clients", ()) if keys else None
        with secure_server(push, found) if found else nullcontext():
            push.bind(ANY)
            print("endpoint", push.last_endpoint.decode(), "\npool 1", flush=True)
            start = stins.encode_start(target, 0, series=SERIES, nframes=count, shape=shape, dtype=dtype, codec=codec)
            push.send_multipart(start)
            time.sleep(DELAY)
            print("first", time.monotonic(), flush=True)
            for k in range(count):
                push.send(stins.encode_frame_header(k, shape, dtype, codec, serial=k + 1, series=SERIES), zmq.SNDMORE)
                push.send(payload, copy=False)
            push.send_multipart(stins.encode_end(count + 1, series=SERIES))
            push.close()


def client(endpoint: str, kind: str, manner: str, nice: str) -> None:
    """Takes all and forgets it, or (stalled) takes one message and no more; ends with the process that began it."""
    os.nice(int(nice))
    with zmq.Context() as context, context.socket(zmq.SUB if kind == "pub" else zmq.PULL) as taken:
        if kind == "pub":
            taken.subscribe(b"")
        taken.linger, taken.rcvhwm = 0, 2 if manner == "stalled" else 50
        taken.connect(endpoint)
        print("connects", flush=True)
        taken.recv_multipart(copy=False)
        while manner == "stalled":
            time.sleep(1)
        while True:
            taken.recv(copy=False)


def keys_in(folder: Path) -> Path:
    """For a sender, and a receiver that it lets in."""
    (folder / "clients").mkdir()
    security.generate("sender", folder)
    public, _ = security.generate("receiver", folder)
    shutil.copy(public, folder / "clients")
    return folder


# --- measuring -------------------------------------------------------------------------------------------------------


def measure(way: Way, load: Load, folder: Path, keys: Path, nice: int) -> Trial:
    """One series; seconds are from the first frame sent to the last one written."""
    target = folder / "series.h5"
    values: dict[str, Any] = {"root": folder, "dataset": DATASET, "http": "", "hwm_bytes": QUEUE_BYTES}
    if way.socket:
        values["forward"] = {"endpoint": f"tcp://127.0.0.1:{_free_port()}", "socket": way.socket}
    if way.curve:
        values |= {"curve_key": str(keys / "receiver.key_secret"), "curve_server_keys": str(keys / "sender.key")}
    argv = generator(load, target) if way.sender == "C" else python_sender(load, target, keys if way.curve else None)
    with ExitStack() as stack:
        sender = stack.enter_context(process(argv))
        values["endpoints"] = sender.wait_for(r"^endpoint (\S+)")[1][1]
        sender.wait_for(r"^pool (\d+)")
        if way.client:
            settings = [values["forward"]["endpoint"], way.socket, way.client, str(nice)]
            stack.enter_context(process([sys.executable, __file__, "client", *settings])).wait_for("connects")
        engine = stack.enter_context(Engine(config.make(values)))
        _until(lambda: engine.snapshot().opened == SERIES, "the series opened")
        _until(lambda: not way.client or engine.snapshot().forward[0].peers == 1, "the client connected")
        first = float(sender.wait_for(r"^first ([\d.]+)")[1][1])
        used = _cpu()
        _until(lambda: engine.snapshot().written == load.frames, f"{load.frames} frames written")
        seconds, used = time.monotonic() - first, _cpu() - used
        _until(lambda: engine.snapshot().closed == SERIES, "the series closed")
        now = engine.snapshot()
        if now.error or now.missing:
            raise SystemExit(f"{way.name}: {now.error}, {now.missing} missing")
        port = now.forward[0] if now.forward else None
    target.unlink()
    sent, dropped = (port.frames, port.dropped) if port else (0, 0)
    of_a_frame = used / load.frames * 1e6
    return Trial(load.name, way.name, load.frames / seconds, of_a_frame, sent / load.frames, dropped / load.frames)


def _free_port() -> int:
    """The client is there before the port is."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _cpu() -> float:
    times = psutil.Process().cpu_times()
    return times.user + times.system


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {LIMIT:g} s: {what}")
        time.sleep(0.005)


def table(trials: list[Trial], load: str) -> tuple[Table, bool]:
    """The medians, and whether the bars hold."""
    of = {way.name: [t for t in trials if (t.load, t.way) == (load, way.name)] for way in WAYS}
    found = Table(title=f"{load}, {len(of[WAYS[0].name])} rounds", title_justify="left")
    for name in ("way", "frames/s", "of the first", "range", "CPU us/frame", "sent on", "dropped", "bar"):
        found.add_column(name, justify="left" if name == "way" else "right")
    fine = True
    for way in WAYS:
        if not (mine := of[way.name]):
            continue
        first = next(other for other in WAYS if other.sender == way.sender)
        ratios = [trial.rate / other.rate for trial, other in zip(mine, of[first.name], strict=True)]
        bar = ""
        if way.bar:
            good = median(ratios) >= way.bar
            fine, bar = fine and good, f">= {way.bar:g} {'holds' if good else 'fails'}"
        found.add_row(
            way.name,
            f"{median(t.rate for t in mine):.0f}",
            f"{median(ratios):.3f}",
            f"{min(ratios):.2f}-{max(ratios):.2f}",
            f"{median(t.cpu for t in mine):.0f}",
            f"{median(t.forwarded for t in mine):.2f}",
            f"{median(t.dropped for t in mine):.2f}",
            bar,
        )
    return found, fine


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--frames", type=int, nargs=2, default=(8000, 1000), help="of a series: 200 kB, 1.9 MB each")
    parser.add_argument("--ways", help="only those with one of these words (a,b), and what they are compared with")
    parser.add_argument("--loads", help="only those with this word: 200 or bslz4")
    parser.add_argument("--client-nice", type=int, default=19)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--json", type=Path, help="all trials, for other tables")
    wish = parser.parse_args()
    build()
    words = wish.ways.split(",") if wish.ways else [""]
    firsts = [next(way for way in WAYS if way.sender == sender) for sender in ("C", "Python")]
    ways = [way for way in WAYS if any(word in way.name for word in words)]
    ways += [first for first in firsts if first not in ways and any(w.sender == first.sender for w in ways)]
    console = Console() if sys.stdout.isatty() else Console(width=120)
    folder = Path(tempfile.mkdtemp(prefix="forwarding-", dir=wish.folder))
    trials = []
    try:
        (folder / "keys").mkdir()
        keys = keys_in(folder / "keys")
        found = [load for load in loads(folder, tuple(wish.frames)) if (wish.loads or "") in load.name]
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("series", total=(wish.rounds * len(ways) + 1) * len(found))
            for load in found:
                measure(firsts[0], load, folder, keys, wish.client_nice)  # touches the memory
                progress.advance(task)
                for _ in range(wish.rounds):
                    for way in random.sample(ways, len(ways)):
                        trials.append(measure(way, load, folder, keys, wish.client_nice))
                        progress.advance(task)
    finally:
        shutil.rmtree(folder)
    if wish.json:
        wish.json.write_text(json.dumps([asdict(trial) for trial in trials]))
    fine = True
    for load in found:
        shown, holds = table(trials, load.name)
        console.print(shown)
        fine = fine and holds
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["sender"]:
        send(*sys.argv[2:])
    elif sys.argv[1:2] == ["client"]:
        client(*sys.argv[2:])
    else:
        main()
