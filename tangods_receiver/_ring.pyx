# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""The compiled twin of `tangods_detector.hw.frame_ring.Loans`: memory is lent to libzmq and known to be back by a flag
that libzmq's own thread sets, without Python. Nothing here decides anything."""

import ctypes
import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.errno cimport EINTR
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

import zmq
import zmq.backend.cython._zmq as _backend

cdef extern from *:
    """
    #include <stdint.h>
    #include <stdlib.h>
    #include <unistd.h>

    struct loans;
    struct loan { struct loans *all; int out; };
    /* Lives until nobody owes anything, also when Python has long forgotten it. */
    struct loans { int owners, bell; struct loan *each; };

    static void loans_leave(struct loans *all)
    {
        if (__atomic_sub_fetch(&all->owners, 1, __ATOMIC_ACQ_REL))
            return;
        close(all->bell);
        free(all->each);
        free(all);
    }

    /* libzmq calls it, in whatever thread of its own. */
    static void loan_back(void *data, void *hint)
    {
        struct loan *loan = hint;
        struct loans *all = loan->all;
        uint64_t one = 1;
        (void)data;
        __atomic_store_n(&loan->out, 0, __ATOMIC_RELEASE);
        if (write(all->bell, &one, sizeof one) < 0) {} /* somebody hears it, or nobody listens */
        loans_leave(all);
    }

    static void loan_out(struct loan *loan)
    {
        __atomic_store_n(&loan->out, 1, __ATOMIC_RELAXED);
        __atomic_add_fetch(&loan->all->owners, 1, __ATOMIC_ACQ_REL);
    }

    static int loans_owners(const struct loans *all) { return __atomic_load_n(&all->owners, __ATOMIC_ACQUIRE); }
    static int loan_is_out(const struct loan *loan) { return __atomic_load_n(&loan->out, __ATOMIC_ACQUIRE); }
    """
    cdef struct loans
    cdef struct loan:
        loans *all
        int out
    cdef struct loans:
        int owners, bell
        loan *each
    void loans_leave(loans *) noexcept nogil
    void loan_back(void *, void *) noexcept nogil
    void loan_out(loan *) noexcept nogil
    int loans_owners(const loans *) noexcept nogil
    bint loan_is_out(const loan *) noexcept nogil

# --- libzmq, the one that pyzmq has loaded ---------------------------------------------------------------------------

cdef struct zmq_msg_t:
    uint64_t opaque[8]

ctypedef void (*back_t)(void *, void *) noexcept nogil
ctypedef int (*msg_init_data_t)(zmq_msg_t *, void *, size_t, back_t, void *) noexcept nogil
ctypedef int (*msg_init_size_t)(zmq_msg_t *, size_t) noexcept nogil
ctypedef int (*msg_close_t)(zmq_msg_t *) noexcept nogil
ctypedef void *(*msg_data_t)(zmq_msg_t *) noexcept nogil
ctypedef int (*msg_send_t)(zmq_msg_t *, void *, int) noexcept nogil
ctypedef int (*errno_t)() noexcept nogil

_library = ctypes.CDLL(_backend.__file__)


def _address(name):
    return ctypes.cast(getattr(_library, name), ctypes.c_void_p).value


cdef msg_init_data_t msg_init_data = <msg_init_data_t><size_t>_address("zmq_msg_init_data")
cdef msg_init_size_t msg_init_size = <msg_init_size_t><size_t>_address("zmq_msg_init_size")
cdef msg_close_t msg_close = <msg_close_t><size_t>_address("zmq_msg_close")
cdef msg_data_t msg_data = <msg_data_t><size_t>_address("zmq_msg_data")
cdef msg_send_t msg_send = <msg_send_t><size_t>_address("zmq_msg_send")
cdef errno_t zmq_errno = <errno_t><size_t>_address("zmq_errno")

cdef int DONTWAIT = 1
cdef int SNDMORE = 2
cdef int AGAIN = zmq.Again().errno


cdef int pass_on(zmq_msg_t *message, void *socket, int flags) noexcept nogil:
    """0, or what went wrong; then the message is closed."""
    cdef int failed
    while msg_send(message, socket, flags) < 0:
        failed = zmq_errno()
        if failed != EINTR:
            msg_close(message)
            return failed
    return 0


cdef class Loans:
    cdef loans *all
    cdef int count
    cdef set lent  # slots that were, and are not known to be back
    cdef readonly int bell

    def __cinit__(self, int count):
        self.lent = set()
        self.count = count
        self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.all = <loans *>calloc(1, sizeof(loans))
        if self.all == NULL:
            raise MemoryError()
        self.all.owners, self.all.bell = 1, self.bell
        self.all.each = <loan *>calloc(max(1, count), sizeof(loan))
        if self.all.each == NULL:
            raise MemoryError()
        for i in range(count):
            self.all.each[i].all = self.all

    def __dealloc__(self):
        if self.all != NULL:
            loans_leave(self.all)

    @property
    def held(self):
        return len(self.lent)

    def is_held(self, int slot):
        return 0 <= slot < self.count and loan_is_out(&self.all.each[slot])

    def ours(self):
        return [slot for slot in range(self.count) if slot not in self.lent]

    def send(self, socket, bytes head, int slot, size_t address, size_t nbytes):
        cdef void *to = <void *><size_t>socket.underlying
        cdef zmq_msg_t first, second
        cdef int failed
        if not 0 <= slot < self.count or slot in self.lent:
            raise ValueError(f"slot {slot} is not there, or not back yet")
        if msg_init_size(&first, PyBytes_GET_SIZE(head)):
            raise MemoryError()
        memcpy(msg_data(&first), PyBytes_AS_STRING(head), PyBytes_GET_SIZE(head))
        failed = pass_on(&first, to, DONTWAIT | SNDMORE)
        if not failed:
            loan_out(&self.all.each[slot])
            if msg_init_data(&second, <void *>address, nbytes, loan_back, &self.all.each[slot]):
                loan_back(NULL, &self.all.each[slot])
                raise MemoryError()
            failed = pass_on(&second, to, DONTWAIT)  # a client that goes away now takes the first part with it
        if failed and failed != AGAIN:
            raise zmq.ZMQError(failed)
        if failed:
            return False
        self.lent.add(slot)
        return True

    def back(self):
        cdef list came
        if loans_owners(self.all) > len(self.lent):  # us, and each that is still out
            return []
        came = sorted(slot for slot in self.lent if not loan_is_out(&self.all.each[<int>slot]))
        self.lent.difference_update(came)
        return came
