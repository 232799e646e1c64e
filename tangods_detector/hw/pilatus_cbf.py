"""What a miniCBF says about itself, without decoding its pixels. Python 3.6, see pilatus_stream."""

import base64
import functools
import hashlib
import math
import re
from datetime import datetime
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

START = b"\x0c\x1a\x04\xd5"
HEADER_MAX = 65536  # bytes of text before the pixels

_SIZE = re.compile(rb"^X-Binary-Size: *(\d{1,12})\s*$", re.MULTILINE)
_COLUMNS = re.compile(rb"^X-Binary-Size-Fastest-Dimension: *(\d{1,9})\s*$", re.MULTILINE)
_ROWS = re.compile(rb"^X-Binary-Size-Second-Dimension: *(\d{1,9})\s*$", re.MULTILINE)
_PADDING = re.compile(rb"^X-Binary-Size-Padding: *(\d{1,6})\s*$", re.MULTILINE)
_MD5 = re.compile(rb"^Content-MD5: *(\S+)\s*$", re.MULTILINE)
_DATE = re.compile(rb"^# (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?\s*$", re.MULTILINE)
_LINE = re.compile(r"^# ([A-Za-z][A-Za-z0-9_]*)(?::|\s*=)?\s+(.*?)\s*$")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_NUMBERS = (
    ("threshold_energy", "Threshold_setting"),
    ("saturation_value", "Count_cutoff"),
    ("detector_distance", "Detector_distance"),
)
_APPLIED = (
    ("flatfield_correction_applied", "Flat_field"),
    ("pixel_mask_applied", "Excluded_pixels"),
    ("countrate_correction_applied", "Ratecorr_lut_directory"),
)
_NIL = ("", "(nil)")
_MATERIALS = {"Silicon": "Si", "CdTe": "CdTe", "GaAs": "GaAs"}


class Incomplete(ValueError):
    """It ends too early: it is still being written, or was cut off."""


class Damaged(ValueError):
    """It is complete and still wrong."""


class Image(NamedTuple):
    """`shape` rows, columns; `header` the text; `start` of the pixels' code in the file, which has `size` bytes."""

    shape: Tuple[int, int]
    header: bytes
    start: int
    size: int


def examine(data: bytes) -> Image:
    """Incomplete or Damaged says what is wrong. Padding that was announced must be there, too."""
    at = data.find(START, 0, HEADER_MAX)
    if at < 0:
        if len(data) < HEADER_MAX and b"###CBF".startswith(data[:6]):
            raise Incomplete(f"{len(data)} bytes and no pixels yet")
        raise Damaged("not a miniCBF file")
    header, start = data[:at], at + len(START)
    if not header.startswith(b"###CBF"):
        raise Damaged("not a miniCBF file")
    found = [expression.search(header) for expression in (_SIZE, _ROWS, _COLUMNS)]
    if None in found:
        raise Damaged("the header does not say how many rows, columns and bytes there are")
    size, rows, columns = [int(one.group(1)) for one in found if one]
    padding = _PADDING.search(header)
    needed = start + size + (int(padding.group(1)) if padding else 0)
    if len(data) < needed:
        raise Incomplete(f"{len(data)} bytes of {needed}")
    if size < rows * columns:  # at least a byte each
        raise Damaged(f"{size} bytes cannot hold {rows * columns} pixels")
    return Image((rows, columns), header, start, size)


def check_md5(data: bytes, image: Image) -> None:
    """Damaged: the bytes of the pixels are not those that were written. Without a sum in the header: nothing."""
    said = _MD5.search(image.header)
    if said:
        found = base64.b64encode(hashlib.md5(memoryview(data)[image.start : image.start + image.size]).digest())
        if found != said.group(1):
            raise Damaged(f"MD5 of the pixels is {_text(found)}, the header says {_text(said.group(1))}")


def taken_at(header: bytes) -> Optional[float]:
    """The time in the header, s since the epoch; it is the detector computer's local time, without a zone."""
    found = _DATE.search(header)
    if not found:
        return None
    second = _second(found.group(1).decode("ascii"))
    return None if second is None else second + float(found.group(2) or 0)


@functools.lru_cache(maxsize=4)  # hundreds of images have the same
def _second(text: str) -> Optional[float]:
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S").timestamp()
    except (ValueError, OverflowError):
        return None


def fields(header: bytes) -> Dict[str, str]:
    """Lines such as `# Exposure_time 0.0990000 s` by their names; the text as it is."""
    found: Dict[str, str] = {}
    for line in header.decode("latin-1").splitlines():
        match = _LINE.match(line)
        if match:
            found.setdefault(match.group(1), match.group(2))
    return found


def metadata(said: Dict[str, str]) -> Dict[str, Any]:
    """What the lines of a header say, by the names that the receiver knows; all of them in `cbf_header`."""
    detector: Dict[str, Any] = {}
    for name, line in _NUMBERS:
        numbers = _numbers(said.get(line, ""))
        if numbers:
            detector[name] = numbers[0]
    for name, line in _APPLIED:
        if line in said:
            detector[name] = said[line] not in _NIL
    if max(_numbers(said.get("Tau", "")), default=0.0) > 0:  # PILATUS2: it has no tables
        detector["countrate_correction_applied"] = True
    for word, material in _MATERIALS.items():
        if word in said:
            detector["sensor_material"] = material
            detector.update(("sensor_thickness", thickness) for thickness in _numbers(said[word])[:1])
    centre = _numbers(said.get("Beam_xy", ""))
    if len(centre) == 2:
        detector["beam_center_x"], detector["beam_center_y"] = centre
    model, _, serial = said.get("Detector", "").partition(", S/N ")
    if model:
        detector["description"] = model
    if serial:
        detector["detector_number"] = serial
    return {"detector": detector, "cbf_header": dict(said)}


def differences(said: Dict[str, str], expected: Dict[str, Any], tolerance: float = 1e-3) -> Dict[str, str]:
    """What the header says otherwise than expected: numbers, and lists of them, to `tolerance` (relative; a header has
    few digits), texts by their beginning."""
    found = {}
    for name, value in sorted(expected.items()):
        text = said.get(name)
        if text is None:
            found[name] = f"not in the header, expected {value}"
        elif not (text.startswith(value) if isinstance(value, str) else _are(text, value, tolerance)):
            found[name] = f"{text}, expected {value}"
    return found


def _are(text: str, value: Any, tolerance: float) -> bool:
    wanted = value if isinstance(value, (list, tuple)) else [value]
    numbers = _numbers(text)[: len(wanted)]
    if len(numbers) < len(wanted):
        return False
    return all(abs(a - b) <= max(1e-7, tolerance * abs(b)) for a, b in zip(numbers, wanted))


def _numbers(text: str) -> List[float]:
    found = [float(number) for number in _NUMBER.findall(text)]
    return [number for number in found if math.isfinite(number)]


def _text(value: bytes) -> str:
    return value.decode("latin-1")
