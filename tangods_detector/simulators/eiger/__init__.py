"""A DECTRIS control unit (SIMPLON: EIGER, EIGER2, PILATUS4) for tests, faults included.

It is no part of the vendor's API that `POST /simulator/edge` {"n": 1, "width": 0.0, "period": null} makes external
edges or gates, and that `POST` and `GET /simulator/failures` order and tell what goes wrong (`Failures`).

Left out: the filewriter has states but writes no files, and `/data` is empty; nothing is ever measured.

Chosen where nothing public says how it is:

- The detector's parameters can be written only when it is idle (or in error); a write that changes nothing answers [].
- A trigger that is ended by another command answers 200; an arm that is aborted 400.
- disarm ends with the images that are over, cancel waits for the one in progress, abort forgets what is not sent yet.
- `dropped` counts from the moment when the stream is enabled or initialised, over all series.
- Stream V1 has the images of the first threshold that is enabled, and flat field and mask of each.
- After an error the stream's end message comes with disarm, cancel or abort; the state stays `error` until initialize.
- Images have 8 bits in `lines` with `roi_bit_depth` 8; the geometry of the PILATUS4 is made up.
"""

from tangods_detector.simulators.eiger.failures import Failures
from tangods_detector.simulators.eiger.options import EigerOptions
from tangods_detector.simulators.eiger.server import EigerSimulator

__all__ = ["EigerOptions", "EigerSimulator", "Failures"]
