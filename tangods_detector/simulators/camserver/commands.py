"""The commands: a line of text in, the answer out, word for word where drivers read it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import datetime

from tangods_detector.simulators.camserver.course import MODES
from tangods_detector.simulators.camserver.imagefile import CUTOFF, MX, MX_TEXT
from tangods_detector.simulators.camserver.unit import DELAYS, Camserver, Client, Refused, stamp

Handler = Callable[[Camserver, str, Client], "str | None"]

DAYS = 86400.0  # s
GAINS = {"lowg": "low", "midg": "mid", "highg": "high", "uhighg": "ultra high", "autog": "auto"}
THRESHOLDS = {"Si": (1500, 18_000), "CdTe": (4000, 50_000)}  # eV; of our calibration
TRIMMED = "/tmp/setthreshold.cmd"
BUGGY = (7, 4, 3)  # up to this one, PILATUS3 takes a threshold only after `setthreshold 0`
CHANNELS = ((31.4, 22.1), (28.0, 18.4), (-99.0, -99.0))  # C, %; the last sensor is absent
HEADERSTRING = 68  # characters
OFF = ("0", "none")
LOOKERS = ("version", "camsetup", "telemetry", "df", "expend", "showpid", "thread", "readouttime", "exit", "quit")
STOPS = ("k", "camcmd")


def answer(unit: Camserver, line: str, client: Client) -> str | None:
    """None: there is none, or the command has answered by itself."""
    word, _, args = line.partition(" ")
    name, args = resolve(unit, word), args.strip()
    if name is None:
        return f"1 ERR *** Unrecognized command: {line}"
    if not client.control and name not in LOOKERS and (args or name in ("k", "resetcam", "resetmodulepower", *MODES)):
        return "1 ERR access denied"
    code = 10 if name == "imgpath" else 15
    with unit.lock:
        if unit.failures.take_text("refuse", line):
            unit.note(f"refuse {line}")
            return f"{code} ERR {line}: refused"
        busy = unit.options.busy if unit.exposing and name not in STOPS else "answer"
    if busy == "never":
        return None
    while busy == "late" and unit.exposing:
        client.wait(0.01)
    try:
        return HANDLERS[name](unit, args, client)
    except Refused as exc:
        return f"{code} ERR {exc}"


def known(unit: Camserver) -> list[str]:
    """Not all detectors know all commands."""
    old = {"setretriggermode", "ratecorrlutdir"}
    missing = {"tau"} if unit.model.new else old
    if unit.options.sensor != "CdTe" or version(unit) < (7, 9, 0):
        missing = missing | {"resetmodulepower"}
    return [name for name in HANDLERS if name not in missing]


def resolve(unit: Camserver, word: str) -> str | None:
    """Any case; abbreviated as long as it is clear, and `exp`."""
    word = word.lower()
    names = known(unit)
    if word in names:
        return word
    if word == "exp":
        return "exposure"
    found = [name for name in names if name.startswith(word)]
    return found[0] if len(found) == 1 else None


def version(unit: Camserver) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", unit.version)[:3]))


# --- numbers ---------------------------------------------------------------------------------------------------------


def _integer(text: str, low: int, high: int, what: str) -> int:
    try:
        value = int(float(text))
    except (ValueError, OverflowError):
        value = low - 1
    if not low <= value <= high:
        raise Refused(f"Illegal {what}: {text}")
    return value


def _real(text: str, low: float, high: float, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = low - 1.0
    if not low <= value <= high:
        raise Refused(f"Illegal {what}: {text}")
    return value


# --- exposures -------------------------------------------------------------------------------------------------------


def _nimages(unit: Camserver, args: str, client: Client) -> str:
    if args:
        images = _integer(args, 1, 999_999 if unit.model.new else 65_535, "number of images")
        rows, columns = unit.model.shape
        try:
            fits = not unit.model.new or images == 1 or images * rows * columns <= unit.free()
        except OSError as exc:
            raise Refused(f"{unit.settings.imgpath}: {exc.strerror}") from exc
        if not fits:
            raise Refused(f"Not enough space on the image disk for {images} images")
        unit.settings.nimages = images
    return f"15 OK N images set to: {unit.settings.nimages}"


def _exptime(unit: Camserver, args: str, client: Client) -> str:
    if args:
        unit.settings.exptime = _real(args, 1e-7, 60 * DAYS, "exposure time")
    return f"15 OK Exposure time set to: {unit.settings.exptime:.7f} sec."


def _expperiod(unit: Camserver, args: str, client: Client) -> str:
    if args:
        unit.settings.expperiod = _real(args, 0.002 if unit.options.limits else 1e-7, 60 * DAYS, "exposure period")
    return f"15 OK Exposure period set to: {unit.settings.expperiod:.7f} sec"


def _nexpframe(unit: Camserver, args: str, client: Client) -> str:
    if args:
        unit.settings.nexpframe = _integer(args, 1, 2**32 - 1, "number of exposures per frame")
    return f"15 OK Exposures per frame set to: {unit.settings.nexpframe}"


def _delay(unit: Camserver, args: str, client: Client) -> str:
    if args:
        delay = _real(args, 0, 64, "delay")
        if delay == 64:
            raise Refused(f"Illegal delay: {args}")
        unit.settings.delay = delay
    return f"15 OK Delay time set to: {unit.settings.delay:.3f} sec"


def _imgpath(unit: Camserver, args: str, client: Client) -> str:
    if args:
        path = os.path.normpath(os.path.join(unit.folder, _unquoted(args)))
        try:
            os.makedirs(path, exist_ok=True)
        except OSError as exc:
            raise Refused(f"{path}: {exc.strerror}") from exc
        if not os.access(path, os.W_OK):
            raise Refused(f"{path}: {os.strerror(13)}")
        unit.settings.imgpath = path + "/"
    return f"10 OK {unit.settings.imgpath}"


def _exposing(mode: str) -> Handler:
    def expose(unit: Camserver, args: str, client: Client) -> None:
        if not args:
            raise Refused(f"{mode}: no file name")
        unit.expose(client, mode, _unquoted(args))

    return expose


def _k(unit: Camserver, args: str, client: Client) -> str | None:
    return unit.kill(client, sure=False)


def _camcmd(unit: Camserver, args: str, client: Client) -> str | None:
    if args.lower() != "k":
        return f"1 ERR *** Unrecognized command: camcmd {args}"
    return unit.kill(client, sure=True)


# --- threshold -------------------------------------------------------------------------------------------------------


def _setthreshold(unit: Camserver, args: str, client: Client) -> str:
    if not args:
        return _settings(unit)
    words = args.lower().split()
    wrong = Refused(f"ERROR: unknown gain setting: {args}")
    energy = gain = threshold = None
    if words[0] == "energy":
        words.pop(0)
        energy = _eV(words.pop(0) if words else "", wrong)
    if words and not re.match(r"[\d.]", words[0]):
        gain = words.pop(0)
        if gain not in GAINS:
            raise wrong
    if words:
        threshold = _eV(words.pop(0), wrong)
    if words or (energy is None and threshold is None):
        raise wrong
    if threshold == 0:
        unit.settings.energy = unit.settings.threshold = 0
        unit.settings.cleared = True
        return f"15 OK {TRIMMED}"
    threshold = threshold if threshold is not None else (energy or 0) // 2
    modules = unit.model.modules[0] * unit.model.modules[1]
    _trim(unit, client, energy or 2 * threshold, threshold, gain, DELAYS["threshold"] * modules / 60)
    return f"15 OK {TRIMMED}"


def _setenergy(unit: Camserver, args: str, client: Client) -> str:
    if not args:
        return _settings(unit)
    energy = _eV(args, Refused(f"Illegal energy: {args}"))
    modules = unit.model.modules[0] * unit.model.modules[1]
    _trim(unit, client, energy, energy // 2, None, DELAYS["energies"] + DELAYS["energy"] * modules / 60)
    return f"15 OK {TRIMMED}"


def _trim(unit: Camserver, client: Client, energy: int, threshold: int, gain: str | None, seconds: float) -> None:
    """Takes its time. Other settings are what they were at the start, afterwards."""
    low, high = THRESHOLDS[unit.options.sensor]
    if not low <= threshold <= high or not low <= energy:
        raise Refused(f"Requested threshold ({threshold} eV) is out of range")
    try:
        client.wait(seconds * unit.options.speed)
    finally:  # also when the client has left
        with unit.lock:
            usual = unit.usual()
            if unit.failures.take("forget"):
                unit.note("forget")
                usual.imgpath = unit.settings.imgpath
                usual.energy, usual.threshold, usual.gain = (
                    unit.settings.energy, unit.settings.threshold, unit.settings.gain
                )  # fmt: skip
                usual.cleared = unit.settings.cleared
                unit.settings = usual
            settings = unit.settings
            settings.nimages, settings.gapfill = usual.nimages, usual.gapfill
            if settings.cleared or not unit.model.new or version(unit) > BUGGY:
                settings.energy, settings.threshold = energy, threshold
                settings.gain = gain or ("autog" if unit.model.new else _usual_gain(energy))
                settings.ldflatfield = f"FF_p{unit.model.serial}_E{energy}_T{threshold}_vrf_m0p100.tif"
            settings.cleared = False


def _usual_gain(energy: int) -> str:
    return "lowg" if energy > 14_000 else "midg" if energy > 8000 else "highg" if energy >= 6000 else "uhighg"


def _eV(text: str, wrong: Refused) -> int:
    try:
        return round(float(text))
    except (ValueError, OverflowError):
        raise wrong from None


def _settings(unit: Camserver) -> str:
    settings = unit.settings
    if not settings.threshold:
        return "15 OK Threshold has not been set"
    return (
        f"15 OK Energy setting: {settings.energy} eV\n"
        f" Settings: {GAINS[settings.gain]} gain; threshold: {settings.threshold} eV; vcmp: 0.654 V\n"
        f" Trim file:\n  {unit.trim_file(settings)}"
    )


# --- other settings --------------------------------------------------------------------------------------------------


def _mxsettings(unit: Camserver, args: str, client: Client) -> str:
    """`key value ...`, several keys if need be; values are separated by blanks or commas."""
    keys = {key.lower(): key for key in MX}
    found: dict[str, list[str]] = {}
    key = ""
    for word in args.split():
        if word.lower() in keys:
            key = keys[word.lower()]
            found[key] = []
        elif key:
            found[key].append(word)
        else:
            raise Refused(f"mxsettings: unknown key {word}")
    for key, words in found.items():
        text = " ".join(words)
        if key in MX_TEXT:
            unit.settings.mx[key] = (text,)
            continue
        try:
            values = tuple(float(v) for v in re.split(r"[\s,()]+", text) if v)
            MX[key].format(*values)
        except (ValueError, IndexError):
            raise Refused(f"mxsettings: {key} cannot be {text}") from None
        unit.settings.mx[key] = values
    shown = [f"{key} {MX[key].format(*unit.settings.mx[key])}" for key in MX if key in unit.settings.mx]
    return "15 OK mxsettings:\n " + "\n ".join(shown)


def _file(name: str, what: str, off: str) -> Handler:
    def load(unit: Camserver, args: str, client: Client) -> str:
        if args.lower() in OFF:
            setattr(unit.settings, name, "")
        elif args:
            path = os.path.join(unit.folder, _unquoted(args))
            if not os.path.isfile(path) or not os.access(path, os.R_OK):
                raise Refused(f"cannot read {path}")
            setattr(unit.settings, name, os.path.basename(path))
        value = getattr(unit.settings, name)
        return f"15 OK {what}: {value}" if value else f"15 OK {off}"

    return load


def _ratecorrlutdir(unit: Camserver, args: str, client: Client) -> str:
    if args:
        unit.settings.ratecorrlutdir = "" if args.lower() in OFF else args
    name = unit.settings.ratecorrlutdir
    return f"15 OK Rate correction is on; LUT directory: {name}" if name else "15 OK Rate correction is off"


def _tau(unit: Camserver, args: str, client: Client) -> str:
    if args:
        unit.settings.tau = _real(args, 0, 1e-3, "tau")
    tau = unit.settings.tau
    if tau:
        return f"15 OK Rate correction is on; tau = {tau:g} s, cutoff = {CUTOFF} counts"
    return f"15 OK Rate correction is off, cutoff = {CUTOFF} counts"


def _setretriggermode(unit: Camserver, args: str, client: Client) -> str:
    if args:
        unit.settings.setretriggermode = _integer(args, 0, 1, "retrigger mode")
    return f"15 OK Retrigger mode is {'set' if unit.settings.setretriggermode else 'not set'}"


def _gapfill(unit: Camserver, args: str, client: Client) -> str:
    if args:
        unit.settings.gapfill = _integer(args, -2, 0, "gap-fill")
    return f"15 OK Detector gap-fill is: {unit.settings.gapfill}"


def _setackint(unit: Camserver, args: str, client: Client) -> str:
    if args:
        unit.settings.setackint = _integer(args, 0, 2**31 - 1, "acknowledge interval")
    return f"15 OK Acknowledge interval set to: {unit.settings.setackint}"


def _setroi(unit: Camserver, args: str, client: Client) -> str:
    if args:
        pattern = args.upper()
        if pattern != "0" and pattern not in unit.model.regions():
            raise Refused(f"ROI {args} is not known")
        unit.settings.setroi = pattern
    return f"15 OK ROI set to: {unit.settings.setroi}"


def _number(name: str, what: str, high: int) -> Handler:
    def number(unit: Camserver, args: str, client: Client) -> str:
        if args:
            setattr(unit.settings, name, _integer(args, 0, high, what))
        return f"15 OK {what} set to: {getattr(unit.settings, name)}"

    return number


def _debtime(unit: Camserver, args: str, client: Client) -> str:
    if args:
        unit.settings.debtime = _real(args, 0, 1, "debounce time")
    return f"15 OK Debounce time set to: {unit.settings.debtime:g} sec"


def _headerstring(unit: Camserver, args: str, client: Client) -> str:
    if args:
        unit.settings.headerstring = _unquoted(args)[:HEADERSTRING]
    return f"15 OK Header string: {unit.settings.headerstring}"


def _resetcam(unit: Camserver, args: str, client: Client) -> str:
    client.wait(DELAYS["resetcam"] * unit.options.speed)
    unit.reset()
    return "15 OK"


def _resetmodulepower(unit: Camserver, args: str, client: Client) -> str:
    client.wait(_real(args or "1", 0, 3600, "time") * unit.options.speed)
    return "15 OK Module power was reset"


# --- questions -------------------------------------------------------------------------------------------------------


def _version(unit: Camserver, args: str, client: Client) -> str:
    return f"24 OK Code release: {unit.version}"


def _camsetup(unit: Camserver, args: str, client: Client) -> str:
    controller = os.getpid() + 1 if unit.controller else os.getpid()
    return (
        "2 OK \n    Camera definition:\n\t  /home/det/p2_det/config/cam_data/camera.def\n"
        f"    Camera name: {unit.model.name}, S/N {unit.model.serial}\n"
        f"    Camera state: {'exposing' if unit.exposing else 'idle'}\n"
        f"    Target file: {unit.target}\n"
        f"    Time left: {_left(unit):.3f}\n"
        f"    Last image: {unit.last}\n"
        f"    Master PID is: {os.getpid()}\n"
        f"    Controlling PID is: {controller}\n"
        f"    Exposure time: {unit.settings.exptime:.7f}\n"
        f"    Last completed image:\n\t {unit.last}\n"
        "    Shutter is: closed\n"
    )


def _left(unit: Camserver) -> float:
    return max(0.0, (unit.ends_at() - datetime.now()).total_seconds()) if unit.exposing else 0.0


def _telemetry(unit: Camserver, args: str, client: Client) -> str:
    now = datetime.now()
    rows, columns = unit.model.shape
    channels = [_channel(k) for k in range(len(CHANNELS))]
    lines = [
        f"=== Telemetry at {now:%Y-%m-%dT%H:%M:%S}.{now.microsecond // 1000:03d} ===",
        f"Image format: {columns}(w) x {rows}(h) pixels",
        "Selected bank: 0",
        "Selected module: 0",
        "Selected chip: 0",
        *channels,
    ]
    return "18 OK " + "\n".join(lines) + "\n"


def _thread(unit: Camserver, args: str, client: Client) -> str:
    if not args:
        return "215 OK " + ";\n".join(_channel(k) for k in range(len(CHANNELS)))
    if not args.isdecimal() or int(args) >= len(CHANNELS):
        return f"215 ERR Illegal channel: {args}"
    return f"215 OK {_channel(int(args))}"


def _channel(k: int) -> str:
    temperature, humidity = CHANNELS[k]
    return f"Channel {k}: Temperature = {temperature:.1f}C, Rel. Humidity = {humidity:.1f}%"


def _readouttime(unit: Camserver, args: str, client: Client) -> str:
    return f"15 OK Detector readout time [ms]: {unit.model.readout * 1000:.2f}"


def _df(unit: Camserver, args: str, client: Client) -> str:
    try:
        return f"5 OK {unit.free() // 1024}"
    except OSError as exc:
        return f"5 ERR {exc.strerror}"


def _expend(unit: Camserver, args: str, client: Client) -> str:
    return f"6 OK {stamp(unit.ends_at())}"


def _showpid(unit: Camserver, args: str, client: Client) -> str:
    return f"16 OK PID = {os.getpid() + (1 if client.control else 2)}"


def _exit(unit: Camserver, args: str, client: Client) -> None:
    client.drop()


def _unquoted(text: str) -> str:
    return text.strip().strip('"')


HANDLERS: dict[str, Handler] = {
    **{mode: _exposing(mode) for mode in MODES},
    "nimages": _nimages,
    "exptime": _exptime,
    "expperiod": _expperiod,
    "nexpframe": _nexpframe,
    "delay": _delay,
    "imgpath": _imgpath,
    "k": _k,
    "camcmd": _camcmd,
    "setthreshold": _setthreshold,
    "setenergy": _setenergy,
    "mxsettings": _mxsettings,
    "ldbadpixmap": _file("ldbadpixmap", "Bad pixel map", "No bad pixel map"),
    "ldflatfield": _file("ldflatfield", "Flat field", "Flat-field correction is off"),
    "ratecorrlutdir": _ratecorrlutdir,
    "tau": _tau,
    "readouttime": _readouttime,
    "setretriggermode": _setretriggermode,
    "gapfill": _gapfill,
    "setackint": _setackint,
    "setroi": _setroi,
    "thread": _thread,
    "debtime": _debtime,
    "discardmultim": _number("discardmultim", "Discard multiple images", 1),
    "headerstring": _headerstring,
    "dbglvl": _number("dbglvl", "Debug level", 10),
    "resetcam": _resetcam,
    "resetmodulepower": _resetmodulepower,
    "version": _version,
    "camsetup": _camsetup,
    "telemetry": _telemetry,
    "df": _df,
    "expend": _expend,
    "showpid": _showpid,
    "exit": _exit,
    "quit": _exit,
}
