"""What is asked of the thread that speaks Tango, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["write", "command", "check", "rois", "read"]


@dataclass(frozen=True)
class Order:
    """`write`: attribute `name` becomes `value`; `command`: `name`; `check`: can file `value` = (path, bytes) be
    written, and what room is there; `rois`: regions `value` = lines; `read`: expert attributes now."""

    kind: Kind
    name: str
    value: Any = None


@dataclass(frozen=True)
class Answer:
    """`error` "": done; else the device's own words. `value`: what was asked for."""

    order: Order
    error: str = ""
    value: Any = None


@dataclass(frozen=True)
class Connection:
    """Of a device: `error` says why it is not there, `since` (Unix time) when that began."""

    there: bool
    error: str = ""
    since: float = 0.0


@dataclass(frozen=True)
class Described:
    """An attribute as its device describes it. `kind` is bool, int, float, str, list or image; limits None: none."""

    name: str
    label: str
    doc: str
    unit: str = ""
    kind: str = "str"
    writable: bool = False
    expert: bool = False
    low: float | None = None
    high: float | None = None
    format: str = ""


@dataclass(frozen=True)
class ReceiverSide:
    """What is known of the receiver: `name` of the device ("": an engine without Tango), `address` of its HTTP side
    ("": none), `error` why it cannot be asked."""

    name: str = ""
    address: str = ""
    error: str = ""
    state: str = ""
    status: str = ""
    throughput: float = 0.0  # MB/s
    rate: float = 0.0  # Hz
    rois: tuple[str, ...] = ()


@dataclass(frozen=True)
class RoiTable:
    """The receiver's RoiHistory: a row for each image that was measured; see `roistats`."""

    names: tuple[str, ...] = ()
    rows: Any = field(default=None, compare=False)
