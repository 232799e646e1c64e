"""From what a detector tells to what can be done, and what an operator must see. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from taurus_gui import words

Role = Literal["idle", "busy", "good", "warning", "bad", "gone"]
IDLE, BUSY = ("ON", "ALARM"), ("MOVING", "RUNNING")
SILENT = 2.0  # s without a new frame that are worth a word, at least
WHY_NOT = {
    None: "There is no connection to the device",
    "MOVING": "The detector is being armed or stopped",
    "RUNNING": "A series runs: Stop it first",
    "FAULT": "There is an error to be acknowledged: Reset",
    "UNKNOWN": "The detector's hardware does not answer",
    "DISABLE": "The receiver does not answer",
    "INIT": "The device is connecting to the detector",
    "ON": "No series runs",
    "ALARM": "No series runs",
}


@dataclass(frozen=True)
class Headline:
    """A symbol, a word and a role, so that nothing depends on colour alone."""

    symbol: str
    word: str
    role: Role

    def __str__(self) -> str:
        return f"{self.symbol} {self.word}"


@dataclass(frozen=True)
class Problem:
    """A sentence that must be seen; `bad` or only worth a look; `remedy` the command that helps, if one does."""

    sentence: str
    bad: bool = True
    remedy: str = ""


def refusals(state: str | None, readings: Mapping[str, Any]) -> dict[str, str]:
    """Command -> why it cannot be given now; "" when it can. `state` None: no connection."""
    why = WHY_NOT.get(state, f"The state is {state}")
    begin = "" if state in IDLE else why
    end = "" if state in BUSY else why
    if state != "RUNNING":
        trigger = "Only while a series waits for software triggers: Arm first" if state in IDLE else why
    elif is_live(state, readings) or readings.get("TriggerMode") != "SOFTWARE":
        trigger = "This series does not wait for software triggers"
    else:
        trigger = ""
    return {
        "Arm": begin,
        "Live": begin,
        "SoftwareTrigger": trigger,
        "Stop": end,
        "Abort": end,
        "Reset": "" if state == "FAULT" else "There is no error to acknowledge",
    }


def is_live(state: str | None, readings: Mapping[str, Any]) -> bool:
    """A series without end."""
    return state == "RUNNING" and readings.get("nFramesExpected") == 0


def writes_file(state: str | None, readings: Mapping[str, Any]) -> bool:
    """Data could be lost by ending this series at once."""
    return state in BUSY and bool(readings.get("LastFilename")) and not is_live(state, readings)


def headline(state: str | None, readings: Mapping[str, Any]) -> Headline:
    if state is None:
        return Headline("✖", "No connection", "gone")
    if state == "MOVING":
        return Headline("◐", "Stopping" if "stop" in str(readings.get("Status", "")).lower() else "Arming", "busy")
    if state == "RUNNING":
        if is_live(state, readings):
            return Headline("▶", "Live, no file", "busy")
        return Headline("▶", "Waiting for trigger" if waits(state, readings) else "Acquiring", "busy")
    return {
        "ON": Headline("●", "Ready", "good"),
        "ALARM": Headline("▲", "Ready, with an alarm", "warning"),
        "FAULT": Headline("✖", "Fault", "bad"),
        "UNKNOWN": Headline("✖", "Detector unreachable", "bad"),
        "DISABLE": Headline("✖", "Receiver unreachable", "bad"),
        "INIT": Headline("◌", "Connecting to the detector", "busy"),
    }.get(state, Headline("?", state, "warning"))


def waits(state: str | None, readings: Mapping[str, Any]) -> bool:
    """All frames of the triggers that came are taken, and another trigger is due."""
    mode = readings.get("TriggerMode", "INTERNAL")
    if state != "RUNNING" or mode == "INTERNAL" or is_live(state, readings):
        return False
    acquired, expected = readings.get("nFramesAcquired") or 0, readings.get("nFramesExpected") or 0
    if mode == "EXTERNAL_SINGLE":
        return bool(acquired == 0)
    per_trigger = 1 if mode == "EXTERNAL_GATE" else max(1, readings.get("nFramesPerTrigger") or 1)
    return bool(acquired < expected and acquired % per_trigger == 0)


def waiting_text(readings: Mapping[str, Any], seconds: float) -> str:
    """Which trigger is waited for, and since when."""
    mode = str(readings.get("TriggerMode", ""))
    kind = "gate" if mode == "EXTERNAL_GATE" else "software trigger" if mode == "SOFTWARE" else "trigger"
    total = 1 if mode == "EXTERNAL_SINGLE" else readings.get("nTriggers") or 1
    per_trigger = 1 if mode == "EXTERNAL_GATE" else max(1, readings.get("nFramesPerTrigger") or 1)
    if mode == "EXTERNAL_GATE":
        total = readings.get("nFramesExpected") or total
    next_one = 1 if mode == "EXTERNAL_SINGLE" else (readings.get("nFramesAcquired") or 0) // per_trigger + 1
    since = f", for {words.duration(seconds)}" if seconds >= SILENT else ""
    return f"Waiting for {kind} {next_one} of {total}{since}"


def problems(state: str | None, readings: Mapping[str, Any], lost: str = "", silence: float = 0.0) -> list[Problem]:
    """What must be seen, the worst first. `lost`: why there is no connection; `silence`: seconds since the last new
    frame of the running series."""
    if state is None:
        return [Problem(lost or "There is no connection to the device. It is looked for again every second.")]
    found = []
    error = str(readings.get("LastError") or "")
    if state == "FAULT":
        found.append(Problem(error or str(readings.get("Status") or "The device reports an error"), True, "Reset"))
    elif state in ("UNKNOWN", "DISABLE"):
        found.append(Problem(str(readings.get("Status") or "") or WHY_NOT[state]))
    elif state == "ALARM" and not error:
        found.append(Problem(str(readings.get("Status") or "A value is out of its range"), False))
    missing = readings.get("nFramesMissing") or 0
    if missing:
        sentence = f"{words.count(missing)} {'frame is' if missing == 1 else 'frames are'} missing"
        found.append(Problem(f"{sentence} in this series. {error if state != 'FAULT' else ''}".strip(), True))
    elif error and state not in ("FAULT", "UNKNOWN", "DISABLE"):
        found.append(Problem(error, False))
    if state == "RUNNING" and not waits(state, readings) and silence > patience(readings):
        found.append(Problem(f"No new frame for {words.duration(silence)}", True))
    return found


def patience(readings: Mapping[str, Any]) -> float:
    """Seconds without a new frame that are nothing to speak of."""
    period = max(float(readings.get("FrameTime") or 0), float(readings.get("ExposureTime") or 0))
    return max(SILENT, 3 * period)
