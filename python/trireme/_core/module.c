/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * module.c - the module trireme._core: its state, its few functions, its types.
 *
 * Importing it starts nothing and opens nothing; the Python modules it calls are imported when
 * the first pool needs them.
 */
#include "ext.h"

#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <sys/syscall.h>
#include <unistd.h>

struct state *state_of(PyObject *module)
{
    return PyModule_GetState(module);
}

struct state *state_of_type(PyTypeObject *type)
{
    PyObject *m = PyType_GetModuleByDef(type, &trireme_core_module);

    return m ? state_of(m) : NULL;
}

static int get(const char *module, const char *name, PyObject **into)
{
    PyObject *m;

    if (*into)
        return 0;
    m = PyImport_ImportModule(module);
    *into = m ? PyObject_GetAttrString(m, name) : NULL;
    Py_XDECREF(m);
    return *into ? 0 : -1;
}

int state_late_imports(struct state *st)
{
    if (st->failed_type)
        return 0;
    if (get("trireme._pickling", "dumps", &st->dumps) < 0 ||
        get("trireme._pickling", "dumps_result", &st->dumps_result) < 0 ||
        get("trireme._pickling", "dumps_function", &st->dumps_function) < 0 ||
        get("trireme._pickling", "function_watch", &st->function_watch) < 0 ||
        get("trireme._pickling", "loads", &st->loads) < 0 ||
        get("trireme._pickling", "MISSING", &st->missing) < 0 ||
        get("trireme._errors", "encode_exception", &st->encode_exception) < 0 ||
        get("trireme._errors", "decode_exception", &st->decode_exception) < 0 ||
        get("trireme._losses", "lost", &st->lost) < 0 ||
        get("trireme._output", "deliver", &st->deliver) < 0 ||
        get("trireme._losses", "Failed", &st->failed_type) < 0)
        return -1;
    return 0;
}

int pace_turn(struct state *st)
{
    PyObject *r = PyObject_CallNoArgs(st->give_way);

    Py_XDECREF(r);
    return r ? 0 : -1;
}

/* It has a name and a file, since profilers show it. */
static int make_give_way(struct state *st)
{
    PyObject *globals = PyDict_New(), *done = NULL;
    PyObject *code = Py_CompileString("def give_way(): pass", "<trireme>", Py_file_input);

    if (globals && code)
        done = PyEval_EvalCode(code, globals, globals);
    if (done)
        st->give_way = Py_XNewRef(PyDict_GetItemString(globals, "give_way"));
    Py_XDECREF(done);
    Py_XDECREF(code);
    Py_XDECREF(globals);
    return st->give_way ? 0 : -1;
}

/* ------------------------------------------------------------------ functions */

int state_check_future(const struct state *st, PyObject *cls)
{
    if (PyType_Check(cls) && PyType_IsSubtype((PyTypeObject *)cls, st->future_type))
        return 0;
    PyErr_SetString(PyExc_TypeError, "a subclass of FutureBase is needed");
    return -1;
}

static PyObject *set_future_class(PyObject *module, PyObject *cls)
{
    struct state *st = state_of(module);

    if (state_check_future(st, cls) < 0)
        return NULL;
    Py_XSETREF(st->future_class, Py_NewRef(cls));
    Py_RETURN_NONE;
}

/* Called by trireme._share when it is imported. */
static PyObject *set_shared_class(PyObject *module, PyObject *cls)
{
    Py_XSETREF(state_of(module)->shared_type, Py_NewRef(cls));
    Py_RETURN_NONE;
}

/* _reload.py: functions that were sent are to be sent anew. */
static PyObject *reloaded(PyObject *module, PyObject *none)
{
    (void)none;
    state_of(module)->reloads++;
    Py_RETURN_NONE;
}

/* _bindings.py: the function that was run last may not have its globals any more. */
static PyObject *globals_changed(PyObject *module, PyObject *none)
{
    (void)none;
    state_of(module)->rebindings++;
    Py_RETURN_NONE;
}

static PyObject *cpu_count(PyObject *module, PyObject *physical)
{
    int yes = PyObject_IsTrue(physical);

    (void)module;
    return yes < 0 ? NULL : PyLong_FromLong(tri_cpu_count(yes));
}

/* The number of forks between the program's start and this process. */
static PyObject *fork_count(PyObject *module, PyObject *none)
{
    (void)module;
    (void)none;
    return PyLong_FromUnsignedLong(tri_fork_count());
}

static PyObject *pidfd_open_self(PyObject *module, PyObject *none)
{
    (void)module;
    (void)none;
    return PyLong_FromLong(syscall(SYS_pidfd_open, getpid(), 0));
}

/* The paths of the libraries in this process, a line each.  From the loader: reading
 * /proc/self/maps takes ten times as long. */
struct paths {
    char *text;
    size_t n;
    bool failed;
};

static int add_path(struct dl_phdr_info *info, size_t size, void *arg)
{
    struct paths *p = arg;
    size_t n = strlen(info->dlpi_name);
    char *text = realloc(p->text, p->n + n + 1);

    (void)size;
    if (!text) {
        p->failed = true;
        return 1;
    }
    memcpy(text + p->n, info->dlpi_name, n);
    text[p->n + n] = '\n';
    p->text = text;
    p->n += n + 1;
    return 0;
}

static PyObject *loaded(PyObject *module, PyObject *none)
{
    struct paths p = {0};
    PyObject *r;

    (void)module;
    (void)none;
    dl_iterate_phdr(add_path, &p);
    r = p.failed ? PyErr_NoMemory() : PyBytes_FromStringAndSize(p.text, (Py_ssize_t)p.n);
    free(p.text);
    return r;
}

/* How to set the number of threads of a library, which stays loaded as long as we know of it. */
struct setter {
    void *lib;
    void (*fn)(int);
    int (*get)(void);               /* of OpenBLAS; NULL in any other */
    int *available, *number, *most; /* of OpenBLAS that shows them */
};

static void free_setter(PyObject *capsule)
{
    struct setter *s = PyCapsule_GetPointer(capsule, "trireme.setter");

    if (s)
        dlclose(s->lib);
    free(s);
}

/* _setter(path, names) -> capsule: if the library at path is loaded already, and has one of these
 * functions of an int; else None. */
static PyObject *find_setter(PyObject *module, PyObject *args)
{
    const char *path, *name, *found = "";
    struct setter *s;
    PyObject *names, *r;

    (void)module;
    if (!PyArg_ParseTuple(args, "sO!", &path, &PyTuple_Type, &names))
        return NULL;
    s = calloc(1, sizeof *s);
    if (!s)
        return PyErr_NoMemory();
    s->lib = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    for (Py_ssize_t i = 0; s->lib && i < PyTuple_GET_SIZE(names) && !s->fn; i++) {
        name = PyUnicode_AsUTF8(PyTuple_GET_ITEM(names, i));
        if (!name) {
            dlclose(s->lib);
            free(s);
            return NULL;
        }
        *(void **)&s->fn = dlsym(s->lib, name);
        found = name;
    }
    if (!s->fn) {
        if (s->lib)
            dlclose(s->lib);
        free(s);
        Py_RETURN_NONE;
    }
    if (strstr(found, "openblas_set_")) {
        char getter[64];
        size_t before = (size_t)(strstr(found, "_set_") - found);

        snprintf(getter, sizeof getter, "%.*s_get_%s", (int)before, found, found + before + 5);
        *(void **)&s->get = dlsym(s->lib, getter);
    }
    s->available = dlsym(s->lib, "blas_server_avail");
    s->number = dlsym(s->lib, "blas_cpu_number");
    s->most = dlsym(s->lib, "blas_num_threads");
    r = PyCapsule_New(s, "trireme.setter", free_setter);
    if (!r) {
        dlclose(s->lib);
        free(s);
    }
    return r;
}

/* _get(setter) -> how many threads OpenBLAS would use; None of another library. */
static PyObject *get_threads(PyObject *module, PyObject *capsule)
{
    struct setter *s = PyCapsule_GetPointer(capsule, "trireme.setter");

    (void)module;
    if (!s)
        return NULL;
    if (!s->get)
        Py_RETURN_NONE;
    return PyLong_FromLong(s->get());
}

/*
 * _set(setter, n).
 *
 * OpenBLAS ends its threads when the process forks.  To set their number in the child starts them
 * all, to spin for 80 ms and wait for work that the limit keeps from them; and each worker would be
 * longer about its start and its end for it.  So what it is already is not set: around_fork() of
 * _limits.py sees to that.  Older builds show the number itself, and while there are no threads
 * that is all there is to set.
 */
static PyObject *set_threads(PyObject *module, PyObject *args)
{
    struct setter *s;
    PyObject *capsule;
    int n;

    (void)module;
    if (!PyArg_ParseTuple(args, "Oi", &capsule, &n))
        return NULL;
    s = PyCapsule_GetPointer(capsule, "trireme.setter");
    if (!s)
        return NULL;
    if (s->get && s->get() == n)
        Py_RETURN_NONE;
    if (s->available && s->number && s->most && !*s->available && n <= *s->most)
        *s->number = n;
    else
        s->fn(n);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"_loaded", loaded, METH_NOARGS, NULL},
    {"_setter", find_setter, METH_VARARGS, NULL},
    {"_set", set_threads, METH_VARARGS, NULL},
    {"_get", get_threads, METH_O, NULL},
    {"_set_future_class", set_future_class, METH_O, NULL},
    {"_set_shared_class", set_shared_class, METH_O, NULL},
    {"_reloaded", reloaded, METH_NOARGS, NULL},
    {"_globals_changed", globals_changed, METH_NOARGS, NULL},
    {"_own_arguments", own_arguments, METH_NOARGS, NULL},
    {"_expect_forks", expect_forks, METH_NOARGS, NULL},
    {"_digest", digest, METH_O, NULL},
    {"_map", map_file, METH_VARARGS, NULL},
    {"_populate", populate_memory, METH_O, NULL},
    {"_fill", fill_file, METH_VARARGS, NULL},
    {"cpu_count", cpu_count, METH_O, NULL},
    {"_fork_count", fork_count, METH_NOARGS, NULL},
    {"_pidfd_self", pidfd_open_self, METH_NOARGS, NULL},
    {"_warden_main", warden_main, METH_VARARGS, NULL},
    {"_worker_main", worker_main, METH_VARARGS, NULL},
    {"_worker_serve", worker_serve, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

/* ------------------------------------------------------------------ module */

static int add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **into)
{
    *into = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    return *into ? PyModule_AddType(module, *into) : -1;
}

static int module_exec(PyObject *module)
{
    struct state *st = state_of(module);

    if (add_type(module, &pool_spec, &st->pool_type) < 0 ||
        add_type(module, &future_spec, &st->future_type) < 0 ||
        add_type(module, &block_spec, &st->block_type) < 0 ||
        add_type(module, &fn_spec, &st->fn_type) < 0 ||
        add_type(module, &job_spec, &st->job_type) < 0 ||
        add_type(module, &handle_spec, &st->handle_type) < 0 ||
        add_type(module, &semlock_spec, &st->semlock_type) < 0 ||
        add_type(module, &event_spec, &st->event_type) < 0 ||
        add_type(module, &cond_spec, &st->cond_type) < 0 ||
        add_type(module, &mailbox_spec, &st->mailbox_type) < 0 ||
        add_type(module, &parcel_spec, &st->parcel_type) < 0)
        return -1;
    if (make_give_way(st) < 0)
        return -1;
    if (PyModule_AddStringConstant(module, "version", tri_version()) < 0)
        return -1;
    return tri_codec_add_functions(module);
}

/* clang-format moves the lines of this list again each time it sees it. */
/* clang-format off */
#define EACH_STATE(X) \
    X(pool_type) X(future_type) X(block_type) X(fn_type) X(job_type) X(handle_type) \
    X(future_class) X(dumps) X(dumps_result) X(dumps_function) X(function_watch) X(loads) \
    X(missing) X(encode_exception) X(decode_exception) X(lost) X(deliver) X(failed_type) \
    X(shared_type) X(give_way) X(mailbox_type) X(parcel_type) \
    X(semlock_type) X(event_type) X(cond_type)
/* clang-format on */

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    struct state *st = state_of(module);

#define X(name) Py_VISIT(st->name);
    EACH_STATE(X)
#undef X
    return 0;
}

static int module_clear(PyObject *module)
{
    struct state *st = state_of(module);

#define X(name) Py_CLEAR(st->name);
    EACH_STATE(X)
#undef X
    return 0;
}

static void module_free(void *module)
{
    module_clear(module);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030c0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

struct PyModuleDef trireme_core_module = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "trireme._core",
    .m_doc = "The runtime; see the package trireme.",
    .m_size = sizeof(struct state),
    .m_methods = functions,
    .m_slots = slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__core(void)
{
    return PyModuleDef_Init(&trireme_core_module);
}
