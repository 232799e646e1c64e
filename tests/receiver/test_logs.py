"""Records for people, and for what collects them."""

import json
import logging
import sys

import pytest

from tangods_receiver import logs


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("tangods_receiver.x", logging.WARNING, "x.py", 1, message, args, None)
    made.__dict__.update(extra)
    return made


def test_for_people_unless_json_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ("", "text"):
        monkeypatch.setenv("TANGODS_LOG", given)
        assert logs.formatter("Detector/b1").format(record("a %d", 3)).endswith(" WARNING tangods_receiver.x: a 3")


def test_one_json_object_on_one_line_also_with_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANGODS_LOG", " JSON ")
    formatter = logs.formatter("Detector/b1")
    line = formatter.format(record("frames %d\nof %s", 3, "ß\x00", created=1_700_000_000.25, series=41))
    assert "\n" not in line
    told = json.loads(line)
    assert told.pop("thread") == "MainThread"
    assert told == {
        "time": "2023-11-14T22:13:20.250+00:00",
        "level": "WARNING",
        "logger": "tangods_receiver.x",
        "message": "frames 3\nof ß\x00",
        "server": "Detector/b1",
        "series": 41,
    }
    try:
        raise ValueError("of two\nlines")
    except ValueError:
        line = formatter.format(record("failed", exc_info=sys.exc_info()))
    assert "\n" not in line and "of two\nlines" in json.loads(line)["exception"]
    assert "server" not in json.loads(logs.formatter().format(record("x")))
