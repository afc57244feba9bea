/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * run_signals.c - signals in a worker: what Python knows of them, and what its handlers raise.
 *
 * What each does there is src/pool/warden_signals.c's to say.  Python keeps a table of its own,
 * which a fork inherits; own_signals() makes it true.  Handlers that a task, an initializer or
 * (with fork) the program has set run as in any process: in a task as soon as its code goes on, and
 * at once when the worker sleeps for work.  What they raise there ends the process.
 */
#include <signal.h>
#include <unistd.h>

#include "run.h"

/* PyImport_ImportModule() of what is there already: that would run code of Python's, and each page
 * it writes to costs a fork 3 us. */
PyObject *imported(const char *name)
{
    PyObject *text = PyUnicode_FromString(name), *module = text ? PyImport_GetModule(text) : NULL;

    if (!module && !PyErr_Occurred())
        module = PyImport_Import(text);
    Py_XDECREF(text);
    return module;
}

/* Have signal.getsignal() say 0 (SIG_DFL) or 1 (SIG_IGN), whatever the process really does. */
static int say_of(PyObject *module, int sig, int what)
{
    PyObject *r = PyObject_CallMethod(module, "getsignal", "i", sig);
    struct sigaction now;
    bool said = r && PyLong_Check(r) && PyLong_AsLong(r) == what;

    Py_XDECREF(r);
    if (said || PyErr_Occurred())
        return said ? 0 : -1;
    sigaction(sig, NULL, &now);
    r = PyObject_CallMethod(module, "signal", "ii", sig, what);
    sigaction(sig, &now, NULL);
    Py_XDECREF(r);
    return r ? 0 : -1;
}

/*
 * Of SIGINT the table of a fork says what the owner does.  Code that looks there and puts it back
 * when it has done, as asyncio.run() does, would let Ctrl-C in.  And the descriptor by which an
 * owner's event loop hears of signals is not a worker's to write to.
 */
int own_signals(void)
{
    PyObject *module = imported("_signal"), *r = NULL;

    if (module && say_of(module, SIGINT, 1) == 0 && say_of(module, SIGCHLD, 0) == 0)
        r = PyObject_CallMethod(module, "set_wakeup_fd", "i", -1);
    Py_XDECREF(module);
    Py_XDECREF(r);
    return r ? 0 : -1;
}

PyObject *expect_forks(PyObject *module, PyObject *none)
{
    (void)none;
    if (own_signals() < 0)
        return NULL;
    state_of(module)->signals_said = true;
    crash_expect();
    Py_RETURN_NONE;
}

static _Noreturn void end_by_exception(struct tri_worker *w)
{
    PyObject *kind, *exc, *tb, *code;
    int number = 1;

    if (PyErr_ExceptionMatches(PyExc_SystemExit)) {
        PyErr_Fetch(&kind, &exc, &tb);
        PyErr_NormalizeException(&kind, &exc, &tb);
        code = PyObject_GetAttrString(exc, "code");
        if (code == Py_None)
            number = 0;
        else if (code && PyLong_Check(code))
            number = (int)PyLong_AsLong(code);
        PyErr_Clear();
    } else {
        PyErr_PrintEx(0);
    }
    process_end(w);
    _exit(number);
}

void run_rest(struct tri_worker *w)
{
    /* Handlers run in the main thread, which no thread of a pool is; and what is set from outside
     * for one of these (PyThreadState_SetAsyncExc) is for a task's code to raise. */
    if (!w->process || PyErr_CheckSignals() == 0) {
        Py_BEGIN_ALLOW_THREADS tri_worker_rest(w);
        Py_END_ALLOW_THREADS
    }
    if (w->process && PyErr_CheckSignals() < 0)
        end_by_exception(w);
}
