/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * codec_py.c - the codec as private Python functions, for tests and measurements only.
 *
 * They add nothing of their own: each makes a buffer, calls one function of codec.h and hands the
 * bytes over.  NOT_SIMPLE shows as None.  Output starts in a small area on the C stack, so that
 * the move to malloc is tested with every value that does not fit.
 */
#include "codec.h"

static PyObject *bytes_or_none(struct tri_buf *b, int err)
{
    PyObject *v = NULL;

    if (err == TRI_ENC_OK)
        v = PyBytes_FromStringAndSize((const char *)b->p, (Py_ssize_t)b->len);
    else if (err == TRI_ENC_NOT_SIMPLE)
        v = Py_NewRef(Py_None);
    tri_buf_free(b);
    return v;
}

static PyObject *codec_encode(PyObject *module, PyObject *v)
{
    uint8_t area[64];
    struct tri_buf b;

    (void)module;
    tri_buf_init(&b, area, sizeof area);
    return bytes_or_none(&b, tri_encode(&b, v));
}

static PyObject *codec_encode_seq(PyObject *module, PyObject *list)
{
    uint8_t area[64];
    struct tri_buf b;
    PyObject *items, *v;

    (void)module;
    items = PySequence_Tuple(list);
    if (!items)
        return NULL;
    tri_buf_init(&b, area, sizeof area);
    v = bytes_or_none(
        &b, tri_encode_seq(&b, ((PyTupleObject *)items)->ob_item, PyTuple_GET_SIZE(items)));
    Py_DECREF(items);
    return v;
}

static PyObject *codec_encode_range(PyObject *module, PyObject *args)
{
    PyObject *start, *step;
    uint8_t area[64];
    struct tri_buf b;
    Py_ssize_t n;

    (void)module;
    if (!PyArg_ParseTuple(args, "OOn:_encode_range", &start, &step, &n))
        return NULL;
    tri_buf_init(&b, area, sizeof area);
    return bytes_or_none(&b, tri_encode_range(&b, start, step, n));
}

static PyObject *codec_decode(PyObject *module, PyObject *bytes)
{
    (void)module;
    if (!PyBytes_Check(bytes)) {
        PyErr_SetString(PyExc_TypeError, "bytes expected");
        return NULL;
    }
    return tri_decode((const uint8_t *)PyBytes_AS_STRING(bytes), (size_t)PyBytes_GET_SIZE(bytes),
                      NULL);
}

static PyObject *codec_decode_seq(PyObject *module, PyObject *args)
{
    const char *p;
    Py_ssize_t len, n;
    struct tri_seqr r;
    PyObject *list;

    (void)module;
    if (!PyArg_ParseTuple(args, "y#n:_decode_seq", &p, &len, &n))
        return NULL;
    if (tri_seqr_init(&r, (const uint8_t *)p, (size_t)len) < 0)
        return NULL;
    if (n < 0 || n != tri_seqr_len(&r)) {
        PyErr_SetString(PyExc_ValueError, "wrong number of items");
        return NULL;
    }
    list = PyList_New(n);
    if (!list)
        return NULL;
    if (tri_decode_seq((const uint8_t *)p, (size_t)len, ((PyListObject *)list)->ob_item, n) < 0) {
        Py_DECREF(list);
        return NULL;
    }
    return list;
}

/* At most `most` items of a sequence, one at a time; stops there as a worker would. */
static PyObject *read_stream(const uint8_t *p, size_t len, Py_ssize_t most)
{
    PyObject *list = PyList_New(0), *v;
    struct tri_seqr r;
    int err;

    if (!list)
        return NULL;
    if (tri_seqr_init(&r, p, len) < 0)
        goto fail;
    if (tri_seqr_len(&r) < most)
        most = tri_seqr_len(&r);
    for (Py_ssize_t i = 0; i < most; i++) {
        v = tri_seqr_next(&r);
        if (!v)
            goto clear;
        err = PyList_Append(list, v);
        Py_DECREF(v);
        if (err < 0)
            goto clear;
    }
    tri_seqr_clear(&r);
    return list;
clear:
    tri_seqr_clear(&r);
fail:
    Py_DECREF(list);
    return NULL;
}

static PyObject *codec_decode_stream(PyObject *module, PyObject *args)
{
    const char *p;
    Py_ssize_t len, most;

    (void)module;
    if (!PyArg_ParseTuple(args, "y#n:_decode_stream", &p, &len, &most))
        return NULL;
    return read_stream((const uint8_t *)p, (size_t)len, most);
}

/* Writes with a tri_seqw up to the first item that is not simple, and reads what it holds. */
static PyObject *codec_seq_stream(PyObject *module, PyObject *list)
{
    PyObject *items, *v = NULL;
    uint8_t area[64];
    struct tri_buf b;
    struct tri_seqw w;
    int err = TRI_ENC_OK;

    (void)module;
    items = PySequence_Tuple(list);
    if (!items)
        return NULL;
    tri_buf_init(&b, area, sizeof area);
    tri_seqw_init(&w, &b, 4);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(items) && err == TRI_ENC_OK; i++)
        err = tri_seqw_add(&w, PyTuple_GET_ITEM(items, i));
    if (err != TRI_ENC_ERROR && tri_seqw_finish(&w) == 0)
        v = read_stream(b.p, b.len, PY_SSIZE_T_MAX);
    tri_buf_free(&b);
    Py_DECREF(items);
    return v;
}

static PyMethodDef functions[] = {
    {"_encode", codec_encode, METH_O, "The bytes of a value, or None if it is not simple."},
    {"_decode", codec_decode, METH_O, "The value of bytes from _encode."},
    {"_encode_seq", codec_encode_seq, METH_O, "The bytes of a sequence, or None."},
    {"_encode_range", codec_encode_range, METH_VARARGS,
     "The bytes of the sequence of n ints from start by step, or None."},
    {"_decode_seq", codec_decode_seq, METH_VARARGS, "The list of the n items of a sequence."},
    {"_decode_stream", codec_decode_stream, METH_VARARGS,
     "The list of at most n items of a sequence, read one at a time."},
    {"_seq_stream", codec_seq_stream, METH_O,
     "A list of the items before the first that is not simple, written and read one at a time."},
    {NULL, NULL, 0, NULL},
};

int tri_codec_add_functions(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
