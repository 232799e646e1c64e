"""Sends recorded streams and CBF files to a receiver as a detector would: at a rate, shuffled, cut or repeated."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import zmq

from tangods_receiver.errors import ConfigError, HardwareError, StreamError
from tangods_receiver.gate import secure_server
from tangods_receiver.protocol import dectris1, dectris2, recording, stins
from tangods_receiver.security import Guard

log = logging.getLogger(__name__)

Parts = list[bytes]
PEER_LIMIT = 30.0  # s to wait for a receiver to connect
SEND_LIMIT = 60.0  # s that a receiver may take nothing
QUEUE_BYTES = 64 << 20  # may wait in the socket
LOOK = 0.1  # s
CBF_HEADER = 65536  # bytes within which the text header of a CBF file ends
CBF_START = b"\x0c\x1a\x04\xd5"


# --- what is sent ----------------------------------------------------------------------------------------------------


def open_files(paths: Sequence[Path], filename: str | None = None) -> Iterator[Parts]:
    """Messages of recordings (.bin, .bin.gz), one after the other, or of CBF files (.cbf, .cbf.gz, .cbf.bz2) as one
    series. ConfigError: a mixture, or none of these."""
    cbf = [_is_cbf(path) for path in paths]
    if all(cbf) and paths:
        return cbf_series(paths, filename or "")
    if any(cbf) or not paths:
        raise ConfigError("replay: give recordings or CBF files, not both")
    return (message for path in paths for message in open_recording(path, filename))


def open_recording(path: str | Path, filename: str | None = None) -> Iterator[Parts]:
    """Messages of a recorded stream; `filename` replaces the name in its first start message.

    ConfigError: it cannot be read; StreamError: it is damaged."""
    try:
        for message in recording.read(path):
            if filename is not None and _kind(message) == "start":
                message = _renamed(message, filename)
                filename = None
            yield message
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read ({exc.strerror or exc})") from exc


def cbf_series(paths: Iterable[str | Path], filename: str, series: int | None = None) -> Iterator[Parts]:
    """A STINS series of CBF files, each a whole image message (`compression: cbf`); numbered from 0 as they come.

    ConfigError: a file cannot be read; StreamError: it is not CBF."""
    paths = list(paths)
    serial = 0
    for number, path in enumerate(paths):
        data = _read(Path(path))
        header = _cbf_header(data, path)
        shape = _cbf_shape(header, path)
        if number == 0:
            yield stins.encode_start(
                filename,
                serial,
                series=series,
                nframes=len(paths),
                shape=shape,
                dtype="int32",
                codec="cbf",
                metadata=cbf_metadata(header),
            )
        serial += 1
        yield [stins.encode_frame_header(number, shape, "int32", "cbf", serial, series=series), data]
    if paths:
        yield stins.encode_end(serial + 1, series=series)


def cbf_metadata(header: str) -> dict[str, Any]:
    """What a Pilatus says in its header, under the names of our start message; what it does not say is left out."""

    def number(pattern: str) -> float | None:
        found = re.search(pattern, header)
        return float(found[1]) if found else None

    def filled(values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if value not in (None, {})}

    real = r"\s*([-+0-9.eE]+)"
    model = re.search(r"# Detector: (.+?)(?:, S/N (\S+))?\s*\n", header)
    material = re.search(r"# (\w+) sensor, thickness", header)
    return filled(
        {
            "exptime": number(rf"# Exposure_time{real} s"),
            "frame_time": number(rf"# Exposure_period{real} s"),
            "wavelength": number(rf"# Wavelength{real} A"),
            "detector": filled(
                {
                    "description": model and model[1],
                    "detector_number": model and model[2],
                    "sensor_material": material and material[1],
                    "sensor_thickness": number(rf"sensor, thickness{real} m"),
                    "x_pixel_size": number(rf"# Pixel_size{real} m"),
                    "y_pixel_size": number(rf"# Pixel_size\s*\S+ m x{real} m"),
                }
            ),
        }
    )


def _is_cbf(path: Path) -> bool:
    return bool(re.search(r"\.cbf(\.gz|\.bz2)?$", path.name, re.IGNORECASE))


def _read(path: Path) -> bytes:
    opened: Callable[..., Any] = {".bz2": bz2.open, ".gz": gzip.open}.get(path.suffix.lower(), open)
    try:
        with opened(path, "rb") as file:
            return bytes(file.read())
    except (OSError, EOFError) as exc:
        raise ConfigError(f"{path}: cannot be read ({getattr(exc, 'strerror', None) or exc})") from exc


def _cbf_header(data: bytes, path: str | Path) -> str:
    end = data.find(CBF_START, 0, CBF_HEADER)
    if not data.startswith(b"###CBF") or end < 0:
        raise StreamError(f"{path}: not a miniCBF file")
    return data[:end].decode("latin-1")


def _cbf_shape(header: str, path: str | Path) -> tuple[int, int]:
    columns = re.search(r"X-Binary-Size-Fastest-Dimension: *(\d+)", header)
    rows = re.search(r"X-Binary-Size-Second-Dimension: *(\d+)", header)
    if not rows or not columns:
        raise StreamError(f"{path}: the CBF header does not say how many rows and columns there are")
    return int(rows[1]), int(columns[1])


def _kind(parts: Parts) -> str:
    """`start`, `image` or `end`; "" when it cannot be told."""
    if parts and dectris2.is_message(parts[0]):
        return dectris2.kind(parts)
    try:
        htype = str(json.loads(parts[0])["htype"])
    except (ValueError, KeyError, TypeError, IndexError):
        return ""
    if htype == "header" or htype.startswith("dheader"):
        return "start"
    if htype == "image" or htype.startswith("dimage"):
        return "image"
    return "end" if "series_end" in htype else ""


def _renamed(start: Parts, filename: str) -> Parts:
    """STINS: the key `filename`; Dectris: in the appendix, which is made if there is none."""
    if dectris2.is_message(start[0]):
        return [bytes(part) for part in dectris2.with_filename(start, filename)]
    head = json.loads(start[0])
    if head["htype"] == "header":
        return [stins.dumps({**head, "filename": filename}), *start[1:]]
    return [bytes(part) for part in dectris1.with_filename(start, filename)]


# --- how it is disturbed ---------------------------------------------------------------------------------------------


def disturb(
    messages: Iterable[Parts], *, repeat: int = 1, reorder: int = 0, cut: int = 0, seed: int = 0
) -> Iterator[Parts]:
    """Lose every `cut`-th image, send each of the others `repeat` times, shuffle them in windows of `reorder`.

    Start and end messages stay where they are. The same seed gives the same order."""
    chance = random.Random(seed)
    window: list[Parts] = []
    images = 0

    def shuffled() -> Iterator[Parts]:
        chance.shuffle(window)
        yield from window
        window.clear()

    for message in messages:
        if _kind(message) != "image":
            yield from shuffled()
            yield message
            continue
        images += 1
        if cut and images % cut == 0:
            continue
        for _ in range(repeat):
            if reorder > 1:
                window.append(message)
            else:
                yield message
            if len(window) >= reorder > 1:
                yield from shuffled()
    yield from shuffled()


# --- how it is sent --------------------------------------------------------------------------------------------------


def replay(
    messages: Iterable[Parts],
    endpoint: str,
    rate: float = 0.0,
    *,
    repeat: int = 1,
    reorder: int = 0,
    cut: int = 0,
    seed: int = 0,
    peer_limit: float = PEER_LIMIT,
    send_limit: float = SEND_LIMIT,
    progress: Callable[[int], None] | None = None,
    guard: Guard | None = None,
) -> int:
    """Bind a PUSH socket to `endpoint`, wait for a receiver, send; returns the number of messages sent.

    `rate` in messages per second, 0: as fast as they are taken; `progress(sent)` after each; `guard` says who may
    connect (None: everybody, in clear). Returns when all has left.
    ConfigError: the endpoint cannot be bound; HardwareError: no receiver within `peer_limit` s, or it took nothing for
    `send_limit` s."""
    context = zmq.Context()
    socket = context.socket(zmq.PUSH)
    socket.linger = 0  # until all is handed over
    sent = 0
    gate = None
    try:
        if guard is not None:
            gate = secure_server(socket, guard).__enter__()
        _bind(socket, endpoint)
        began = 0.0
        for parts in disturb(messages, repeat=repeat, reorder=reorder, cut=cut, seed=seed):
            if rate > 0 and sent:
                time.sleep(max(0.0, began + sent / rate - time.monotonic()))
            socket.sndhwm = max(2, QUEUE_BYTES // max(1, sum(map(len, parts))))
            if sent:
                _send(socket, parts, send_limit, f"the receiver at {endpoint} took nothing for {send_limit:g} s")
            else:
                _send(socket, parts, peer_limit, f"no receiver connected to {endpoint} within {peer_limit:g} s")
                began = time.monotonic()
            sent += 1
            if progress:
                progress(sent)
        socket.linger = int(send_limit * 1000)
    finally:
        if gate is not None:
            gate.close()
        socket.close()
        context.term()
    log.info("%d messages sent to the receiver at %s", sent, endpoint)
    return sent


def _bind(socket: zmq.Socket[bytes], endpoint: str) -> None:
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as exc:
        raise ConfigError(f"cannot bind to {endpoint}: {exc}; is the port in use, is it like tcp://*:9999?") from exc


def _send(socket: zmq.Socket[bytes], parts: Parts, limit: float, sentence: str) -> None:
    """Never blocks for ever: a PUSH without a peer would."""
    end = time.monotonic() + limit
    while True:
        try:
            socket.send_multipart(parts, zmq.NOBLOCK)
            return
        except zmq.Again:
            if time.monotonic() > end:
                raise HardwareError(f"{sentence}; check that it runs and that this is one of its endpoints") from None
        socket.poll(int(LOOK * 1000), zmq.POLLOUT)
