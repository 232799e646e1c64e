# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""The compiled twin of what is done once for each frame: take messages from the socket, and write records.

`receive` recognises plain STINS images and makes their Frame; what is unusual in any way it hands on as parts, for
`protocol.stins.decode` to judge. `Packed` does what `records.Packed` does. Nothing here decides anything."""

import ctypes
import os
from types import MappingProxyType
from zlib import crc32 as payload_crc32

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_SET_ITEM
from libc.errno cimport EINTR, EIO, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

import zmq
import zmq.backend.cython._zmq as _backend

from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import Frame
from tangods_receiver.records import HIGHEST_FRAME as _HIGHEST_FRAME
from tangods_receiver.records import END_MAGIC, HEADER_SIZE, MAGIC, PAYLOAD_CRC, TIMES_FOLLOW, TIMES_SIZE
from tangods_receiver.records import TRAILER_SIZE, VERSION

cdef extern from "Python.h":
    double PyOS_string_to_double(const char *s, char **end, object overflow) except? -1.0
    object tp_alloc "PyType_GenericAlloc"(PyTypeObject *kind, Py_ssize_t n)

cdef extern from "sys/uio.h" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t pwritev(int fd, const iovec *iov, int count, int64_t offset)

# --- libzmq, the one that pyzmq has loaded ---------------------------------------------------------------------------

cdef struct zmq_msg_t:
    uint64_t opaque[8]

ctypedef int (*msg_init_t)(zmq_msg_t *) noexcept nogil
ctypedef int (*msg_recv_t)(zmq_msg_t *, void *, int) noexcept nogil
ctypedef int (*msg_close_t)(zmq_msg_t *) noexcept nogil
ctypedef int (*msg_more_t)(const zmq_msg_t *) noexcept nogil
ctypedef int (*msg_move_t)(zmq_msg_t *, zmq_msg_t *) noexcept nogil
ctypedef void *(*msg_data_t)(zmq_msg_t *) noexcept nogil
ctypedef size_t (*msg_size_t)(const zmq_msg_t *) noexcept nogil
ctypedef int (*msg_init_size_t)(zmq_msg_t *, size_t) noexcept nogil
ctypedef int (*msg_copy_t)(zmq_msg_t *, zmq_msg_t *) noexcept nogil
ctypedef int (*msg_send_t)(zmq_msg_t *, void *, int) noexcept nogil
ctypedef int (*errno_t)() noexcept nogil

_library = ctypes.CDLL(_backend.__file__)


def _address(name):
    return ctypes.cast(getattr(_library, name), ctypes.c_void_p).value


cdef msg_init_t msg_init = <msg_init_t><size_t>_address("zmq_msg_init")
cdef msg_recv_t msg_recv = <msg_recv_t><size_t>_address("zmq_msg_recv")
cdef msg_close_t msg_close = <msg_close_t><size_t>_address("zmq_msg_close")
cdef msg_more_t msg_more = <msg_more_t><size_t>_address("zmq_msg_more")
cdef msg_move_t msg_move = <msg_move_t><size_t>_address("zmq_msg_move")
cdef msg_data_t msg_data = <msg_data_t><size_t>_address("zmq_msg_data")
cdef msg_size_t msg_size = <msg_size_t><size_t>_address("zmq_msg_size")
cdef msg_init_size_t msg_init_size = <msg_init_size_t><size_t>_address("zmq_msg_init_size")
cdef msg_copy_t msg_copy = <msg_copy_t><size_t>_address("zmq_msg_copy")
cdef msg_send_t msg_send = <msg_send_t><size_t>_address("zmq_msg_send")
cdef errno_t zmq_errno = <errno_t><size_t>_address("zmq_errno")

cdef int DONTWAIT = 1
cdef int SNDMORE = 2
cdef int AGAIN = zmq.Again().errno
cdef int INTERRUPTED = EINTR


cdef class Part:
    """One part of a message, where libzmq has put it; read only."""

    cdef zmq_msg_t message

    def __cinit__(self):
        msg_init(&self.message)

    def __dealloc__(self):
        msg_close(&self.message)

    def __len__(self):
        return <Py_ssize_t>msg_size(&self.message)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, msg_data(&self.message), <Py_ssize_t>msg_size(&self.message), 1, flags)


# --- the header of an image ------------------------------------------------------------------------------------------

cdef enum:
    SLOTS = 512  # parts taken in one go
    MESSAGES = 256
    USUAL = 8  # parts of one message; one of more is the last of its batch
    TEXT = 24  # longest type or compression
    MAX_MODULES = 1024
    HEADER_MAX = 4096

cdef struct Text:
    const char *at
    int size

cdef struct Head:
    bint plain  # all is in the other fields
    int64_t number, serial, series, module, rows, columns  # -1: not there
    Text kind, dtype, codec, timestamp


cdef inline const char *skip(const char *at, const char *end) noexcept nogil:
    while at < end and (at[0] == c' ' or at[0] == c'\t' or at[0] == c'\n' or at[0] == c'\r'):
        at += 1
    return at


cdef const char *text(const char *at, const char *end, Text *out) noexcept nogil:
    """A string of plain ASCII; NULL where it is anything else."""
    if at >= end or at[0] != c'"':
        return NULL
    at += 1
    out.at = at
    while at < end and at[0] != c'"':
        if at[0] == c'\\' or <unsigned char>at[0] < 0x20 or <unsigned char>at[0] > 0x7e:
            return NULL
        at += 1
    if at >= end:
        return NULL
    out.size = <int>(at - out.at)
    return at + 1


cdef const char *whole(const char *at, const char *end, int64_t *out) noexcept nogil:
    """A whole number from 0, of at most 18 digits."""
    cdef const char *first = at
    cdef uint64_t value = 0
    while at < end and c'0' <= at[0] <= c'9' and at - first <= 18:
        value = 10 * value + (at[0] - c'0')
        at += 1
    if at == first or at - first > 18 or (first[0] == c'0' and at - first > 1):
        return NULL
    if at < end and (at[0] == c'.' or at[0] == c'e' or at[0] == c'E'):
        return NULL
    out[0] = <int64_t>value
    return at


cdef const char *real(const char *at, const char *end, Text *out) noexcept nogil:
    """A number with a point, as JSON writes it; its value is found later."""
    cdef const char *first = at
    cdef const char *digits
    if at < end and at[0] == c'-':
        at += 1
    digits = at
    while at < end and c'0' <= at[0] <= c'9':
        at += 1
    if at == digits or (digits[0] == c'0' and at - digits > 1) or at >= end or at[0] != c'.':
        return NULL
    at += 1
    digits = at
    while at < end and c'0' <= at[0] <= c'9':
        at += 1
    if at == digits or at - first > 30 or (at < end and (at[0] == c'e' or at[0] == c'E')):
        return NULL
    out.at, out.size = first, <int>(at - first)
    return at


cdef inline bint same(const Text *text, const char *word, int size) noexcept nogil:
    return text.size == size and memcmp(text.at, word, size) == 0


cdef const char *shape(const char *at, const char *end, Head *head) noexcept nogil:
    """[rows, columns]"""
    if at >= end or at[0] != c'[':
        return NULL
    at = whole(skip(at + 1, end), end, &head.rows)
    if at == NULL:
        return NULL
    at = skip(at, end)
    if at >= end or at[0] != c',':
        return NULL
    at = whole(skip(at + 1, end), end, &head.columns)
    if at == NULL:
        return NULL
    at = skip(at, end)
    return at + 1 if at < end and at[0] == c']' else NULL


cdef const char *number_once(const char *at, const char *end, int64_t *out) noexcept nogil:
    if out[0] >= 0:
        return NULL
    return whole(at, end, out)


cdef const char *text_once(const char *at, const char *end, Text *out) noexcept nogil:
    if out.at != NULL:
        return NULL
    return text(at, end, out)


cdef const char *pair(const char *at, const char *end, Head *head) noexcept nogil:
    """One "key": value of an image's header; NULL when it is not one of the usual."""
    cdef Text key
    at = text(at, end, &key)
    if at == NULL:
        return NULL
    at = skip(at, end)
    if at >= end or at[0] != c':':
        return NULL
    at = skip(at + 1, end)
    if same(&key, b"frame", 5):
        return number_once(at, end, &head.number)
    if same(&key, b"msg_number", 10):
        return number_once(at, end, &head.serial)
    if same(&key, b"series", 6):
        return number_once(at, end, &head.series)
    if same(&key, b"module", 6):
        return number_once(at, end, &head.module)
    if same(&key, b"htype", 5):
        return text_once(at, end, &head.kind)
    if same(&key, b"type", 4):
        return text_once(at, end, &head.dtype)
    if same(&key, b"compression", 11):
        return text_once(at, end, &head.codec)
    if same(&key, b"timestamp", 9) and head.timestamp.at == NULL:
        return real(at, end, &head.timestamp)
    if same(&key, b"shape", 5) and head.rows < 0:
        return shape(at, end, head)
    return NULL


cdef void parse(const char *at, size_t size, Head *head) noexcept nogil:
    """`head.plain`: an image with everything that it needs and nothing unusual."""
    cdef const char *end = at + size
    memset(head, 0, sizeof(Head))
    head.number = head.serial = head.series = head.module = head.rows = head.columns = -1
    at = skip(at, end)
    if size > HEADER_MAX or at >= end or at[0] != c'{':
        return
    while True:
        at = pair(skip(at + 1, end), end, head)
        if at == NULL:
            return
        at = skip(at, end)
        if at >= end:
            return
        if at[0] != c',':
            break
    if at[0] != c'}' or skip(at + 1, end) != end:
        return
    head.plain = (
        same(&head.kind, b"image", 5) and head.number >= 0 and head.rows >= 0 and head.columns >= 0
        and 0 < head.dtype.size < TEXT and 0 < head.codec.size < TEXT and head.module < MAX_MODULES
    )


# --- receiving -------------------------------------------------------------------------------------------------------

cdef struct Layout:
    int64_t rows, columns, nbytes
    int dtype_size, codec_size
    bint compressed
    char dtype[TEXT]
    char codec[TEXT]

cdef enum:
    LAYOUTS = 8

cdef PyTypeObject *frame_type = <PyTypeObject *>Frame
cdef int frame_fields = len(Frame._fields)
cdef object nothing = MappingProxyType({})
cdef tuple no_more = ()


cdef class Receiver:
    """Takes messages from one socket, in the thread that owns it. `decode` judges what is not a plain image."""

    cdef void *socket
    cdef object decode
    cdef dict itemsize
    cdef zmq_msg_t *slots
    cdef Head *heads
    cdef int first[MESSAGES]  # slot of each message
    cdef int kept[MESSAGES]  # slots of each message
    cdef Layout layouts[LAYOUTS]
    cdef list known  # (shape, dtype, codec) of each layout
    cdef int next_layout
    cdef readonly Py_ssize_t nbytes
    cdef readonly bint full

    def __cinit__(self):
        self.slots = <zmq_msg_t *>PyMem_Malloc(SLOTS * sizeof(zmq_msg_t))
        self.heads = <Head *>PyMem_Malloc(MESSAGES * sizeof(Head))
        if self.slots == NULL or self.heads == NULL:
            raise MemoryError()

    def __init__(self, socket, decode=None, itemsize=None):
        """`socket` a zmq.Socket; `decode` and `itemsize` of STINS, or None: every message is handed on as parts."""
        self.socket = <void *><size_t>socket.underlying
        self.decode = decode
        self.itemsize = itemsize or {}
        self.known = []
        self.next_layout = 0

    def __dealloc__(self):
        PyMem_Free(self.slots)
        PyMem_Free(self.heads)

    def take(self, int messages, Py_ssize_t nbytes, int parts):
        """What is there, without waiting: a Frame for each plain image, for any other message the list of its parts.

        At most so many messages, stopping after so many bytes; no more than `parts` parts of one are kept."""
        cdef int count = 0, used = 0, error = 0, i
        cdef Py_ssize_t size = 0
        cdef bint more = False
        cdef zmq_msg_t *slot
        cdef list out = []
        messages = min(messages, MESSAGES)
        with nogil:
            while count < messages and size < nbytes and used + USUAL <= SLOTS and not more:
                slot = &self.slots[used]
                error = self.receive(slot, DONTWAIT)
                if error:
                    break
                self.first[count] = used
                used += 1
                more = msg_more(slot)
                while more and used < self.first[count] + USUAL:
                    error = self.receive(&self.slots[used], 0)
                    if error:
                        break
                    size += msg_size(&self.slots[used])
                    more = msg_more(&self.slots[used])
                    used += 1
                if error:  # the rest of it will not come
                    more = False
                    break
                self.kept[count] = used - self.first[count]
                self.heads[count].plain = False
                if self.kept[count] == 2 and not more:
                    parse(<char *>msg_data(slot), msg_size(slot), &self.heads[count])
                count += 1
        try:
            for i in range(count):
                slot = &self.slots[self.first[i]]
                if self.decode is not None and self.heads[i].plain:
                    out.append(self.frame(slot, &self.heads[i]))
                else:
                    out.append(self.parts_of(slot, self.kept[i], more and i == count - 1, parts))
        finally:
            for i in range(used):
                msg_close(&self.slots[i])
        self.nbytes, self.full = size, not error
        if error and error != AGAIN and error != INTERRUPTED and not out:
            raise zmq.ZMQError(error)
        return out

    cdef int receive(self, zmq_msg_t *slot, int flags) noexcept nogil:
        """0, or what went wrong. An interrupted wait goes on: the parts of a message come together."""
        msg_init(slot)
        while msg_recv(slot, self.socket, flags) < 0:
            if zmq_errno() != INTERRUPTED or flags & DONTWAIT:
                return zmq_errno()
        return 0

    cdef list parts_of(self, zmq_msg_t *slot, int count, bint more, int limit):
        """Those in `count` slots, and (`more`) those that were not taken yet."""
        cdef Part part
        cdef int error, i
        cdef list parts = [take(slot)]
        for i in range(1, min(count, limit)):
            parts.append(take(slot + i))
        while more:
            part = Part.__new__(Part)
            error = self.receive(&part.message, 0)
            if error:
                raise zmq.ZMQError(error)
            more = msg_more(&part.message)
            if len(parts) < limit:
                parts.append(part)
        return parts

    cdef object frame(self, zmq_msg_t *slot, Head *head):
        """The Frame, or (what is not known yet, or does not fit) the parts."""
        cdef int i
        cdef Layout *layout
        cdef size_t size = msg_size(slot + 1)
        for i in range(len(self.known)):
            layout = &self.layouts[i]
            if (
                layout.rows == head.rows and layout.columns == head.columns
                and same(&head.dtype, layout.dtype, layout.dtype_size)
                and same(&head.codec, layout.codec, layout.codec_size)
            ):
                if fits(layout, <uint8_t *>msg_data(slot + 1), size):
                    return self.made(slot, head, <tuple>self.known[i])
                return self.parts_of(slot, 2, False, 2)
        return self.learned(slot, head)

    cdef object learned(self, zmq_msg_t *slot, Head *head):
        """The first of its kind is judged by `decode`; the next are known."""
        cdef Layout *layout
        cdef bytes dtype = head.dtype.at[:head.dtype.size], codec = head.codec.at[:head.codec.size]
        cdef int64_t rows = head.rows, columns = head.columns
        cdef list parts = self.parts_of(slot, 2, False, 2)
        try:
            frame = self.decode(parts)
        except StreamError:
            return parts
        usual = codec in (b"none", b"bslz4") and frame.codec == codec.decode() and frame.dtype == dtype.decode()
        if not usual or frame.shape != (rows, columns):
            return frame
        layout = &self.layouts[self.next_layout]
        layout.rows, layout.columns = rows, columns
        layout.nbytes = rows * columns * <int64_t>self.itemsize[frame.dtype]
        layout.compressed = codec == b"bslz4"
        layout.dtype_size, layout.codec_size = <int>len(dtype), <int>len(codec)
        memcpy(layout.dtype, PyBytes_AS_STRING(dtype), len(dtype))
        memcpy(layout.codec, PyBytes_AS_STRING(codec), len(codec))
        self.known[self.next_layout:self.next_layout + 1] = [frame[1:4]]
        self.next_layout = (self.next_layout + 1) % LAYOUTS
        return frame

    cdef object made(self, zmq_msg_t *slot, Head *head, tuple layout):
        cdef tuple frame = <tuple>tp_alloc(frame_type, frame_fields)
        cdef object timestamp = None
        cdef char digits[32]
        if head.timestamp.at != NULL:
            memcpy(digits, head.timestamp.at, head.timestamp.size)
            digits[head.timestamp.size] = 0
            timestamp = PyOS_string_to_double(digits, NULL, OverflowError)
        fill(frame, 0, head.number)
        fill(frame, 1, layout[0])
        fill(frame, 2, layout[1])
        fill(frame, 3, layout[2])
        fill(frame, 4, take(slot + 1))
        fill(frame, 5, 0 if head.module < 0 else head.module)
        fill(frame, 6, None if head.serial < 0 else head.serial)
        fill(frame, 7, None if head.series < 0 else head.series)
        fill(frame, 8, timestamp)
        fill(frame, 9, False)
        fill(frame, 10, no_more)
        fill(frame, 11, nothing)
        fill(frame, 12, False)
        fill(frame, 13, None)
        return frame


cdef inline void fill(tuple frame, Py_ssize_t at, object value):
    Py_INCREF(value)
    PyTuple_SET_ITEM(frame, at, value)


cdef Part take(zmq_msg_t *slot):
    cdef Part part = Part.__new__(Part)
    msg_move(&part.message, slot)
    return part


# --- sending on ------------------------------------------------------------------------------------------------------

cdef class Sender:
    """Sends messages on one socket, in the thread that owns it."""

    cdef void *socket

    def __init__(self, socket):
        self.socket = <void *><size_t>socket.underlying

    def send(self, bytes head, payload):
        """False: no room, or nobody there. What a Receiver took is sent as it is, everything else is copied.

        Only the first part can find no room: where its client goes away, the rest of the message goes with it."""
        cdef int count = 1 + <int>len(payload), made = 0, viewed = 0, sent = 0, failed = 0, i
        cdef Part part
        cdef zmq_msg_t *slots = <zmq_msg_t *>PyMem_Malloc(count * sizeof(zmq_msg_t))
        cdef Py_buffer *views = <Py_buffer *>PyMem_Malloc(count * sizeof(Py_buffer))
        try:
            if slots == NULL or views == NULL:
                raise MemoryError()
            for item in (head, *payload):
                if type(item) is Part:  # with the GIL: two threads must not count the same reference at a time
                    part = <Part>item
                    msg_init(&slots[made])
                    msg_copy(&slots[made], &part.message)
                    PyBuffer_FillInfo(&views[made], None, NULL, 0, 1, PyBUF_SIMPLE)
                    viewed += 1
                else:
                    PyObject_GetBuffer(item, &views[made], PyBUF_SIMPLE)
                    viewed += 1
                    if msg_init_size(&slots[made], views[made].len):
                        raise MemoryError()
                made += 1
            with nogil:
                for i in range(count):
                    if views[i].buf != NULL:
                        memcpy(msg_data(&slots[i]), views[i].buf, views[i].len)
                for i in range(count):
                    failed = self.pass_on(&slots[i], (DONTWAIT if i == 0 else 0) | (SNDMORE if i + 1 < count else 0))
                    if failed:
                        break
                    sent += 1
        finally:
            for i in range(viewed):
                PyBuffer_Release(&views[i])
            for i in range(sent, made):
                msg_close(&slots[i])
            PyMem_Free(slots)
            PyMem_Free(views)
        if failed and failed != AGAIN:
            raise zmq.ZMQError(failed)
        return not failed

    cdef int pass_on(self, zmq_msg_t *message, int flags) noexcept nogil:
        """0, or what went wrong."""
        while msg_send(message, self.socket, flags) < 0:
            if zmq_errno() != INTERRUPTED:
                return zmq_errno()
        return 0


cdef bint fits(Layout *layout, const uint8_t *data, size_t size) noexcept:
    """What `stins.decode` demands of the payload of one part."""
    cdef uint64_t said = 0
    cdef int i
    if not layout.compressed:
        return <int64_t>size == layout.nbytes
    if size < 12 or size > <uint64_t>(2 * layout.nbytes + 65536):
        return False
    for i in range(8):
        said = said << 8 | data[i]
    return said == <uint64_t>layout.nbytes


assert Frame._fields == (
    "number", "shape", "dtype", "codec", "data", "module", "serial", "series", "timestamp", "discard", "more", "extra",
    "incomplete", "times",
)

# --- records ---------------------------------------------------------------------------------------------------------

cdef packed struct Header:
    char magic[4]
    uint32_t crc
    uint64_t nonce
    uint64_t frame
    int64_t serial
    double timestamp
    double arrived
    uint32_t size
    uint32_t payload_crc
    uint16_t module
    uint16_t mask
    uint8_t dataset
    uint8_t status
    uint8_t flags
    uint8_t version

cdef packed struct Pair:
    double stop
    double real

assert sizeof(Header) == HEADER_SIZE == 64 and TRAILER_SIZE == 8 and sizeof(Pair) == TIMES_SIZE == 16

cdef enum:
    HEADER_BYTES = 64
    TAIL = 88  # times, a trailer and its padding
    IOV_MAX = 1023  # whole records in one call

cdef uint32_t crc_table[8][256]
cdef char magic[4]
cdef char end_magic[4]
cdef uint8_t version = VERSION, payload_flag = PAYLOAD_CRC, times_flag = TIMES_FOLLOW
cdef int64_t highest_frame = _HIGHEST_FRAME
memcpy(magic, <char *><bytes>MAGIC, 4)
memcpy(end_magic, <char *><bytes>END_MAGIC, 4)


cdef void make_crc_table() noexcept:
    """CRC-32 of ISO-HDLC (zlib's), eight bytes a step."""
    cdef uint32_t value
    cdef int i, j
    for i in range(256):
        value = i
        for j in range(8):
            value = value >> 1 ^ (0xEDB88320 if value & 1 else 0)
        crc_table[0][i] = value
    for i in range(256):
        for j in range(1, 8):
            crc_table[j][i] = crc_table[j - 1][i] >> 8 ^ crc_table[0][crc_table[j - 1][i] & 0xFF]


make_crc_table()


cdef uint32_t crc_of(const uint8_t *at, int words, uint32_t before=0) noexcept nogil:
    """Of so many times 8 bytes; `before`: that of what stands before them."""
    cdef uint32_t crc = ~before, low, high
    cdef int i
    for i in range(words):
        memcpy(&low, at, 4)
        memcpy(&high, at + 4, 4)
        low ^= crc
        crc = (
            crc_table[7][low & 0xFF] ^ crc_table[6][low >> 8 & 0xFF] ^ crc_table[5][low >> 16 & 0xFF]
            ^ crc_table[4][low >> 24] ^ crc_table[3][high & 0xFF] ^ crc_table[2][high >> 8 & 0xFF]
            ^ crc_table[1][high >> 16 & 0xFF] ^ crc_table[0][high >> 24]
        )
        at += 8
    return ~crc


cdef class Packed:
    """Records ready to be written behind each other, as `records.Packed`."""

    cdef Header *head
    cdef char *tails
    cdef iovec *vector
    cdef Py_buffer *views
    cdef Pair *pairs  # NULL: the layout has no times
    cdef int count, held
    cdef readonly Py_ssize_t total
    cdef readonly Py_ssize_t payload

    def __cinit__(self, records, layout, uint64_t nonce, bint payload_crc=False):
        cdef int n = <int>len(records), i = 0
        cdef Py_ssize_t exact = layout.chunk_bytes if layout.codec == "none" else 0
        cdef int modules = layout.modules
        cdef double nan = float("nan")
        self.head = <Header *>PyMem_Malloc(n * sizeof(Header) + 1)
        self.tails = <char *>PyMem_Malloc(n * TAIL + 1)
        self.vector = <iovec *>PyMem_Malloc(3 * n * sizeof(iovec) + 1)
        self.views = <Py_buffer *>PyMem_Malloc(n * sizeof(Py_buffer) + 1)
        if layout.times:
            self.pairs = <Pair *>PyMem_Malloc(n * sizeof(Pair) + 1)
            if self.pairs == NULL:
                raise MemoryError()
            for i in range(n):
                self.pairs[i].stop = self.pairs[i].real = nan
        if self.head == NULL or self.tails == NULL or self.vector == NULL or self.views == NULL:
            raise MemoryError()
        self.count = n
        memset(self.head, 0, n * sizeof(Header))
        memset(self.tails, 0, n * TAIL)
        for i in range(n):
            self.add(i, <tuple>records[i], exact, modules, nonce, payload_crc)

    cdef add(self, int i, tuple record, Py_ssize_t exact, int modules, uint64_t nonce, bint payload_crc):
        cdef Header *head = &self.head[i]
        cdef char *tail = self.tails + i * TAIL
        cdef iovec *vector = self.vector + 3 * i
        cdef Py_ssize_t size, tail_size
        cdef uint32_t crc
        cdef bint timed
        number, module, data, serial, timestamp, arrived, status, times = record
        timed = self.pairs != NULL and times is not None
        PyObject_GetBuffer(data, &self.views[i], PyBUF_SIMPLE)
        self.held = i + 1
        size = self.views[i].len
        if size != exact and (exact or not 0 < size < 0x100000000):
            raise StreamError(f"frame {number}: {size} bytes of data do not make a chunk of {exact or '> 0'} bytes")
        if not (0 <= number < _HIGHEST_FRAME and 0 <= module < modules):
            raise StreamError(f"frame {number}, module {module}: no such place ({modules} modules)")
        memcpy(head.magic, magic, 4)
        try:
            head.nonce, head.frame, head.serial = nonce, number, serial
            head.timestamp, head.arrived = timestamp, arrived
            head.size, head.module, head.status, head.version = <uint32_t>size, module, status, version
            if timed:
                self.pairs[i].stop, self.pairs[i].real = times
        except (OverflowError, TypeError, ValueError) as exc:
            raise StreamError(f"frame {number}, module {module}: cannot be stored: {exc}") from exc
        if payload_crc:
            head.flags, head.payload_crc = payload_flag, payload_crc32(data)
        if timed:
            head.flags |= times_flag
        head.crc = crc = crc_of(<uint8_t *>head + 8, 7)
        tail_size = 8
        if timed:
            memcpy(tail, &self.pairs[i], sizeof(Pair))
            crc = crc_of(<uint8_t *>&self.pairs[i], 2, crc)
            tail_size += sizeof(Pair)
        memcpy(tail + tail_size - 8, end_magic, 4)
        memcpy(tail + tail_size - 4, &crc, 4)
        tail_size += -(size + HEADER_BYTES + tail_size) & 63
        vector[0].iov_base, vector[0].iov_len = head, HEADER_BYTES
        vector[1].iov_base, vector[1].iov_len = self.views[i].buf, size
        vector[2].iov_base, vector[2].iov_len = tail, tail_size
        self.total += HEADER_BYTES + size + tail_size
        self.payload += size

    def __dealloc__(self):
        cdef int i
        for i in range(self.held):
            PyBuffer_Release(&self.views[i])
        PyMem_Free(self.head)
        PyMem_Free(self.tails)
        PyMem_Free(self.vector)
        PyMem_Free(self.views)
        PyMem_Free(self.pairs)

    def __len__(self):
        return self.count

    @property
    def headers(self):
        """All headers behind each other."""
        return PyBytes_FromStringAndSize(<char *>self.head, self.count * HEADER_BYTES)

    @property
    def times(self):
        """All times behind each other; none where the layout has none."""
        return b"" if self.pairs == NULL else PyBytes_FromStringAndSize(<char *>self.pairs, self.count * sizeof(Pair))

    def write(self, int fd, int64_t offset):
        """Write all of it there; OSError. Once: what was written is no longer known afterwards."""
        cdef iovec *vector = self.vector
        cdef int left = 3 * self.count, error = 0
        cdef ssize_t written
        with nogil:
            while left and not error:
                written = pwritev(fd, vector, min(left, IOV_MAX), offset)
                if written < 0:
                    error = errno
                    if error == INTERRUPTED:
                        error = 0
                    continue
                if written == 0:
                    error = EIO
                offset += written
                while left and <size_t>written >= vector.iov_len:
                    written -= vector.iov_len
                    vector += 1
                    left -= 1
                if left and written:
                    vector.iov_base = <char *>vector.iov_base + written
                    vector.iov_len -= written
        if error:
            raise OSError(error, os.strerror(error) if written < 0 else "nothing was written")

