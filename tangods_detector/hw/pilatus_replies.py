"""What camserver says: bytes -> replies -> values. Pure; words that nobody knows are no error."""

from __future__ import annotations

import re
from typing import NamedTuple

END = b"\x18"
LARGEST = 1 << 20  # bytes of a reply; what is longer is none
NO_CODE = -1
ABSENT = -90.0  # C; a sensor that is not there says less
MODULE, GAP = (487, 195), (7, 17)  # columns, rows of a module and of the gaps between two
MODULES = {"100K": (1, 1), "200K": (1, 2), "300K": (1, 3), "300K-W": (3, 1), "1M": (2, 5), "2M": (3, 8), "6M": (5, 12)}
REGIONS = {  # patterns of setroi: columns, rows of modules; images/s at most
    "C2": (1, 2, 500.0),
    "C12": (3, 4, 250.0),
    "C18": (3, 6, 200.0),
    "R8": (2, 4, 500.0),
    "L8": (2, 4, 500.0),
    "R1": (1, 1, 500.0),
    "L1": (1, 1, 500.0),
    "R3": (1, 3, 500.0),
    "L3": (1, 3, 500.0),
}
RATES = {"6M": 100.0, "2M": 250.0}  # images/s of a whole PILATUS3 X; 500 of the others
S_RATE, S_READOUT = 25.0, 1.5e-3  # of a PILATUS3 S, which is known by its slow read-out
SHORTEST = 0.002  # s between two images, whatever the detector

_REPLY = re.compile(r"\s*(\d{1,5})\s+(OK|ERR)\b[ \t]?(.*)", re.DOTALL)
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?"
_CHANNEL = re.compile(
    rf"Channel\s+(\d{{1,4}}):\s*Temperature\s*=\s*({_NUMBER})\s*C?,\s*Rel\. Humidity\s*=\s*({_NUMBER})"
)
_GAINS = {"low": "lowg", "mid": "midg", "high": "highg", "ultra high": "uhighg", "auto": "autog"}


class Reply(NamedTuple):
    """`<code> OK <text>` or `<code> ERR <text>`; NO_CODE: something else, which `text` is."""

    code: int
    ok: bool
    text: str

    def __str__(self) -> str:
        return self.text if self.code == NO_CODE else f"{self.code} {'OK' if self.ok else 'ERR'} {self.text}".rstrip()


def parse(data: bytes) -> Reply:
    """One reply without its end."""
    text = data.decode("latin-1").strip("\0\r\n")
    found = _REPLY.fullmatch(text)
    if not found:
        return Reply(NO_CODE, False, text)
    return Reply(int(found[1]), found[2] == "OK", found[3].strip())


class Replies:
    """What comes from the socket, in whatever pieces, to whole replies."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Reply]:
        """Those that are complete now."""
        if END not in data:
            self._rest = (self._rest + data)[-LARGEST:]
            return []
        *whole, self._rest = (self._rest + data).split(END)
        return [parse(one) for one in whole if len(one) <= LARGEST]


# --- values ----------------------------------------------------------------------------------------------------------


def number(text: str, behind: str) -> float | None:
    """The one that follows these words, as in `N images set to: 10`."""
    found = re.search(rf"{re.escape(behind)}\s*({_NUMBER})", text)
    return float(found[1]) if found else None


class Threshold(NamedTuple):
    """eV; 0: not set. `gain` as setthreshold takes it: lowg, midg, highg, uhighg, autog; "": not told."""

    energy: float = 0.0
    threshold: float = 0.0
    gain: str = ""


def threshold(text: str) -> Threshold:
    """Of the answer to `setthreshold` without a value."""
    gain = re.search(r"([a-z]+(?: high)?)\s+gain", text)
    return Threshold(
        number(text, "Energy setting:") or 0.0,
        number(text, "threshold:") or 0.0,
        _GAINS.get(gain[1], "") if gain else "",
    )


class Channel(NamedTuple):
    """A sensor of temperature (degC) and relative humidity (%)."""

    number: int
    temperature: float
    humidity: float


def climate(text: str) -> list[Channel]:
    """Of the answer to `thread`: the sensors that are there."""
    found = [Channel(int(n), float(t), float(h)) for n, t, h in _CHANNEL.findall(text)]
    return [channel for channel in found if channel.temperature > ABSENT]


def name_and_serial(text: str) -> tuple[str, str]:
    """Of the answer to `camsetup`, such as PILATUS3 2M and 24-0127; "" where it does not say."""
    found = re.search(r"Camera name:\s*([^\r\n]*)", text)
    if not found:
        return "", ""
    name, _, serial = found[1].partition("S/N")
    return name.strip(" ,"), serial.strip(" ,:")


def image_format(text: str) -> tuple[int, int] | None:
    """Rows, columns, of the answer to `telemetry`."""
    found = re.search(r"Image format:\s*(\d{1,5})\s*\(w\)\s*x\s*(\d{1,5})\s*\(h\)", text)
    return (int(found[2]), int(found[1])) if found and int(found[1]) and int(found[2]) else None


def version(text: str) -> tuple[int, ...]:
    """7, 9, 0 of `Code release: 7.9.0` or `tvx-7.3.13-121212`."""
    found = re.search(r"(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?", text)
    return tuple(int(part) for part in found.groups() if part) if found else ()


def size(model: str) -> str:
    """2M of PILATUS3 2M; "": none of the known ones."""
    words = [word for word in model.upper().replace("-W", "-W ").split() if word in MODULES]
    return words[-1] if words else ""


def shape(columns: int, rows: int) -> tuple[int, int]:
    """Rows, columns of pixels, of so many modules."""
    return rows * MODULE[1] + (rows - 1) * GAP[1], columns * MODULE[0] + (columns - 1) * GAP[0]


def rate(model: str, region: str, readout: float) -> float:
    """Images/s at most; `readout` in s."""
    if "PILATUS3" in model.upper().replace(" ", "") and readout >= S_READOUT:
        return S_RATE
    if readout >= S_READOUT:  # PILATUS2
        return 1 / SHORTEST
    return REGIONS[region][2] if region in REGIONS else RATES.get(size(model), 1 / SHORTEST)
