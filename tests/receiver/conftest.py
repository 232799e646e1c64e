"""What the tests of the receiver share."""

from collections.abc import Iterator

import pytest

from tangods_receiver import seriesfile, writing


@pytest.fixture(scope="class")  # not for each example of hypothesis
def python_writes() -> Iterator[None]:
    """Records are written by `os.pwritev`, which a test can replace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seriesfile, "Packed", writing.PythonPacked)
        yield
