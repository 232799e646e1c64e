"""The simulator as a whole: a unit, its HTTP side in a thread of its own, its data ports in another."""

from __future__ import annotations

from types import TracebackType

from tangods_detector.simulators.web import Web
from tangods_detector.simulators.xspd.failures import Failures
from tangods_detector.simulators.xspd.options import XspdOptions
from tangods_detector.simulators.xspd.rest import App
from tangods_detector.simulators.xspd.unit import Unit


class XspdSimulator:
    """xspd with its modules at loopback (or `options.host`) from `__enter__` to `__exit__`.

    `edge` and `fail` are what a test does to it; see `Failures`."""

    def __init__(self, options: XspdOptions | None = None) -> None:
        self.options = options or XspdOptions()
        self.unit = Unit(self.options)
        self._web: Web | None = None

    def __enter__(self) -> XspdSimulator:
        web = self._web = Web(self.options.host, self.options.port, "xspd http")
        try:
            self.unit.start()
            web.start(App(self.unit, web.drop))
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Safe twice."""
        self.unit.close()
        if self._web is not None:
            self._web.close()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    # --- what tests use ----------------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """host:port of the REST side."""
        assert self._web is not None
        return self._web.address

    @property
    def endpoints(self) -> list[str]:
        """Of the data ports."""
        return [f"tcp://{self.options.host}:{port}" for port in self.unit.data_ports]

    def edge(self, n: int = 1, width: float = 0.0, period: float | None = None) -> int:
        """`n` external edges, or gates of `width` s, `period` s apart (None: as soon as the detector is free)."""
        return self.unit.edge(n, width, period)

    def fail(self, failures: Failures) -> None:
        """What goes wrong next, instead of what was wished before."""
        self.unit.fail(failures)
