"""What the thread of a Lambda unit knows of its hardware: what it told last, what is waited for, its settings."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from tangods_detector.hw.lambda_job import Look
from tangods_detector.hw.lambda_system import SETTINGS, Description, LambdaSystem, Value
from tangods_receiver.errors import HardwareError

LOOK = 0.02  # s between two looks while something is waited for
READY = 30.0  # s for the modules after their settings


class Hardware:
    """All calls but `interrupt.set` come from one thread; `look` may be read by any."""

    def __init__(self, system: LambdaSystem) -> None:
        self.system = system
        self.description: Description | None = None
        self.look = Look(0.0)
        self.heard = 0.0  # when it last told of its modules
        self.interrupt = threading.Event()  # a stop was ordered: nothing is waited for any longer

    def look_now(self) -> Look:
        """Ask for the state of the modules."""
        at = time.monotonic()
        try:
            self.look = Look(at, self.system.status())
            self.heard = at
        except HardwareError as exc:
            self.look = Look(at, self.look.modules, str(exc))
        return self.look

    @property
    def busy(self) -> bool:
        """Any module, now."""
        return any(module.busy for module in self.look_now().modules)

    @property
    def names(self) -> list[str]:
        """Of the modules."""
        return [] if self.description is None else [module.name for module in self.description.modules]

    def describe(self) -> Description:
        """Read it anew."""
        self.description = self.system.describe()
        return self.description

    def wait_for(self, what: Callable[[Look], str], limit: float) -> None:
        """Until `what` finds nothing lacking any more. HardwareError: what is, or stopped."""
        end = time.monotonic() + limit
        while lacks := (look := self.look_now()).error or what(look):
            if self.interrupt.is_set():
                raise HardwareError(f"stopped; {lacks}")
            if time.monotonic() > end:
                raise HardwareError(f"{lacks}, after {limit:g} s")
            self.interrupt.wait(LOOK)

    def not_ready(self, look: Look, voltage: bool) -> str:
        """Which modules are not, and what of them; `voltage`: also of that."""
        lacking = []
        for name, module in zip(self.names, look.modules, strict=False):
            if not module.connected:
                lacking.append(f"{name} is not connected")
            elif not module.ready:
                lacking.append(f"{name} is not ready")
            elif not module.ram_allocated:
                lacking.append(f"the RAM of {name} is not allocated")
            elif voltage and not module.voltage_settled:
                lacking.append(f"the high voltage of {name} is not settled")
        return ", ".join(lacking)

    def configure(self, settings: Mapping[str, Value]) -> dict[str, Value]:
        """Set what is not as wanted, in the order that the hardware needs; what became of it."""
        system = self.system
        if self.busy:
            system.stop()
        for name in SETTINGS:
            if name in settings and not _same(system.get(name), settings[name]):
                system.set(name, settings[name])
        self.wait_for(lambda look: self.not_ready(look, voltage=False), READY)
        self.describe()
        return {name: system.get(name) for name in settings}


def _same(found: Value, wanted: Value) -> bool:
    """As far as the hardware rounds."""
    if isinstance(wanted, list | tuple):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(_same, found, wanted))
    if isinstance(wanted, str) or isinstance(found, str | list):
        return found == wanted
    return abs(found - wanted) <= 1e-9 * max(1.0, abs(wanted))
