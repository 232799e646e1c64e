# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Pixel work that libraries do too slowly, without the GIL. The C beside it says what each kernel promises."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF, PyObject
from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t, uint16_t, uint32_t, uintptr_t


cdef extern from "Python.h":
    PyObject *new_bytes "PyBytes_FromStringAndSize"(const char *, Py_ssize_t) except NULL
    int resize_bytes "_PyBytes_Resize"(PyObject **, Py_ssize_t) except -1
    char *start_of "PyBytes_AS_STRING"(PyObject *)


cdef extern from "_pixels_kernels.h" nogil:
    ctypedef int (*lz4_compress_fn)(const char *, char *, int, int, int) noexcept nogil
    int pixels_choose(int)
    Py_ssize_t pixels_cbf_decode(const uint8_t *, size_t, int32_t *, size_t)
    size_t pixels_bslz4_bound(size_t, size_t)
    size_t pixels_bslz4_encode(const uint8_t *, size_t, size_t, uint8_t *, lz4_compress_fn)
    Py_ssize_t pixels_cbf_to_bslz4(const uint8_t *, size_t, size_t, uint8_t *, size_t *, lz4_compress_fn)
    void pixels_bitshuffle(const uint8_t *, size_t, size_t, uint8_t *)
    void pixels_unpack12(const uint8_t *, uint16_t *, size_t, int)
    void pixels_rotate(const uint8_t *, uint8_t *, size_t, size_t, size_t, int)
    Py_ssize_t pixels_walk(const uint8_t *, size_t, size_t, size_t)


cdef lz4_compress_fn _compress = NULL

ctypedef fused whole:
    int8_t
    uint8_t
    int16_t
    uint16_t
    int32_t
    uint32_t


def use_lz4(size_t compress, size_t decompress):
    """The addresses of LZ4_compress_fast and LZ4_decompress_safe; before anything else is called."""
    global _compress
    _compress = <lz4_compress_fn><uintptr_t>compress


def choose(int level):
    """0 portable C, 1 SSE2, 2 AVX2, at most what the processor has; the choice."""
    return pixels_choose(level)


def cbf_decode(const uint8_t[::1] code, int32_t[::1] out):
    """Pixels found; -1: the code goes on behind the last one."""
    cdef size_t size = code.shape[0], pixels = out.shape[0]
    cdef const uint8_t *source = &code[0] if size else NULL
    cdef Py_ssize_t found
    if not size or not pixels:
        return 0
    with nogil:
        found = pixels_cbf_decode(source, size, &out[0], pixels)
    return found


def cbf_to_bslz4(const uint8_t[::1] code, size_t pixels):
    """(pixels found as by `cbf_decode`, chunk of filter 32008; only good when all were found)"""
    cdef size_t size = code.shape[0], written = 0
    cdef Py_ssize_t found
    if not size:
        return 0, b""
    cdef PyObject *chunk = new_bytes(NULL, pixels_bslz4_bound(pixels, 4))
    cdef uint8_t *target = <uint8_t *>start_of(chunk)
    with nogil:
        found = pixels_cbf_to_bslz4(&code[0], size, pixels, target, &written, _compress)
    return found, _cut(chunk, written)


def bslz4_encode(const uint8_t[::1] plain, size_t itemsize):
    """The chunk of filter 32008 of these bytes."""
    cdef size_t elements = plain.shape[0] // itemsize, written = 0
    if itemsize not in (1, 2, 4, 8) or not elements:
        raise ValueError(f"{plain.shape[0]} bytes of elements of {itemsize}")
    cdef PyObject *chunk = new_bytes(NULL, pixels_bslz4_bound(elements, itemsize))
    cdef uint8_t *target = <uint8_t *>start_of(chunk)
    with nogil:
        written = pixels_bslz4_encode(&plain[0], elements, itemsize, target, _compress)
    return _cut(chunk, written)


cdef bytes _cut(PyObject *chunk, size_t size):
    """The first bytes, without a copy: what is behind them goes back to the system. Takes the reference."""
    resize_bytes(&chunk, size)
    cdef bytes cut = <bytes>chunk
    Py_DECREF(cut)
    if not size:
        raise RuntimeError("LZ4 failed")
    return cut


def bitshuffle(const uint8_t[::1] plain, size_t itemsize):
    """One block of a multiple of 8 elements as planes of bits; for tests."""
    cdef size_t elements = plain.shape[0] // itemsize
    if elements % 8 or not elements or plain.shape[0] > 8192:
        raise ValueError("not one block")
    cdef bytes out = PyBytes_FromStringAndSize(NULL, plain.shape[0])
    pixels_bitshuffle(&plain[0], elements, itemsize, <uint8_t *>PyBytes_AS_STRING(out))
    return out


def walk(const uint8_t[::1] chunk, size_t blocks, size_t tail):
    """0: the lengths in a chunk of filter 32008 fit; n: not that of block n - 1; -1: not what is left at the end."""
    cdef Py_ssize_t found
    if chunk.shape[0] < 12:
        return 1
    with nogil:
        found = pixels_walk(&chunk[0], chunk.shape[0], blocks, tail)
    return found


def unpack12(const uint8_t[::1] raw, uint16_t[::1] out, bint high_first):
    """12 bits -> uint16; high_first: Andor's order."""
    if raw.shape[0] != (3 * out.shape[0] + 1) // 2 or not out.shape[0]:
        raise ValueError(f"{raw.shape[0]} bytes for {out.shape[0]} pixels")
    with nogil:
        pixels_unpack12(&raw[0], &out[0], out.shape[0], high_first)


def rotate(const uint8_t[::1] source, uint8_t[::1] target, size_t rows, size_t columns, size_t itemsize, int turns):
    """A quarter turn (1 counter-clockwise, 3 clockwise) of an image; the numbers of rows and columns before it."""
    cdef size_t size = rows * columns * itemsize
    if itemsize not in (1, 2, 4, 8) or turns not in (1, 3) or not size:
        raise ValueError(f"{rows} x {columns} of {itemsize} bytes by {turns} quarters")
    if <size_t>source.shape[0] != size or <size_t>target.shape[0] != size:
        raise ValueError(f"{source.shape[0]} bytes to {target.shape[0]}, {size} expected")
    with nogil:
        pixels_rotate(&source[0], &target[0], rows, columns, itemsize, turns)


def lookup(const whole[::1] values, const float[::1] table, float[::1] out):
    """out[i] = table[i * times + values[i]]; -1 for values below 0, -2 beyond the table."""
    cdef Py_ssize_t i, n = out.shape[0], times, value
    if values.shape[0] != n or not n or table.shape[0] % n:
        raise ValueError(f"{values.shape[0]} values, {table.shape[0]} entries, {n} results")
    times = table.shape[0] // n
    with nogil:
        for i in range(n):
            value = <Py_ssize_t>values[i]
            if value < 0:
                out[i] = -1
            elif value >= times:
                out[i] = -2
            else:
                out[i] = table[i * times + value]


pixels_choose(2)
