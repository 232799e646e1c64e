"""Sends a series as a STINS stream, for hardware that has no stream of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import zmq

from tangods_detector.hw.base import DetectorInfo
from tangods_detector.settings import Series, TriggerMode
from tangods_receiver.errors import ConfigError, HardwareError
from tangods_receiver.gate import Gate, secure_server
from tangods_receiver.protocol import Buffer, stins
from tangods_receiver.security import Guard

log = logging.getLogger(__name__)

COPY_BELOW = 64_000  # bytes; up to here a copy is cheaper than the bookkeeping of handing over a buffer
LOOK = 0.05  # s between two looks at the abort event while the socket is full
LINGER = 0.5  # s for what is still queued when the socket is closed


class Streamer:
    """A PUSH socket, bound once, so that receivers can stay connected. Made, used and closed in one thread.

    libzmq's high-water mark counts messages per connection, so it follows from `hwm_bytes` and the largest frame. It is
    set before the port is bound and never after: libzmq 4.3.5 crashes when it is changed while a peer goes away.

    Set `abort` from any thread: whoever waits for a full socket gives up at once. `blocked` is True meanwhile.
    `guard` (`security.guard`) says who may connect; None: everybody, in clear."""

    def __init__(
        self,
        host: str,
        port: int,
        hwm_bytes: int,
        frame_bytes: int,
        abort: threading.Event | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.abort = abort or threading.Event()
        self.blocked = False
        self.serial = 0  # number of the next message, over all series
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.linger = int(LINGER * 1000)
        self._socket.sndhwm = max(4, min(10_000, hwm_bytes // max(1, frame_bytes)))
        self._gate: Gate | None = None
        try:
            if guard is not None:
                self._gate = secure_server(self._socket, guard).__enter__()
            self._socket.bind(f"tcp://{host}:{port or '*'}")
        except zmq.ZMQError as exc:
            self.close()
            raise HardwareError(f"cannot bind the stream to tcp://{host}:{port}: {exc}; is the port in use?") from exc
        except ConfigError as exc:
            self.close()
            raise HardwareError(f"cannot guard the stream at tcp://{host}:{port}: {exc}") from exc
        self.endpoint = str(self._socket.getsockopt_string(zmq.LAST_ENDPOINT)).rstrip("\0")

    @property
    def refused(self) -> int:
        """Connections that were, until now."""
        return self._gate.refusals.total if self._gate else 0

    @property
    def port(self) -> int:
        """The port that was taken."""
        return int(self.endpoint.rpartition(":")[2])

    def begin(
        self,
        series: Series,
        metadata: Mapping[str, Any],
        *,
        shape: Sequence[int],
        dtype: str,
        codec: str,
        limit: float,
    ) -> None:
        """Send the start message. HardwareError when no receiver takes it within `limit` seconds."""
        parts = stins.encode_start(
            series.filename,
            self.serial,
            metadata=metadata,
            series=series.id,
            nframes=series.n_frames,
            shape=shape,
            dtype=dtype,
            codec=codec,
        )
        self.announce(series.id, parts, limit)

    def announce(self, series: int, parts: Sequence[Buffer], limit: float) -> None:
        """Send this start message, made with `serial`. HardwareError as of `begin`."""
        self._series = series
        if not self._send(parts, limit):
            if self.abort.is_set():
                raise HardwareError("stopped before a receiver had taken the start message")
            raise HardwareError(
                f"no receiver connected to {self.endpoint} within {limit:g} s; "
                "check that the StreamReceiver runs and that this is one of its endpoints" + self._remark()
            )

    def frame(
        self, number: int, data: Buffer, *, shape: Sequence[int], dtype: str, codec: str, limit: float | None = None
    ) -> bool:
        """Send one frame; waits while the receiver takes none. `data` must not change afterwards.

        False: not sent, because of `abort`. HardwareError after `limit` seconds (None: no limit)."""
        header = stins.encode_frame_header(
            number, shape, dtype, codec, self.serial, series=self._series, timestamp=time.time()
        )
        if self._send([header, data], limit):
            return True
        if self.abort.is_set():
            return False
        raise HardwareError(
            f"the receiver at {self.endpoint} took no frame for {limit:g} s; frame {number} is not sent"
        )

    def end(self, limit: float = 1.0) -> bool:
        """Send the end message, also after an abort; False when nobody took it within `limit` seconds."""
        sent = self._send(stins.encode_end(self.serial, series=self._series), limit, heed_abort=False)
        if not sent:
            log.warning("series %d: end message not sent, nobody takes it at %s", self._series, self.endpoint)
        return sent

    def close(self) -> None:
        """Let go of the port; what is queued has LINGER seconds to leave."""
        if self._gate is not None:
            self._gate.close()
        self._socket.close()
        self._context.term()

    def _remark(self) -> str:
        remark = self._gate.refusals.remark() if self._gate else ""
        return f". Refused were: {remark}" if remark else ""

    def _send(self, parts: Sequence[Buffer], limit: float | None, heed_abort: bool = True) -> bool:
        """True: sent. The message number is used up only then."""
        copy = sum(memoryview(part).nbytes for part in parts) < COPY_BELOW
        deadline = None if limit is None else time.monotonic() + limit
        try:
            while not (heed_abort and self.abort.is_set()):
                try:
                    self._socket.send_multipart(parts, zmq.NOBLOCK, copy=copy)
                    self.serial += 1
                    return True
                except zmq.Again:
                    if deadline is not None and time.monotonic() > deadline:
                        return False
                self.blocked = True
                self._socket.poll(int(LOOK * 1000), zmq.POLLOUT)
            return False
        finally:
            self.blocked = False


def start_metadata(series: Series, info: DetectorInfo, period: float) -> dict[str, Any]:
    """What the start message says about a series, and so what its file contains. `period` in s, between two frames."""
    settings = series.settings
    told: dict[str, Any] = {
        "exptime": settings.exposure_time,
        "frame_time": period,
        "label": series.label,
        "save_raw": series.save_raw,
        "trigger_mode": settings.trigger_mode.value,
        "n_triggers": settings.n_triggers,
        "n_frames_per_trigger": settings.n_frames_per_trigger,
        "roi": list(settings.roi or (0, 0, info.shape[1], info.shape[0])),
        "binning": list(settings.binning),
        "rotation": settings.rotation,
        "fliplr": settings.fliplr,
        "flipud": settings.flipud,
        "detector": {
            "description": info.model,
            "detector_number": info.serial_number,
            "firmware": info.firmware,
            "sensor_material": info.sensor_material,
            "sensor_thickness": info.sensor_thickness,
            "x_pixel_size": info.pixel_size[1] * settings.binning[0],
            "y_pixel_size": info.pixel_size[0] * settings.binning[1],
            "bit_depth_readout": settings.bit_depth,
        },
        "user": dict(series.metadata),
    }
    if series.overwrite:
        told["overwrite"] = True
    if settings.trigger_mode is TriggerMode.EXTERNAL_GATE:
        del told["exptime"]  # as long as each gate was
    return told
