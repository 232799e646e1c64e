"""What one would write first in Python, PULL and h5py (mode h5py), and what Python can do at best (mode flat).

Takes one series; lines on stdout as of sink.c: "opened", "closed FRAMES". Plain scripts to compare with, not a model.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import h5py
import orjson
import zmq

BATCH_FRAMES, BATCH_BYTES = 16, 4_000_000


def h5py_loop(socket: zmq.Socket) -> int:
    """One write_direct_chunk per frame, in the straightforward way."""
    start = json.loads(socket.recv_multipart()[0])
    frames = 0
    with h5py.File(start["filename"], "x") as file:
        shape = tuple(start["shape"])
        dataset = file.create_dataset("data", (start["nframes"], *shape), start["type"], chunks=(1, *shape))
        print("opened", flush=True)
        while (parts := socket.recv_multipart()) and (head := json.loads(parts[0]))["htype"] == "image":
            dataset.id.write_direct_chunk((head["frame"], 0, 0), parts[1])
            frames += 1
    return frames


def flat_file(socket: zmq.Socket) -> int:
    """Frames in batches behind each other, no index, no books: about what Python costs at least."""
    start = orjson.loads(socket.recv_multipart()[0])
    fd = os.open(start["filename"], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    print("opened", flush=True)
    frames = end = 0
    running = True
    while running:
        batch: list[Any] = []
        size = 0
        flags = 0
        while len(batch) < BATCH_FRAMES and size < BATCH_BYTES:
            try:
                parts = socket.recv_multipart(flags, copy=False)
            except zmq.Again:
                if batch:
                    break
                flags = 0
                continue
            flags = zmq.NOBLOCK
            if orjson.loads(parts[0].buffer)["htype"] != "image":
                running = False
                break
            batch.append(parts[1].buffer)
            size += len(batch[-1])
        if batch:
            written = os.pwritev(fd, batch, end)
            if written != size:
                raise OSError(f"pwritev took {written} of {size} bytes")
            end += size
            frames += len(batch)
    os.close(fd)
    return frames


def main() -> None:
    """MODE ENDPOINT QUEUE LIMIT_S"""
    mode, endpoint, queue, limit = sys.argv[1:]
    with zmq.Context(2) as context, context.socket(zmq.PULL) as socket:
        socket.rcvhwm = int(queue)
        socket.connect(endpoint)
        if not socket.poll(int(1000 * float(limit))):
            sys.exit("no message")
        frames = {"h5py": h5py_loop, "flat": flat_file}[mode](socket)
        print("closed", frames, flush=True)


if __name__ == "__main__":
    main()
