"""When the hardware is looked at again, and when nothing moves any more."""

import pytest

from tangods_detector.hw.base import Phase, Status
from tangods_detector.progress import LOOK, SOON, Limits, Progress
from tangods_detector.settings import Series, Settings, TriggerMode


def series(mode: TriggerMode, exposure: float = 0.01) -> Series:
    return Series(1, Settings(exposure, trigger_mode=mode, n_triggers=3, n_frames_per_trigger=2))


def pauses(progress: Progress, triggers: int, frames: int, times: list[float]) -> list[float]:
    """Between looks at these times, s."""
    status = Status(Phase.ACQUIRING, frames, triggers)
    found = []
    for now in times:
        progress.see(status, now)
        found.append(progress.pause(status, now))
    return found


def test_looks_come_close_together_when_a_triggered_frame_should_be_there() -> None:
    progress = Progress(series(TriggerMode.SOFTWARE), 0.0, Limits(), 0.0)
    # two frames of 10 ms each; the first is there at 10 ms, the second 20 ms late
    assert pauses(progress, 1, 0, [100.0, 100.002]) == pytest.approx([LOOK, 0.018])
    assert pauses(progress, 1, 1, [100.010, 100.0195]) == pytest.approx([0.01, SOON])
    late = pauses(progress, 1, 1, [100.0215, 100.024, 100.030, 100.060])
    assert late == pytest.approx([SOON, 0.004, 0.01, LOOK])
    assert pauses(progress, 1, 2, [100.061]) == [LOOK], "all of this trigger are there"


@pytest.mark.parametrize("mode", [mode for mode in TriggerMode if mode is not TriggerMode.SOFTWARE])
def test_others_are_looked_at_evenly(mode: TriggerMode) -> None:
    assert pauses(Progress(series(mode), 0.0, Limits(), 0.0), 1, 1, [100.0, 100.005, 100.01]) == [LOOK] * 3
