"""xspd, X-Spectrum's daemon, with a Lambda of one to ten modules, for tests, faults included.

It is no part of the vendor's interface that `POST /simulator/edge` {"n": 1, "width": 0.0, "period": null} makes
external edges or gates, and that `POST` and `GET /simulator/failures` order and tell what goes wrong (`Failures`).

Chosen where nothing public says how it is:

- Refusals are {"error": sentence} with 400, what is not known with 404; variables cannot be written in an acquisition.
- `reset` and a restart forget the thresholds; a restart everything else, too.
- n_frames beyond max_frames is refused. RAM is allocated anew when bit_depth, counter_mode, interpolation or roi_rows
  change; `start` is refused until then.
- In DUAL both images of an exposure follow each other under numbers of their own: the first is the low threshold's.
- A gate (gating_mode ON) is an exposure as long as the gate, in every trigger mode.
- Below 24 bit and in EXT_FRAMES n_frames take one edge more: each ends a frame and begins the next.
- `rotation` is [degrees counter-clockwise, 0, 0], `position` the first pixel that the turned module touches.
- Byte 3 of a frame's header is 0 to 3 by depth; the whole number follows in bytes 4 to 7.
- An INCOMPLETE frame has zeros in its second half.
"""

from tangods_detector.simulators.xspd.failures import Failures
from tangods_detector.simulators.xspd.options import XspdOptions
from tangods_detector.simulators.xspd.server import XspdSimulator

__all__ = ["Failures", "XspdOptions", "XspdSimulator"]
