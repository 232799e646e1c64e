"""STINS messages of CBF files on their way to the receiver, and the files until they have arrived. Python 3.6.

The encoders are those of `tangods_receiver.protocol.stins`, which an old Python cannot import; a test compares them."""

import json
import logging
import os
from collections import deque
from typing import Any, Deque, Dict, List, NamedTuple, Optional, Sequence

import zmq
from zmq.utils.monitor import recv_monitor_message

from tangods_detector.hw.pilatus_guard import NOBODY_IS_REFUSED, Guard

log = logging.getLogger(__name__)

LINGER = 2.0  # s for what is still queued when the socket is closed


def encode_start(
    filename: str,
    serial: int,
    series: int,
    nframes: Optional[int],
    shape: Optional[Sequence[int]],
    metadata: Dict[str, Any],
) -> List[bytes]:
    """Parts of a start message; `nframes` None: nobody knows how many."""
    head = {"htype": "header", "filename": filename, "msg_number": serial, "series": series}
    if nframes is not None:
        head["nframes"] = nframes
    if shape is not None:
        head["shape"] = list(shape)
    head.update(type="int32", compression="cbf")
    return [_dumps(head), _dumps(metadata)]


def encode_frame_header(
    frame: int,
    shape: Sequence[int],
    serial: Optional[int],
    series: int,
    timestamp: Optional[float],
    metadata: Optional[Dict[str, Any]] = None,
) -> bytes:
    """Part 0 of an image; part 1 is the file. `metadata` for the receiver's file."""
    head = {"htype": "image", "frame": frame, "shape": list(shape), "type": "int32", "compression": "cbf"}
    return _dumps(_numbered(head, serial, series=series, timestamp=timestamp, metadata=metadata))


def encode_end(serial: Optional[int], series: int, nframes: int) -> List[bytes]:
    """`nframes` that the series had, also where not all were sent."""
    return [_dumps(_numbered({"htype": "series_end"}, serial, series=series, nframes=nframes))]


def _numbered(head: Dict[str, Any], serial: Optional[int], **more: Any) -> Dict[str, Any]:
    if serial is not None:
        head["msg_number"] = serial
    head.update((key, value) for key, value in more.items() if value is not None)
    return head


def _dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")


class Sent(NamedTuple):
    """An image that was handed to the socket."""

    number: int
    path: str
    tracker: Any  # zmq.MessageTracker


class Outlet:
    """A PUSH socket, bound once; remembers files that were sent until it is sure enough that they may be deleted.

    That is when libzmq has written all their bytes to the connection, `keep` newer ones were sent after them, and no
    connection broke meanwhile: a PUSH socket drops what it holds for a peer that goes, without a word. Until then, and
    after a kill of this process, the file is the copy. What then lies only in the two kernels' buffers and in the
    receiver is lost with them; `keep` covers so much of that as RAM disk is spent on it.

    Made, used and closed in one thread."""

    def __init__(self, host: str, port: int, queue: int, keep: int, guard: Guard = NOBODY_IS_REFUSED) -> None:
        """zmq.ZMQError: the port is not to be had."""
        self.breaks = 0  # connections that ended
        self.deleted = 0
        self._keep = keep
        self._unsure: Deque[Sent] = deque()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.linger = int(LINGER * 1000)
        self._socket.sndhwm = queue
        self._unprotect = guard.protect(self._context, self._socket)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        try:
            self._socket.bind("tcp://{}:{}".format(host, port or "*"))
        except zmq.ZMQError:
            self.close()
            raise
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")

    @property
    def unsure(self) -> int:
        """Files that are kept although they were sent."""
        return len(self._unsure)

    def offer(self, parts: Sequence[bytes], number: int = -1, path: str = "") -> bool:
        """Send without waiting; False: the socket is full, or nobody is there. A file, the last part, is kept."""
        if not path:
            return self._send(parts)
        body = zmq.Frame(parts[-1], track=True, copy=False, copy_threshold=0)
        if not self._send([*parts[:-1], body]):
            return False
        self._unsure.append(Sent(number, path, body.tracker))
        return True

    def wait(self, timeout: float) -> bool:
        """Until the socket takes something, or for `timeout` s."""
        return bool(self._socket.poll(int(timeout * 1000), zmq.POLLOUT))

    def left(self) -> bool:
        """Has libzmq written all the files to the connection?"""
        return all(sent.tracker.done for sent in self._unsure)

    def delete(self, all_of_them: bool = False) -> None:
        """Delete the files that need not be kept any more; `all_of_them`: that have left."""
        keep = 0 if all_of_them else self._keep
        ready: List[Sent] = []
        for sent in self._unsure:
            if len(self._unsure) - len(ready) <= keep or not sent.tracker.done:
                break
            ready.append(sent)
        # A connection that broke frees what was queued for it, too: libzmq says so before.
        if not ready or (not all_of_them and self.broke()):
            return
        for _ in ready:
            unlink(self._unsure.popleft().path)
            self.deleted += 1

    def broke(self) -> bool:
        """Has a connection ended since `again` was called?"""
        while self._monitor.poll(0):
            recv_monitor_message(self._monitor, zmq.NOBLOCK)
            self.breaks += 1
            self._broken = True
        return self._broken

    _broken = False

    def again(self) -> List[Sent]:
        """Forget what was sent and is still there, and that a connection broke: it is to be sent once more."""
        sent, self._broken = list(self._unsure), False
        self._unsure.clear()
        return sent

    def close(self) -> None:
        """Let go of the port; what is queued has LINGER seconds to leave. Files that have not left stay."""
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close()
        self._unprotect()
        self._context.term()

    def _send(self, parts: Sequence[Any]) -> bool:
        try:
            self._socket.send_multipart(parts, zmq.NOBLOCK, copy=False)
            return True
        except zmq.Again:
            return False


def unlink(path: str) -> bool:
    """Delete a file; False: it was not there, or cannot be deleted."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    except OSError as exc:
        log.warning("%s cannot be deleted (%s)", path, exc.strerror)
        return False
    return True
