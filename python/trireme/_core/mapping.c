/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * mapping.c - memory of a file of its own, mapped and filled: shared objects (_share.py) and the
 * arrays of trireme.multiprocessing (heap.py).
 *
 * The file of a shared object is filled by writing, not through the mapping: no page is cleared
 * first, none is faulted in one by one, and a machine that runs short of memory answers with an
 * error, not with SIGBUS.  What could be had in large pages (shm/huge.h) is there before it is
 * filled and cannot fault; it is copied, which is faster still.
 */
#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/copy.h"
#include "ext.h"
#include "shm/huge.h"

#define POPULATE_MAX (32u << 20) /* of a larger mapping a task may want a corner only */

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

/* _map(fd, writable) -> memoryview of the whole file; the mapping goes with its last view. */
PyObject *map_file(PyObject *module, PyObject *args)
{
    PyObject *block, *view;
    struct stat st;
    int fd, writable;
    void *at;

    if (!PyArg_ParseTuple(args, "ip", &fd, &writable))
        return NULL;
    at = fstat(fd, &st) < 0
             ? NULL
             : tri_huge_map(fd, (size_t)st.st_size, writable ? PROT_READ | PROT_WRITE : PROT_READ,
                            MAP_SHARED);
    if (!at)
        return PyErr_SetFromErrno(PyExc_OSError);
    if (!writable && st.st_size <= POPULATE_MAX) /* at once, at a fifth of the price of faults */
        madvise(at, (size_t)st.st_size, MADV_POPULATE_READ);
    block = block_of_mapping(state_of(module), at, (uint64_t)st.st_size, !writable);
    if (!block) {
        munmap(at, (size_t)st.st_size);
        return NULL;
    }
    view = PyMemoryView_FromObject(block);
    Py_DECREF(block);
    return view;
}

/* _populate(memory): see tri_huge_populate. */
PyObject *populate_memory(PyObject *module, PyObject *memory)
{
    Py_buffer b;

    (void)module;
    if (PyObject_GetBuffer(memory, &b, PyBUF_WRITABLE) < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS tri_huge_populate(b.buf, (size_t)b.len,
                                             (struct tri_room){b.buf, (uint8_t *)b.buf + b.len});
    Py_END_ALLOW_THREADS PyBuffer_Release(&b);
    Py_RETURN_NONE;
}

static int write_all(int fd, const uint8_t *from, size_t n, size_t at)
{
    while (n > 0) {
        ssize_t done = pwrite(fd, from, n, (off_t)at); /* 2 GiB at most */

        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return done < 0 ? -errno : -ENOSPC;
        from += done;
        at += (size_t)done;
        n -= (size_t)done;
    }
    return 0;
}

/* n bytes to offset `at` of a file of `size` bytes, which is mapped at `base`. */
static int fill(int fd, uint8_t *base, size_t size, size_t at, const uint8_t *from, size_t n)
{
    size_t large, begin = at, end = at;
    void *where;
    int err;

    large = tri_huge_collapse(base + at, n, (struct tri_room){base, base + size}, &where);
    if (large) {
        begin = (size_t)((uint8_t *)where - base);
        end = begin + large < at + n ? begin + large : at + n;
        begin = begin > at ? begin : at;
    }
    err = write_all(fd, from, begin - at, at);
    if (err)
        return err;
    tri_copy(base + begin, from + (begin - at), end - begin);
    return write_all(fd, from + (end - at), at + n - end, end);
}

/* _fill(fd, memory, at, data) -> where data ends.  memory: the whole file, writable. */
PyObject *fill_file(PyObject *module, PyObject *args)
{
    Py_buffer memory, data;
    Py_ssize_t at, end;
    int fd, err = -EINVAL;

    (void)module;
    if (!PyArg_ParseTuple(args, "iw*ny*", &fd, &memory, &at, &data))
        return NULL;
    end = at + data.len;
    if (at >= 0 && at <= memory.len && data.len <= memory.len - at) {
        Py_BEGIN_ALLOW_THREADS err =
            fill(fd, memory.buf, (size_t)memory.len, (size_t)at, data.buf, (size_t)data.len);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&memory);
    PyBuffer_Release(&data);
    if (err) {
        errno = -err;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyLong_FromSsize_t(end);
}
