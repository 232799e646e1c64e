"""The page of each stream: what it configures is taken, and it tells of what there is."""

from pathlib import Path

import pytest
import yaml

from tangods_receiver import config
from tangods_receiver.protocol import checks, dectris1, dectris2, slsdet, stins
from tangods_receiver.protocols import PROTOCOLS

FOLDER = Path(__file__).parents[2] / "resources" / "streams"
NAMES = sorted(PROTOCOLS)


def page(name):
    return (FOLDER / f"{name}.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_what_a_page_configures(tmp_path, name):
    """As it stands there, but for the folder."""
    text = page(name).partition("```yaml\n")[2].partition("```")[0]
    values = yaml.safe_load(text.replace("/data", str(tmp_path)))
    made = config.make(values)
    assert made.protocol == name and made.endpoints
    assert made.subscribes == PROTOCOLS[name].subscribes


@pytest.mark.parametrize("name", NAMES)
def test_a_page_leads_nowhere_wrong(name):
    for link in page(name).split("](")[1:]:
        target = link.partition(")")[0]
        assert target.startswith("http") or (FOLDER / target).exists(), target


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("stins", [*stins.IMAGE_KEYS, *stins.CODECS, *stins.PACKED, "header", "series_end"]),
        ("dectris1", [*dectris1.ENCODINGS, *dectris1.ARRAYS, *dectris1.ARRAYS.values(), *dectris1.DETAILS]),
        ("dectris2", [*dectris2.ARRAYS, *dectris2.TIMES, "series_unique_id", "series_date", "bslz4", "lz4"]),
        ("slsdet", [*map(str, slsdet.TYPES), "frameNumber", "completeImage", "addJsonHeader", "rx_jsonpara"]),
        ("xspd", ["counters", "compression", "status"]),
        ("array1", [*checks.ITEMSIZE, "endianess", "timestamp"]),
    ],
)
def test_what_a_page_tells(name, words):
    text = page(name)
    assert [word for word in words if word not in text] == []
