"""DECTRIS PILATUS2 and PILATUS3 through camserver, whose image files are streamed and deleted as they come."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar

from tangods_detector.hw import pilatus_replies as replies
from tangods_detector.hw.base import Backend, DetectorInfo, Parameter, Phase, Status
from tangods_detector.hw.pilatus_camserver import Refused
from tangods_detector.hw.pilatus_client import StreamStatus
from tangods_detector.hw.pilatus_link import IMGPATH, Link, PilatusOptions
from tangods_detector.hw.pilatus_parameters import PARAMETERS, Knobs
from tangods_detector.hw.pilatus_series import Plan, Run
from tangods_detector.settings import Series, Settings, TriggerMode
from tangods_detector.streamer import start_metadata
from tangods_receiver.errors import ConfigError, DaqError, HardwareError

log = logging.getLogger(__name__)

LOOK = 0.02  # s between two looks at the streamer
KILL_LIMIT = 3.0  # s for camserver to obey, besides
STREAM_LIMIT = 1.5  # s for the images that are there to leave after a stop
IDLE_LOOK = 2.0  # s between two looks at the streamer while no series is armed
LIVE = (100_000, 10_000, 1000, 100, 10)  # images of one exposure of a live series: as many as camserver takes
BETWEEN = 2.0  # s that a software trigger waits for the end of the exposure before
WORDS = {
    "nimages": "N images set to",
    "exptime": "Exposure time set to",
    "expperiod": "Exposure period set to",
    "nexpframe": "Exposures per frame set to",
    "delay": "Delay time set to",
    "gapfill": "gap-fill",
}


class Pilatus(Backend):
    """Translates; the link talks, the run knows where a series is, the knobs are what the expert turns."""

    Options: ClassVar[type] = PilatusOptions
    trigger_modes: ClassVar[frozenset[TriggerMode]] = frozenset(TriggerMode)
    parameters: ClassVar[tuple[Parameter, ...]] = PARAMETERS

    def __init__(self, options: PilatusOptions) -> None:
        self._options = options
        self._link: Link | None = None
        self._run: Run | None = None
        self._given_up = threading.Event()
        self._looked = self._heard = 0.0  # at and of the streamer; monotonic
        self._pausing = threading.Lock()  # one at a time sends exposures, or stops them
        self.knobs: Knobs = Knobs(lambda: self._there)

    # --- the link ----------------------------------------------------------------------------------------------------

    def connect(self) -> DetectorInfo:
        self.close()
        self._link = link = Link(self._options)
        self.knobs.connected()
        return link.info()

    def close(self) -> None:
        link, run = self._link, self._run
        if link is None:
            return
        if run is not None and not run.stopped:
            with suppress(DaqError):
                self.stop()
        self._link = self._run = None
        link.close()

    @property
    def _there(self) -> Link:
        if self._link is None:
            raise HardwareError("not connected to camserver")
        return self._link

    def endpoints(self) -> list[str]:
        found = self._options.endpoint or (self._link.endpoint if self._link is not None else "")
        return [found] if found else []

    # --- settings ----------------------------------------------------------------------------------------------------

    def configure(self, settings: Settings) -> Settings:
        _refuse_what_it_has_not(settings)
        exposure = self._set("exptime", settings.exposure_time, "ExposureTime")
        period = settings.frame_time
        if period >= self._shortest(exposure) * (1 - 1e-6):  # else Arm refuses it, unless the exposure becomes shorter
            period = self._set("expperiod", period, "FrameTime")
        return replace(settings, exposure_time=exposure, frame_time=period, bit_depth=32)

    def _set(self, command: str, value: float, ours: str, unit: str = "s") -> float:
        """What camserver made of it."""
        try:
            answer = self._there.set(command, value, words=WORDS[command])
        except ConfigError as exc:
            raise ConfigError(f"{ours}: {value:g} {unit}: {exc}") from exc
        found = replies.number(answer, ":")
        return value if found is None else found

    def check(self, settings: Settings) -> None:
        if settings.trigger_mode is TriggerMode.EXTERNAL_MULTI and settings.n_frames_per_trigger != 1:
            raise ConfigError(
                f"nFramesPerTrigger {settings.n_frames_per_trigger}: in EXTERNAL_MULTI each edge gives one image; set "
                "it to 1"
            )
        plan = Plan.of(settings, 0)
        try:
            self._there.set("nimages", plan.nimages, words=WORDS["nimages"])
        except ConfigError as exc:
            raise ConfigError(f"nTriggers, nFramesPerTrigger: {plan.nimages} images in one go: {exc}") from exc

    def _shortest(self, exposure: float) -> float:
        """Period, s."""
        link = self._there
        return max(
            exposure + link.readout,
            replies.SHORTEST,
            1 / replies.rate(link.model, self.knobs.region, link.readout),
        )

    def latency_time(self, settings: Settings) -> float:
        return self._shortest(settings.exposure_time) - settings.exposure_time

    def image_format(self, settings: Settings) -> tuple[tuple[int, int], str]:
        region = replies.REGIONS.get(self.knobs.region)
        return replies.shape(*region[:2]) if region else self._there.full_shape, "int32"

    def frame_bytes(self, settings: Settings) -> int:
        """Counts compress to a quarter and better, as a rule."""
        return super().frame_bytes(settings) // 4

    # --- a series ----------------------------------------------------------------------------------------------------

    def arm(self, series: Series) -> None:
        link = self._there
        self._given_up.clear()
        if link.there.lost:
            raise HardwareError(f"camserver: {link.there.lost}")
        if self._run is not None and not self._run.stopped:
            self.stop()
            self._given_up.clear()
        plan = self._tell(series)
        self._run = run = Run(plan, series.id)
        link.streamer.stop(keep=False)
        link.streamer.wait_over(STREAM_LIMIT)
        self._refuse_given_up()
        run.order = self._to_streamer(series, plan)
        link.streamer.arm(**run.order)
        self._heard = time.monotonic()
        run.connections_lost = link.streamer.status().connections_lost
        if not plan.ours:
            self._expose(run)

    def _to_streamer(self, series: Series, plan: Plan) -> dict[str, Any]:
        """How the images will be."""
        link, settings = self._there, series.settings
        told = start_metadata(series, link.info(), self._period(settings))
        for name in ("sensor_material", "sensor_thickness"):  # in the header of each image
            del told["detector"][name]
        told["detector"] |= self.knobs.metadata()
        return {
            "series": series.id,
            "filename": series.filename,
            "pattern": plan.pattern,
            "nframes": plan.total,
            "shape": None if self.knobs.region in replies.REGIONS else link.full_shape,
            "metadata": told,
            "expect": self.knobs.expected(settings.exposure_time, self._period(settings)),
            "present": "delete_all",
        }

    def _period(self, settings: Settings) -> float:
        """That camserver is told, s. Where each image has an edge it only has to be valid."""
        shortest = self._shortest(settings.exposure_time)
        if settings.trigger_mode in (TriggerMode.EXTERNAL_MULTI, TriggerMode.EXTERNAL_GATE):
            return shortest
        return max(settings.frame_time, shortest)

    def _tell(self, series: Series) -> Plan:
        """Give camserver everything that a series needs, in the order that the manual wants."""
        link, settings = self._there, series.settings
        self.knobs.tell()
        plan = Plan.of(settings, series.id, self._live_images() if series.live else 0)
        self._set("nimages", plan.nimages, "nTriggers, nFramesPerTrigger", "images")
        self._set("exptime", settings.exposure_time, "ExposureTime")
        self._set("expperiod", self._period(settings), "FrameTime")
        link.set("imgpath", link.folder, IMGPATH)
        self._refuse_given_up()
        return plan

    def _live_images(self) -> int:
        """As many as go into one exposure."""
        for images in LIVE:
            with suppress(ConfigError):
                self._there.set("nimages", images, words=WORDS["nimages"])
                return images
        raise HardwareError(f"{self._there.folder}: camserver has no room for {LIVE[-1]} images")

    def _refuse_given_up(self) -> None:
        if self._given_up.is_set():
            raise HardwareError("stopped before the detector was armed")

    def _expose(self, run: Run) -> None:
        """The next exposure command; returns when the detector is exposing, or waits for edges."""
        with self._pausing:
            if run.stopped or self._given_up.is_set():
                return
            number = run.sent
            run.sent += 1
            try:
                self._there.there.expose(run.plan.line(number), lambda name: run.plan.belongs(number, name))
            except Refused:
                run.sent -= 1
                raise

    def start(self) -> None:
        run = self._run
        if run is None or run.stopped:
            return
        run.begun = True
        if run.plan.ours and (run.plan.exposures == 1 or not run.plan.exposures):
            self._expose(run)

    def trigger(self) -> None:
        run = self._run
        plan = run.plan if run is not None else None
        if run is None or plan is None or run.stopped or not run.begun or not plan.ours or plan.exposures <= run.sent:
            raise HardwareError("software trigger refused: none is waited for")
        self._look(run, now=True)
        deadline = time.monotonic() + BETWEEN
        while run.busy and run.stream.sent >= run.sent * run.plan.nimages and time.monotonic() < deadline:
            time.sleep(0.002)  # all its images are there, and the words that it is over come in a moment
            self._look_at_camserver(run)
        if run.busy:
            raise HardwareError(
                f"software trigger refused: busy with trigger {run.sent}; send the next one when nFramesAcquired has "
                "gone up"
            )
        self._expose(run)

    def frames_came(self, frames: int) -> None:
        """After the end: the receiver has closed the file, so that nothing of the series is needed any more."""
        run, link = self._run, self._link
        if run is not None and link is not None and run.stopped:
            try:
                link.streamer.closed()
            except HardwareError as exc:
                log.debug("%s", exc)

    # --- the end -----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        link, run = self._link, self._run
        if link is None:
            return
        self._given_up.set()
        while not self._pausing.acquire(timeout=0.1):
            link.there.give_up()  # whoever waits for an answer
        try:
            if run is None or run.stopped:
                if link.there.exposing and not link.there.lost:
                    link.there.kill(KILL_LIMIT)
                return
            self._look_at_camserver(run)
            run.stop()
        finally:
            self._pausing.release()
        try:
            if run.busy:
                self._kill(link)
        finally:
            self._end_stream(link, run)

    def _kill(self, link: Link) -> None:
        """Also where the connection broke: the detector would go on."""
        if not link.there.lost:
            link.there.kill(KILL_LIMIT)
            return
        with suppress(HardwareError):
            link.end_exposure()

    def _end_stream(self, link: Link, run: Run) -> None:
        """What is there is sent, and the receiver hears that it is all."""
        try:
            stream = link.streamer.status()
            if stream.phase not in ("idle", "done", "error"):
                # Of a receiver that has gone, the next would get images of a series that it does not know
                link.streamer.stop(keep=stream.connections_lost == run.connections_lost)
                try:
                    stream = link.streamer.wait_over(STREAM_LIMIT)
                except HardwareError:  # the receiver takes nothing
                    link.streamer.stop(keep=False)
                    stream = link.streamer.wait_over(STREAM_LIMIT)
            if stream.series == run.series:
                run.see(stream, time.monotonic())
        except HardwareError as exc:
            log.warning("%s", exc)
            run.remark = run.remark or str(exc)

    # --- the state ---------------------------------------------------------------------------------------------------

    def status(self) -> Status:
        run, link = self._run, self._link
        if link is None:
            return Status(Phase.IDLE)
        if run is None or run.stopped:
            if link.there.lost:
                return Status(Phase.ERROR, message=f"camserver: {link.there.lost}")
            if time.monotonic() - self._heard > IDLE_LOOK:
                link.streamer.ping()
                self._heard = time.monotonic()
            return Status(Phase.IDLE) if run is None else run.status
        if not run.failure:
            self._look(run)
        return run.status

    def _look(self, run: Run, now: bool = False) -> None:
        """At the images, and at camserver; what has to be done next is done."""
        self._look_at_stream(run, now)
        self._look_at_camserver(run)
        if run.failure or not run.begun:
            return
        if not run.busy and not run.plan.exposures:  # a live series goes on
            self._expose(run)
        elif run.all_exposed() and not run.finished and run.stream.phase not in ("done", "error"):
            self._finish(run)
        elif run.overdue(time.monotonic()):
            run.words_are_missing()

    def _finish(self, run: Run) -> None:
        """camserver writes no more."""
        try:
            self._there.streamer.finish()
            run.finished = True
        except HardwareError as exc:  # it has just ended by itself; else the next look tells more
            log.debug("%s", exc)

    def _look_at_camserver(self, run: Run) -> None:
        camserver = self._there.there
        if not run.busy:
            if camserver.lost:
                run.failure = run.failure or f"camserver: {camserver.lost}"
            return
        if camserver.failure:
            run.failure = run.failure or f"camserver: {camserver.failure}"
        elif camserver.end is not None and not camserver.exposing:
            end, camserver.end = camserver.end, None
            run.exposure_over(end)
        elif camserver.lost:
            run.failure = run.failure or f"camserver: {camserver.lost}"

    def _look_at_stream(self, run: Run, now: bool) -> None:
        moment = time.monotonic()
        if moment - self._looked < LOOK and not now:
            return
        self._looked = moment
        try:
            stream = self._there.streamer.status()
        except HardwareError as exc:
            silent = time.monotonic() - self._heard
            if silent > self._options.patience:
                run.failure = run.failure or f"the streamer has not answered for {silent:.0f} s: {exc}"
            return
        self._heard = time.monotonic()
        if stream.series == run.series:
            run.see(stream, self._heard)
        elif stream.phase == "idle":
            self._resume(run)
        else:
            run.failure = run.failure or f"stream-pilatus serves another series ({stream.series})"

    def _resume(self, run: Run) -> None:
        """The streamer was started again: every file that had not left is still there."""
        run.streamer_restarted()
        log.warning("series %d: %s", run.series, run.remark)
        try:
            self._there.streamer.arm(**{**run.order, "present": "send", "resume": True})
            if run.finished:
                self._there.streamer.finish()
        except HardwareError as exc:
            run.failure = run.failure or str(exc)

    # --- for the knobs -----------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """A series is armed: camserver is not to be asked for anything."""
        return self._run is not None and not self._run.stopped

    @property
    def stream(self) -> StreamStatus:
        """Of the running series; as it is now where none runs."""
        return self._run.stream if self.running and self._run is not None else self._there.streamer.status()

    @property
    def camserver_version(self) -> str:
        return self._there.version

    def climate(self, of: Callable[[replies.Channel], float]) -> float:
        """The highest of the sensors that are there; NaN: none."""
        return max(map(of, self._there.climate(ask=not self.running)), default=math.nan)

    def command(self, text: str) -> str:
        """Any command to camserver, and its answer. ConfigError: not while a series runs, or its ERR."""
        if self.running:
            raise ConfigError("Camserver: not while a series is armed; give the command Stop first")
        try:
            answer = self._there.there.say(text)
        except Refused as exc:
            raise ConfigError(str(exc)) from exc
        self._there.forget()
        return answer


def _refuse_what_it_has_not(settings: Settings) -> None:
    if settings.roi is not None:
        raise ConfigError("Roi: a PILATUS has named regions only; set 0, 0, 0, 0 and choose one by RoiMode")
    if settings.binning != (1, 1):
        raise ConfigError(f"Binning: {settings.binning[0]} x {settings.binning[1]}; a PILATUS has none, only 1 x 1")
    if settings.bit_depth not in (0, 32):
        raise ConfigError(f"BitDepth: {settings.bit_depth}; images have 32 bits (of counters of 20); set 0")
    if settings.rotation or settings.fliplr or settings.flipud:
        raise ConfigError(
            "Rotation, Fliplr, Flipud: the detector sends images as they are; let the receiver turn them (its "
            "transforms), and set these to 0 and False"
        )
