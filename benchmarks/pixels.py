"""Every step of the pixel work and every codec: MPixel/s and images of 1679 x 1475 (a Pilatus 2M) a second, per core.

CPU time, not wall time, so that a busy machine does not count; the compiled part and the libraries take turns, and the
median of the rounds is told. With `--data DIR` real images (*.cbf, *.cbf.bz2) are used, else counts made up."""

from __future__ import annotations

import argparse
import bz2
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tangods_receiver import cbf, codecs, kernels, transforms
from tangods_receiver.protocol import Frame

TWO_M = 1679 * 1475  # pixels
GAP_ROWS, GAP_COLUMNS = (195, 212), (487, 494)  # module and module with gap
Work = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="directory with *.cbf or *.cbf.bz2 of one size")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    images = real_images(options.data) if options.data else [made_up(seed) for seed in range(3)]
    shape = images[0][1].shape
    print(f"{len(images)} images of {shape[0]} x {shape[1]}, {'real' if options.data else 'made up'}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for row in works(images, Path(folder)) if options.only in row[0]]
        figures = measure(rows, options.rounds)
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def real_images(folder: Path) -> list[tuple[bytes, codecs.Array]]:
    """(the file, its pixels)"""
    found = []
    for path in sorted([*folder.glob("*.cbf"), *folder.glob("*.cbf.bz2")])[:3]:
        data = bz2.decompress(path.read_bytes()) if path.suffix == ".bz2" else path.read_bytes()
        _, rows, columns = cbf._header(data[: data.index(cbf.START)])
        found.append((data, codecs.decompress("cbf", data, (rows, columns), "int32")))
    if not found:
        raise SystemExit(f"{folder}: no *.cbf and no *.cbf.bz2")
    return found


def made_up(seed: int) -> tuple[bytes, codecs.Array]:
    """Background of a few counts, some peaks, gaps of -1, as a Pilatus 2M gives them."""
    rng = np.random.default_rng(seed)
    pixels = rng.poisson(6, (1679, 1475)).astype(np.int32)
    for row, column in zip(rng.integers(0, 1670, 600), rng.integers(0, 1470, 600), strict=True):
        pixels[row : row + 4, column : column + 4] += rng.poisson(rng.exponential(3000), (4, 4)).astype(np.int32)
    pixels[np.arange(1679) % GAP_ROWS[1] >= GAP_ROWS[0]] = -1
    pixels[:, np.arange(1475) % GAP_COLUMNS[1] >= GAP_COLUMNS[0]] = -1
    from fabio.compression import compByteOffset

    code = bytes(compByteOffset(pixels))
    head = (
        'conversions="x-CBF_BYTE_OFFSET"\r\nX-Binary-Element-Type: "signed 32-bit integer"\r\n'
        f"X-Binary-Size: {len(code)}\r\nX-Binary-Size-Fastest-Dimension: 1475\r\n"
        "X-Binary-Size-Second-Dimension: 1679\r\n\r\n"
    )
    return head.encode() + cbf.START + code, pixels


# --- what is measured ------------------------------------------------------------------------------------------------


def works(images: list[tuple[bytes, codecs.Array]], folder: Path) -> list[tuple[str, int, list[Work]]]:
    """(name, pixels of one image, one function for each image)"""
    return [*codec_works(images), *step_works(images, folder)]


def codec_works(images: list[tuple[bytes, codecs.Array]]) -> list[tuple[str, int, list[Work]]]:
    size = images[0][1].size
    rows: list[tuple[str, int, list[Work]]] = []

    def convert(name: str, codec: str, target: str, dtype: str, payloads: list[Any]) -> None:
        shape = images[0][1].shape
        rows.append((name, size, [lambda p=p: codecs.convert(p, shape, dtype, codec, target) for p in payloads]))

    convert("cbf -> bslz4", "cbf", "bslz4", "int32", [data for data, _ in images])
    convert("cbf -> int32", "cbf", "none", "int32", [data for data, _ in images])
    for dtype in ("int32", "uint16", "uint32", "float32", "uint8"):
        plain = [pixels.clip(0).astype(dtype) if dtype != "int32" else pixels for _, pixels in images]
        convert(f"{dtype} -> bslz4", "none", "bslz4", dtype, [codecs.compress("none", p) for p in plain])
        convert(f"bslz4 -> {dtype}", "bslz4", "none", dtype, [codecs.compress("bslz4", p) for p in plain])
    packed = [codecs.compress("lz4", pixels) for _, pixels in images]
    convert("int32 -> lz4", "none", "lz4", "int32", [codecs.compress("none", pixels) for _, pixels in images])
    convert("lz4 -> int32", "lz4", "none", "int32", packed)
    convert("lz4 block -> chunk", "lz4", "lz4", "int32", [bytes(p)[16:] for p in packed])
    for codec in codecs.PACKED:
        twelve = [codecs.compress(codec, pixels.clip(0, 4095)) for _, pixels in images]
        convert(f"{codec} -> uint16", codec, "none", "uint16", twelve)
    return rows


def step_works(images: list[tuple[bytes, codecs.Array]], folder: Path) -> list[tuple[str, int, list[Work]]]:
    shape = rows, columns = images[0][1].shape
    rng = np.random.default_rng(0)
    np.save(folder / "mask.npy", rng.random(shape) < 0.01)
    np.save(folder / "dark.npy", rng.normal(1, 0.1, shape).astype(np.float32))
    np.save(folder / "flat.npy", rng.normal(1, 0.1, shape).astype(np.float32))
    np.savez(folder / "tot.npz", tot_to_energy_tensor=np.ones((*shape, 32), np.float32))
    steps: list[Any] = [
        *({"rotate": angle} for angle in (90, 180, 270)),
        "fliplr",
        "flipud",
        {"crop": {"rows": [0, rows // 2], "columns": [0, columns // 2]}},
        {"bin": 2},
        {"bin": 4},
        {"mask": {"rows": [0, 100], "columns": [0, 100], "value": -1}},
        {"mask": {"file": "mask.npy", "value": -2}},
        {"calibrate": {"dark": "dark.npy", "flat": "flat.npy"}},
        {"tot": "tot.npz"},
    ]
    found = [_chain([step], images, "none", folder) for step in steps]
    found.append(_chain([{"rotate": 90}], images, "bslz4", folder))
    found.append(_chain([{"rotate": 90}, "bslz4"], images, "cbf", folder))
    found.append(_chain([{"tot": "tot.npz"}, {"rotate": 270}, "bslz4"], images, "cbf", folder))
    return found


def _chain(
    steps: list[Any], images: list[tuple[bytes, codecs.Array]], codec: str, folder: Path
) -> tuple[str, int, list[Work]]:
    chain = transforms.build(steps, folder)
    frames = [
        Frame(0, pixels.shape, "int32", codec, data if codec == "cbf" else codecs.compress(codec, pixels))
        for data, pixels in images
    ]
    name = ", ".join(str(step).replace("'", "").strip("{}") for step in steps)
    return f"{codec}: {name}", images[0][1].size, [lambda f=f: chain.apply(f) for f in frames]


# --- measuring and telling -------------------------------------------------------------------------------------------


def measure(rows: list[tuple[str, int, list[Work]]], rounds: int) -> list[dict[str, Any]]:
    """Compiled and libraries in turn, round by round; seconds of CPU per image, the median."""
    compiled = kernels.pixels
    ways = {"libraries": None} if compiled is None else {"compiled": compiled, "libraries": None}
    figures = []
    for name, size, jobs in rows:
        times: dict[str, list[float]] = {way: [] for way in ways}
        for round_ in range(rounds + 1):
            for way, module in ways.items():
                kernels.pixels = module
                start = time.process_time()
                for job in jobs:
                    job()
                if round_:  # the first one finds memory and imports
                    times[way].append((time.process_time() - start) / len(jobs))
        figures.append({"name": name, "pixels": size, **{w: statistics.median(t) for w, t in times.items()}})
    kernels.pixels = compiled
    return figures


def show(figures: list[dict[str, Any]]) -> None:
    width = max(len(figure["name"]) for figure in figures)
    ways = [way for way in ("compiled", "libraries") if way in figures[0]]
    print(f"{'':{width}}" + "".join(f"  {way + ' MPixel/s':>20} {'2M images/s':>12}" for way in ways))
    for figure in figures:
        cells = ""
        for way in ways:
            speed = figure["pixels"] / figure[way]
            cells += f"  {speed / 1e6:20.0f} {speed / TWO_M:12.0f}"
        print(f"{figure['name']:{width}}{cells}")
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
