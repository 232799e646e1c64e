"""Settings and an SDK3 camera: discovered features, the order they are written in, what the camera made of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

from tangods_detector.hw.andor_frames import Layout
from tangods_detector.hw.andor_sdk import OUTOFRANGE, Camera, SdkError
from tangods_detector.hw.base import DetectorInfo
from tangods_detector.options import option
from tangods_detector.settings import Settings, TriggerMode
from tangods_receiver.errors import ConfigError, HardwareError

MODES = {
    TriggerMode.INTERNAL: "Internal",
    TriggerMode.SOFTWARE: "Software",
    TriggerMode.EXTERNAL_SINGLE: "External Start",
    TriggerMode.EXTERNAL_MULTI: "External",
    TriggerMode.EXTERNAL_GATE: "External Exposure",
}
GAINS = ("GainMode", "SimplePreAmpGainControl")  # newer cameras have the first
STEPS = 64  # pixels within which a step of the region is looked for
ENDLESS = 2_000_000_000  # frames of a live series
SLACK = 1e-9  # of a limit that the camera tells; it is a rounded number


@dataclass(frozen=True)
class AndorOptions:
    """Which camera, and where it streams."""

    library: str = option("libatcore.so", "the vendor's SDK3: a name that the loader finds, or a path")
    serial_number: str = option("", "of the camera, as its label says; empty: the first that is not in use")
    host: str = option("127.0.0.1", "address the stream is bound to; * for all interfaces")
    port: int = option(0, "TCP port of the stream; 0 takes any free one (see the Endpoints attribute)")
    memory: int = option(1_000_000_000, "bytes for frames between camera and network, allocated once")
    buffers: int = option(200, "frames that are in it at most; more take longer to arm and bring nothing")
    packed: bool = option(True, "12-bit images are sent as Mono12Packed; the receiver unpacks them")
    metadata: bool = option(True, "the camera's clock comes with each image: exact times, and what was lost")
    overlap_gates: bool = option(False, "EXTERNAL_GATE: exposed from edge to edge; n frames need n + 1 edges")
    cooling_timeout: float = option(0.0, "s that Arm waits for a stable sensor temperature; 0: it does not")
    frame_timeout: float = option(5.0, "s beyond its time that a frame is waited for before the camera counts as lost")
    send_timeout: float = option(5.0, "limit for the start message to find a receiver, s")
    curve_key: str = option("", "this sender's .key_secret file: the stream is encrypted; needs curve_clients")
    curve_clients: str = option("", "directory with the public .key files of the receivers that may connect")
    allow_peers: tuple[str, ...] = option((), "addresses or networks, with commas, that may connect; empty: all")

    def __post_init__(self) -> None:
        problems = [
            f"{name}: {value} is not between {low} and {high}"
            for name, value, low, high in (
                ("port", self.port, 0, 65535),
                ("memory", self.memory, 1_000_000, 2**40),
                ("buffers", self.buffers, 2, 1000),
                ("cooling_timeout", self.cooling_timeout, 0, 7200),
                ("frame_timeout", self.frame_timeout, 0.1, 3600),
                ("send_timeout", self.send_timeout, 0.01, 3600),
            )
            if not low <= value <= high
        ]
        if problems:
            raise ConfigError("; ".join(problems))


class Sensor:
    """One camera and what was loaded into it. Nothing is assumed: what is not there is left alone or refused."""

    def __init__(self, camera: Camera, options: AndorOptions) -> None:
        self.camera, self._options = camera, options
        self.size = (camera.get_int("SensorHeight"), camera.get_int("SensorWidth"))
        self.gain = next((name for name in GAINS if camera.has(name) and camera.choices(name)), "")
        self.latency = 0.0  # s, with the settings that are loaded
        self.period = 0.0  # s between two frames, where the camera itself decides that
        self._region: object = None  # that is loaded

    def info(self) -> DetectorInfo:
        camera = self.camera
        pixels = [1e-6 * self._real(name, 0.0) for name in ("PixelHeight", "PixelWidth")]
        return DetectorInfo(
            model=camera.get_string("CameraModel"),
            serial_number=camera.get_string("SerialNumber"),
            shape=self.size,
            pixel_size=(pixels[0], pixels[1]),
            sensor_material="Si",
            firmware=camera.get_string("FirmwareVersion") if camera.has("FirmwareVersion") else "",
        )

    # --- loading -----------------------------------------------------------------------------------------------------

    def load(self, settings: Settings, live: bool = False) -> Settings:
        """Write all of them, in the order that the SDK wants; returns what the camera made of them."""
        camera = self.camera
        _refuse_what_it_has_not(settings)
        self._trigger(settings.trigger_mode)
        depth = self._depth(settings.bit_depth)
        self._encoding(depth)
        roi = self._load_region(settings)
        self._metadata()
        self._overlap(settings)
        exposure = self._exposure(settings.exposure_time)
        frame_time = self._rate(settings, exposure)
        camera.set_enum("CycleMode", "Fixed")  # some cameras refuse Continuous at high rates
        count = ENDLESS if live else settings.n_frames
        low, high = camera.int_limits("FrameCount")
        if count > high and not live:
            raise ConfigError(f"nTriggers x nFramesPerTrigger: {count} frames; the camera takes {high} at most")
        camera.set_int("FrameCount", max(low, min(count, high)))
        return replace(settings, exposure_time=exposure, frame_time=frame_time, bit_depth=depth, roi=roi)

    def _trigger(self, mode: TriggerMode) -> None:
        there = self.camera.choices("TriggerMode")
        if MODES[mode] not in there:
            can = ", ".join(m.value for m, name in MODES.items() if name in there)
            raise ConfigError(f"TriggerMode: this camera has no {mode.value} with its other settings; can be {can}")
        self.camera.set_enum("TriggerMode", MODES[mode])

    def _depth(self, wanted: int) -> int:
        """Bits of a pixel: the gain decides. Where it gives others than are wanted, one that fits is set."""
        if wanted and self.gain and depth_of(self.camera.get_enum(self.gain)) != wanted:
            there = self.camera.choices(self.gain)
            fit = [text for text in there if depth_of(text) == wanted]
            if not fit:
                depths = sorted({depth_of(text) for text in there})
                raise ConfigError(
                    f"BitDepth: {wanted}; this camera has {' and '.join(map(str, depths))}; 0: as the gain"
                )
            self.camera.set_enum(self.gain, fit[0])
        if self.gain and (depth := depth_of(self.camera.get_enum(self.gain))):
            return depth
        depth = depth_of(self.camera.get_enum("BitDepth")) or 16
        if wanted not in (0, depth):
            raise ConfigError(f"BitDepth: {wanted}; this camera has {depth}")
        return depth

    def _encoding(self, depth: int) -> None:
        there = self.camera.choices("PixelEncoding")
        wanted = ["Mono16"]
        if depth <= 12:
            wanted = ["Mono12Packed", "Mono12"] if self._options.packed else ["Mono12", "Mono12Packed"]
        chosen = next((name for name in [*wanted, "Mono16"] if name in there), None)
        if chosen is None:
            raise HardwareError(f"PixelEncoding: the camera offers {', '.join(there)}, none of which can be sent")
        self.camera.set_enum("PixelEncoding", chosen)

    def _metadata(self) -> None:
        if self.camera.is_writable("MetadataEnable"):
            self.camera.set_bool("MetadataEnable", self._options.metadata)
            if self._options.metadata and self.camera.is_writable("MetadataTimestamp"):
                self.camera.set_bool("MetadataTimestamp", True)

    def _overlap(self, settings: Settings) -> None:
        """Exposure while the last image is read out, but for times that the camera has only one after the other."""
        camera, mode = self.camera, settings.trigger_mode
        if camera.is_writable("Overlap"):
            camera.set_bool("Overlap", mode is TriggerMode.INTERNAL or self._gates_overlap(mode))
            if mode is TriggerMode.INTERNAL and not self._has_times(settings):
                camera.set_bool("Overlap", False)

    def _gates_overlap(self, mode: TriggerMode) -> bool:
        return mode is TriggerMode.EXTERNAL_GATE and self._options.overlap_gates

    def _has_times(self, settings: Settings) -> bool:
        """With overlap: an exposure as short as that (global shutter), a period as long as that."""
        camera, wanted = self.camera, settings.exposure_time
        low, high = camera.float_limits("ExposureTime")
        if wanted < low * (1 - SLACK):
            return False
        camera.set_float("ExposureTime", min(max(wanted, low), high))
        low, high = camera.float_limits("FrameRate")
        return self._wanted_rate(settings, high) >= low * (1 - SLACK)

    def _wanted_rate(self, settings: Settings, high: float) -> float:
        if settings.frame_time:
            return 1 / settings.frame_time
        return min(high, self._real("MaxInterfaceTransferRate", high))

    def _exposure(self, wanted: float) -> float:
        low, high = self.camera.float_limits("ExposureTime")
        if not low * (1 - SLACK) <= wanted <= high * (1 + SLACK):
            raise ConfigError(
                f"ExposureTime: {wanted:g} s; with its other settings the camera takes {low:g} to {high:g} s"
            )
        self.camera.set_float("ExposureTime", min(max(wanted, low), high))
        return _unless_close(wanted, self.camera.get_float("ExposureTime"))

    def _rate(self, settings: Settings, exposure: float) -> float:
        """The FrameTime that was accepted; `latency` and `period` are known then."""
        camera = self.camera
        if not camera.is_writable("FrameRate"):  # somebody else decides when a frame comes
            self.latency = self._real("ReadoutTime", 0.0)
            self.period = max(settings.frame_time, exposure + self.latency)
            return settings.frame_time
        low, high = camera.float_limits("FrameRate")
        self.latency = max(0.0, 1 / high - exposure)
        wanted = self._wanted_rate(settings, high)
        if settings.frame_time and wanted < low * (1 - SLACK):
            raise ConfigError(
                f"FrameTime: {settings.frame_time:g} s; with its other settings it takes {1 / low:g} s at most; "
                "set a shorter one, or TriggerMode SOFTWARE and trigger each frame"
            )
        camera.set_float("FrameRate", min(max(wanted, low), high))
        self.period = 1 / camera.get_float("FrameRate")
        if not settings.frame_time or settings.frame_time < (exposure + self.latency) * (1 - 1e-6):
            return settings.frame_time  # as fast as it goes; or too fast, which Arm refuses
        return _unless_close(settings.frame_time, self.period)

    # --- the region --------------------------------------------------------------------------------------------------

    def _load_region(self, settings: Settings) -> tuple[int, int, int, int] | None:
        """The region that was accepted, in unbinned pixels from 0; None: the full sensor, and so it was asked."""
        camera, (rows, columns) = self.camera, self.size
        x, y, width, height = settings.roi or (0, 0, columns, rows)
        if min(x, y) < 0 or min(width, height) < 1 or x + width > columns or y + height > rows:
            raise ConfigError(
                f"Roi: {width} x {height} at {x}, {y}; the sensor has {columns} x {rows} pixels (0, 0, 0, 0: all)"
            )
        bin_x, bin_y = settings.binning
        if self._region != (settings.roi, settings.binning):
            self._region = None
            self._bin(1, 1)
            for offset, size in (("AOILeft", "AOIWidth"), ("AOITop", "AOIHeight")):
                camera.set_int(offset, 1)
                camera.set_int(size, camera.int_limits(size)[1])
            self._bin(bin_x, bin_y)
            for offset, size, first, wanted in (
                ("AOILeft", "AOIWidth", x, -(-width // bin_x)),
                ("AOITop", "AOIHeight", y, -(-height // bin_y)),
            ):
                self._set_stepped(size, wanted)
                low, high = camera.int_limits(offset)
                camera.set_int(offset, min(max(first + 1, low), high))
            self._region = (settings.roi, settings.binning)
        left, top, wide, high = (camera.get_int(f"AOI{name}") for name in ("Left", "Top", "Width", "Height"))
        if settings.roi is None and (wide, high) == (columns // bin_x, rows // bin_y):
            return None
        return left - 1, top - 1, wide * bin_x, high * bin_y

    def _bin(self, bin_x: int, bin_y: int) -> None:
        camera = self.camera
        if camera.has("AOIBinning"):
            there, wanted = camera.choices("AOIBinning"), f"{bin_x}x{bin_y}"
            if wanted not in there:
                raise ConfigError(f"Binning: {bin_x} x {bin_y}; this camera has {', '.join(there)}")
            camera.set_enum("AOIBinning", wanted)
        elif camera.has("AOIHBin") and camera.has("AOIVBin"):
            for name, wanted_bin in (("AOIHBin", bin_x), ("AOIVBin", bin_y)):
                low, high = camera.int_limits(name)
                if not low <= wanted_bin <= high:
                    raise ConfigError(f"Binning: {bin_x} x {bin_y}; this camera takes {low} to {high}")
                camera.set_int(name, wanted_bin)
        elif (bin_x, bin_y) != (1, 1):
            raise ConfigError(f"Binning: {bin_x} x {bin_y}; this camera has none, only 1 x 1")

    def _set_stepped(self, size: str, wanted: int) -> None:
        """The size, or the next one that the camera takes: no feature tells its steps."""
        low, high = self.camera.int_limits(size)
        for value in _around(min(max(wanted, low), high), low, high):
            try:
                self.camera.set_int(size, value)
                return
            except SdkError as exc:
                if exc.code != OUTOFRANGE:
                    raise
        raise ConfigError(f"Roi: the camera takes no {size} near {wanted}, although it says {low} to {high}")

    # --- what was loaded ---------------------------------------------------------------------------------------------

    def layout(self) -> Layout:
        """Of the buffers, with what is loaded; HardwareError when what the camera says does not fit together."""
        camera = self.camera
        shape = camera.get_int("AOIHeight"), camera.get_int("AOIWidth")
        stamped = self._options.metadata and self._truth("MetadataEnable") and self._truth("MetadataTimestamp")
        hz = camera.get_int("TimestampClockFrequency") if stamped and camera.has("TimestampClockFrequency") else 0
        stride, nbytes = camera.get_int("AOIStride"), camera.get_int("ImageSizeBytes")
        try:
            return Layout.of(shape, camera.get_enum("PixelEncoding"), stride, nbytes, hz)
        except ValueError as exc:
            raise HardwareError(f"AOIStride and ImageSizeBytes of the camera cannot be: {exc}") from exc

    def _real(self, feature: str, otherwise: float) -> float:
        try:
            return self.camera.get_float(feature) if self.camera.has(feature) else otherwise
        except SdkError:  # some cannot be read in some modes
            return otherwise

    def _truth(self, feature: str) -> bool:
        return self.camera.has(feature) and self.camera.get_bool(feature)


def image_shape(settings: Settings, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the images that accepted settings give."""
    width, height = settings.roi[2:] if settings.roi else size[::-1]
    return height // settings.binning[1], width // settings.binning[0]


def depth_of(text: str) -> int:
    """Bits in a text such as `16-bit (low noise)` or `12 Bit`; 0: it tells none."""
    found = re.search(r"(\d+)[- ]bit", text, re.IGNORECASE)
    return int(found[1]) if found else 0


def _unless_close(wanted: float, found: float) -> float:
    """What was found; but what was wanted where only the way back differs in the last digits."""
    return wanted if abs(found - wanted) <= 1e-9 * wanted else found


def _around(wanted: int, low: int, high: int) -> Iterator[int]:
    """Sizes from what was wanted upwards, so that all of it is in, then downwards."""
    return chain(range(wanted, min(high, wanted + STEPS) + 1), range(wanted - 1, max(low, wanted - STEPS) - 1, -1))


def _refuse_what_it_has_not(settings: Settings) -> None:
    if settings.rotation or settings.fliplr or settings.flipud:
        raise ConfigError(
            "Rotation, Fliplr, Flipud: the camera's images are sent as they are; let the receiver turn them (its "
            "transforms), and set these to 0 and False"
        )
