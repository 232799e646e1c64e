"""Property lines: all mistakes in one message."""

from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangods_detector.options import describe_options, option, parse_options
from tangods_receiver.errors import ConfigError


@dataclass(frozen=True)
class Options:
    host: str
    port: int = option(80, "TCP port")
    slow: bool = option(False, "wait longer")
    look: Literal["photon", "scmos"] = option("photon", "what it looks like")
    hosts: tuple[str, ...] = option((), "several")
    ports: tuple[int, ...] = option((), "several")
    limit: float | None = option(None, "seconds")

    def __post_init__(self) -> None:
        if self.port > 65535:
            raise ConfigError(f"port: {self.port} is too large")


def test_values_become_what_the_annotation_says() -> None:
    lines = ["# a comment", "", " host = a=b ", "port=1", "slow = Yes", "look = scmos", "hosts = a, b", "ports = 1,2"]
    assert parse_options(Options, lines) == Options("a=b", 1, True, "scmos", ("a", "b"), (1, 2))
    assert parse_options(Options, ["host = x", "limit = 2.5"]).limit == 2.5
    assert parse_options(Options, ["host = x", "limit = none"]).limit is None


def test_all_mistakes_in_one_message() -> None:
    lines = ["port = abc", "hots = x", "slow = maybe", "look = blue", "nonsense", "limit = 1", "limit = 2"]
    with pytest.raises(ConfigError) as caught:
        parse_options(Options, lines)
    message = str(caught.value)
    for part in (
        "host: missing",
        "port: 'abc' is not int",
        "unknown option 'hots' (did you mean 'hosts'?)",
        "slow: 'maybe' is not true or false",
        "look: 'blue' is not one of photon, scmos",
        "'nonsense' is not `key = value`",
        "limit: given twice",
    ):
        assert part in message


def test_what_the_dataclass_itself_refuses() -> None:
    with pytest.raises(ConfigError, match="too large"):
        parse_options(Options, ["host = x", "port = 70000"])


def test_description_for_pages() -> None:
    assert describe_options(Options)[:2] == [("host", "", ""), ("port", "80", "TCP port")]


@given(st.lists(st.text(max_size=40), max_size=8))
def test_any_text_gives_options_or_one_config_error(lines: list[str]) -> None:
    try:
        parse_options(Options, lines)
    except ConfigError as exc:
        assert str(exc)
