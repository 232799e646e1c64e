"""Scans and troubles with one Pool, MacroServer and Door for all: a worker of pytest gets a file, and each Sardana
server takes as long to start as most of these tests together."""

import pytest

pytest.register_assert_rewrite("tests.sardana.scans", "tests.sardana.troubles")

from tests.sardana.scans import *  # noqa: E402, F403
from tests.sardana.troubles import *  # noqa: E402, F403

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(600),  # the first also starts the servers
    pytest.mark.usefixtures("fresh", "nobody_armed"),
]
