/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * options.c - timeout=, retries= and priority=: what a call or a map is asked for beside its work.
 *
 * They are checked where they are given, so that a wrong one raises there and costs no task.
 */
#include "ext.h"

int seconds_to_ns(PyObject *seconds, const char *what, int64_t *ns)
{
    double s;

    *ns = -1;
    if (!seconds || seconds == Py_None)
        return 0;
    s = PyFloat_AsDouble(seconds);
    if (s == -1.0 && PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_TypeError))
            return -1; /* its own __float__() had something else to say */
        PyErr_Format(PyExc_TypeError, "%s must be a number of seconds or None, not %.100s", what,
                     Py_TYPE(seconds)->tp_name);
        return -1;
    }
    if (s != s) {
        PyErr_Format(PyExc_ValueError, "%s must not be NaN", what);
        return -1;
    }
    *ns = s <= 0 ? 0 : s > 9e9 ? -1 : (int64_t)(s * 1e9);
    return 0;
}

int options_of_acquire(PyObject *const *args, Py_ssize_t n, PyObject *names, int64_t *timeout_ns)
{
    PyObject *block = n > 0 ? args[0] : NULL, *timeout = n > 1 ? args[1] : NULL;
    Py_ssize_t named = names ? PyTuple_GET_SIZE(names) : 0;
    int blocks = 1;

    if (n > 2) {
        PyErr_Format(PyExc_TypeError, "acquire() takes at most 2 arguments (%zd given)", n);
        return -1;
    }
    for (Py_ssize_t i = 0; i < named; i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i);

        if (PyUnicode_CompareWithASCIIString(name, "block") == 0 && !block) {
            block = args[n + i];
        } else if (PyUnicode_CompareWithASCIIString(name, "timeout") == 0 && !timeout) {
            timeout = args[n + i];
        } else {
            PyErr_Format(PyExc_TypeError, "acquire() got an unexpected or second argument %R",
                         name);
            return -1;
        }
    }
    if (block) {
        blocks = PyObject_IsTrue(block);
        if (blocks < 0)
            return -1;
    }
    if (seconds_to_ns(timeout, "timeout", timeout_ns) < 0)
        return -1;
    if (!blocks)
        *timeout_ns = 0;
    return 0;
}

int option_timeout(PyObject *value, struct options *opt)
{
    if (seconds_to_ns(value, "timeout", &opt->timeout_ns) < 0)
        return -1;
    if (opt->timeout_ns == 0) {
        PyErr_SetString(PyExc_ValueError, "timeout must be more than 0 seconds");
        return -1;
    }
    if (opt->timeout_ns < 0)
        opt->timeout_ns = 0;
    return 0;
}

static int option_int(PyObject *value, const char *name, const char *range, long low, long high,
                      int *into)
{
    int overflow = 0;
    long v;

    if (!PyIndex_Check(value)) {
        PyErr_Format(PyExc_TypeError, "%s must be an int, not %.100s", name,
                     Py_TYPE(value)->tp_name);
        return -1;
    }
    v = PyLong_AsLongAndOverflow(value, &overflow);
    if (v == -1 && PyErr_Occurred())
        return -1;
    if (overflow || v < low || v > high) {
        PyErr_Format(PyExc_ValueError, "%s must be from %s", name, range);
        return -1;
    }
    *into = (int)v;
    return 0;
}

int option_retries(PyObject *value, struct options *opt)
{
    return option_int(value, "retries", "0 to 65535", 0, 65535, &opt->retries);
}

int options_fit(const PoolObject *pool, const struct options *opt)
{
    if (!pool->threads || (opt->timeout_ns == 0 && opt->retries == 0))
        return 0;
    PyErr_SetString(PyExc_ValueError,
                    opt->timeout_ns ? "timeout needs worker processes: a thread cannot be stopped"
                                    : "retries needs worker processes: a thread does not die "
                                      "without its process");
    return -1;
}

int option_priority(PyObject *value, struct options *opt)
{
    return option_int(value, "priority", "-2 (last) to 2 (first)", -2, 2, &opt->priority);
}

int option_take(PyObject *name, PyObject *value, struct options *opt)
{
    if (PyUnicode_CompareWithASCIIString(name, "timeout") == 0)
        return option_timeout(value, opt) < 0 ? -1 : 1;
    if (PyUnicode_CompareWithASCIIString(name, "retries") == 0)
        return option_retries(value, opt) < 0 ? -1 : 1;
    if (PyUnicode_CompareWithASCIIString(name, "priority") == 0)
        return option_priority(value, opt) < 0 ? -1 : 1;
    return 0;
}
