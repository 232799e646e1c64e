"""A device's own description of its attributes, and their values as plain Python. No Qt."""

from __future__ import annotations

from typing import Any

import numpy as np
import tango

from taurus_gui.orders import Described

#: What every Detector has; all else is its backend's own.
STANDARD = frozenset(
    """
    State Status ExposureTime FrameTime FrameRate TriggerMode nTriggers nFramesPerTrigger DestinationFilename
    OverwritePolicy SaveRaw Label Metadata Rotation Fliplr Flipud BitDepth Binning Roi nFramesExpected
    nFramesAcquired nFramesReceived nFramesWritten nFramesMissing Progress MeasuredRate LastFilename LastError
    ReceiverState FrameShape DataType LatencyTime TriggerModes Endpoints Model SerialNumber Firmware PixelSize
    SensorShape SensorMaterial SensorThickness LastImage video_last_image LastImageNumber
    """.split()
)
NOT_ASKED = frozenset(["LastImage", "video_last_image", "LastImageNumber"])  # a look at them is a look at the images

_KINDS = {
    "bool": (tango.CmdArgType.DevBoolean,),
    "float": (tango.CmdArgType.DevFloat, tango.CmdArgType.DevDouble),
    "str": (tango.CmdArgType.DevString,),
    "state": (tango.CmdArgType.DevState,),
    "image": (tango.CmdArgType.DevEncoded,),
}


def describe(config: tango.AttributeInfoEx) -> Described:
    kind = next((kind for kind, types in _KINDS.items() if config.data_type in types), "int")
    if config.data_format == tango.AttrDataFormat.IMAGE or config.name in NOT_ASKED:
        kind = "image"
    elif config.data_format == tango.AttrDataFormat.SPECTRUM:
        kind = "list"
    unit = "" if config.unit == "No unit" else config.unit
    return Described(
        config.name,
        config.label,
        "" if config.description == "No description" else config.description,
        unit,
        kind,
        config.writable in (tango.AttrWriteType.READ_WRITE, tango.AttrWriteType.WRITE),
        config.disp_level == tango.DispLevel.EXPERT,
        _number(config.min_value),
        _number(config.max_value),
        config.format,
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def plain(value: Any) -> Any:
    """States as their names, arrays as tuples."""
    if isinstance(value, tango.DevState):
        return str(value)
    if isinstance(value, np.ndarray):
        return tuple(value.tolist())
    if isinstance(value, list | tuple):
        return tuple(value)
    return value
