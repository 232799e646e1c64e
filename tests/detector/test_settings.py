"""Settings are checked when they are made."""

import dataclasses

import pytest

from tangods_detector.settings import Series, Settings, TriggerMode, parse_metadata
from tangods_receiver.errors import ConfigError


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("exposure_time", 0.0, "ExposureTime"),
        ("exposure_time", -1.0, "ExposureTime"),
        ("exposure_time", float("nan"), "ExposureTime"),
        ("frame_time", float("inf"), "FrameTime"),
        ("n_triggers", 0, "nTriggers"),
        ("n_frames_per_trigger", 0, "nFramesPerTrigger"),
        ("rotation", 45, "90, 180"),
        ("binning", (0, 1), "Binning"),
    ],
)
def test_nonsense_is_refused_with_its_name(field: str, value: object, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        dataclasses.replace(Settings(), **{field: value})


@pytest.mark.parametrize(
    ("mode", "starts", "each"),
    [
        (TriggerMode.INTERNAL, 0, 12),
        (TriggerMode.SOFTWARE, 4, 3),
        (TriggerMode.EXTERNAL_SINGLE, 1, 12),
        (TriggerMode.EXTERNAL_MULTI, 4, 3),
        (TriggerMode.EXTERNAL_GATE, 12, 1),
    ],
)
def test_triggers_and_frames_of_each_mode(mode: TriggerMode, starts: int, each: int) -> None:
    settings = Settings(trigger_mode=mode, n_triggers=4, n_frames_per_trigger=3)
    assert (settings.n_starts, settings.frames_per_start, settings.n_frames) == (starts, each, 12)


def test_a_live_series_has_no_number_of_frames() -> None:
    assert Series(1, Settings(n_triggers=5)).n_frames == 5
    assert Series(1, Settings(n_triggers=5), live=True).n_frames is None


def test_metadata_is_a_json_object() -> None:
    assert parse_metadata('{"a": [1, null]}') == {"a": [1, None]}
    assert parse_metadata("  ") == {}
    for text in ("{", "[1]", "3", "nonsense", '{"a": NaN}', '{"a": "\\ud800"}', "[" * 100_000):
        with pytest.raises(ConfigError, match="JSON"):
            parse_metadata(text)
