"""X-Spectrum Lambda: modules on one or several control units, each sent by a process there, or from here."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from tangods_detector.hw import lambda_geometry
from tangods_detector.hw.base import Backend, DetectorInfo, Parameter, Phase, Status
from tangods_detector.hw.lambda_client import UnitStatus
from tangods_detector.hw.lambda_parameters import KEV, PARAMETERS, Knobs
from tangods_detector.hw.lambda_system import DTYPES, RESIZING, Feature, Value, switch
from tangods_detector.hw.lambda_units import ENDLESS, LambdaOptions, Refused, Units, modules_of, phase_of
from tangods_detector.settings import Series, Settings, TriggerMode
from tangods_detector.streamer import start_metadata
from tangods_receiver.errors import ConfigError, DaqError, HardwareError

log = logging.getLogger(__name__)

LOOK = 0.04  # s between two looks at the units in a series
PIXEL = 55e-6  # m
COUNTER = (1 << 24) - 1  # frames of one start: the hardware's counter
STOP_LIMIT = 15.0  # s until every unit has sent its end messages
MODES = {  # trigger_mode, gated
    TriggerMode.INTERNAL: ("SOFTWARE", False),
    TriggerMode.SOFTWARE: ("SOFTWARE", False),
    TriggerMode.EXTERNAL_SINGLE: ("EXT_SEQUENCE", False),
    TriggerMode.EXTERNAL_MULTI: ("EXT_FRAMES", False),
    TriggerMode.EXTERNAL_GATE: ("EXT_FRAMES", True),
}
PHASES = {
    "idle": Phase.IDLE,
    "configuring": Phase.IDLE,
    "arming": Phase.ARMED,
    "armed": Phase.ARMED,
    "running": Phase.ACQUIRING,
    "ending": Phase.ACQUIRING,
    "done": Phase.DONE,
    "error": Phase.ERROR,
}
OURS = ("INTERNAL", "SOFTWARE")  # modes whose starts we give when the time has come


class XLambda(Backend):
    """Translates; the units do the work, the knobs are what the expert turns."""

    Options: ClassVar[type] = LambdaOptions
    trigger_modes: ClassVar[frozenset[TriggerMode]] = frozenset(TriggerMode)
    parameters: ClassVar[tuple[Parameter, ...]] = PARAMETERS

    def __init__(self, options: LambdaOptions) -> None:
        self._options = options
        self._units: Units | None = None
        self._info: DetectorInfo | None = None
        self._wanted: dict[str, Value] = {}  # what the units have, as far as we know
        self._counter_mode: Value = "SINGLE"  # of the units, as was read last
        self._series: Series | None = None  # that is armed, until it is stopped
        self._begun = False
        self._status = Status(Phase.IDLE)
        self._looked = 0.0  # monotonic
        self._lost = ""  # modules that are not ready though no series runs
        self.max_frames: int = 0
        self._accepted: dict[str, Value] = {}  # by the units, of what was set last
        self.knobs: Knobs = Knobs(lambda: self._there, self._changed)

    # --- the link ----------------------------------------------------------------------------------------------------

    def connect(self) -> DetectorInfo:
        self.close()
        units = self._units = Units(self._options)
        try:
            units.connect()
            self._changed()
            if units.bit_depth not in DTYPES:  # units that differ
                units.configure({"bit_depth": 12})
                units.describe()
            self._read_max_frames()
        except BaseException:
            self.close()
            raise
        first, options = units.modules[0], self._options
        self._status, self._lost = Status(Phase.IDLE), ""
        self._info = DetectorInfo(
            model=f"X-Spectrum Lambda, {len(units.modules)} module{'s' * (len(units.modules) > 1)}",
            serial_number=", ".join(m.serial_number for m in units.modules if m.serial_number),
            shape=self._shape,
            pixel_size=(PIXEL, PIXEL),
            sensor_material=options.sensor_material or units.sensor_material,
            sensor_thickness=options.sensor_thickness,
            firmware=f"{first.firmware} ({units.library})",
        )
        return self._info

    def close(self) -> None:
        units, self._units = self._units, None
        if units is None:
            return
        if self._series is not None:
            self._series, self.knobs.running = None, False
            try:
                units.stop(STOP_LIMIT)
            except DaqError as exc:
                log.warning("%s", exc)
        units.close()

    @property
    def _there(self) -> Units:
        if self._units is None:
            raise HardwareError("not connected to the units")
        return self._units

    def _changed(self) -> None:
        """The units may have other settings than we think."""
        self._wanted = {}
        self._there.describe()

    def endpoints(self) -> list[str]:
        return self._there.endpoints() if self._units is not None else []

    # --- settings ----------------------------------------------------------------------------------------------------

    def configure(self, settings: Settings) -> Settings:
        _refuse_what_it_has_not(settings)
        units = self._there
        depth = settings.bit_depth or units.bit_depth
        self._check_depth(depth)
        if settings.trigger_mode is TriggerMode.EXTERNAL_GATE and not units.features() & Feature.EXTENDED_GATING:
            raise ConfigError("TriggerMode: EXTERNAL_GATE needs extended gating, which this firmware has not")
        if settings.frame_time > (period := settings.exposure_time + self._readout(depth)) * 1.001:
            raise ConfigError(
                f"FrameTime: {settings.frame_time:g} s; a Lambda begins each frame right after the one before, every "
                f"{period:g} s; set 0, or use a trigger for each frame"
            )
        wanted = {**self.knobs.chosen, "bit_depth": depth, "shutter_time": settings.exposure_time * 1000}
        accepted = self._set({name: value for name, value in wanted.items() if name in RESIZING}, "BitDepth")
        accepted = self._set(wanted, "ExposureTime")
        exposure = float(accepted["shutter_time"]) / 1000  # type: ignore[arg-type]
        return replace(settings, exposure_time=exposure, bit_depth=depth)

    def _check_depth(self, depth: int) -> None:
        if depth not in DTYPES:
            raise ConfigError(f"BitDepth: {depth} is not one of {', '.join(map(str, DTYPES))}")
        if depth in (1, 6) and not self._there.features() & Feature.BITS_1_6:
            raise ConfigError(f"BitDepth: {depth} bit is not supported by the firmware of these modules")

    def _set(self, wanted: Mapping[str, Value], attribute: str) -> dict[str, Value]:
        """Where it is not so already. ConfigError: a unit refuses it, probably because of `attribute`."""
        changed = {name: value for name, value in wanted.items() if self._wanted.get(name) != value}
        if changed:
            units = self._there
            for name in changed:
                self._wanted.pop(name, None)
            try:
                accepted = units.configure(changed)
            except Refused as exc:
                raise ConfigError(f"{attribute}: {exc}") from exc
            if any(name in RESIZING for name in changed):
                units.describe()
                self._read_max_frames()
            self._wanted |= changed
            self._accepted |= accepted
        return self._accepted

    def _read_max_frames(self) -> None:
        try:
            self.max_frames = min(COUNTER, *(int(value) for value in self._there.readings("max_frames")))  # type: ignore
        except HardwareError as exc:
            log.info("%s; only the counter limits the frames of a series", exc)
            self.max_frames = COUNTER

    @property
    def _counters(self) -> int:
        """Images of one exposure."""
        return 2 if self.knobs.chosen.get("counter_mode", self._counter_mode) == "DUAL" else 1

    def check(self, settings: Settings) -> None:
        """What the units would refuse, or, without a threshold, count in vain."""
        self._counter_mode = self._there.get("counter_mode")
        frames = self._frames_of_start(settings)
        per_trigger = settings.n_frames_per_trigger
        if frames % self._counters or (
            MODES[settings.trigger_mode][0] == "EXT_FRAMES" and per_trigger % self._counters
        ):
            raise ConfigError(
                f"nFramesPerTrigger: {per_trigger}; with CounterMode DUAL each exposure gives two images: set an even "
                "number"
            )
        if frames // self._counters > self.max_frames:
            raise ConfigError(
                f"nTriggers, nFramesPerTrigger: {frames // self._counters} exposures of one start; the memory of a "
                f"module holds {self.max_frames} (MaxFrames)"
            )
        if "thresholds" not in self.knobs.chosen and not self._there.get("thresholds"):
            raise ConfigError("no threshold is set since the detector was switched on: set Energy or Threshold first")
        if (wanted := self._hardware(settings))["frames_per_trigger"] != 1:
            try:
                self._there.configure({name: wanted[name] for name in ("trigger_mode", "frames_per_trigger")})
            except HardwareError as exc:
                raise ConfigError(
                    f"nFramesPerTrigger: {per_trigger}; {exc}. Set 1, or TriggerMode EXTERNAL_SINGLE"
                ) from exc

    @staticmethod
    def _frames_of_start(settings: Settings) -> int:
        """Images that follow each start that the units are given."""
        return settings.n_frames_per_trigger if settings.trigger_mode is TriggerMode.SOFTWARE else settings.n_frames

    def _hardware(self, settings: Settings, live: bool = False) -> dict[str, Value]:
        """All that the units are to have."""
        mode, gated = MODES[settings.trigger_mode]
        each = settings.n_frames_per_trigger // self._counters
        return {
            **self.knobs.chosen,
            "bit_depth": settings.bit_depth or self._there.bit_depth,
            "trigger_mode": mode,
            "gating_mode": switch(gated),
            "frames_per_trigger": each if mode == "EXT_FRAMES" and not gated else 1,
            "n_frames": self.max_frames if live else self._frames_of_start(settings) // self._counters,
            "shutter_time": settings.exposure_time * 1000,
        }

    def _readout(self, depth: int) -> float:
        return self._options.readout_time if depth == 24 else 0.0

    def latency_time(self, settings: Settings) -> float:
        return self._readout(settings.bit_depth or self._there.bit_depth)

    @property
    def _shape(self) -> tuple[int, int]:
        """Of the whole image, or of a module where it is not known how they lie."""
        modules = self._there.modules
        return lambda_geometry.full_shape(modules, self._options.rotation_about) or modules[0].shape

    def image_format(self, settings: Settings) -> tuple[tuple[int, int], str]:
        return self._shape, DTYPES[settings.bit_depth or self._there.bit_depth]

    def frame_bytes(self, settings: Settings) -> int:
        """The modules, without what is between them."""
        rows, columns = self._there.modules[0].shape
        itemsize = np.dtype(self.image_format(settings)[1]).itemsize
        return len(self._there.modules) * rows * columns * itemsize

    # --- a series ----------------------------------------------------------------------------------------------------

    def arm(self, series: Series) -> None:
        """In external modes the modules are busy when it returns: triggers may come."""
        units, settings = self._there, series.settings
        if self._series is not None:
            self.stop()
        self._begun, self._looked, self._status = False, 0.0, Status(Phase.ARMED)
        self._wanted = {}  # somebody may have set something by hand
        self._series, self.knobs.running = series, True
        try:
            wanted = self._hardware(settings, series.live)
            units.configure(wanted)
            units.describe()
            per_start = int(wanted["n_frames"]) * self._counters  # type: ignore[arg-type]
            units.arm(
                series.id,
                series.filename,
                per_start * ENDLESS if series.live else settings.n_frames,
                metadata=self._metadata(series),
                frames_per_start=per_start,
                endless=series.live,
            )
            if settings.trigger_mode.value not in OURS:
                units.start()
                self._begun = True
        except BaseException:
            self._give_up()
            raise

    def _give_up(self) -> None:
        """Nothing is armed."""
        self._series, self.knobs.running = None, False
        self._status = Status(Phase.IDLE)
        try:
            self._there.stop(STOP_LIMIT)
        except DaqError as exc:
            log.warning("%s", exc)

    def _metadata(self, series: Series) -> dict[str, Any]:
        """What the start message tells besides the numbers."""
        assert self._info is not None
        units, options, settings = self._there, self._options, series.settings
        info = replace(self._info, shape=self._shape)
        told = start_metadata(series, info, settings.exposure_time + self.latency_time(settings))
        told |= lambda_geometry.told(units.modules, options.rotation_about, options.clockwise)
        thresholds, energy = self.knobs.energies(), float(units.get("beam_energy")) * KEV  # type: ignore[arg-type]
        detector = told["detector"]
        detector["threshold_energy"] = thresholds[0]
        if len(thresholds) > 1:
            detector["thresholds"] = thresholds
        if energy:
            detector["photon_energy"] = energy
        detector["counter_mode"] = "DUAL" if self._counters == 2 else "SINGLE"
        detector["flatfield_correction_applied"] = units.get("flatfield_correction") == "ON"
        detector["countrate_correction_applied"] = units.get("countrate_correction") == "ON"
        detector["modules"] = [m.name for m in units.modules]
        return told

    def start(self) -> None:
        series = self._series
        if series is None:
            return
        self._looked = 0.0
        if series.settings.trigger_mode is TriggerMode.INTERNAL:
            self._there.start()
        self._begun = True

    def trigger(self) -> None:
        """Accepted by all units; they may still be on their way to begin."""
        if self._series is None or not self._begun:
            raise HardwareError("software trigger refused: no series is armed")
        self._there.start(wait=False)
        self._looked = 0.0

    def stop(self) -> None:
        units, series = self._units, self._series
        if units is None:
            return
        if series is None:
            if phase_of(units.statuses()) not in ("idle", "done", "error"):  # it is being armed
                units.stop(STOP_LIMIT)
            return
        complete = False
        try:
            complete = self._look(units, series).phase is Phase.DONE
        finally:  # whatever one unit says, all of them are stopped
            self._series, self.knobs.running = None, False
            self._status = replace(self._status, phase=Phase.IDLE)
            if not complete:
                units.stop(STOP_LIMIT)
        self._status = replace(self._look(units, series), phase=Phase.DONE if complete else Phase.IDLE)

    # --- the state ---------------------------------------------------------------------------------------------------

    def status(self) -> Status:
        units, series, now = self._units, self._series, time.monotonic()
        if units is None:
            return Status(Phase.IDLE)
        if series is None:
            if now - self._looked >= LOOK:
                self._looked = now
                self._lost = units.not_ready()
            if self._lost:
                return Status(Phase.ERROR, message=f"{self._lost}; the detector was restarted, or reset by hand")
            return self._status
        if now - self._looked >= LOOK:
            if series.live and self._begun:
                units.start_again()
            self._status = self._look(units, series)
            self._looked = time.monotonic()
        return self._status

    def _look(self, units: Units, series: Series) -> Status:
        """Put together of all units."""
        statuses = units.statuses()
        phase = PHASES[phase_of(statuses)]
        if phase is Phase.ARMED and self._begun:
            phase = Phase.ACQUIRING  # a software trigger is waited for
        modules = modules_of(statuses)
        incomplete = sum(m.incomplete for m in modules)
        remark = f"{incomplete} frames of modules came with lost pixels" if incomplete and phase is Phase.DONE else ""
        return Status(
            phase,
            frames=_frames(statuses, series),
            triggers=_triggers(statuses, series),
            message="; ".join(filter(None, (units.sentence(statuses), remark))),
            blocked=any(m.blocked for m in modules),
        )


def _frames(statuses: list[UnitStatus], series: Series) -> int:
    """Of all modules where the next trigger must wait for them; else of that which is ahead: a module that is late or
    silent holds nobody up."""
    if series.settings.trigger_mode is TriggerMode.SOFTWARE:
        return min(status.frames for status in statuses)
    return max(min(m.sent + m.missing, status.nframes) for status in statuses for m in status.modules)


def _triggers(statuses: list[UnitStatus], series: Series) -> int:
    software = series.settings.trigger_mode is TriggerMode.SOFTWARE
    return min(status.starts for status in statuses) if software else 0


def _refuse_what_it_has_not(settings: Settings) -> None:
    if settings.roi is not None:
        raise ConfigError("Roi: a Lambda reads whole modules, or fewer rows of each chip: set 0, 0, 0, 0 and RoiRows")
    if settings.binning != (1, 1):
        raise ConfigError(f"Binning: {settings.binning[0]} x {settings.binning[1]}; a Lambda has none, only 1 x 1")
    if settings.rotation or settings.fliplr or settings.flipud:
        raise ConfigError(
            "Rotation, Fliplr, Flipud: the detector sends images as they are; let the receiver turn them (its "
            "transforms), and set these to 0 and False"
        )
