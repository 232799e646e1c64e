"""Names and contents of the files that camserver writes: CBF, TIFF, EDF, raw."""

from __future__ import annotations

import base64
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tangods_detector.simulators.camserver.models import Model
from tangods_detector.simulators.camserver.pictures import Picture
from tangods_receiver.cbf import START
from tangods_receiver.protocol import Buffer

PADDING = 4095
TIFF_HEADER, EDF_HEADER = 4096, 1024
TRAILER = bytes(PADDING) + b"\r\n--CIF-BINARY-FORMAT-SECTION----\r\n;\r\n\r\n"
NIL = "(nil)"
CUTOFF = 1009797  # counts

# mxsettings: how the values of a key are shown. The order is that of the header.
MX: dict[str, str] = {
    "Wavelength": "{0:.5f} A",
    "Energy_range": "({0:g}, {1:g}) eV",
    "Detector_distance": "{0:.5f} m",
    "Detector_Voffset": "{0:.5f} m",
    "Beam_xy": "({0:.2f}, {1:.2f}) pixels",
    "Flux": "{0:.6f}",
    "Filter_transmission": "{0:.4f}",
    "Start_angle": "{0:.4f} deg.",
    "Angle_increment": "{0:.4f} deg.",
    "Detector_2theta": "{0:.4f} deg.",
    "Polarization": "{0:.3f}",
    "Alpha": "{0:.4f} deg.",
    "Kappa": "{0:.4f} deg.",
    "Phi": "{0:.4f} deg.",
    "Phi_increment": "{0:.4f} deg.",
    "Omega": "{0:.4f} deg.",
    "Omega_increment": "{0:.4f} deg.",
    "Chi": "{0:.4f} deg.",
    "Chi_increment": "{0:.4f} deg.",
    "Oscillation_axis": "{0}",
    "N_oscillations": "{0:.0f}",
    "Shutter_time": "{0:.7f} s",
}
MX_TEXT = ("Oscillation_axis",)


@dataclass(frozen=True)
class Header:
    """What the header of a series says, frozen at the exposure command."""

    model: Model
    sensor: str
    old: bool  # tvx: SLS conventions
    folder: str
    exptime: float
    period: float
    tau: float
    cutoff: int
    threshold: int  # eV
    gain: str
    energy: int  # eV
    bad_pixels: int
    bad_pixel_map: str
    flat_field: str
    trim_file: str
    comment: str
    ratecorr: str
    retrigger: int
    mx: dict[str, tuple[Any, ...]]

    def lines(self, number: int, date: datetime) -> list[str]:
        thickness = 0.001 if self.sensor == "CdTe" else 0.00045
        sensor = "CdTe" if self.sensor == "CdTe" else "Silicon"
        lines = [
            f"Detector: {self.model.name}, S/N {self.model.serial}",
            date.strftime("%Y-%m-%dT%H:%M:%S.") + f"{date.microsecond // 1000:03d}",
            "Pixel_size 172e-6 m x 172e-6 m",
            f"{sensor} sensor, thickness {thickness:.6f} m",
            f"Exposure_time {self.exptime:.7f} s",
            f"Exposure_period {self.period:.7f} s",
            f"Tau = {self.tau:g} s",
            f"Count_cutoff {self.cutoff} counts",
            f"Threshold_setting: {self.threshold} eV",
            f"Gain_setting: {self.gain or NIL} (vrf = 1.000)",
            f"N_excluded_pixels = {self.bad_pixels}",
            f"Excluded_pixels: {self.bad_pixel_map or NIL}",
            f"Flat_field: {self.flat_field or NIL}",
            f"Trim_file: {self.trim_file or NIL}",
            f"Image_path: {self.folder}",
        ]
        lines += [f"Comment: {self.comment}"] if self.comment else []
        if self.model.new:
            lines += [f"Ratecorr_lut_directory: {self.ratecorr or NIL}", f"Retrigger_mode: {self.retrigger}"]
        return lines + [f"{key} {MX[key].format(*values)}" for key, values in self._mx(number)]

    def _mx(self, number: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """In the order of the header. The start angle goes on with the images."""
        for key in MX:
            if key in self.mx:
                values = self.mx[key]
                if key == "Start_angle":
                    values = (values[0] + number * self.mx.get("Angle_increment", (0.0,))[0],)
                yield key, values


def parts(name: str, header: Header, picture: Picture, number: int, stamp: int | None, date: datetime) -> list[Buffer]:
    """What is in the file; the format follows the suffix."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix == ".cbf":
        return _cbf(name, header, picture, number, stamp, date)
    rows, columns = picture.array.shape
    last = picture.last(stamp).to_bytes(4, "little", signed=True)
    if suffix in (".tif", ".tiff"):
        return [_tiff_header(header.lines(number, date), rows, columns), picture.raw, last]
    if suffix == ".edf":
        return [_edf_header(rows, columns, header.exptime), picture.raw, last]
    return [picture.raw, last]


def _cbf(name: str, header: Header, picture: Picture, number: int, stamp: int | None, date: datetime) -> list[Buffer]:
    rows, columns = picture.array.shape
    tail = picture.tail(stamp)
    stem = os.path.splitext(os.path.basename(name))[0]
    maker, convention = ("SLS/DECTRIS ", "SLS_1.0") if header.old else ("", "PILATUS_1.2")
    text = [
        f"###CBF: VERSION 1.5, CBFlib v0.7.8 - {maker}PILATUS detectors",
        "",
        f"data_{stem}",
        "",
        f'_array_data.header_convention "{convention}"',
        "_array_data.header_contents",
        ";",
        *(f"# {line}" for line in header.lines(number, date)),
        ";",
        "",
        "_array_data.data",
        ";",
        "--CIF-BINARY-FORMAT-SECTION--",
        "Content-Type: application/octet-stream;",
        '     conversions="x-CBF_BYTE_OFFSET"',
        "Content-Transfer-Encoding: BINARY",
        f"X-Binary-Size: {len(picture.code) + len(tail)}",
        "X-Binary-ID: 1",
        'X-Binary-Element-Type: "signed 32-bit integer"',
        "X-Binary-Element-Byte-Order: LITTLE_ENDIAN",
        f"Content-MD5: {base64.b64encode(picture.code_md5(tail)).decode()}",
        f"X-Binary-Number-of-Elements: {rows * columns}",
        f"X-Binary-Size-Fastest-Dimension: {columns}",
        f"X-Binary-Size-Second-Dimension: {rows}",
        f"X-Binary-Size-Padding: {PADDING}",
        "",
        "",
    ]
    return ["\r\n".join(text).encode("latin-1", "replace") + START, picture.code, tail + TRAILER]


def _tiff_header(lines: list[str], rows: int, columns: int) -> bytes:
    """Of a fixed size; the lines are in ImageDescription."""
    description = "".join(f"# {line}\r\n" for line in lines).encode("latin-1", "replace")
    at = 8 + 2 + 12 * 12 + 4
    description = description[: TIFF_HEADER - at - 1] + b"\0"
    short, long, text = 3, 4, 2
    entries = [
        (256, long, 1, columns),
        (257, long, 1, rows),
        (258, short, 1, 32),  # bits
        (259, short, 1, 1),  # not compressed
        (262, short, 1, 1),  # 0 is black
        (270, text, len(description), at),
        (273, long, 1, TIFF_HEADER),  # where the pixels are
        (274, short, 1, 1),
        (277, short, 1, 1),
        (278, long, 1, rows),
        (279, long, 1, rows * columns * 4),
        (339, short, 1, 2),  # signed
    ]
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    head += b"".join(struct.pack("<HHII", *entry) for entry in entries) + struct.pack("<I", 0)
    return (head + description).ljust(TIFF_HEADER, b"\0")


def _edf_header(rows: int, columns: int, exptime: float) -> bytes:
    lines = [
        "HeaderID = EH:000001:000000:000000 ;",
        "Image = 1 ;",
        "ByteOrder = LowByteFirst ;",
        "DataType = SignedInteger ;",
        f"Dim_1 = {columns} ;",
        f"Dim_2 = {rows} ;",
        f"Size = {rows * columns * 4} ;",
        f"count_time = {exptime:.7f} ;",
    ]
    head = "{\n" + "\n".join(lines) + "\n"
    return (head.ljust(EDF_HEADER - 2) + "}\n").encode()


# --- names -----------------------------------------------------------------------------------------------------------


def name(typed: str, images: int, k: int) -> str:
    """Of image `k` of a series: digits behind the last underscore are the number of the first."""
    if images == 1:
        return typed
    stem, suffix = os.path.splitext(typed)
    found = re.fullmatch(r"(.*_)(\d{3,})", stem)
    if found:
        return f"{found[1]}{int(found[2]) + k:0{len(found[2])}d}{suffix}"
    return f"{stem}{'' if stem.endswith('_') else '_'}{k:05d}{suffix}"


# --- to the disk -----------------------------------------------------------------------------------------------------


def temporary(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.tmp")


def write(path: str, content: list[Buffer]) -> None:
    """Under a temporary name, in the same folder. OSError: the disk is full, the folder is gone."""
    file = os.open(temporary(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        rest = [memoryview(part).cast("B") for part in content]
        while rest:
            done = os.writev(file, rest)
            while rest and done >= len(rest[0]):
                done -= len(rest.pop(0))
            if rest:
                rest[0] = rest[0][done:]
    except OSError:
        os.unlink(temporary(path))
        raise
    finally:
        os.close(file)


def truncated(content: list[Buffer]) -> list[Buffer]:
    """The header and half of the rest."""
    head, *rest = (bytes(part) for part in content)
    whole = b"".join(rest)
    return [head, whole[: len(whole) // 2]]


def damaged(content: list[Buffer]) -> list[Buffer]:
    """A difference in the second half of the pixels is another one; the file is as long as it was."""
    head, code, *rest = content
    changed = bytearray(code)
    middle = len(changed) // 2
    # an escape has 14 more bytes at most: behind so many others there is a difference of one byte
    at = next((k for k in range(middle, len(changed)) if 0x80 not in changed[k - 14 : k + 1]), middle)
    changed[at] = 2 if changed[at] == 1 else 1
    return [head, bytes(changed), *rest]
