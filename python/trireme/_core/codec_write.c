/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * codec_write.c - Python values become bytes of the form of codec_inside.h.
 *
 * Why sharing is found cheaply.  A container whose reference count is 1 is held by the one place
 * from which we came, so it cannot be met twice *through two references to itself*.  If any
 * container C is reached by two paths, walk back from C while the paths agree; where they first
 * differ stands a container with two references, or the outermost value itself.  So it is enough
 * to remember the outermost value and the inner containers with more than one reference, and to
 * give up when one of them comes again.  This needs tuples as much as lists: ([],) twice is the
 * same list twice, and a tuple of twice the same tuple, thirty deep, would be a billion items.
 * Tried: remembering every container, as pickle's memo does; it doubled the cost of nested rows.
 */
#include "codec_inside.h"
#include "ints.h"

#include <stdlib.h>
#include <string.h>

#define EXPECTED_MAX (1 << 16) /* items that a writer makes room for on somebody's word */

/* ------------------------------------------------------------------ room and numbers */

INLINE int room(struct tri_buf *b, size_t more)
{
    return LIKELY(b->cap - b->len >= more) ? 0 : tri_buf_reserve(b, more);
}

/* Write the shortest tagged form of x, at most NUMBER_MAX bytes.  @return where it ends */
INLINE uint8_t *put_int(uint8_t *q, int64_t x)
{
    if (x == (int8_t)x) {
        q[0] = T_INT8;
        q[1] = (uint8_t)x;
        return q + 2;
    }
    if (x == (int32_t)x) {
        int32_t y = (int32_t)x;

        q[0] = T_INT32;
        memcpy(q + 1, &y, 4);
        return q + 5;
    }
    q[0] = T_INT64;
    memcpy(q + 1, &x, 8);
    return q + 9;
}

INLINE uint8_t *put_float(uint8_t *q, double x)
{
    q[0] = T_FLOAT;
    memcpy(q + 1, &x, 8);
    return q + 9;
}

/* Ints beyond 64 bits.  The two interfaces differ by version; both know two's complement. */
static __attribute__((noinline)) int encode_big_int(struct tri_buf *b, PyObject *v)
{
    uint16_t size;
    uint8_t *q;

#if PY_VERSION_HEX >= 0x030D0000
    Py_ssize_t want = PyLong_AsNativeBytes(v, NULL, 0, Py_ASNATIVEBYTES_LITTLE_ENDIAN);
    if (want < 0)
        return TRI_ENC_ERROR;
    if (want > TRI_ENC_INT_BYTES)
        return TRI_ENC_NOT_SIMPLE;
#else
    size_t bits = _PyLong_NumBits(v);
    size_t want = bits / 8 + 1;
    if (bits == (size_t)-1 && PyErr_Occurred())
        return TRI_ENC_ERROR;
    if (bits >= TRI_ENC_INT_BYTES * 8)
        return TRI_ENC_NOT_SIMPLE;
#endif
    size = (uint16_t)want;
    if (room(b, 3 + (size_t)size) < 0)
        return TRI_ENC_ERROR;
    q = b->p + b->len;
    q[0] = T_INT;
    memcpy(q + 1, &size, 2);
#if PY_VERSION_HEX >= 0x030D0000
    if (PyLong_AsNativeBytes(v, q + 3, size, Py_ASNATIVEBYTES_LITTLE_ENDIAN) < 0)
        return TRI_ENC_ERROR;
#else
    if (_PyLong_AsByteArray((PyLongObject *)v, q + 3, size, 1, 1) < 0)
        return TRI_ENC_ERROR;
#endif
    b->len += 3 + (size_t)size;
    return TRI_ENC_OK;
}

/* ------------------------------------------------------------------ containers met so far */

/* A set of addresses: a few in line, then a hash table with half of its places free. */
struct seen {
    size_t n, cap; /* cap: places of tab, 0 while `few` is used, else a power of two */
    PyObject **tab;
    PyObject *few[16];
};

#define SEEN_FEW (sizeof((struct seen *)0)->few / sizeof(PyObject *))

INLINE size_t seen_hash(PyObject *v)
{
    return (size_t)(((uint64_t)(uintptr_t)v >> 4) * UINT64_C(0x9E3779B97F4A7C15) >> 32);
}

/* @return whether it was there already */
static bool seen_put(PyObject **tab, size_t cap, PyObject *v)
{
    size_t i = seen_hash(v) & (cap - 1);

    for (; tab[i]; i = (i + 1) & (cap - 1))
        if (tab[i] == v)
            return true;
    tab[i] = v;
    return false;
}

static int seen_grow(struct seen *s)
{
    size_t cap = s->cap ? s->cap * 4 : 64;
    PyObject **old = s->cap ? s->tab : s->few;
    size_t places = s->cap ? s->cap : s->n;
    PyObject **tab = calloc(cap, sizeof *tab);

    if (!tab) {
        PyErr_NoMemory();
        return TRI_ENC_ERROR;
    }
    for (size_t i = 0; i < places; i++)
        if (old[i])
            seen_put(tab, cap, old[i]);
    free(s->tab);
    s->tab = tab;
    s->cap = cap;
    return 0;
}

/* @return TRI_ENC_OK for a new address, NOT_SIMPLE for a known one, or an error */
static int seen_add(struct seen *s, PyObject *v)
{
    if (s->cap == 0) {
        for (size_t i = 0; i < s->n; i++)
            if (s->few[i] == v)
                return TRI_ENC_NOT_SIMPLE;
        if (s->n < SEEN_FEW) {
            s->few[s->n++] = v;
            return TRI_ENC_OK;
        }
    }
    if (s->n >= s->cap / 2 && seen_grow(s) < 0)
        return TRI_ENC_ERROR;
    if (seen_put(s->tab, s->cap, v))
        return TRI_ENC_NOT_SIMPLE;
    s->n++;
    return TRI_ENC_OK;
}

/* ------------------------------------------------------------------ what items share */

/*
 * Objects that several items of a sequence hold, like the table in each of its tuples, are written
 * again for each.  Pickle writes them once; so when as much as AGAIN_BYTES was written in vain, the
 * whole is left to it: 5,000 pairs of the same table of 200 rows took 120 ms and take 8.  A few of
 * those met lately are enough to know: what is forgotten costs time only.
 */
#define SHARED_LEAST 48
#define AGAIN_BYTES (16 << 10)

struct again {
    size_t bytes;
    PyObject *met[16];
};

/* After v was written in n bytes.  Is it time to give up? */
static __attribute__((noinline)) bool again_many(struct again *a, PyObject *v, size_t n)
{
    PyObject **at = &a->met[seen_hash(v) & 15];

    if (*at == v)
        a->bytes += n;
    *at = v;
    return a->bytes >= AGAIN_BYTES;
}

/* ------------------------------------------------------------------ encoding one value */

struct enc {
    struct tri_buf *b;
    size_t start;        /* the buffer's length before the value */
    struct again *again; /* NULL: the value is not one of many, all of them alive */
    struct seen seen;
};

/* v was written from `from` on. */
INLINE int written(struct enc *e, PyObject *v, size_t from)
{
    size_t n = e->b->len - from;

    if (LIKELY(n < SHARED_LEAST || !e->again || Py_REFCNT(v) == 1))
        return TRI_ENC_OK;
    return again_many(e->again, v, n) ? TRI_ENC_NOT_SIMPLE : TRI_ENC_OK;
}

static int encode_container(struct enc *e, PyObject *v, PyTypeObject *type, int depth);

/* A tag with a length or count: of one byte when it fits, else of four under the next tag. */
INLINE uint8_t *put_length(uint8_t *q, uint8_t short_tag, uint8_t long_tag, size_t n)
{
    uint32_t n32 = (uint32_t)n;

    if (LIKELY(n < 256)) {
        q[0] = short_tag;
        q[1] = (uint8_t)n;
        return q + 2;
    }
    q[0] = long_tag;
    memcpy(q + 1, &n32, 4);
    return q + 5;
}

INLINE int encode_raw(struct enc *e, PyObject *v, uint8_t short_tag, uint8_t long_tag,
                      const void *data, size_t n)
{
    struct tri_buf *b = e->b;
    size_t from = b->len;
    uint8_t *q;

    if (UNLIKELY(n > TRI_ENC_STR_BYTES))
        return TRI_ENC_NOT_SIMPLE;
    if (room(b, n + 5) < 0)
        return TRI_ENC_ERROR;
    q = put_length(b->p + b->len, short_tag, long_tag, n);
    memcpy(q, data, n);
    b->len = (size_t)(q + n - b->p);
    return written(e, v, from);
}

static __attribute__((noinline)) int encode_wide_str(struct enc *e, PyObject *v)
{
    struct tri_buf *b = e->b;
    uint32_t n = (uint32_t)PyUnicode_GET_LENGTH(v);
    size_t kind = (size_t)PyUnicode_KIND(v), size;
    uint8_t *q;

    if (PyUnicode_GET_LENGTH(v) > TRI_ENC_STR_BYTES || n * kind > TRI_ENC_STR_BYTES)
        return TRI_ENC_NOT_SIMPLE;
    size = n * kind;
    if (room(b, size + 5) < 0)
        return TRI_ENC_ERROR;
    q = b->p + b->len;
    q[0] = kind == 1 ? T_STR1 : kind == 2 ? T_STR2 : T_STR4;
    memcpy(q + 1, &n, 4);
    memcpy(q + 5, PyUnicode_DATA(v), size);
    b->len += 5 + size;
    return written(e, v, b->len - 5 - size);
}

/* Any value.  In line here is what is frequent; depth counts the containers around v. */
INLINE int encode_value(struct enc *e, PyObject *v, int depth)
{
    struct tri_buf *b = e->b;
    PyTypeObject *type = Py_TYPE(v);

    if (type == &PyLong_Type) {
        int64_t x;

        if (UNLIKELY(!int_as_i64(v, &x)))
            return encode_big_int(b, v);
        if (room(b, NUMBER_MAX) < 0)
            return TRI_ENC_ERROR;
        b->len = (size_t)(put_int(b->p + b->len, x) - b->p);
        return TRI_ENC_OK;
    }
    if (type == &PyFloat_Type) {
        if (room(b, NUMBER_MAX) < 0)
            return TRI_ENC_ERROR;
        b->len = (size_t)(put_float(b->p + b->len, PyFloat_AS_DOUBLE(v)) - b->p);
        return TRI_ENC_OK;
    }
    if (type == &PyUnicode_Type) {
#if PY_VERSION_HEX < 0x030C0000
        if (UNLIKELY(PyUnicode_READY(v) < 0))
            return TRI_ENC_ERROR;
#endif
        if (LIKELY(PyUnicode_IS_ASCII(v)))
            return encode_raw(e, v, T_ASCII8, T_ASCII, PyUnicode_DATA(v),
                              (size_t)PyUnicode_GET_LENGTH(v));
        return encode_wide_str(e, v);
    }
    if (type == &PyTuple_Type || type == &PyList_Type || type == &PyDict_Type)
        return encode_container(e, v, type, depth);
    if (v == Py_None || type == &PyBool_Type) {
        if (room(b, 1) < 0)
            return TRI_ENC_ERROR;
        b->p[b->len++] = v == Py_None ? T_NONE : (uint8_t)(T_FALSE + (v == Py_True));
        return TRI_ENC_OK;
    }
    if (type == &PyBytes_Type)
        return encode_raw(e, v, T_BYTES8, T_BYTES, PyBytes_AS_STRING(v),
                          (size_t)PyBytes_GET_SIZE(v));
    if (type == &PyComplex_Type) {
        Py_complex c = ((PyComplexObject *)v)->cval;

        if (room(b, 17) < 0)
            return TRI_ENC_ERROR;
        b->p[b->len] = T_COMPLEX;
        memcpy(b->p + b->len + 1, &c.real, 8);
        memcpy(b->p + b->len + 9, &c.imag, 8);
        b->len += 17;
        return TRI_ENC_OK;
    }
    return TRI_ENC_NOT_SIMPLE;
}

/* After each item of a container, because items alone know no limit. */
#define TOO_LARGE(e) UNLIKELY((e)->b->len - (e)->start > TRI_ENC_VALUE_BYTES)

static int encode_items(struct enc *e, PyObject *const *items, Py_ssize_t n, int depth)
{
    for (Py_ssize_t i = 0; i < n; i++) {
        int err = encode_value(e, items[i], depth);

        if (UNLIKELY(err))
            return err;
        if (TOO_LARGE(e))
            return TRI_ENC_NOT_SIMPLE;
    }
    return TRI_ENC_OK;
}

static int encode_pairs(struct enc *e, PyObject *dict, int depth)
{
    PyObject *kv[2];
    Py_ssize_t pos = 0;

    while (PyDict_Next(dict, &pos, &kv[0], &kv[1])) {
        int err = encode_items(e, kv, 2, depth);

        if (UNLIKELY(err))
            return err;
    }
    return TRI_ENC_OK;
}

/* Whether v must be remembered: see the argument at the top. */
INLINE bool may_come_again(PyObject *v, int depth)
{
#ifdef Py_GIL_DISABLED
    /* A count split between threads proves nothing. */
    (void)v;
    (void)depth;
    return true;
#else
    return depth == 0 || Py_REFCNT(v) != 1;
#endif
}

static int encode_container(struct enc *e, PyObject *v, PyTypeObject *type, int depth)
{
    struct tri_buf *b = e->b;
    PyObject *copy = NULL, *whole = v;
    size_t from = b->len;
    Py_ssize_t n;
    uint8_t tag;
    int err;

    if (type == &PyTuple_Type && PyTuple_GET_SIZE(v) == 0) {
        if (room(b, 2) < 0)
            return TRI_ENC_ERROR;
        b->p[b->len++] = T_TUPLE8;
        b->p[b->len++] = 0;
        return TRI_ENC_OK;
    }
    if (UNLIKELY(depth == TRI_ENC_DEPTH))
        return TRI_ENC_NOT_SIMPLE;
    if (may_come_again(v, depth)) {
        err = seen_add(&e->seen, v);
        if (err)
            return err;
    }
#ifdef Py_GIL_DISABLED
    /* Another thread may change the container meanwhile; a copy holds still and owns its items. */
    if (type == &PyList_Type) {
        v = copy = PyList_AsTuple(v);
        if (!copy)
            return TRI_ENC_ERROR;
    } else if (type == &PyDict_Type) {
        v = copy = PyDict_Copy(v);
        if (!copy)
            return TRI_ENC_ERROR;
    }
#endif
    if (type == &PyDict_Type) {
        n = PyDict_GET_SIZE(v);
        tag = T_DICT8;
    } else {
        n = Py_SIZE(v);
        tag = type == &PyTuple_Type ? T_TUPLE8 : T_LIST8;
    }
    err = TRI_ENC_NOT_SIMPLE;
    if (n > TRI_ENC_VALUE_BYTES)
        goto done;
    err = TRI_ENC_ERROR;
    if (room(b, 5) < 0)
        goto done;
    b->len = (size_t)(put_length(b->p + b->len, tag, tag + 1, (size_t)n) - b->p);
    if (type == &PyDict_Type)
        err = encode_pairs(e, v, depth + 1);
    else if (type == &PyTuple_Type || copy)
        err = encode_items(e, ((PyTupleObject *)v)->ob_item, n, depth + 1);
    else
        err = encode_items(e, ((PyListObject *)v)->ob_item, n, depth + 1);
done:
    Py_XDECREF(copy);
    return err ? err : written(e, whole, from);
}

INLINE void enc_begin(struct enc *e, struct tri_buf *b, struct again *again)
{
    e->b = b;
    e->again = again;
    e->start = b->len;
    e->seen.n = 0;
    e->seen.cap = 0;
    e->seen.tab = NULL;
}

INLINE void enc_end(struct enc *e)
{
    if (UNLIKELY(e->seen.tab != NULL))
        free(e->seen.tab);
}

INLINE int encode_one(struct tri_buf *b, PyObject *v, struct again *again)
{
    struct enc e;
    int err;

    enc_begin(&e, b, again);
    err = encode_value(&e, v, 0);
    enc_end(&e);
    if (UNLIKELY(err))
        b->len = e.start;
    return err;
}

int tri_encode(struct tri_buf *b, PyObject *v)
{
    return encode_one(b, v, NULL);
}

/* ------------------------------------------------------------------ writing sequences */

static void put_header(uint8_t *q, int form, Py_ssize_t n)
{
    uint64_t header = (uint64_t)n << 8 | (uint64_t)form;

    memcpy(q, &header, HEADER);
}

/*
 * Turn the column of n numbers that ends the buffer into tagged values.  Tagged numbers take up to
 * 9 bytes against 8, so the column first moves n bytes up; from then on the value i is read at
 * n + 8 i or beyond and written up to 9 i + 9, which is never past the next to read.
 */
static int retag(struct tri_buf *b, size_t column, Py_ssize_t count, int form)
{
    size_t n = (size_t)count;
    uint8_t *q, *from;

    if (room(b, n) < 0)
        return TRI_ENC_ERROR;
    q = b->p + column;
    from = q + n;
    memmove(from, q, 8 * n);
    for (size_t i = 0; i < n; i++, from += 8) {
        int64_t x;
        double f;

        if (form == SEQ_INT64) {
            memcpy(&x, from, 8);
            q = put_int(q, x);
        } else {
            memcpy(&f, from, 8);
            q = put_float(q, f);
        }
    }
    b->len = (size_t)(q - b->p);
    return TRI_ENC_OK;
}

static int encode_tagged(struct tri_buf *b, PyObject *const *items, Py_ssize_t n, size_t head)
{
    struct again again = {0, {NULL}};

    for (Py_ssize_t i = 0; i < n; i++) {
        int err = encode_one(b, items[i], &again);

        if (UNLIKELY(err))
            return err;
        if (UNLIKELY(b->len - head > TRI_ENC_SEQ_BYTES))
            return TRI_ENC_NOT_SIMPLE;
    }
    return TRI_ENC_OK;
}

/* What one of them shares with another is found as what a value shares with itself. */
static int encode_together(struct tri_buf *b, PyObject *const *items, Py_ssize_t n, size_t head)
{
    struct enc e;
    int err = TRI_ENC_OK;

    enc_begin(&e, b, NULL);
    for (Py_ssize_t i = 0; i < n && !err; i++) {
        e.start = b->len;
        err = encode_value(&e, items[i], 0);
        if (!err && b->len - head > TRI_ENC_SEQ_BYTES)
            err = TRI_ENC_NOT_SIMPLE;
    }
    enc_end(&e);
    return err;
}

static int encode_seq(struct tri_buf *b, PyObject *const *items, Py_ssize_t n, bool together)
{
    size_t head = b->len;
    int form = SEQ_TAGGED, err;
    Py_ssize_t i = 0;
    uint8_t *q;

    if (n > 0 && Py_TYPE(items[0]) == &PyLong_Type)
        form = SEQ_INT64;
    else if (n > 0 && Py_TYPE(items[0]) == &PyFloat_Type)
        form = SEQ_DOUBLE;
    if (room(b, HEADER + (form == SEQ_TAGGED ? 0 : 8 * (size_t)n)) < 0)
        return TRI_ENC_ERROR;
    b->len += HEADER;
    q = b->p + b->len;
    if (form == SEQ_INT64) {
        for (; i < n; i++, q += 8) {
            int64_t x;

            if (UNLIKELY(Py_TYPE(items[i]) != &PyLong_Type || !int_as_i64(items[i], &x)))
                break;
            memcpy(q, &x, 8);
        }
    } else if (form == SEQ_DOUBLE) {
        for (; i < n && Py_TYPE(items[i]) == &PyFloat_Type; i++, q += 8)
            memcpy(q, &((PyFloatObject *)items[i])->ob_fval, 8);
    }
    b->len = (size_t)(q - b->p);
    if (form != SEQ_TAGGED && i < n) {
        err = retag(b, head + HEADER, i, form);
        if (err)
            goto undo;
        form = SEQ_TAGGED;
    }
    if (together && n - i > 1)
        err = encode_together(b, items + i, n - i, head);
    else
        err = encode_tagged(b, items + i, n - i, head);
    if (UNLIKELY(err))
        goto undo;
    put_header(b->p + head, form, n);
    return TRI_ENC_OK;
undo:
    b->len = head;
    return err;
}

int tri_encode_seq(struct tri_buf *b, PyObject *const *items, Py_ssize_t n)
{
    return encode_seq(b, items, n, false);
}

int tri_encode_args(struct tri_buf *b, PyObject *const *args, Py_ssize_t n)
{
    return encode_seq(b, args, n, true);
}

int tri_encode_range(struct tri_buf *b, PyObject *start, PyObject *step, Py_ssize_t n)
{
    int64_t from, by;

    if (!PyLong_CheckExact(start) || !PyLong_CheckExact(step) || !int_as_i64(start, &from) ||
        !int_as_i64(step, &by) || n < 0 || n > PY_SSIZE_T_MAX >> 8 || !range_fits(from, by, n))
        return TRI_ENC_NOT_SIMPLE;
    if (room(b, HEADER + 16) < 0)
        return TRI_ENC_ERROR;
    put_header(b->p + b->len, SEQ_RANGE, n);
    memcpy(b->p + b->len + HEADER, &from, 8);
    memcpy(b->p + b->len + HEADER + 8, &by, 8);
    b->len += HEADER + 16;
    return TRI_ENC_OK;
}

void tri_seqw_init(struct tri_seqw *w, struct tri_buf *b, Py_ssize_t expected)
{
    w->b = b;
    w->head = b->len;
    w->n = 0;
    w->expected = expected < 0 ? 0 : expected > EXPECTED_MAX ? EXPECTED_MAX : expected;
    w->form = SEQ_EMPTY;
}

static int seqw_open(struct tri_seqw *w, PyObject *first)
{
    PyTypeObject *type = Py_TYPE(first);
    int64_t x;
    size_t each;

    if (type == &PyLong_Type && int_as_i64(first, &x))
        w->form = SEQ_INT64;
    else if (type == &PyFloat_Type)
        w->form = SEQ_DOUBLE;
    else
        w->form = SEQ_TAGGED;
    each = w->form == SEQ_TAGGED ? 1 : 8;
    if (room(w->b, HEADER + each * (size_t)w->expected) < 0) {
        w->form = SEQ_EMPTY;
        return TRI_ENC_ERROR;
    }
    w->b->len += HEADER;
    return TRI_ENC_OK;
}

static __attribute__((noinline)) int seqw_add_tagged(struct tri_seqw *w, PyObject *v)
{
    struct tri_buf *b = w->b;
    size_t before;
    int err;

    if (w->form != SEQ_TAGGED) {
        err = retag(b, w->head + HEADER, w->n, w->form);
        if (err)
            return err;
        w->form = SEQ_TAGGED;
    }
    before = b->len;
    err = encode_one(b, v, NULL);
    if (UNLIKELY(err))
        return err;
    if (UNLIKELY(b->len - w->head > TRI_ENC_SEQ_BYTES)) {
        b->len = before;
        return TRI_ENC_NOT_SIMPLE;
    }
    w->n++;
    return TRI_ENC_OK;
}

int tri_seqw_add(struct tri_seqw *w, PyObject *v)
{
    struct tri_buf *b = w->b;
    int64_t x;

    if (UNLIKELY(w->form == SEQ_EMPTY) && seqw_open(w, v) < 0)
        return TRI_ENC_ERROR;
    if (w->form == SEQ_INT64 && Py_TYPE(v) == &PyLong_Type && int_as_i64(v, &x)) {
        if (room(b, 8) < 0)
            return TRI_ENC_ERROR;
        memcpy(b->p + b->len, &x, 8);
    } else if (w->form == SEQ_DOUBLE && Py_TYPE(v) == &PyFloat_Type) {
        if (room(b, 8) < 0)
            return TRI_ENC_ERROR;
        memcpy(b->p + b->len, &((PyFloatObject *)v)->ob_fval, 8);
    } else {
        return seqw_add_tagged(w, v);
    }
    b->len += 8;
    w->n++;
    return TRI_ENC_OK;
}

int tri_seqw_finish(struct tri_seqw *w)
{
    if (w->form == SEQ_EMPTY) {
        if (room(w->b, HEADER) < 0)
            return -1;
        w->b->len += HEADER;
        w->form = SEQ_TAGGED;
    }
    put_header(w->b->p + w->head, w->form, w->n);
    return 0;
}
