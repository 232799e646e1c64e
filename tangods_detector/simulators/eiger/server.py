"""The simulator as a whole: a control unit, its HTTP side in a thread of its own, its streams in another."""

from __future__ import annotations

from types import TracebackType

from tangods_detector.simulators.eiger.failures import Failures
from tangods_detector.simulators.eiger.options import EigerOptions
from tangods_detector.simulators.eiger.rest import App
from tangods_detector.simulators.eiger.unit import ControlUnit
from tangods_detector.simulators.web import Web


class EigerSimulator:
    """A DECTRIS control unit at loopback (or `options.host`) from `__enter__` to `__exit__`.

    `edge` and `fail` are what a test does to it; see `Failures`."""

    def __init__(self, options: EigerOptions | None = None) -> None:
        self.options = options or EigerOptions()
        self.unit = ControlUnit(self.options, on_restart=self._drop_all)
        self.address = ""
        self._web: Web | None = None

    def __enter__(self) -> EigerSimulator:
        web = self._web = Web(self.options.host, self.options.port, "eiger http")
        try:
            self.unit.start()
            web.start(App(self.unit, web.drop))
        except BaseException:
            self.close()
            raise
        self.address = web.address
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
    def endpoint_v1(self) -> str:
        return self.unit.endpoint("v1")

    @property
    def endpoint_v2(self) -> str:
        return self.unit.endpoint("v2")

    @property
    def sent(self) -> list[tuple[int, bytes]]:
        """(image number, blob) of the last series; only with `keep_sent`."""
        return self.unit.sent

    @property
    def happened(self) -> list[str]:
        """Failures that took place, oldest first."""
        return self.unit.luck.happened

    def edge(self, n: int = 1, width: float = 0.0, period: float | None = None) -> None:
        """`n` external edges, or gates of `width` s, `period` s apart (None: as soon as the detector is free)."""
        self.unit.edge(n, width, period)

    def fail(self, failures: Failures) -> None:
        """What goes wrong next, instead of what was wished before."""
        self.unit.fail(failures)

    def _drop_all(self) -> None:
        if self._web is not None:
            self._web.drop_all()
