/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * codec.h - the fast binary form of common Python values.
 *
 * A value is *simple* when it is None, or exactly a bool, int, float, complex, str, bytes, tuple,
 * list or dict, made of simple values, within the limits below, and without sharing (see
 * tri_encode).  A simple value comes back equal and of the same types, bit for bit: NaN payloads,
 * -0.0, lone surrogates and the order of a dict included.  Everything else is NOT_SIMPLE and the
 * caller pickles it; subclasses are never simple, so a namedtuple, an IntEnum or a numpy scalar
 * keeps its type.
 *
 * Bytes are in the machine's own order: they never leave it.  A decoder trusts nothing it reads:
 * it stays within the given length, recurses to TRI_ENC_DEPTH at most, allocates in proportion to
 * the bytes that are there, copies before it checks (the other side could still write), and calls
 * no code of the user's; a garbage collection, which Python 3.11 may start when a container is
 * made, can run finalizers as it can anywhere.  Malformed bytes are a ValueError or another value,
 * never a crash.
 *
 * Threads: every call holds the GIL, or an attached thread state in a free-threaded build.  A
 *          buffer, reader or writer belongs to one thread at a time; there is no state elsewhere.
 * Blocks:  never.
 */
#ifndef TRI_CODEC_H
#define TRI_CODEC_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ------------------------------------------------------------------ the output buffer */

/*
 * A growable buffer that starts in memory of the caller's, the inline area of a slot say, and
 * moves to malloc when that is full.  The bytes are p[0..len) wherever they lie; p is not `fixed`
 * exactly when they have moved.  `fixed` must outlive the buffer and is never freed by it.
 */
struct tri_buf {
    uint8_t *p;
    size_t len, cap;
    uint8_t *fixed;
    size_t fixed_cap;
};

/* Empty the buffer into fixed[0..fixed_cap); fixed may be NULL when fixed_cap is 0. */
void tri_buf_init(struct tri_buf *b, void *fixed, size_t fixed_cap);

/* Free what the buffer allocated and leave it as tri_buf_init did, ready for use again. */
void tri_buf_free(struct tri_buf *b);

/*
 * Make room for `more` bytes after len.
 *
 * @return 0, or -1 with MemoryError set and the buffer unchanged.
 */
int tri_buf_reserve(struct tri_buf *b, size_t more);

/* ------------------------------------------------------------------ limits of simple values */

enum {
    TRI_ENC_DEPTH = 32,             /* containers inside one another, the outermost counted */
    TRI_ENC_INT_BYTES = 512,        /* of an int in two's complement: -2**4095 <= x < 2**4095 */
    TRI_ENC_STR_BYTES = 1 << 20,    /* one str or bytes; pickle moves larger ones out of band */
    TRI_ENC_VALUE_BYTES = 16 << 20, /* one value: a str met often is written as often */
    TRI_ENC_SEQ_BYTES = 64 << 20    /* one sequence of tagged values; columns have no limit */
};

enum {
    TRI_ENC_OK = 0,         /* written */
    TRI_ENC_NOT_SIMPLE = 1, /* nothing written, no exception: pickle it */
    TRI_ENC_ERROR = -1      /* nothing written, an exception is set (MemoryError) */
};

/* ------------------------------------------------------------------ one value */

/*
 * Append one value.
 *
 * Pickle restores two references to one object as two references to one object, and cycles as
 * cycles.  Values written here keep that promise by refusal: a value in which one tuple, list or
 * dict (other than the empty tuple) is reached twice is NOT_SIMPLE.  Sharing of ints, floats, str
 * and bytes is not kept; it shows only through `is`.  The promise is per value: items of a
 * sequence that share a list come back with a copy each, unless they share so much that the
 * sequence is NOT_SIMPLE.
 *
 * No user code runs.  References are borrowed for the duration of the call.
 *
 * @return TRI_ENC_OK; otherwise the buffer has its length from before the call.
 */
int tri_encode(struct tri_buf *b, PyObject *v);

/*
 * Read one value from p[0..n), aligned or not.
 *
 * @param used  Receives how many bytes the value took; untouched on failure.  NULL: the value must
 *              take all n.
 *
 * @return a new reference, or NULL with ValueError (malformed) or MemoryError.
 */
PyObject *tri_decode(const uint8_t *p, size_t n, size_t *used);

/* ------------------------------------------------------------------ sequences */

/*
 * A sequence is an 8-byte header and n items: as a column of int64 or of double, as a range, or
 * as tagged values one after another.  It should start at a multiple of 8, so that columns are
 * aligned, but is read right anywhere.  Its length travels outside and must be exact.
 */

/*
 * Append n values as one sequence, as a column when all are ints of 64 bits or all are floats.
 *
 * @return as tri_encode.  NOT_SIMPLE when any item is, or when several items hold so much that
 *         is the same: the caller pickles the whole chunk, in which each object is once.
 */
int tri_encode_seq(struct tri_buf *b, PyObject *const *items, Py_ssize_t n);

/*
 * The same for the arguments of one call, in the same form: NOT_SIMPLE also when two of them are or
 * hold the same container, which pickle keeps one object.
 */
int tri_encode_args(struct tri_buf *b, PyObject *const *args, Py_ssize_t n);

/*
 * Append the sequence start, start + step, ... of n ints in 24 bytes.
 *
 * @return TRI_ENC_OK, or NOT_SIMPLE when start or step is not exactly an int, n is negative, or
 *         any of the ints, and with it the last, leaves 64 bits.
 */
int tri_encode_range(struct tri_buf *b, PyObject *start, PyObject *step, Py_ssize_t n);

/*
 * Read a whole sequence of n items.
 *
 * @param out  Receives n new references; on failure holds none, and what was written is NULL.
 *
 * @return 0, or -1 with ValueError (malformed, or not of n items) or MemoryError.
 */
int tri_decode_seq(const uint8_t *p, size_t len, PyObject **out, Py_ssize_t n);

/* A place in encoded bytes, and what was met on the way there.  All fields are private. */
struct tri_dec {
    const uint8_t *p, *end; /* what is not read yet */
    size_t owed;            /* values that open containers wait for, of a byte each at least */
    uint32_t have;          /* bit i: key[i] is a reference */
    PyObject *key[16];      /* str keys of dicts read lately: a thousand records share one "name" */
};

/* Reads a sequence item by item.  All fields are private. */
struct tri_seqr {
    Py_ssize_t n, i;     /* items in all, items read */
    int64_t start, step; /* of a range */
    int form;
    bool reuse;
    PyObject *spare; /* the last int given out, when it may be written over */
    struct tri_dec d;
};

/*
 * Start reading p[0..len), which must stay until the last item is read.  No item is touched yet.
 *
 * @return 0, or -1 with ValueError; tri_seqr_clear is allowed then and not needed.
 */
int tri_seqr_init(struct tri_seqr *r, const uint8_t *p, size_t len);

/*
 * Items in all.  Bounded by len for columns and tagged values, but *not* for a range, so compare
 * it with what was asked for before allocating by it.
 */
Py_ssize_t tri_seqr_len(const struct tri_seqr *r);

/*
 * The next item, at most tri_seqr_len times.
 *
 * @return a new reference, or NULL with ValueError (malformed, or past the end) or MemoryError;
 *         after an error the reader can only be cleared.
 */
PyObject *tri_seqr_next(struct tri_seqr *r);

/*
 * From now on an int that the caller has dropped when it asks for the next one may be the same
 * object with another value.  For who drops most items at once.
 */
void tri_seqr_reuse(struct tri_seqr *r);

/*
 * Drop what the reader remembers.  The last item and any error do so themselves, so this is
 * needed only by who may stop in the middle, and harmless at any time after tri_seqr_init.
 */
void tri_seqr_clear(struct tri_seqr *r);

/*
 * Writes a sequence whose items come one at a time.  The first item chooses: an int or a float
 * opens a column, and the first that does not fit in it turns all into tagged values.  All fields
 * are private.  The buffer must not be used for anything else between init and finish.
 */
struct tri_seqw {
    struct tri_buf *b;
    size_t head;         /* where the header is in the buffer */
    Py_ssize_t n;        /* items written */
    Py_ssize_t expected; /* items to make room for at first */
    int form;
};

/* Start a sequence at the buffer's end.  `expected` is a hint, 0 when unknown. */
void tri_seqw_init(struct tri_seqw *w, struct tri_buf *b, Py_ssize_t expected);

/*
 * Append one item; it need not be kept alive afterwards.
 *
 * @return as tri_encode.  After NOT_SIMPLE or an error the items before are still there: finish
 *         seals them, so that they can be read back and the whole be pickled instead.
 */
int tri_seqw_add(struct tri_seqw *w, PyObject *v);

/*
 * Seal the sequence of the items added.  It is not readable before.
 *
 * @return 0, or -1 with MemoryError (possible only when nothing was added).
 */
int tri_seqw_finish(struct tri_seqw *w);

/* ------------------------------------------------------------------ for the tests */

/*
 * Add _encode, _decode and their like to a module, for tests and measurements.
 *
 * @return 0, or -1 with an exception.
 */
int tri_codec_add_functions(PyObject *module);

#endif
