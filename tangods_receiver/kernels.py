"""The compiled pixel work: `pixels` is the module `_pixels`, or None, then libraries do the same, slower."""

from __future__ import annotations

from typing import Any

from tangods_receiver import compiled, lz4block


def _load() -> Any:
    module: Any = compiled.module("_pixels")
    if module is not None:
        module.use_lz4(*lz4block.addresses())
    return module


pixels: Any = _load()
