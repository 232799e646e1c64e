"""What an expert can turn and read of an SDK3 camera, shown as Tango attributes; what it has not reads as nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tangods_detector.hw.andor_sdk import Camera, SdkError
from tangods_detector.hw.base import Parameter
from tangods_receiver.errors import ConfigError

if TYPE_CHECKING:
    from tangods_detector.hw.andor import Andor

WARM = 45.0  # degC of the sensor; beyond it something is wrong with the cooling
TARGETS = ("TargetSensorTemperature", "TemperatureControl")


def _tried(read: Callable[[], Any], otherwise: Any) -> Any:
    """Some features cannot be read in some modes."""
    try:
        return read()
    except SdkError:
        return otherwise


def text(camera: Camera, feature: str) -> str:
    return str(_tried(lambda: camera.get_enum(feature), "")) if feature and camera.has(feature) else ""


def real(camera: Camera, feature: str) -> float:
    return float(_tried(lambda: camera.get_float(feature), math.nan)) if camera.has(feature) else math.nan


def truth(camera: Camera, feature: str) -> bool:
    return bool(_tried(lambda: camera.get_bool(feature), False)) if camera.has(feature) else False


def choose(camera: Camera, feature: str, value: str, ours: str) -> None:
    """ConfigError lists what there is."""
    if not value and not (feature and camera.has(feature)):
        return  # nothing, of what is not there
    if not feature or not camera.has(feature):
        raise ConfigError(f"{ours}: this camera has none")
    there = camera.choices(feature)
    if value not in there:
        raise ConfigError(f"{ours}: {value!r}; can be {', '.join(map(repr, there))}")
    camera.set_enum(feature, value)


def switch(camera: Camera, feature: str, value: bool, ours: str) -> None:
    if not camera.has(feature):
        if value:
            raise ConfigError(f"{ours}: this camera has none")
        return
    if camera.get_bool(feature) != value:
        camera.set_bool(feature, value)


def target_temperature(camera: Camera) -> float:
    """degC that the sensor is cooled to; NaN: the camera does not tell."""
    if camera.has(TARGETS[0]):
        return real(camera, TARGETS[0])
    try:
        return float(text(camera, TARGETS[1]))
    except ValueError:
        return math.nan


def set_target_temperature(camera: Camera, value: float) -> None:
    """ConfigError says what can be set."""
    current = target_temperature(camera)
    if value == current or (math.isnan(value) and math.isnan(current)):
        return
    if camera.is_writable(TARGETS[0]):
        low, high = camera.float_limits(TARGETS[0])
        if not low <= value <= high:
            raise ConfigError(f"TargetTemperature: {value:g} degC; the camera takes {low:g} to {high:g}")
        camera.set_float(TARGETS[0], value)
        return
    if camera.is_writable(TARGETS[1]):
        there = camera.choices(TARGETS[1])
        fit = [item for item in there if float(item) == value]
        if not fit:
            raise ConfigError(f"TargetTemperature: {value:g} degC; can be {', '.join(there)}")
        camera.set_enum(TARGETS[1], fit[0])
        return
    raise ConfigError(f"TargetTemperature: this camera keeps its own, {current:g} degC")


def expose_live(camera: Camera, seconds: float, acquiring: bool) -> None:
    """Another exposure while the camera acquires, where it can; the frame rate follows as far as it must."""
    if not acquiring:
        raise ConfigError("LiveExposureTime: only in a live view; else set ExposureTime")
    low, high = camera.float_limits("ExposureTime")
    if not low <= seconds <= high:
        raise ConfigError(f"LiveExposureTime: {seconds:g} s; the camera takes {low:g} to {high:g} s")
    if not camera.is_writable("ExposureTime"):
        raise ConfigError("LiveExposureTime: this camera takes none while it acquires; Stop, set ExposureTime, Live")
    camera.set_float("ExposureTime", seconds)
    if camera.is_writable("FrameRate"):
        camera.set_float("FrameRate", camera.float_limits("FrameRate")[1])


def _choice(name: str, feature: str, doc: str) -> Parameter:
    def put(backend: Andor, value: str) -> None:
        choose(backend.camera, feature, value, name)
        backend.turned(feature, value)

    return Parameter(name, str, doc, lambda b: text(b.camera, feature), put)


def _switch(name: str, feature: str, doc: str) -> Parameter:
    def put(backend: Andor, value: bool) -> None:
        switch(backend.camera, feature, value, name)
        backend.turned(feature, value)

    return Parameter(name, bool, doc, lambda b: truth(b.camera, feature), put)


def _reading(name: str, feature: str, doc: str, unit: str, shape: str = "%.6g", **more: Any) -> Parameter:
    return Parameter(name, float, doc, lambda b: real(b.camera, feature), unit=unit, format=shape, **more)


def _limit(name: str, feature: str, which: int, doc: str, unit: str) -> Parameter:
    def get(backend: Andor) -> float:
        return float(_tried(lambda: backend.camera.float_limits(feature)[which], math.nan))

    return Parameter(name, float, doc, get, unit=unit, format="%.6g")


def _set_gain(backend: Andor, value: str) -> None:
    choose(backend.camera, backend.gain, value, "Gain")
    if backend.gain:
        backend.turned(backend.gain, value)


def _set_target(backend: Andor, value: float) -> None:
    set_target_temperature(backend.camera, value)
    backend.turned("TargetTemperature", value)


PARAMETERS = (
    Parameter(
        "Gain",
        str,
        "Pre-amplifier or gain mode in the camera's own words (GainChoices); decides the bits of a pixel. BitDepth "
        "that is not 0 chooses one that fits",
        lambda b: text(b.camera, b.gain),
        _set_gain,
    ),
    Parameter(
        "GainChoices",
        str,
        "What Gain can be, with ; between",
        lambda b: "; ".join(b.camera.choices(b.gain)) if b.gain else "",
    ),
    _choice("ShutterMode", "ElectronicShutteringMode", "Rolling, or Global: all rows at a time, at half the rate"),
    _choice("ReadoutRate", "PixelReadoutRate", "Pixel clock, such as 280 MHz; slower is less noisy"),
    _choice("FanSpeed", "FanSpeed", "Of the camera's fan; Off only with water cooling"),
    _choice("AuxiliaryOut", "AuxiliaryOutSource", "What the auxiliary output signals, such as FireAll"),
    _switch("SpuriousNoiseFilter", "SpuriousNoiseFilter", "The camera replaces pixels that flicker"),
    _switch("StaticBlemishCorrection", "StaticBlemishCorrection", "The camera replaces pixels that are always wrong"),
    _switch("Cooling", "SensorCooling", "The sensor is cooled; not to be changed in a series"),
    Parameter(
        "TargetTemperature",
        float,
        "Temperature that the sensor is cooled to; some cameras have one of their own",
        lambda b: target_temperature(b.camera),
        _set_target,
        unit="degC",
        format="%6.2f",
    ),
    _reading("SensorTemperature", "SensorTemperature", "Temperature of the sensor", "degC", "%6.2f", max_alarm=WARM),
    Parameter(
        "TemperatureStatus",
        str,
        "Cooler Off, Cooling, Stabilised, Drift, Not Stabilised, Fault",
        lambda b: text(b.camera, "TemperatureStatus"),
    ),
    Parameter(
        "LiveExposureTime",
        float,
        "Exposure of a live view, changed on the fly; the next series has ExposureTime again",
        lambda b: real(b.camera, "ExposureTime"),
        lambda b, value: b.expose_live(value),
        unit="s",
        format="%.6g",
        writable_while_running=True,
    ),
    _limit("ExposureTimeMin", "ExposureTime", 0, "Shortest exposure with the settings that are loaded", "s"),
    _limit("ExposureTimeMax", "ExposureTime", 1, "Longest exposure with the settings that are loaded", "s"),
    _limit("FrameRateMax", "FrameRate", 1, "Highest frame rate with the settings that are loaded", "Hz"),
    _reading("TransferRate", "MaxInterfaceTransferRate", "Frame rate that the link to the computer can sustain", "Hz"),
    _reading("ReadoutTime", "ReadoutTime", "Of the region that is loaded", "s"),
    Parameter(
        "PixelEncoding",
        str,
        "How the camera packs pixels: Mono16, Mono12 or Mono12Packed; follows from Gain and the option packed",
        lambda b: text(b.camera, "PixelEncoding"),
    ),
    Parameter("LostFrames", int, "Frames of this series that were taken and are not in the stream", lambda b: b.lost),
    Parameter("FreeBuffers", int, "Frames that can still wait to be sent before some are lost", lambda b: b.free),
)
