"""Backends by name. Outside this package the `Backend` property also takes `package.module:Class`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from tangods_receiver.errors import ConfigError

if TYPE_CHECKING:
    from tangods_detector.hw.base import Backend

BACKENDS = {
    "andor": "tangods_detector.hw.andor:Andor",
    "eiger": "tangods_detector.hw.eiger:Eiger",
    "hamamatsu": "tangods_detector.hw.hamamatsu:Hamamatsu",
    "lambda": "tangods_detector.hw.xlambda:XLambda",
    "pilatus": "tangods_detector.hw.pilatus:Pilatus",
    "simulator": "tangods_detector.hw.simulator:Simulator",
}


def load_backend(name: str) -> type[Backend]:
    """The backend's class; it is imported here and not before. ConfigError says what can be given."""
    from tangods_detector.hw.base import Backend

    target = BACKENDS.get(name.strip().lower(), name.strip())
    module, colon, attribute = target.partition(":")
    if not (module and colon and attribute):
        raise ConfigError(
            f"Backend: {name!r} is not known; set the property to one of {', '.join(sorted(BACKENDS))}, "
            "or to package.module:Class"
        )
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except Exception as exc:  # a module of somebody else's, with a vendor's library: anything can come
        raise ConfigError(f"Backend: {target} cannot be loaded: {exc or type(exc).__name__}") from exc
    if not (isinstance(cls, type) and issubclass(cls, Backend)):
        raise ConfigError(f"Backend: {target} is not a tangods_detector.hw.base.Backend")
    return cls
