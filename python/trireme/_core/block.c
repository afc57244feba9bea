/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * block.c - arena memory as a Python buffer.
 *
 * A whole Block owns an arena block; slices of it keep it alive.  So an array made over a slice
 * keeps the memory until its last view is gone, and then the block is free again.
 *
 * In the owner a Block holds a result and is writable: nobody else uses it any more.  In a worker
 * it holds arguments and normally is gone when the task ends.  If the task kept a view, the worker
 * says so with the result, the owner leaves the block alone, and the Block sends it home when the
 * view dies.
 *
 * Arguments are read-only, which tells a task that writes to them that it has no effect at the
 * caller's.  Programs for multiprocessing take for granted that they may: the facades' workers say
 * own_arguments(), and what their tasks get is writable.  A block of arguments belongs to one task,
 * and nobody else reads it unless that task is to be run again after its worker's death; then the
 * task gets copies (args_unpickle).
 *
 * An array that was read-only where it came from is written down as such, and the unpickler would
 * make its buffer a read-only view.  But it is to be writable where its memory is: as in the
 * pickles of multiprocessing, and because a result that is a view of an argument has nothing to do
 * with that argument any more.  Its slice is shy: it shows itself read-only, so the unpickler
 * leaves it alone, and is writable for those who ask for that, as NumPy does.
 *
 * A result too large for the arena has a mapping of its own instead (src/pool/spill.c), as a shared
 * object has (mapping.c).
 */
#include <sys/mman.h>

#include "ext.h"

static BlockObject *block_new(struct state *st)
{
    return (BlockObject *)st->block_type->tp_alloc(st->block_type, 0);
}

PyObject *block_of_result(struct state *st, struct core *core, uint64_t off, uint64_t len)
{
    BlockObject *b = block_new(st);

    if (!b)
        return NULL;
    b->core = core;
    core_hold(core);
    b->off = off;
    b->ptr = core->p->view.base + off;
    b->len = (Py_ssize_t)len;
    return (PyObject *)b;
}

PyObject *block_of_mapping(struct state *st, void *at, uint64_t len, bool readonly)
{
    BlockObject *b = block_new(st);

    if (!b)
        return NULL;
    b->mapped = true;
    b->ptr = at;
    b->len = (Py_ssize_t)len;
    b->readonly = readonly;
    return (PyObject *)b;
}

PyObject *block_of_args(struct state *st, const struct tri_view *v, uint64_t off, uint64_t len,
                        bool readonly)
{
    BlockObject *b = block_new(st);

    if (!b)
        return NULL;
    b->view = v;
    b->off = off;
    b->ptr = v->base + off;
    b->len = (Py_ssize_t)len;
    b->readonly = readonly;
    return (PyObject *)b;
}

PyObject *block_slice(struct state *st, PyObject *whole, uint64_t at, uint64_t len, bool shy)
{
    BlockObject *b = block_new(st), *w = (BlockObject *)whole;

    if (!b)
        return NULL;
    b->parent = Py_NewRef(whole);
    b->ptr = w->ptr + at;
    b->len = (Py_ssize_t)len;
    b->readonly = w->readonly;
    b->shy = shy;
    return (PyObject *)b;
}

PyObject *block_of_copy(struct state *st, const uint8_t *p, uint64_t len)
{
    PyObject *copy = PyByteArray_FromStringAndSize((const char *)p, (Py_ssize_t)len);
    BlockObject *b = copy ? block_new(st) : NULL;

    if (!b) {
        Py_XDECREF(copy);
        return NULL;
    }
    b->parent = copy;
    b->ptr = (uint8_t *)PyByteArray_AS_STRING(copy);
    b->len = (Py_ssize_t)len;
    b->shy = true;
    return (PyObject *)b;
}

/* _own_arguments(): tasks of this worker may write to what they are given. */
PyObject *own_arguments(PyObject *module, PyObject *none)
{
    (void)none;
    state_of(module)->own_arguments = true;
    Py_RETURN_NONE;
}

static void block_dealloc(BlockObject *b)
{
    PyTypeObject *type = Py_TYPE(b);

    if (b->parent) {
        Py_DECREF(b->parent);
    } else if (b->core) {
        if (!tri_pool_is_fork(b->core->p))
            tri_pool_block_free(b->core->p, b->off);
        core_drop(b->core);
    } else if (b->mapped) {
        munmap(b->ptr, (size_t)b->len);
    } else if (b->kept) {
        tri_block_push(b->view, b->off);
    }
    type->tp_free(b);
    Py_DECREF(type);
}

static int block_getbuffer(BlockObject *b, Py_buffer *view, int flags)
{
    bool readonly = b->readonly || (b->shy && !(flags & PyBUF_WRITABLE));

    return PyBuffer_FillInfo(view, (PyObject *)b, b->ptr, b->len, readonly, flags);
}

static Py_ssize_t block_length(BlockObject *b)
{
    return b->len;
}

static PyType_Slot block_slots[] = {
    {Py_tp_dealloc, block_dealloc},
    {Py_bf_getbuffer, block_getbuffer},
    {Py_sq_length, block_length},
    {Py_tp_doc, "Memory of a pool's arena; free again when the last view of it is gone."},
    {0, NULL},
};

PyType_Spec block_spec = {
    .name = "trireme._core.Block",
    .basicsize = sizeof(BlockObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = block_slots,
};
