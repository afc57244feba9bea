/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * codec_read.c - bytes of the form of codec_inside.h become Python values; nothing is believed.
 *
 * Why a count cannot make us allocate.  Every value takes at least one byte.  `owed` is the number
 * of values that the open containers still wait for, so a new container may ask for no more
 * than the bytes left less those owed; all containers together then hold at most as many items as
 * there are input bytes, however deep they claim to be.
 *
 * What is checked is what is used: a number that the other side may still write to is read once
 * (PIN), and strings are looked at where they were copied to.
 */
#include "codec_inside.h"
#include "ints.h"

#include <string.h>

#define FEW_INTS 16 /* of a column so short each is made for itself */
#define KEY_MAX 64  /* characters of a key worth remembering */

/* ------------------------------------------------------------------ decoding one value */

static PyObject *decode_any(struct tri_dec *d, int depth);

static __attribute__((cold, noinline)) PyObject *malformed(void)
{
    PyErr_SetString(PyExc_ValueError, "malformed bytes: not what tri_encode writes");
    return NULL;
}

/*
 * The other side could write between our check of a number and our use of it.  After PIN the
 * compiler has the number from a register and cannot choose to load it again.
 */
#define PIN(x) __asm__ volatile("" : "+r"(x))

INLINE size_t left(const struct tri_dec *d)
{
    return (size_t)(d->end - d->p);
}

INLINE void dec_init(struct tri_dec *d, const uint8_t *p, size_t n)
{
    d->p = p;
    d->end = p + n;
    d->owed = 0;
    d->have = 0;
}

static void dec_clear(struct tri_dec *d)
{
    while (d->have) {
        int i = __builtin_ctz(d->have);

        d->have &= d->have - 1;
        Py_DECREF(d->key[i]);
    }
}

static bool all_ascii(const uint8_t *p, size_t n)
{
    uint64_t word, any = 0;
    size_t i = 0;

    for (; i + 8 <= n; i += 8) {
        memcpy(&word, p + i, 8);
        any |= word;
    }
    for (; i < n; i++)
        any |= (uint64_t)p[i];
    return (any & UINT64_C(0x8080808080808080)) == 0;
}

/* A str of units that may fit in a narrower form: the interpreter chooses. */
static PyObject *str_from_units(int kind, const void *aligned, size_t n)
{
    return PyUnicode_FromKindAndData(kind, aligned, (Py_ssize_t)n);
}

INLINE PyObject *decode_ascii(const uint8_t *p, size_t n)
{
    PyObject *s;

    if (UNLIKELY(n <= 1)) {
        uint8_t c = n ? *p : 0;

        return c < 0x80 ? str_from_units(PyUnicode_1BYTE_KIND, &c, n) : malformed();
    }
    s = PyUnicode_New((Py_ssize_t)n, 127);
    if (UNLIKELY(!s))
        return NULL;
    memcpy(PyUnicode_1BYTE_DATA(s), p, n);
    if (UNLIKELY(!all_ascii(PyUnicode_1BYTE_DATA(s), n))) {
        Py_DECREF(s);
        return malformed();
    }
    return s;
}

/*
 * Wide strings are copied into a str of the claimed width and looked at there, where they are
 * aligned and nobody else writes.  Every character must exist, and a str that would fit in a
 * narrower form must be in it, because str compares forms before characters.
 */
static PyObject *decode_wide_str(const uint8_t *p, size_t n, int kind)
{
    static const Py_UCS4 widest[5] = {[1] = 0xff, [2] = 0xffff, [4] = 0x10ffff};
    Py_UCS4 max = 0, below = kind == 1 ? 0x80 : kind == 2 ? 0x100 : 0x10000;
    PyObject *s, *t;
    void *data;

    if (n == 1 && kind == 1) {
        /* Single Latin-1 characters are shared objects of the interpreter's. */
        uint8_t c = *p;

        return str_from_units(PyUnicode_1BYTE_KIND, &c, 1);
    }
    s = PyUnicode_New((Py_ssize_t)n, widest[kind]);
    if (!s || n == 0)
        return s;
    data = PyUnicode_DATA(s);
    memcpy(data, p, n * (size_t)kind);
    for (size_t i = 0; i < n; i++) {
        Py_UCS4 c = PyUnicode_READ(kind, data, i);

        max = c > max ? c : max;
    }
    if (LIKELY(max >= below && max <= 0x10ffff))
        return s;
    t = max > 0x10ffff ? malformed() : str_from_units(kind, data, n);
    Py_DECREF(s);
    return t;
}

/* Any value.  In line is what is frequent and fixed in size, so that one comparison bounds it. */
INLINE PyObject *decode_value(struct tri_dec *d, int depth)
{
    const uint8_t *p = d->p;
    unsigned tag;
    int32_t i32;
    int64_t i64;
    double f;

    if (UNLIKELY(left(d) < NUMBER_MAX))
        return decode_any(d, depth);
    tag = *p;
    PIN(tag);
    switch (tag) {
    case T_NONE:
        d->p = p + 1;
        return Py_NewRef(Py_None);
    case T_FALSE:
        d->p = p + 1;
        return Py_NewRef(Py_False);
    case T_TRUE:
        d->p = p + 1;
        return Py_NewRef(Py_True);
    case T_INT8:
        d->p = p + 2;
        return PyLong_FromLong((int8_t)p[1]);
    case T_INT32:
        memcpy(&i32, p + 1, 4);
        d->p = p + 5;
        return PyLong_FromLong(i32);
    case T_INT64:
        memcpy(&i64, p + 1, 8);
        d->p = p + 9;
        return PyLong_FromLongLong(i64);
    case T_FLOAT:
        memcpy(&f, p + 1, 8);
        d->p = p + 9;
        return PyFloat_FromDouble(f);
    default:
        return decode_any(d, depth);
    }
}

static PyObject *decode_sequence(struct tri_dec *d, size_t n, bool is_list, int depth)
{
    PyObject *v, **items;

    if (UNLIKELY(n > left(d) || n > left(d) - d->owed || left(d) < d->owed))
        return malformed();
    if (UNLIKELY(depth == TRI_ENC_DEPTH) && (n || is_list))
        return malformed();
    v = is_list ? PyList_New((Py_ssize_t)n) : PyTuple_New((Py_ssize_t)n);
    if (UNLIKELY(!v))
        return NULL;
    items = is_list ? ((PyListObject *)v)->ob_item : ((PyTupleObject *)v)->ob_item;
    d->owed += n;
    for (size_t i = 0; i < n; i++) {
        d->owed--;
        items[i] = decode_value(d, depth + 1);
        if (UNLIKELY(!items[i])) {
            Py_DECREF(v);
            return NULL;
        }
    }
    return v;
}

/* A key of a dict; a short ASCII one comes from the keys seen lately if it is there. */
static PyObject *decode_key(struct tri_dec *d, int depth)
{
    const uint8_t *p = d->p;
    size_t n = left(d) >= 2 && p[0] == T_ASCII8 ? p[1] : 0;
    unsigned i;
    PyObject *s;

    PIN(n);
    if (n == 0 || n > KEY_MAX || n > left(d) - 2)
        return decode_value(d, depth);
    p += 2;
    d->p = p + n;
    i = (unsigned)(n + p[0] * 3u + p[n - 1] * 5u + p[n / 2] * 7u) & 15;
    if (d->have & 1u << i) {
        s = d->key[i];
        if ((size_t)PyUnicode_GET_LENGTH(s) == n && memcmp(PyUnicode_1BYTE_DATA(s), p, n) == 0)
            return Py_NewRef(s);
    }
    s = decode_ascii(p, n);
    if (UNLIKELY(!s))
        return NULL;
    if (d->have & 1u << i)
        Py_DECREF(d->key[i]);
    d->have |= 1u << i;
    d->key[i] = s;
    return Py_NewRef(s);
}

static PyObject *decode_dict(struct tri_dec *d, size_t n, int depth)
{
    PyObject *dict, *key, *value;
    int err;

    if (UNLIKELY(left(d) < d->owed || n > (left(d) - d->owed) / 2 || depth == TRI_ENC_DEPTH))
        return malformed();
    dict = PyDict_New();
    if (!dict)
        return NULL;
    d->owed += 2 * n;
    for (size_t i = 0; i < n; i++) {
        d->owed--;
        key = decode_key(d, depth + 1);
        if (UNLIKELY(!key))
            goto fail;
        d->owed--;
        value = decode_value(d, depth + 1);
        if (UNLIKELY(!value)) {
            Py_DECREF(key);
            goto fail;
        }
        err = PyDict_SetItem(dict, key, value);
        Py_DECREF(key);
        Py_DECREF(value);
        if (UNLIKELY(err < 0)) {
            /* A list as a key is not what an encoder writes. */
            if (PyErr_ExceptionMatches(PyExc_TypeError))
                malformed();
            goto fail;
        }
    }
    if (UNLIKELY((size_t)PyDict_GET_SIZE(dict) != n)) {
        malformed();
        goto fail;
    }
    return dict;
fail:
    Py_DECREF(dict);
    return NULL;
}

/* Two's complement; the two interfaces differ by version, as in the writer. */
static PyObject *decode_big_int(const uint8_t *p, size_t size)
{
#if PY_VERSION_HEX >= 0x030D0000
    return PyLong_FromNativeBytes(p, size, Py_ASNATIVEBYTES_LITTLE_ENDIAN);
#else
    return _PyLong_FromByteArray(p, size, 1, 1);
#endif
}

/* Any value, at any distance from the end. */
static __attribute__((noinline)) PyObject *decode_any(struct tri_dec *d, int depth)
{
    size_t rest = left(d), n, size;
    const uint8_t *p = d->p;
    uint16_t u16;
    uint32_t u32;
    int32_t i32;
    int64_t i64;
    double re, im;
    unsigned tag;

    if (UNLIKELY(rest == 0))
        return malformed();
    tag = *p++;
    PIN(tag);
    rest--;
    switch (tag) {
    case T_NONE:
        d->p = p;
        return Py_NewRef(Py_None);
    case T_FALSE:
        d->p = p;
        return Py_NewRef(Py_False);
    case T_TRUE:
        d->p = p;
        return Py_NewRef(Py_True);
    case T_INT8:
        if (UNLIKELY(rest < 1))
            return malformed();
        d->p = p + 1;
        return PyLong_FromLong((int8_t)*p);
    case T_INT32:
        if (UNLIKELY(rest < 4))
            return malformed();
        memcpy(&i32, p, 4);
        d->p = p + 4;
        return PyLong_FromLong(i32);
    case T_INT64:
        if (UNLIKELY(rest < 8))
            return malformed();
        memcpy(&i64, p, 8);
        d->p = p + 8;
        return PyLong_FromLongLong(i64);
    case T_INT:
        if (UNLIKELY(rest < 2))
            return malformed();
        memcpy(&u16, p, 2);
        PIN(u16);
        if (UNLIKELY(u16 == 0 || u16 > TRI_ENC_INT_BYTES || rest - 2 < u16))
            return malformed();
        d->p = p + 2 + u16;
        return decode_big_int(p + 2, u16);
    case T_FLOAT:
        if (UNLIKELY(rest < 8))
            return malformed();
        memcpy(&re, p, 8);
        d->p = p + 8;
        return PyFloat_FromDouble(re);
    case T_COMPLEX:
        if (UNLIKELY(rest < 16))
            return malformed();
        memcpy(&re, p, 8);
        memcpy(&im, p + 8, 8);
        d->p = p + 16;
        return PyComplex_FromDoubles(re, im);
    case T_ASCII8:
    case T_BYTES8:
    case T_TUPLE8:
    case T_LIST8:
    case T_DICT8:
        if (UNLIKELY(rest < 1))
            return malformed();
        n = *p++;
        PIN(n);
        rest--;
        break;
    case T_ASCII:
    case T_STR1:
    case T_STR2:
    case T_STR4:
    case T_BYTES:
    case T_TUPLE:
    case T_LIST:
    case T_DICT:
        if (UNLIKELY(rest < 4))
            return malformed();
        memcpy(&u32, p, 4);
        n = u32;
        PIN(n);
        p += 4;
        rest -= 4;
        break;
    default:
        return malformed();
    }

    d->p = p;
    switch (tag) {
    case T_TUPLE8:
    case T_TUPLE:
        return decode_sequence(d, n, false, depth);
    case T_LIST8:
    case T_LIST:
        return decode_sequence(d, n, true, depth);
    case T_DICT8:
    case T_DICT:
        return decode_dict(d, n, depth);
    default:
        break;
    }

    size = tag == T_STR2 ? 2 * n : tag == T_STR4 ? 4 * n : n;
    if (UNLIKELY(size > rest || size > TRI_ENC_STR_BYTES))
        return malformed();
    d->p = p + size;
    switch (tag) {
    case T_ASCII8:
    case T_ASCII:
        return decode_ascii(p, n);
    case T_BYTES8:
    case T_BYTES:
        return PyBytes_FromStringAndSize((const char *)p, (Py_ssize_t)n);
    case T_STR1:
        return decode_wide_str(p, n, 1);
    case T_STR2:
        return decode_wide_str(p, n, 2);
    default:
        return decode_wide_str(p, n, 4);
    }
}

PyObject *tri_decode(const uint8_t *p, size_t n, size_t *used)
{
    struct tri_dec d;
    PyObject *v;

    dec_init(&d, p, n);
    v = decode_any(&d, 0);
    dec_clear(&d);
    if (!v)
        return NULL;
    if (used) {
        *used = n - left(&d);
    } else if (left(&d)) {
        Py_DECREF(v);
        return malformed();
    }
    return v;
}

/* ------------------------------------------------------------------ reading sequences */

int tri_seqr_init(struct tri_seqr *r, const uint8_t *p, size_t len)
{
    uint64_t header, n;
    bool good;

    r->n = r->i = 0;
    r->reuse = false;
    r->spare = NULL;
    dec_init(&r->d, p, len);
    if (len < HEADER) {
        malformed();
        return -1;
    }
    memcpy(&header, p, HEADER);
    PIN(header);
    n = header >> 8;
    r->form = (int)(header & 0xff);
    r->d.p += HEADER;
    len -= HEADER;
    switch (r->form) {
    case SEQ_TAGGED:
        good = n <= len && (n > 0 || len == 0);
        r->d.owed = (size_t)n;
        break;
    case SEQ_INT64:
    case SEQ_DOUBLE:
        good = len % 8 == 0 && n == len / 8;
        break;
    case SEQ_RANGE:
        good = len == 16;
        if (good) {
            memcpy(&r->start, r->d.p, 8);
            memcpy(&r->step, r->d.p + 8, 8);
            good = range_fits(r->start, r->step, (int64_t)n);
        }
        break;
    default:
        good = false;
    }
    if (!good) {
        malformed();
        return -1;
    }
    r->n = (Py_ssize_t)n;
    return 0;
}

Py_ssize_t tri_seqr_len(const struct tri_seqr *r)
{
    return r->n;
}

void tri_seqr_clear(struct tri_seqr *r)
{
    dec_clear(&r->d);
    Py_CLEAR(r->spare);
    r->i = r->n;
}

/* What remains to be done for the last tagged value, or for one that is malformed (v is NULL). */
static __attribute__((noinline)) PyObject *seqr_end(struct tri_seqr *r, PyObject *v)
{
    if (v && left(&r->d)) {
        Py_DECREF(v);
        v = malformed();
    }
    tri_seqr_clear(r);
    return v;
}

void tri_seqr_reuse(struct tri_seqr *r)
{
    r->reuse = INTS_WRITABLE;
}

/*
 * An int item.  A reader that reuses keeps a reference to the last one; when nobody else has
 * kept one, that object is written over, as nobody can tell it from one freed and made anew.
 */
INLINE PyObject *seqr_int(struct tri_seqr *r, int64_t x)
{
#if INTS_WRITABLE
    if (r->reuse && int_fits(x)) {
        if (!r->spare || Py_REFCNT(r->spare) != 1) {
            Py_XDECREF(r->spare);
            r->spare = int_roomy();
            if (UNLIKELY(!r->spare))
                return NULL;
        }
        int_write((PyLongObject *)r->spare, x);
        return Py_NewRef(r->spare);
    }
#endif
    return PyLong_FromLongLong(x);
}

PyObject *tri_seqr_next(struct tri_seqr *r)
{
    int64_t x;
    double f;
    PyObject *v;

    if (UNLIKELY(r->i >= r->n))
        return malformed();
    switch (r->form) {
    case SEQ_INT64:
        memcpy(&x, r->d.p, 8);
        r->d.p += 8;
        r->i++;
        return seqr_int(r, x);
    case SEQ_DOUBLE:
        memcpy(&f, r->d.p, 8);
        r->d.p += 8;
        r->i++;
        return PyFloat_FromDouble(f);
    case SEQ_RANGE:
        x = (int64_t)((uint64_t)r->start + (uint64_t)r->i * (uint64_t)r->step);
        r->i++;
        return seqr_int(r, x);
    default:
        r->d.owed--;
        v = decode_value(&r->d, 0);
        if (UNLIKELY(++r->i == r->n || !v))
            v = seqr_end(r, v);
        return v;
    }
}

#if INTS_WRITABLE && !defined(Py_REF_DEBUG) && !defined(Py_TRACE_REFS)
/*
 * A column of ints: the owner of a map spends most of its time here.  Each is a copy of one int
 * with other digits, which saves two calls that find out how large it is and fill in its header.
 * How many were made, all of them or those before an exception.
 */
static Py_ssize_t decode_ints(struct tri_seqr *r, PyObject **out)
{
    PyObject *model = int_roomy();
    Py_ssize_t i;
    int64_t x;

    for (i = 0; model && i < r->n; i++) {
        memcpy(&x, r->d.p, 8);
        PIN(x);
        r->d.p += 8;
        if (int_fits(x)) {
            out[i] = PyObject_Malloc(INT_BYTES);
            if (UNLIKELY(!out[i])) {
                PyErr_NoMemory();
                break;
            }
            memcpy(out[i], model, INT_BYTES);
            int_write((PyLongObject *)out[i], x);
        } else {
            out[i] = PyLong_FromLongLong(x);
            if (UNLIKELY(!out[i]))
                break;
        }
    }
    Py_XDECREF(model);
    return i;
}
#define DECODE_INTS 1
#else
#define DECODE_INTS 0
#define decode_ints(r, out) 0
#endif

int tri_decode_seq(const uint8_t *p, size_t len, PyObject **out, Py_ssize_t n)
{
    struct tri_seqr r;
    Py_ssize_t i;

    if (tri_seqr_init(&r, p, len) < 0)
        return -1;
    if (r.n != n) {
        PyErr_Format(PyExc_ValueError, "malformed bytes: %zd items where %zd were due", r.n, n);
        return -1;
    }
    if (DECODE_INTS && r.form == SEQ_INT64 && n > FEW_INTS) {
        i = decode_ints(&r, out);
        if (i == n)
            return 0;
        goto undo;
    }
    for (i = 0; i < n; i++) {
        out[i] = tri_seqr_next(&r);
        if (UNLIKELY(!out[i]))
            goto undo;
    }
    return 0;
undo:
    tri_seqr_clear(&r);
    while (i-- > 0)
        Py_CLEAR(out[i]);
    return -1;
}
