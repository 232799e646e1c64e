"""What the sanitised run does with the pretended library: `python -m tests.hw.hamamatsu_series LIBRARY`."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from dataclasses import replace

from tangods_detector.hw.base import Phase
from tangods_detector.hw.hamamatsu import Hamamatsu
from tangods_detector.hw.hamamatsu_options import HamamatsuOptions
from tangods_detector.settings import Series, Settings, TriggerMode
from tangods_receiver.errors import DaqError
from tests.contract import Listener, wait_for

LIMIT = 60.0
ROI = (64, 32, 256, 128)


def main(path: str) -> None:
    """Every camera, format and mode; buffers that just fit; losses; the cable pulled in a series."""
    library = ctypes.CDLL(path)
    library.fake_dcam_command.restype = ctypes.c_char_p
    n = 0
    for serial in ("000123", "000456", "000789"):
        backend = Hamamatsu(HamamatsuOptions(path, serial, memory=40_000_000))
        backend.connect()
        for p in backend.parameters:
            value = p.get(backend)
            if p.set:
                p.set(backend, value)
        with Listener(backend.endpoints()) as listener:
            for alignment in (0, 64):
                library.fake_dcam_command(f"set row_alignment {alignment}".encode())
                for mode in TriggerMode if not alignment else [TriggerMode.INTERNAL]:
                    for depth in (0, 12) if mode is TriggerMode.INTERNAL else (0,):
                        n += 1
                        one_series(backend, library, n, mode, depth)
                        wait_for("the end message", lambda n=n: listener.ended(n), LIMIT)
            library.fake_dcam_command(b"lose 3 5")
            one_series(backend, library, n + 1, TriggerMode.INTERNAL, 0)
            if serial == "000123":
                pulled(backend, library, n + 2)
        n += 2
        backend.close()
    library.fake_dcam_command(b"plug")
    assert library.fake_dcam_command(b"get allocated") == b"0"
    print(f"{n} series")


def one_series(backend: Hamamatsu, library: ctypes.CDLL, number: int, mode: TriggerMode, depth: int) -> None:
    settings = Settings(0.002, trigger_mode=mode, n_triggers=8, roi=ROI, bit_depth=depth)
    backend.arm(Series(number, backend.configure(settings)))
    backend.start()
    if mode is TriggerMode.SOFTWARE:
        for k in range(8):
            wait_for("the frame before", lambda k=k: backend.status().frames == k, LIMIT)
            backend.trigger()
    elif mode is not TriggerMode.INTERNAL:
        library.fake_dcam_command(b"edge 8")
    wait_for("the end", lambda: backend.status().phase in (Phase.DONE, Phase.ERROR), LIMIT)
    assert backend.status().phase is Phase.DONE, backend.status().message
    backend.stop()


def pulled(backend: Hamamatsu, library: ctypes.CDLL, number: int) -> None:
    """While frames come and others ask for properties; the library must not be used any more when it is closed."""
    backend.arm(Series(number, backend.configure(replace(Settings(0.002, roi=ROI), n_frames_per_trigger=10_000))))
    backend.start()
    wait_for("frames", lambda: backend.status().frames > 20, LIMIT)
    closing = threading.Timer(0.05, backend.stop)
    closing.start()
    library.fake_dcam_command(b"pull")
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        for p in backend.parameters:
            try:
                p.get(backend)
            except DaqError:
                pass
    closing.join()


if __name__ == "__main__":
    main(sys.argv[1])
