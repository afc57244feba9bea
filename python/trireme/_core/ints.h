/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * ints.h - Python's ints of up to two digits, 60 bits, read and written in place.
 *
 * The functions of the interpreter that do the same for any int are a tenth of the time of a map
 * of x * x.  What an int looks like inside changed once in the versions we know (3.12).
 */
#ifndef TRI_INTS_H
#define TRI_INTS_H

#include <Python.h>
#include <stdbool.h>
#include <stdint.h>

/* Writing needs digits of 30 bits, which all builds for 64 bits have. */
#if PYLONG_BITS_IN_DIGIT == 30 && !defined(Py_GIL_DISABLED)
#define INTS_WRITABLE 1
#else
#define INTS_WRITABLE 0
#endif

#if PY_VERSION_HEX >= 0x030C0000
static inline Py_ssize_t long_size(const PyLongObject *v)
{
    uintptr_t tag = v->long_value.lv_tag;

    return (Py_ssize_t)(tag >> 3) * (1 - (Py_ssize_t)(tag & 3));
}
#define LONG_DIGITS_FIELD long_value.ob_digit
#else
static inline Py_ssize_t long_size(const PyLongObject *v)
{
    return Py_SIZE(v);
}
#define LONG_DIGITS_FIELD ob_digit
#endif
#define LONG_DIGITS(v) ((v)->LONG_DIGITS_FIELD)

/* The value of an exact int when it has at most 64 bits; false otherwise, and no exception. */
static inline bool int_as_i64(PyObject *v, int64_t *x)
{
    const PyLongObject *l = (const PyLongObject *)v;
    Py_ssize_t size = long_size(l);
    int overflow;

    if ((size_t)(size + 1) <= 2) {
        *x = (int64_t)size * (int64_t)LONG_DIGITS(l)[0];
        return true;
    }
#if PYLONG_BITS_IN_DIGIT == 30
    if ((size_t)(size + 2) <= 4) {
        int64_t y = (int64_t)LONG_DIGITS(l)[1] << 30 | (int64_t)LONG_DIGITS(l)[0];

        *x = size < 0 ? -y : y;
        return true;
    }
#endif
    *x = PyLong_AsLongLongAndOverflow(v, &overflow);
    return overflow == 0;
}

#if INTS_WRITABLE
/* Bytes of an int with room for two digits. */
#define INT_BYTES (offsetof(PyLongObject, LONG_DIGITS_FIELD) + 2 * sizeof(digit))

/* May x be written into such an int?  Small ints are singletons, up to 1024 in some versions. */
static inline bool int_fits(int64_t x)
{
    uint64_t y = x < 0 ? 0 - (uint64_t)x : (uint64_t)x;

    return y > 1024 && y >> 60 == 0;
}

/* Give an int with room for two digits, which nobody else has seen, a value that fits. */
static inline void int_write(PyLongObject *l, int64_t x)
{
    uint64_t y = x < 0 ? 0 - (uint64_t)x : (uint64_t)x;
    size_t n = y >> 30 ? 2 : 1;

    LONG_DIGITS(l)[0] = (digit)(y & ((1u << 30) - 1));
    LONG_DIGITS(l)[1] = (digit)(y >> 30);
#if PY_VERSION_HEX >= 0x030C0000
    l->long_value.lv_tag = n << 3 | (x < 0 ? 2 : 0);
#else
    Py_SET_SIZE(l, x < 0 ? -(Py_ssize_t)n : (Py_ssize_t)n);
#endif
}
#endif

/* An int with room for two digits. */
static inline PyObject *int_roomy(void)
{
    return PyLong_FromLongLong(1ll << 59);
}

#endif
