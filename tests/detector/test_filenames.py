"""File names: patterns, free numbers, policies. The receiver's answers are pretended."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangods_detector.filenames import check_pattern, complete, resolve
from tangods_detector.settings import OverwritePolicy
from tangods_receiver.errors import ConfigError

ABORT, NEXT, OVERWRITE = OverwritePolicy.ABORT, OverwritePolicy.NEXT_NUMBER, OverwritePolicy.OVERWRITE


class Disk:
    """Pretends to be `receiver.check`."""

    def __init__(self, *taken: str, problem: str = "", allows: bool = True) -> None:
        self.taken, self.problem, self.allows, self.asked = set(taken), problem, allows, 0

    def __call__(self, path: str, overwrite: bool) -> str:
        self.asked += 1
        taken = path in self.taken and not (overwrite and self.allows)
        return f"{path}: exists; choose another name" if taken else self.problem


def test_plain_names_and_no_name() -> None:
    assert resolve("", ABORT, Disk(problem="never asked")) == ("", False)
    assert resolve("/d/a.h5", ABORT, Disk()) == ("/d/a.h5", False)
    with pytest.raises(ConfigError, match="/d/a.h5: exists"):
        resolve("/d/a.h5", ABORT, Disk("/d/a.h5"))


def test_the_date() -> None:
    assert resolve("/d/{date}/a.h5", ABORT, Disk())[0] == f"/d/{time.strftime('%Y%m%d')}/a.h5"


def test_other_problems_are_told_whatever_the_policy() -> None:
    for policy in OverwritePolicy:
        for name in ("/d/a.h5", "/d/{number}.h5"):
            with pytest.raises(ConfigError, match="does not exist"):
                resolve(name, policy, Disk(problem="/d: the directory does not exist; create it"))
    with pytest.raises(ConfigError, match="no room"):
        resolve("/d/a.h5", OVERWRITE, Disk("/d/a.h5", problem="no room"))
    with pytest.raises(ConfigError, match="no room"):
        resolve("/d/a.h5", NEXT, Disk("/d/a.h5", problem="no room"))


def test_overwrite_and_next_number() -> None:
    assert resolve("/d/a.h5", OVERWRITE, Disk()) == ("/d/a.h5", False)
    assert resolve("/d/a.h5", OVERWRITE, Disk("/d/a.h5")) == ("/d/a.h5", True)
    with pytest.raises(ConfigError, match="/d/a.h5: exists"):
        resolve("/d/a.h5", OVERWRITE, Disk("/d/a.h5", allows=False))
    assert resolve("/d/a.h5", NEXT, Disk("/d/a.h5", "/d/a_0001.h5")) == ("/d/a_0002.h5", False)
    assert resolve("/d.x/a", NEXT, Disk("/d.x/a")) == ("/d.x/a_0001", False)


@given(st.integers(0, 3000))
def test_the_next_free_number_is_found_in_few_questions(count: int) -> None:
    disk = Disk(*(f"/d/{n:05d}.h5" for n in range(1, count + 1)))
    assert resolve("/d/{number:05d}.h5", ABORT, disk)[0] == f"/d/{count + 1:05d}.h5"
    assert disk.asked < 30


@given(st.sets(st.integers(1, 50)))
def test_with_gaps_some_free_number(taken: set[int]) -> None:
    path, _ = resolve("/d/{number}.h5", ABORT, Disk(*(f"/d/{n}.h5" for n in taken)))
    found = re.fullmatch(r"/d/(\d+)\.h5", path)
    assert found and int(found[1]) not in taken


def test_nothing_free() -> None:
    with pytest.raises(ConfigError, match="no free number"):
        resolve("/d/{number}.h5", ABORT, lambda path, overwrite: f"{path}: exists")


def test_the_sites_pattern() -> None:
    assert complete("x", "/d/{name}_{number}.h5") == "/d/x_{number}.h5"
    assert complete("/abs/x.h5", "/d/{name}.h5") == "/abs/x.h5"
    assert complete("x", "") == "x"
    assert complete("", "/d/{name}.h5") == ""
    with pytest.raises(ConfigError, match="scan"):
        complete("x", "/d/{scan}.h5")


@pytest.mark.parametrize("name", ["{", "{foo}", "{number:x y}", "{}", "a{number.real}", "{number!r:5"])
def test_braces_that_cannot_be_filled_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        check_pattern(name)


@pytest.mark.slow
@given(st.text(max_size=30))
def test_any_text_is_a_pattern_or_a_config_error(text: str) -> None:
    try:
        check_pattern(text)
    except ConfigError:
        return
    resolve(text, ABORT, Disk())
