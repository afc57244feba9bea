/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * codec.c - the fast binary form of common Python values; see codec.h for what it promises.
 *
 * A value is one tag byte and its body; a container is a tag, a count and that many values.
 * Numbers are unaligned and in the machine's order, so every load and store is a memcpy.  Counts
 * and lengths have a short form of one byte, because most tasks are small and live in a slot.
 *
 *     NONE FALSE TRUE                  -
 *     INT8 INT32 INT64                 1, 4, 8 bytes
 *     INT                              u16 size, size bytes of two's complement, little endian
 *     FLOAT COMPLEX                    one or two doubles
 *     ASCII8 BYTES8                    u8 length, bytes
 *     ASCII BYTES STR1 STR2 STR4       u32 length, units of 1, 1, 1, 2, 4 bytes as str keeps them
 *     TUPLE8 LIST8 DICT8               u8 count, values (a dict: key, value, key, value)
 *     TUPLE LIST DICT                  u32 count, values
 *
 * A sequence is a u64 header, n << 8 | form, and what the form says:
 *
 *     SEQ_TAGGED      n values             SEQ_RANGE       int64 start, step
 *     SEQ_INT64       n int64              SEQ_DOUBLE      n doubles
 *
 * Why sharing is found cheaply.  A container whose reference count is 1 is held by the one place
 * from which we came, so it cannot be met twice *through two references to itself*.  If any
 * container C is reached by two paths, walk back from C while the paths agree; where they first
 * differ stands a container with two references, or the outermost value itself.  So it is enough
 * to remember the outermost value and the inner containers with more than one reference, and to
 * give up when one of them comes again.  This needs tuples as much as lists: ([],) twice is the
 * same list twice, and a tuple of twice the same tuple, thirty deep, would be a billion items.
 * Tried: remembering every container, as pickle's memo does; it doubled the cost of nested rows.
 *
 * Why a count cannot make us allocate.  Every value takes at least one byte.  `owed` is the number
 * of values that the open containers still wait for, so a new container may ask for no more
 * than the bytes left less those owed; all containers together then hold at most as many items as
 * there are input bytes, however deep they claim to be.
 */
#include "codec.h"
#include "ints.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define FEW_INTS 16 /* of a column so short each is made for itself */
#define INLINE static inline __attribute__((always_inline))
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

enum tag {
    T_NONE = 0,
    T_FALSE,
    T_TRUE,
    T_INT8,
    T_INT32,
    T_INT64,
    T_INT,
    T_FLOAT,
    T_COMPLEX,
    T_ASCII8,
    T_ASCII,
    T_STR1,
    T_STR2,
    T_STR4,
    T_BYTES8,
    T_BYTES,
    T_TUPLE8,
    T_TUPLE,
    T_LIST8,
    T_LIST,
    T_DICT8,
    T_DICT
};

enum form {
    SEQ_EMPTY = 0, /* a writer's, before its first item; never in a header */
    SEQ_TAGGED,
    SEQ_INT64,
    SEQ_DOUBLE,
    SEQ_RANGE
};

enum {
    HEADER = 8,
    NUMBER_MAX = 9,        /* tag and body of the longest INT8, INT32, INT64, FLOAT */
    KEY_MAX = 64,          /* characters of a key worth remembering */
    EXPECTED_MAX = 1 << 16 /* items that a writer makes room for on somebody's word */
};

/* ------------------------------------------------------------------ the buffer */

void tri_buf_init(struct tri_buf *b, void *fixed, size_t fixed_cap)
{
    b->p = b->fixed = fixed;
    b->cap = b->fixed_cap = fixed_cap;
    b->len = 0;
}

void tri_buf_free(struct tri_buf *b)
{
    if (b->p != b->fixed)
        free(b->p);
    tri_buf_init(b, b->fixed, b->fixed_cap);
}

__attribute__((noinline)) int tri_buf_reserve(struct tri_buf *b, size_t more)
{
    size_t need, cap;
    uint8_t *p;

    if (b->cap - b->len >= more)
        return 0;
    need = b->len + more;
    if (need < more || need > PY_SSIZE_T_MAX) {
        PyErr_NoMemory();
        return -1;
    }
    cap = b->cap < 256 ? 256 : b->cap;
    while (cap < need)
        cap += cap / 2;
    if (b->p != b->fixed) {
        p = realloc(b->p, cap);
    } else {
        p = malloc(cap);
        if (p && b->len)
            memcpy(p, b->p, b->len);
    }
    if (!p) {
        PyErr_NoMemory();
        return -1;
    }
    b->p = p;
    b->cap = cap;
    return 0;
}

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

static PyObject *decode_big_int(const uint8_t *p, size_t size)
{
#if PY_VERSION_HEX >= 0x030D0000
    return PyLong_FromNativeBytes(p, size, Py_ASNATIVEBYTES_LITTLE_ENDIAN);
#else
    return _PyLong_FromByteArray(p, size, 1, 1);
#endif
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

/* ------------------------------------------------------------------ encoding one value */

struct enc {
    struct tri_buf *b;
    size_t start; /* the buffer's length before the value */
    struct seen seen;
};

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

INLINE int encode_raw(struct tri_buf *b, uint8_t short_tag, uint8_t long_tag, const void *data,
                      size_t n)
{
    uint8_t *q;

    if (UNLIKELY(n > TRI_ENC_STR_BYTES))
        return TRI_ENC_NOT_SIMPLE;
    if (room(b, n + 5) < 0)
        return TRI_ENC_ERROR;
    q = put_length(b->p + b->len, short_tag, long_tag, n);
    memcpy(q, data, n);
    b->len = (size_t)(q + n - b->p);
    return TRI_ENC_OK;
}

static __attribute__((noinline)) int encode_wide_str(struct tri_buf *b, PyObject *v)
{
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
    return TRI_ENC_OK;
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
            return encode_raw(b, T_ASCII8, T_ASCII, PyUnicode_DATA(v),
                              (size_t)PyUnicode_GET_LENGTH(v));
        return encode_wide_str(b, v);
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
        return encode_raw(b, T_BYTES8, T_BYTES, PyBytes_AS_STRING(v), (size_t)PyBytes_GET_SIZE(v));
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
    PyObject *copy = NULL;
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
    return err;
}

INLINE int encode_one(struct tri_buf *b, PyObject *v)
{
    struct enc e;
    int err;

    e.b = b;
    e.start = b->len;
    e.seen.n = 0;
    e.seen.cap = 0;
    e.seen.tab = NULL;
    err = encode_value(&e, v, 0);
    if (UNLIKELY(e.seen.tab != NULL))
        free(e.seen.tab);
    if (UNLIKELY(err))
        b->len = e.start;
    return err;
}

int tri_encode(struct tri_buf *b, PyObject *v)
{
    return encode_one(b, v);
}

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

int tri_encode_seq(struct tri_buf *b, PyObject *const *items, Py_ssize_t n)
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
    for (; i < n; i++) {
        err = encode_one(b, items[i]);
        if (UNLIKELY(err))
            goto undo;
        err = TRI_ENC_NOT_SIMPLE;
        if (UNLIKELY(b->len - head > TRI_ENC_SEQ_BYTES))
            goto undo;
    }
    put_header(b->p + head, form, n);
    return TRI_ENC_OK;
undo:
    b->len = head;
    return err;
}

/* Whether start + step * (n - 1), and with it all before, has 64 bits. */
static bool range_fits(int64_t start, int64_t step, int64_t n)
{
    __extension__ typedef __int128 wide;
    wide last = (wide)start + (wide)step * (n > 0 ? n - 1 : 0);

    return last == (int64_t)last;
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
    err = encode_one(b, v);
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
