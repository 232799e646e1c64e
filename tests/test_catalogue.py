"""A detector is one module, one test, one page, one set of ready-made properties: nothing may be missing."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path

import pytest

from tangods_detector.hw import BACKENDS, load_backend
from tangods_detector.hw.base import Backend
from tangods_detector.options import describe_options, parse_options
from tangods_receiver.errors import ConfigError
from tests.contract import BackendContract

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", sorted(BACKENDS))
class TestEachDetector:
    def test_it_loads_and_has_all_parts(self, name: str) -> None:
        kind = load_backend(name)
        assert issubclass(kind, Backend) and not getattr(kind, "__abstractmethods__", None)
        assert kind.trigger_modes
        assert dataclasses.is_dataclass(kind.Options)
        names = [p.name for p in kind.parameters]
        assert len(set(names)) == len(names)

    def test_every_option_is_documented(self, name: str) -> None:
        page = (ROOT / f"resources/detectors/{name}.md").read_text()
        for key, _, sentence in describe_options(load_backend(name).Options):
            assert sentence, f"option {key} of {name} has no doc"
            assert f"`{key}`" in page, f"option {key} is not in the page of {name}"

    def test_every_parameter_is_in_its_page(self, name: str) -> None:
        page = (ROOT / f"resources/detectors/{name}.md").read_text()
        for p in load_backend(name).parameters:
            assert f"`{p.name}`" in page, f"attribute {p.name} is not in the page of {name}"

    def test_the_ready_made_properties_are_valid(self, name: str) -> None:
        tree = json.loads((ROOT / f"resources/detectors/{name}.json").read_text())
        devices = [
            device for instance in tree["servers"]["Detector"].values() for device in instance["Detector"].values()
        ]
        assert devices
        for device in devices:
            assert device["properties"]["Backend"] == [name]
            parse_options(load_backend(name).Options, device["properties"].get("BackendOptions", []))

    def test_it_has_a_test_of_the_contract(self, name: str) -> None:
        file = f"test_{load_backend(name).__module__.rpartition('.')[2]}"
        module = importlib.import_module(f"tests.hw.{file}")
        kinds = [v for v in vars(module).values() if isinstance(v, type) and issubclass(v, BackendContract)]
        assert [kind for kind in kinds if kind is not BackendContract], f"tests/hw/{file}.py inherits no contract"


def test_a_backend_of_another_package() -> None:
    assert load_backend("tests.detector.pretend:Pretend").__name__ == "Pretend"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "one of .*simulator"),
        ("none", "package.module:Class"),
        ("no.such:Thing", "cannot be loaded"),
        ("json:loads", "is not a tangods_detector.hw.base.Backend"),
        ("json:Nothing", "cannot be loaded"),
        (".:Thing", "cannot be loaded"),
    ],
)
def test_what_is_no_backend(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_backend(name)
