"""What the user of a Dectris detector sends along with a series: file name, options, anything else. Pure.

SIMPLON passes `header_appendix` on as it is: a text in stream V1, any value in V2. An object, or a text that holds one
in JSON, is read here; its keys `filename`, `nframes` and `save_raw` mean what they mean in a STINS start message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import checks

OTHER = "appendix"  # key of the metadata under which one that is not an object is kept


@dataclass(frozen=True)
class Appendix:
    """`filename` "": live view only; `nframes` None: it does not say; `endless` it says that nobody knows, by null;
    `metadata` all its keys but these two."""

    filename: str = ""
    nframes: int | None = None
    endless: bool = False
    save: bool = True
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def expected(self, announced: int | None) -> int | None:
        """Frames of the series, where the detector announces so many."""
        return None if self.endless else announced if self.nframes is None else self.nframes

    def beside(self, detector: Mapping[str, Any]) -> dict[str, Any]:
        """The metadata of the series: these, and under `detector` what the detector says of itself. What the user says
        of the detector goes before it."""
        own = self.metadata.get("detector", {})
        if not isinstance(own, Mapping):
            return {**self.metadata, "detector": dict(detector), "appendix_detector": own}
        return {**self.metadata, "detector": {**detector, **own}}


def read(value: Any) -> Appendix:
    """An object, a text, or what else JSON can hold; None and "" are none. A text that is not JSON is not for us, and
    kept as it is. StreamError: an object whose keys do not hold what they must."""
    if isinstance(value, str):
        value = _parsed(value)
    if value is None:
        return Appendix()
    if not isinstance(value, Mapping):
        return Appendix(metadata={OTHER: value})
    rest = dict(value)
    endless = "nframes" in rest and rest["nframes"] is None
    filename, nframes = rest.pop("filename", ""), rest.pop("nframes", None)
    if type(filename) is not str:
        raise StreamError(f"header_appendix: filename is {checks.show(filename)}, not a string")
    if nframes is not None and (type(nframes) is not int or not 0 <= nframes <= checks.MAX_FRAMES):
        raise StreamError(f"header_appendix: nframes is {checks.show(nframes)}, not 0 to {checks.MAX_FRAMES}")
    return Appendix(filename, nframes, endless, rest.get("save_raw") not in (False, 0), rest)


def _parsed(text: str) -> Any:
    if not text.strip():
        return None
    try:
        return checks.loads(text.encode())
    except (ValueError, RecursionError):
        return text
