"""Messages of Dectris stream V1 as a SIMPLON control unit sends them: keys in order, no blanks, shapes turned round."""

import hashlib
import json
import struct

import bitshuffle
import numpy as np

from tangods_receiver import lz4block

ENCODINGS = ("<", "lz4<", "bs-lz4<")  # bs: of the pixel's bits
DETAILS = ("none", "basic", "all")
TABLE = (4000, 2)  # of the count-rate correction


def text(value):
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def configuration(shape, dtype="uint16", *, integers=False, **changed):
    """Of an EIGER; `integers`: booleans as API 1.6 has them."""
    rows, columns = shape
    on = 1 if integers else True
    values = {
        "auto_summation": on,
        "beam_center_x": columns / 2,
        "beam_center_y": rows / 2,
        "bit_depth_image": 8 * np.dtype(dtype).itemsize,
        "bit_depth_readout": 16,
        "chi_increment": 0.0,
        "chi_start": 0.0,
        "compression": "bslz4",
        "count_time": 0.0009999,
        "countrate_correction_applied": on,
        "countrate_correction_count_cutoff": 65000,
        "data_collection_date": "2024-09-30T12:14:53.853+02:00",
        "description": "Dectris EIGER1 Si 1M",
        "detector_distance": 0.25,
        "detector_number": "E-02-0153",
        "detector_readout_time": 7.540540540540541e-6,
        "detector_translation": [0.0, 0.0, 0.0],
        "eiger_fw_version": "release-2020.2.5",
        "element": "",
        "flatfield_correction_applied": on,
        "frame_count_time": 0.0013240272897398063,
        "frame_period": 0.001331567830280347,
        "frame_time": 0.001,
        "kappa_increment": 0.0,
        "kappa_start": 0.0,
        "nimages": 10,
        "ntrigger": 1,
        "number_of_excluded_pixels": 38129,
        "omega_increment": 0.0,
        "omega_start": 0.0,
        "phi_increment": 0.0,
        "phi_start": 0.0,
        "photon_energy": 8000.0,
        "pixel_mask_applied": 0 if integers else False,
        "roi_mode": "",
        "sensor_material": "Si",
        "sensor_thickness": 0.00045,
        "software_version": "1.6.6" if integers else "1.8.0",
        "threshold_energy": 4000.0,
        "trigger_mode": "ints",
        "two_theta_increment": 0.0,
        "two_theta_start": 0.0,
        "virtual_pixel_correction_applied": on,
        "wavelength": 1.5498024804150032,
        "x_pixel_size": 7.5e-05,
        "x_pixels_in_detector": columns,
        "y_pixel_size": 7.5e-05,
        "y_pixels_in_detector": rows,
    }
    return {**values, **changed}


def flatfield(shape):
    return (1 + np.arange(np.prod(shape)).reshape(shape) / 1000).astype("<f4")


def pixel_mask(shape):
    return (np.arange(np.prod(shape)).reshape(shape) % 7 == 0).astype("<u4")


def countrate_table():
    measured = np.arange(TABLE[0]) * 1125
    return np.stack([measured, measured * 0.999], 1).astype("<f4")


def array(kind, values):
    """Two parts."""
    return [text({"htype": kind, "shape": [*reversed(values.shape)], "type": values.dtype.name}), values.tobytes()]


def arrays(shape, thresholds=1):
    parts = []
    for _ in range(thresholds):
        parts += array("dflatfield-1.0", flatfield(shape)) + array("dpixelmask-1.0", pixel_mask(shape))
    return parts + array("dcountrate_table-1.0", countrate_table())


def start(series, shape, detail="basic", appendix="", *, thresholds=1, config=None, **changed):
    """Parts of a start message; `changed` of the configuration; `appendix` a string, or what is put into JSON."""
    parts = [text({"header_detail": detail, "htype": "dheader-1.0", "series": series})]
    if detail != "none":
        parts.append(text(configuration(shape, **changed) if config is None else config))
    if detail == "all":
        parts += arrays(shape, thresholds)
    if appendix != "":
        parts.append(appendix.encode() if isinstance(appendix, str) else json.dumps(appendix).encode())
    return parts


def blob(pixels, encoding="bs-lz4<"):
    """(the encoding's name, the bytes)"""
    plain = np.ascontiguousarray(pixels).reshape(-1)
    if encoding == "<":
        return encoding, plain.tobytes()
    if encoding == "lz4<":
        return encoding, bytes(lz4block.compress(plain.view(np.uint8)))
    head = struct.pack(">QI", plain.nbytes, 8192)
    packed = bitshuffle.compress_lz4(plain, 8192 // plain.itemsize).tobytes()
    return f"bs{8 * plain.itemsize}-lz4<", head + packed


def image(series, number, pixels, encoding="bs-lz4<", *, times=True, appendix="", payload=None, **changed):
    """Parts of an image message: 4, one fewer without `times`, one more with an appendix; `payload` is sent as it is,
    `changed` keys of part 1."""
    name, data = blob(pixels, encoding)
    data = data if payload is None else payload
    shape = [*reversed(pixels.shape)]
    about = {"encoding": name, "htype": "dimage_d-1.0", "shape": shape, "size": len(data), "type": pixels.dtype.name}
    about = text({key: value for key, value in {**about, **changed}.items() if value is not ...})
    digest = hashlib.md5(about).hexdigest()
    parts = [text({"frame": number, "hash": digest, "htype": "dimage-1.0", "series": series}), about, data]
    if times:
        parts.append(text({"htype": "dconfig-1.0", **clock(number)}))
    return parts if appendix == "" else [*parts, appendix.encode()]


def clock(number):
    """ns"""
    begun = 4843213806960 + 1_000_000 * number
    return {"real_time": 994_000, "start_time": begun, "stop_time": begun + 999_900}


def end(series):
    return [text({"htype": "dseries_end-1.0", "series": series})]
