"""Settings -> properties of a camera, in the order that DCAM wants; nothing is assumed that the camera can be asked."""

from __future__ import annotations

import math
from dataclasses import replace

from tangods_detector.hw.hamamatsu_camera import Camera
from tangods_detector.hw.hamamatsu_dcam import DcamError, PixelType, Prop
from tangods_detector.settings import Settings, TriggerMode
from tangods_receiver.errors import ConfigError

INTERNAL, EXTERNAL, SOFTWARE = 1, 2, 3  # TRIGGERSOURCE
EDGE, LEVEL, SYNC_READOUT = 1, 2, 3  # TRIGGERACTIVE
NORMAL, START, MULTI_FRAME = 1, 6, 8  # TRIGGER_MODE
OFF, ON = 1, 2

TRIGGERS = {
    TriggerMode.INTERNAL: (INTERNAL, EDGE, NORMAL),
    TriggerMode.SOFTWARE: (SOFTWARE, EDGE, NORMAL),
    TriggerMode.EXTERNAL_SINGLE: (EXTERNAL, EDGE, START),
    TriggerMode.EXTERNAL_MULTI: (EXTERNAL, EDGE, NORMAL),
    TriggerMode.EXTERNAL_GATE: (EXTERNAL, LEVEL, NORMAL),
}
FREE_RUN = (TriggerMode.INTERNAL, TriggerMode.EXTERNAL_SINGLE)  # the camera's own rate decides
CODECS = {PixelType.MONO8: "none", PixelType.MONO16: "none", PixelType.MONO12P: "mono12p"}
DTYPES = {PixelType.MONO8: "uint8", PixelType.MONO16: "uint16", PixelType.MONO12P: "uint16"}


def load(camera: Camera, settings: Settings, packed: bool, sync_readout: bool) -> Settings:
    """Write them, and return what the camera took. ConfigError: it cannot do that; nothing may be captured meanwhile.

    `packed`: 12 bits in mono12p where the camera has that; `sync_readout`: in EXTERNAL_MULTI an edge ends an image and
    begins the next."""
    _refuse_what_it_has_not(settings)
    depth = _depth(camera, settings.bit_depth, packed)
    roi = _region(camera, settings)
    _binning(camera, settings.binning)
    _trigger(camera, settings, sync_readout)
    exposure = _exposure(camera, settings)
    period = _period(camera, settings, exposure)
    exposure = camera.get(Prop.EXPOSURETIME)  # a period may cut it
    return replace(settings, bit_depth=depth, roi=roi, exposure_time=exposure, frame_time=period)


def _refuse_what_it_has_not(settings: Settings) -> None:
    if settings.rotation or settings.fliplr or settings.flipud:
        raise ConfigError(
            "Rotation, Fliplr, Flipud: the images are sent as the camera writes them; let the receiver turn them (its "
            "transforms), and set these to 0 and False"
        )


def _put(camera: Camera, prop: Prop, value: float, ours: str) -> float:
    """Only what is different: a write takes milliseconds. ConfigError begins with our name."""
    if not camera.has(prop):
        raise ConfigError(f"{ours}: this camera has no property {prop.name}")
    try:
        if (now := camera.get(prop)) == value:
            return now
        return camera.put(prop, value)
    except ConfigError as exc:
        raise ConfigError(f"{ours}: {exc}") from exc


# --- pixels -----------------------------------------------------------------------------------------------------------


def _depth(camera: Camera, wanted: int, packed: bool) -> int:
    types = _choices(camera, Prop.IMAGE_PIXELTYPE) or {PixelType.MONO16}
    depths = _depths(camera, types)
    bits = wanted or max(depths)
    if bits not in depths:
        raise ConfigError(f"BitDepth: {wanted}; this camera has {', '.join(map(str, sorted(depths)))}; 0: the largest")
    kind = PixelType.MONO8 if bits == 8 else PixelType.MONO16
    if bits == 12 and PixelType.MONO12P in types and (packed or 12 not in _choices(camera, Prop.BITSPERCHANNEL)):
        kind = PixelType.MONO12P
    if len(types) > 1:
        _put(camera, Prop.IMAGE_PIXELTYPE, kind, "BitDepth")
    if camera.can_write(Prop.BITSPERCHANNEL) and bits in _choices(camera, Prop.BITSPERCHANNEL):
        _put(camera, Prop.BITSPERCHANNEL, bits, "BitDepth")
    if pixel_type(camera) is not kind:
        raise ConfigError(f"BitDepth: {bits}; the camera gives {pixel_type(camera).name} instead of {kind.name}")
    return bits


def _depths(camera: Camera, types: set[int]) -> set[int]:
    depths = {8} if PixelType.MONO8 in types else set()
    if PixelType.MONO12P in types:
        depths.add(12)
    if PixelType.MONO16 in types:
        bits = _choices(camera, Prop.BITSPERCHANNEL) if camera.can_write(Prop.BITSPERCHANNEL) else set()
        depths |= {n for n in bits if n > 8} or {int(camera.get_or(Prop.BITSPERCHANNEL, 16))}
    return depths


def _choices(camera: Camera, prop: Prop) -> set[int]:
    return {int(value) for value, _ in camera.choices(prop)} if camera.has(prop) else set()


def pixel_type(camera: Camera) -> PixelType:
    """Of the images as the settings now give them. ConfigError: one that cannot be sent."""
    return _known(camera.get_or(Prop.IMAGE_PIXELTYPE, PixelType.MONO16))


def buffer_type(camera: Camera) -> PixelType:
    """In memory, where the library may keep images otherwise than the camera gives them. ConfigError as above."""
    return _known(camera.get_or(Prop.BUFFER_PIXELTYPE, pixel_type(camera)))


def _known(kind: float) -> PixelType:
    if int(kind) not in CODECS:
        raise ConfigError(f"the camera's pixel type {kind:g} cannot be sent; known are mono8, mono16 and mono12p")
    return PixelType(int(kind))


# --- region and binning -----------------------------------------------------------------------------------------------


def sensor(camera: Camera) -> tuple[int, int]:
    """Rows, columns."""
    if camera.has(Prop.SUBARRAYVSIZE):
        return int(camera.limits(Prop.SUBARRAYVSIZE).high), int(camera.limits(Prop.SUBARRAYHSIZE).high)
    return int(camera.get(Prop.IMAGE_HEIGHT)), int(camera.get(Prop.IMAGE_WIDTH))


def _region(camera: Camera, settings: Settings) -> tuple[int, int, int, int] | None:
    """Grown to the camera's steps; None: the whole sensor. Binning is off and no region chosen while it is written."""
    rows, columns = sensor(camera)
    x, y, width, height = settings.roi or (0, 0, columns, rows)
    if min(x, y) < 0 or min(width, height) < 1 or x + width > columns or y + height > rows:
        raise ConfigError(f"Roi: {settings.roi} is not within the sensor, {columns} x {rows} pixels")
    x, width = _grown(camera, x, width, columns, Prop.SUBARRAYHPOS, Prop.SUBARRAYHSIZE, settings.binning[0])
    y, height = _grown(camera, y, height, rows, Prop.SUBARRAYVPOS, Prop.SUBARRAYVSIZE, settings.binning[1])
    whole = (x, y, width, height) == (0, 0, columns, rows)
    if not camera.has(Prop.SUBARRAYMODE):
        if not whole:
            raise ConfigError("Roi: this camera has none; set 0, 0, 0, 0")
        return None
    mode = OFF if whole else ON
    now = [
        int(camera.get(prop))
        for prop in (Prop.SUBARRAYHPOS, Prop.SUBARRAYVPOS, Prop.SUBARRAYHSIZE, Prop.SUBARRAYVSIZE, Prop.SUBARRAYMODE)
    ]
    if now != [x, y, width, height, mode]:
        _put(camera, Prop.BINNING, 1, "Binning")
        _put(camera, Prop.SUBARRAYMODE, OFF, "Roi")
        for at, size, position, length in (
            (Prop.SUBARRAYHPOS, Prop.SUBARRAYHSIZE, x, width),
            (Prop.SUBARRAYVPOS, Prop.SUBARRAYVSIZE, y, height),
        ):
            _put(camera, at, 0, "Roi")  # so that any size fits
            _put(camera, size, length, "Roi")
            _put(camera, at, position, "Roi")
        _put(camera, Prop.SUBARRAYMODE, mode, "Roi")
    return None if whole else (x, y, width, height)


def _grown(
    camera: Camera, position: int, size: int, full: int, at: Prop, length: Prop, binning: int
) -> tuple[int, int]:
    """To whole steps, so that everything that was asked for is in it."""
    if not camera.has(length):
        return position, size
    step = math.lcm(max(1, int(camera.limits(at).step)), max(1, int(camera.limits(length).step)), binning)
    begin = position // step * step
    end = min(-(-(position + size) // step) * step, full // step * step)
    return begin, max(end - begin, int(camera.limits(length).low))


def _binning(camera: Camera, binning: tuple[int, int]) -> None:
    """DCAM calls 2 x 4 pixels 204."""
    h, v = binning
    value = h if h == v else 100 * h + v
    choices = _choices(camera, Prop.BINNING) or {1}
    if value not in choices:
        can = ", ".join(f"{n} x {n}" if n < 100 else f"{n // 100} x {n % 100}" for n in sorted(choices))
        raise ConfigError(f"Binning: {h} x {v}; this camera has {can}")
    if camera.has(Prop.BINNING):
        _put(camera, Prop.BINNING, value, "Binning")


def shape(camera: Camera) -> tuple[int, int]:
    """Rows, columns of an image as the settings now give it."""
    return int(camera.get(Prop.IMAGE_HEIGHT)), int(camera.get(Prop.IMAGE_WIDTH))


# --- triggers and times -----------------------------------------------------------------------------------------------


def _trigger(camera: Camera, settings: Settings, sync_readout: bool) -> None:
    source, active, mode = TRIGGERS[settings.trigger_mode]
    frames = settings.n_frames_per_trigger
    if settings.trigger_mode is TriggerMode.EXTERNAL_MULTI:
        if frames > 1:
            mode = MULTI_FRAME
            if MULTI_FRAME not in _choices(camera, Prop.TRIGGER_MODE):
                raise ConfigError(
                    f"nFramesPerTrigger: {frames}; in EXTERNAL_MULTI this camera takes one frame with each edge; set 1"
                )
        elif sync_readout:
            active = SYNC_READOUT
    for prop, value in (
        (Prop.TRIGGERSOURCE, source),
        (Prop.TRIGGER_MODE, mode),
        (Prop.TRIGGERACTIVE, active),
    ):
        if camera.has(prop) or value != 1:
            _put(camera, prop, value, "TriggerMode")
    if mode == MULTI_FRAME:
        _put(camera, Prop.TRIGGERMULTIFRAME_COUNT, frames, "nFramesPerTrigger")


def _exposure(camera: Camera, settings: Settings) -> float:
    limits = camera.limits(Prop.EXPOSURETIME)
    if not limits.low * (1 - 1e-9) <= settings.exposure_time <= limits.high * (1 + 1e-9):
        raise ConfigError(f"ExposureTime: {settings.exposure_time:g} s is not between {limits} s, with these settings")
    return _put(camera, Prop.EXPOSURETIME, settings.exposure_time, "ExposureTime")


def readout_time(camera: Camera) -> float:
    """s of a whole image."""
    return camera.get_or(Prop.TIMING_READOUTTIME, 0.0)


def shortest_period(camera: Camera, mode: TriggerMode, exposure: float) -> float:
    """s from one frame to the next, as fast as the camera can: read-out overlaps with exposure where it runs freely."""
    readout = readout_time(camera)
    if mode in FREE_RUN:
        return max(exposure, readout)
    return max(exposure, camera.get_or(Prop.TIMING_MINTRIGGERINTERVAL, exposure + readout))


def _period(camera: Camera, settings: Settings, exposure: float) -> float:
    """What FrameTime becomes; 0 stays 0. Where others give the pace it is theirs."""
    shortest = shortest_period(camera, settings.trigger_mode, exposure)
    if settings.trigger_mode not in FREE_RUN:
        _interval(camera, 0.0, shortest)
        return settings.frame_time
    if settings.frame_time and settings.frame_time < shortest * (1 - 1e-6):
        return settings.frame_time  # Arm refuses that, unless the exposure is made shorter until then
    if settings.frame_time > shortest * (1 + 1e-3) and not _has_interval(camera):
        raise ConfigError(
            f"FrameTime: {settings.frame_time:g} s; this camera has no rate of its own, it takes an image each "
            f"{shortest:.9g} s with this exposure; set 0"
        )
    taken = _interval(camera, settings.frame_time, shortest)
    return taken if settings.frame_time else 0.0


def _has_interval(camera: Camera) -> bool:
    return camera.can_write(Prop.INTERNAL_FRAMEINTERVAL) or camera.can_write(Prop.INTERNALFRAMERATE)


def _interval(camera: Camera, wanted: float, shortest: float) -> float:
    """Period of a camera that runs freely, `wanted` 0: as fast as it can; what it took. Never less than `shortest`:
    some cameras would cut the exposure for it."""
    period = max(wanted, shortest)
    try:
        if camera.can_write(Prop.INTERNAL_FRAMEINTERVAL):
            low = camera.limits(Prop.INTERNAL_FRAMEINTERVAL).low
            return _put(camera, Prop.INTERNAL_FRAMEINTERVAL, max(period, low), "FrameTime")
        if camera.can_write(Prop.INTERNALFRAMERATE):
            high = camera.limits(Prop.INTERNALFRAMERATE).high
            return 1 / _put(camera, Prop.INTERNALFRAMERATE, min(1 / period, high) if period else high, "FrameTime")
    except (DcamError, ConfigError):
        if wanted:
            raise
    return wanted


def change_exposure(camera: Camera, seconds: float, period: float) -> float:
    """While it captures; the period stays where it can. ConfigError: this camera cannot, or not so much."""
    limits = camera.limits(Prop.EXPOSURETIME)
    if not limits.while_busy:
        raise ConfigError("LiveExposureTime: this camera changes its exposure only while it is stopped")
    if not limits.low * (1 - 1e-9) <= seconds <= limits.high * (1 + 1e-9):
        raise ConfigError(f"LiveExposureTime: {seconds:g} s is not between {limits} s, with these settings")
    taken = camera.put(Prop.EXPOSURETIME, seconds)
    if period > taken and camera.limits(Prop.INTERNAL_FRAMEINTERVAL).while_busy:
        _interval(camera, period, taken)
    return taken
