"""Messages of Dectris stream V2 as a SIMPLON control unit sends them: the keys in its order, one part each."""

import struct
from io import BytesIO

import bitshuffle
import cbor2
import numpy as np
from cbor2 import CBORTag

from tangods_receiver import lz4block

ENCODINGS = ("none", "lz4", "bslz4")
DETAILS = ("basic", "all")  # `none` is as `basic`
THRESHOLDS = ("threshold_1", "threshold_2", "difference")
TYPES = {"u1": 64, ">u2": 65, ">u4": 66, ">u8": 67, "<u2": 69, "<u4": 70, "<u8": 71, "i1": 72, ">i2": 73, ">i4": 74}
TYPES |= {">i8": 75, "<i2": 77, "<i4": 78, "<i8": 79, ">f4": 81, ">f8": 82, "<f4": 85, "<f8": 86}
TYPES |= {">f2": 80, "<f2": 84}
CLOCK = 50_000_000  # Hz
ARMED = CBORTag(0, "2024-03-07T10:14:53.853+01:00")
UNIQUE = "01HRCJF83SA63WH8M5X1VBKFJM"


def message(values):
    """The one part of it; `...` leaves a key out. Numbers are as short as they can be, arrays in the order given."""
    values = {key: value for key, value in values.items() if value is not ...}
    count = len(values)
    parts = [b"\xd9\xd9\xf7", bytes([0xA0 | count]) if count < 24 else bytes([0xB8, count])]
    for key, value in values.items():
        parts += [cbor2.dumps(key), cbor2.dumps(value, canonical=key not in ("data", "flatfield", "pixel_mask"))]
    return [b"".join(parts)]


# --- arrays ----------------------------------------------------------------------------------------------------------


def compressed(pixels, encoding, block=8192):
    """The byte string of these, or what stands for it."""
    plain = np.ascontiguousarray(pixels).reshape(-1)
    if encoding == "none":
        return plain.tobytes()
    if encoding == "lz4":
        return CBORTag(56500, ["lz4", 0, lz4_chunk(plain.view(np.uint8), block)])
    packed = bitshuffle.compress_lz4(plain, block // plain.itemsize).tobytes()
    return CBORTag(56500, ["bslz4", plain.itemsize, struct.pack(">QI", plain.nbytes, block) + packed])


def lz4_chunk(raw, block):
    """As the LZ4 filter of HDF5 has it: what does not become smaller is stored plain."""
    out = BytesIO()
    out.write(struct.pack(">QI", raw.size, block))
    for at in range(0, raw.size, block):
        piece = np.ascontiguousarray(raw[at : at + block])
        packed = bytes(lz4block.compress(piece))
        packed = packed if len(packed) < piece.size else piece.tobytes()
        out.write(struct.pack(">I", len(packed)) + packed)
    return out.getvalue()


def typed(pixels, encoding="none"):
    """A typed array: its tag tells type and order of bytes."""
    kind = pixels.dtype.str.replace("|", "").replace("=", "<")
    return CBORTag(TYPES[kind], compressed(pixels, encoding))


def array(pixels, encoding="none"):
    return CBORTag(40, [list(pixels.shape), typed(pixels, encoding)])


def blob(pixels, encoding):
    """The bytes that such an image puts into a file."""
    content = compressed(pixels, encoding)
    return content if isinstance(content, bytes) else content.value[2]


# --- start -----------------------------------------------------------------------------------------------------------


def flatfield(shape, number=0):
    return (1 + number + np.arange(np.prod(shape)).reshape(shape) / 1000).astype("<f4")


def pixel_mask(shape, number=0):
    return (np.arange(np.prod(shape)).reshape(shape) % (7 + number) == 0).astype("<u4")


def lookup_table():
    return np.minimum(np.arange(65536), 60000).astype("<u4")


def start(series, shape, detail="basic", user_data=..., *, channels=1, nimages=10, dtype="uint16", **changed):
    """`channels` so many thresholds, or their names; `user_data` the header_appendix; `changed` other keys."""
    rows, columns = shape
    names = list(THRESHOLDS[:channels] if isinstance(channels, int) else channels)
    everything = detail == "all"
    values = {
        "type": "start",
        "series_id": series,
        "series_unique_id": UNIQUE,
        "arm_date": ARMED,
        "beam_center_x": columns / 2,
        "beam_center_y": rows / 2,
        "channels": names,
        "count_time": 0.0009999,
        "countrate_correction_enabled": True,
        "countrate_correction_lookup_table": typed(lookup_table(), "bslz4") if everything else ...,
        "detector_description": "Dectris EIGER2 Si 500K",
        "detector_serial_number": "E-02-0153",
        "detector_translation": [0.0, 0.0, -0.25],
        "flatfield": by_channel(names, lambda k: array(flatfield(shape, k), "bslz4")) if everything else ...,
        "flatfield_enabled": True,
        "frame_time": 0.001,
        "goniometer": {axis: {"increment": 0.0, "start": 0.0} for axis in ("chi", "kappa", "omega", "phi")},
        "image_dtype": dtype,
        "image_size_x": columns,
        "image_size_y": rows,
        "incident_energy": 8041.0,
        "incident_wavelength": 1.5419,
        "number_of_images": nimages,
        "pixel_mask": by_channel(names, lambda k: array(pixel_mask(shape, k), "bslz4")) if everything else ...,
        "pixel_mask_enabled": False,
        "pixel_size_x": 7.5e-05,
        "pixel_size_y": 7.5e-05,
        "saturation_value": 65533,
        "sensor_material": "Si",
        "sensor_thickness": 0.00045,
        "threshold_energy": by_channel([n for n in names if n != "difference"], lambda k: 4020.5 + 3000 * k),
        "user_data": user_data,
        "virtual_pixel_interpolation_enabled": True,
    }
    return message(values | changed)


def by_channel(names, make):
    return {name: make(k) for k, name in enumerate(names)}


# --- image and end ---------------------------------------------------------------------------------------------------


def image(
    series, number, pixels, encoding="bslz4", *, user_data=..., data=..., period=0.001, data_first=False, **changed
):
    """`pixels` of the one threshold, or by the names of several, in the order of the message, or `data` instead;
    `data_first` before the other keys that tell something of the image, as the alphabet has it."""
    several = pixels if isinstance(pixels, dict) else {"threshold_1": pixels}
    if data is ...:
        data = {name: array(image, encoding) for name, image in several.items()}
    begun = round(number * period * CLOCK)
    counted = round(period * CLOCK) - 5
    values = {
        "type": "image",
        "series_id": series,
        "series_unique_id": UNIQUE,
        **({"data": data} if data_first else {}),
        "image_id": number,
        "real_time": [counted - 1, CLOCK],
        "series_date": ARMED,
        "start_time": [begun, CLOCK],
        "stop_time": [begun + counted, CLOCK],
        "user_data": user_data,
        "data": data,
    }
    return message(values | changed)


def said(**more):
    """What frames have besides their pixels."""
    return {"series_date": ARMED.value, "series_unique_id": UNIQUE} | more


def end(series, **changed):
    return message({"type": "end", "series_id": series, "series_unique_id": UNIQUE} | changed)
