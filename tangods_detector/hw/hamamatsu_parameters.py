"""What the expert turns: modes of the camera by their own names, cooling, losses; and any property by its name."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tangods_detector.hw.base import Parameter
from tangods_detector.hw.hamamatsu_camera import Camera
from tangods_detector.hw.hamamatsu_dcam import DcamError, Prop
from tangods_detector.hw.hamamatsu_frames import text_of
from tangods_detector.hw.hamamatsu_settings import OFF, change_exposure, shortest_period
from tangods_receiver.errors import ConfigError, HardwareError

if TYPE_CHECKING:
    from tangods_detector.hw.hamamatsu import Hamamatsu

log = logging.getLogger(__name__)

READY = (2, 4)  # SENSORCOOLERSTATUS: the temperature is reached; a cooler that is always on
COLD_ENOUGH = 1.0  # K from the target, where the camera tells no status


class Knobs:
    """What was chosen, also over a new connection. `camera` gives the open one, or HardwareError."""

    def __init__(self, camera: Callable[[], Camera], packed: bool, cooling_timeout: float) -> None:
        self.camera, self.packed, self.cooling_timeout = camera, packed, cooling_timeout
        self.chosen: dict[int, float] = {}
        self.sync_readout = False
        self.answer = ""

    def restore(self) -> None:
        """After connecting. ConfigError: the camera has changed."""
        for prop, value in self.chosen.items():
            if self.camera().has(prop):
                self.camera().put(prop, value)

    def choose(self, prop: int, value: float, name: str) -> None:
        camera = self.camera()
        if not camera.has(prop):
            raise ConfigError(f"{name}: this camera has none")
        try:
            camera.put(prop, value)
        except ConfigError as exc:
            raise ConfigError(f"{name}: {exc}") from exc
        self.chosen[prop] = value

    def mode(self, prop: int) -> str:
        """As the camera calls it; empty: it has none."""
        camera = self.camera()
        if not camera.has(prop):
            return ""
        value = camera.get(prop)
        return camera.value_text(prop, value) or f"{value:g}"

    def choose_mode(self, prop: int, text: str, name: str) -> None:
        if text.strip().upper() == self.mode(prop).upper():
            return
        camera = self.camera()
        choices = camera.choices(prop) if camera.has(prop) else []
        for value, word in choices:
            if text.strip().upper() in (word.upper(), f"{value:g}"):
                return self.choose(prop, value, name)
        can = ", ".join(word or f"{value:g}" for value, word in choices)
        raise ConfigError(f"{name}: {text!r}; {'can be ' + can if can else 'this camera has none'}")

    def temperature(self) -> float:
        """degC; NaN: the camera does not tell. Asked for each second, also in a series, which it must not end."""
        try:
            return self.camera().get_or(Prop.SENSORTEMPERATURE, math.nan)
        except DcamError as exc:
            log.debug("%s", exc)
            return math.nan

    # --- cooling -----------------------------------------------------------------------------------------------------

    def wait_cold(self, given_up: threading.Event) -> None:
        """Where that is wished for: until the sensor has its temperature. HardwareError: not in time, or stopped."""
        camera = self.camera()
        begun = time.monotonic()
        while self.cooling_timeout > 0 and not self._is_cold(camera):
            if given_up.wait(0.1):
                raise HardwareError("stopped while the sensor was being cooled")
            if time.monotonic() - begun > self.cooling_timeout:
                raise HardwareError(
                    f"the sensor has not reached its temperature within {self.cooling_timeout:g} s (cooling_timeout): "
                    f"{camera.get_or(Prop.SENSORTEMPERATURE, math.nan):.1f} degC, cooler {self.mode(Prop.SENSORCOOLER)}"
                    f" {self.mode(Prop.SENSORCOOLERSTATUS)}; look at its water or fan, or set cooling_timeout to 0"
                )

    @staticmethod
    def _is_cold(camera: Camera) -> bool:
        """Of a cooler that is off there is nothing to wait for."""
        if camera.get_or(Prop.SENSORCOOLER, OFF) == OFF:
            return True
        if camera.has(Prop.SENSORCOOLERSTATUS):
            return camera.get(Prop.SENSORCOOLERSTATUS) in READY
        target = camera.get_or(Prop.SENSORTEMPERATURETARGET, math.nan)
        return not abs(camera.get_or(Prop.SENSORTEMPERATURE, math.nan) - target) > COLD_ENOUGH

    # --- any property ------------------------------------------------------------------------------------------------

    def request(self, text: str) -> None:
        """`NAME` reads, `NAME = VALUE` writes; `answer` is what it is then, with its limits."""
        if not text.strip():
            self.answer = ""
            return
        name, equals, value = (part.strip() for part in text.partition("="))
        camera = self.camera()
        prop = camera.find(name)
        if equals:
            try:
                number = float(int(value, 0)) if value.lower().startswith("0x") else float(value)
            except ValueError:
                self.choose_mode(prop, value, name)
            else:
                self.choose(prop, number, name)
        limits = camera.limits(prop)
        if limits.mode:
            can = ", ".join(f"{number:g} {word}" for number, word in camera.choices(prop))
        else:
            can = f"between {limits}"
        self.answer = f"{camera.get(prop):.12g} {self.mode(prop) if limits.mode else ''}; {can}".replace(" ;", ";")


# --- the attributes ---------------------------------------------------------------------------------------------------


def _mode(name: str, prop: Prop, doc: str, **more: Any) -> Parameter:
    """A mode by the camera's own word; empty where it has none."""
    return Parameter(
        name,
        str,
        doc + "; empty: this camera has none",
        lambda b: b.knobs.mode(prop),
        lambda b, text: b.knobs.choose_mode(prop, text, name),
        **more,
    )


def _number(name: str, prop: Prop, dtype: type, doc: str, **more: Any) -> Parameter:
    none = math.nan if dtype is float else 0

    def get(b: Hamamatsu) -> Any:
        return dtype(b.knobs.camera().get_or(prop, none))

    def put(b: Hamamatsu, value: Any) -> None:
        now = get(b)
        if value != now and not (value != value and now != now):  # to write what it is does no harm
            b.knobs.choose(prop, float(value), name)

    return Parameter(name, dtype, doc, get, put, **more)


def _reading(name: str, dtype: type, doc: str, get: Callable[[Hamamatsu], Any], **more: Any) -> Parameter:
    return Parameter(name, dtype, doc, get, None, **more)


def _plain(name: str, dtype: type, doc: str, key: str, **more: Any) -> Parameter:
    """Something of ours."""
    return Parameter(
        name, dtype, doc, lambda b: getattr(b.knobs, key), lambda b, value: setattr(b.knobs, key, value), **more
    )


def _live_exposure(b: Hamamatsu, seconds: float) -> None:
    settings = b.loaded
    if seconds != b.knobs.camera().get(Prop.EXPOSURETIME):
        change_exposure(b.knobs.camera(), seconds, settings.frame_time)


def _shortest(b: Hamamatsu) -> float:
    camera = b.knobs.camera()
    return shortest_period(camera, b.loaded.trigger_mode, camera.get(Prop.EXPOSURETIME))


def _longest_interval(b: Hamamatsu) -> float:
    camera = b.knobs.camera()
    if camera.has(Prop.INTERNAL_FRAMEINTERVAL):
        return camera.limits(Prop.INTERNAL_FRAMEINTERVAL).high
    return _shortest(b)


S: dict[str, Any] = {"unit": "s", "format": "%12.9f"}
DEG: dict[str, Any] = {"unit": "degC", "format": "%5.1f"}
NOW: dict[str, Any] = {"writable_while_running": True}

PARAMETERS = (
    Parameter("LiveExposureTime", float, "Exposure of a live view, changed on the fly where the camera can",
              lambda b: b.knobs.camera().get(Prop.EXPOSURETIME), _live_exposure, **S, **NOW),
    _reading("ExposureTimeMin", float, "Shortest exposure with the present settings",
             lambda b: b.knobs.camera().limits(Prop.EXPOSURETIME).low, **S),
    _reading("ExposureTimeMax", float, "Longest exposure with the present settings",
             lambda b: b.knobs.camera().limits(Prop.EXPOSURETIME).high, **S),
    _reading("ExposureTimeStep", float, "Exposures are multiples of this, with the present settings; 0: any",
             lambda b: b.knobs.camera().limits(Prop.EXPOSURETIME).step, **S),
    _reading("FrameTimeMin", float, "Shortest period with the present settings", _shortest, **S),
    _reading("FrameTimeMax", float, "Longest period with the present settings", _longest_interval, **S),
    _reading("ReadoutTime", float, "From the first to the last row of an image",
             lambda b: b.knobs.camera().get_or(Prop.TIMING_READOUTTIME, math.nan), **S),
    _number("ReadoutSpeed", Prop.READOUTSPEED, int, "1: slowest and least noise; 0: this camera has but one"),
    _mode("ShutterMode", Prop.TRIGGER_GLOBALEXPOSURE, "When rows begin to be exposed after a trigger: DELAYED is a "
          "rolling shutter, GLOBAL RESET all at once"),
    _mode("SensorMode", Prop.SENSORMODE, "AREA, or how rows are read for a light sheet"),
    _mode("HighDynamicRange", Prop.HIGHDYNAMICRANGE_MODE, "Two gains in one image: OFF, ON"),
    _mode("DefectCorrection", Prop.DEFECTCORRECT_MODE, "Bad pixels are replaced by the camera: OFF, ON"),
    _mode("HotPixelCorrection", Prop.HOTPIXELCORRECT_LEVEL, "How many pixels count as hot"),
    _plain("SyncReadout", bool, "In EXTERNAL_MULTI with one frame for each trigger: an edge ends a frame and begins "
           "the next, so n frames need n + 1 edges; counts from the next Arm on", "sync_readout"),
    _mode("TriggerPolarity", Prop.TRIGGERPOLARITY, "Of the external trigger: NEGATIVE, POSITIVE"),
    _mode("TriggerConnector", Prop.TRIGGER_CONNECTOR, "Where the external trigger comes in"),
    _number("TriggerDelay", Prop.TRIGGERDELAY, float, "From an edge to the exposure", unit="s"),
    _number("TriggerTimes", Prop.TRIGGERTIMES, int, "Edges for one frame in SyncReadout; 0: this camera has none"),
    _reading("TriggerInput", str, "What the camera says of the trigger input, such as TOO FREQUENT",
             lambda b: b.knobs.mode(Prop.CAMERASTATUS_INPUTTRIGGER)),
    _mode("Cooler", Prop.SENSORCOOLER, "OFF, ON, MAX as the camera has it", **NOW),
    _number("TargetTemperature", Prop.SENSORTEMPERATURETARGET, float, "Of the sensor; NaN: this camera has none",
            **DEG, **NOW),
    _reading("SensorTemperature", float, "Of the sensor; NaN: this camera does not tell",
             lambda b: b.knobs.temperature(), max_alarm=60.0, **DEG),
    _reading("TemperatureStatus", str, "In the camera's word: READY when the temperature is reached",
             lambda b: b.knobs.mode(Prop.SENSORCOOLERSTATUS)),
    _reading("LostFrames", int, "Of the running or last series: frames that the camera took and that were not sent",
             lambda b: b.numbers.count_lost),
    _reading("OverwrittenFrames", int, "Of them: lost because the receiver was too slow and all buffers were full",
             lambda b: b.numbers.overwritten),
    _reading("LostFrameNumbers", str, "Their numbers in the series, such as 5-7, 12",
             lambda b: text_of(b.numbers.lost)),
    _reading("Buffers", int, "Buffers that the camera fills in turn, with the present settings", lambda b: b.buffers),
    _reading("BuffersWaiting", int, "Frames in them that the receiver has not taken yet", lambda b: b.waiting),
    _reading("CopiedFrames", int, "Of the running or last series: frames that were copied because the receiver was so "
             "slow that the camera came round", lambda b: b.rescued),
    _reading("ConversionFactor", float, "Electrons for one count; NaN: the camera does not tell",
             lambda b: b.knobs.camera().get_or(Prop.CONVERSIONFACTOR_COEFF, math.nan)),
    _reading("ConversionOffset", float, "Counts without light; NaN: the camera does not tell",
             lambda b: b.knobs.camera().get_or(Prop.CONVERSIONFACTOR_OFFSET, math.nan)),
    Parameter("Dcam", str, "Write the name of any property, such as READOUT SPEED, to read it, or READOUT SPEED = 1 to "
              "set it; reads its value and what it can be",
              lambda b: b.knobs.answer, lambda b, text: b.knobs.request(text), **NOW),
)  # fmt: skip
