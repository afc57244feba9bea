/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * fuzz_codec.c - feeds any bytes to the decoders of Python values.
 *
 * Whatever the bytes are, tri_decode, tri_decode_seq and tri_seqr must end with a value or with
 * ValueError, within the input, and agree with each other.  A value that was decoded is simple by
 * construction, so it must encode, and the bytes so made are a fixed point: decoded and encoded
 * once more they are the same bytes.  Comparing bytes rather than values lets NaN be.
 *
 * Python is embedded, and its allocator is malloc so that the sanitizer sees every object.  With
 * the embedding flags of the Python at hand:
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined -D_GNU_SOURCE -I python/trireme/_core \
 *         fuzz/fuzz_codec.c python/trireme/_core/codec_{buf,read,write}.c \
 *         $(python3-config --includes) $(python3-config --embed --ldflags) -o fuzz_codec
 *     ./fuzz_codec -max_len=4096 -max_total_time=60
 */
#include "codec.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(x) ((x) ? (void)0 : __builtin_trap())

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    PyConfig config;
    PyStatus status;

    (void)argc;
    (void)argv;
    setenv("PYTHONMALLOC", "malloc", 1);
    setenv("PYTHONHASHSEED", "0", 1);
    PyConfig_InitPythonConfig(&config);
    config.install_signal_handlers = 0;
    config.site_import = 0;
    status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    CHECK(!PyStatus_Exception(status));
    return 0;
}

/* A decoder failed: it must have said why, and nothing but malformed input is a reason. */
static void must_be_value_error(void)
{
    CHECK(PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_ValueError));
    PyErr_Clear();
}

static void fuzz_value(const uint8_t *data, size_t size)
{
    struct tri_buf first, second;
    uint8_t area[32];
    PyObject *v, *again;
    size_t used = 0;

    v = tri_decode(data, size, &used);
    if (!v) {
        must_be_value_error();
        return;
    }
    CHECK(used >= 1 && used <= size && !PyErr_Occurred());
    tri_buf_init(&first, area, sizeof area);
    tri_buf_init(&second, NULL, 0);
    CHECK(tri_encode(&first, v) == TRI_ENC_OK);
    again = tri_decode(first.p, first.len, NULL);
    CHECK(again && Py_TYPE(again) == Py_TYPE(v));
    CHECK(tri_encode(&second, again) == TRI_ENC_OK);
    CHECK(first.len == second.len && memcmp(first.p, second.p, first.len) == 0);
    tri_buf_free(&first);
    tri_buf_free(&second);
    Py_DECREF(again);
    Py_DECREF(v);
}

/* The items, encoded whole and one at a time, must be the same bytes and decode again.  A decoder
 * gives records that share their keys: with many long ones the whole is left to pickle. */
static void encode_both_ways(PyObject *const *items, Py_ssize_t n)
{
    struct tri_buf whole, stream;
    uint8_t area[64];
    struct tri_seqw w;
    PyObject **again = calloc((size_t)n + 1, sizeof *again);
    int err;

    CHECK(again);
    tri_buf_init(&whole, NULL, 0);
    tri_buf_init(&stream, area, sizeof area);
    err = tri_encode_seq(&whole, items, n);
    CHECK(err == TRI_ENC_OK || err == TRI_ENC_NOT_SIMPLE);
    tri_seqw_init(&w, &stream, n / 2);
    for (Py_ssize_t i = 0; i < n; i++)
        CHECK(tri_seqw_add(&w, items[i]) == TRI_ENC_OK);
    CHECK(tri_seqw_finish(&w) == 0);
    if (err == TRI_ENC_OK)
        CHECK(whole.len == stream.len && memcmp(whole.p, stream.p, whole.len) == 0);
    CHECK(tri_decode_seq(stream.p, stream.len, again, n) == 0);
    for (Py_ssize_t i = 0; i < n; i++)
        Py_DECREF(again[i]);
    free(again);
    tri_buf_free(&whole);
    tri_buf_free(&stream);
}

static void fuzz_sequence(const uint8_t *data, size_t size)
{
    enum { ITEMS_MAX = 5000 }; /* a range may claim any number in 24 bytes */
    PyObject *stream[64], **out;
    Py_ssize_t n, read = 0;
    struct tri_seqr r;
    int err;

    if (tri_seqr_init(&r, data, size) < 0) {
        must_be_value_error();
        CHECK(tri_decode_seq(data, size, NULL, 0) < 0);
        must_be_value_error();
        return;
    }
    n = tri_seqr_len(&r);
    while (read < n && read < 64) {
        stream[read] = tri_seqr_next(&r);
        if (!stream[read]) {
            must_be_value_error();
            break;
        }
        read++;
    }
    tri_seqr_clear(&r);
    if (n <= ITEMS_MAX) {
        out = malloc(((size_t)n + 1) * sizeof *out);
        CHECK(out);
        err = tri_decode_seq(data, size, out, n);
        CHECK(err == 0 || read < n);
        CHECK(err == 0 ? read == n || read == 64 : 1);
        if (err < 0) {
            must_be_value_error();
        } else {
            for (Py_ssize_t i = 0; i < read; i++)
                CHECK(Py_TYPE(out[i]) == Py_TYPE(stream[i]));
            encode_both_ways(out, n);
            for (Py_ssize_t i = 0; i < n; i++)
                Py_DECREF(out[i]);
        }
        free(out);
    }
    while (read > 0) {
        read--;
        Py_DECREF(stream[read]);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_value(data, size);
    fuzz_sequence(data, size);
    CHECK(!PyErr_Occurred());
    return 0;
}
