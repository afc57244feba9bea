/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * run_crash.c - last words: where a worker's Python code was when its process crashed.
 *
 * A WorkerLost that says "killed by SIGSEGV" leaves its reader to find out where.  The standard
 * library's faulthandler knows, but writes it to a file, and each worker would need one that its
 * owner can read and no task can close.  So a handler of ours stands before faulthandler's.  In it
 *
 *   1. a pipe takes the place of the descriptor that faulthandler writes to;
 *   2. faulthandler's handler is called: it writes the stacks, puts back what it had replaced, and
 *      raises the signal again, which waits, because it is blocked as long as we are here;
 *   3. what is in the pipe goes to this worker's place in the pool's memory (tri_worker_last());
 *   4. we return, and the process dies of the signal, as it would have without us.
 *
 * All of it is safe in a signal's handler.  What is to be done before is done once in a fork server
 * (crash_expect()): each page that its workers write to is theirs alone.  With fork each worker has
 * to do it, since the owner's signals are not ours to change.
 *
 * A task that calls faulthandler.enable() has its stacks where it wants them.  Where faulthandler
 * is enabled already (-X faulthandler, or with fork by the program) it is left as it is, and what
 * it writes to stderr comes there as well.  A handler of somebody else's for SIGSEGV is left alone.
 *
 * Source: faulthandler_fatal_error() in CPython's Modules/faulthandler.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "run.h"

#define STACK_BYTES (64u << 10)

static const int fatal[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};

enum { NFATAL = sizeof fatal / sizeof *fatal };

/* One for the process, as signals' handlers are; a process is the worker of one pool. */
static struct {
    struct tri_worker *w;
    pid_t pid;      /* a fork of this process has no place to write to */
    int fd;         /* what faulthandler writes to */
    bool ours;      /* we have enabled it */
    bool theirs;    /* it was enabled before */
    bool ready;     /* by crash_expect(), in the process that this one is a fork of */
    uint32_t below; /* frames of the process that forks, 0: there is none */
    uint32_t skip;  /* `below` of this one */
    struct sigaction next[NFATAL]; /* faulthandler's */
} crash;

static void call_next(int sig, siginfo_t *info, void *context)
{
    for (int i = 0; i < NFATAL; i++)
        if (fatal[i] == sig && (crash.next[i].sa_flags & SA_SIGINFO))
            crash.next[i].sa_sigaction(sig, info, context);
        else if (fatal[i] == sig)
            crash.next[i].sa_handler(sig);
}

/* What was meant for stderr: the part that went to the owner, and the rest. */
static void pass_on(int from, int to)
{
    const struct tri_worker_line *line = &crash.w->view.worker[crash.w->id];
    uint32_t len = tri_load_rlx(&line->last_len);
    char buf[256];
    ssize_t n = write(to, line->last, len < TRI_WORKER_LAST ? len : TRI_WORKER_LAST);

    while (n >= 0 && (n = read(from, buf, sizeof buf)) > 0)
        n = write(to, buf, (size_t)n);
}

/* A pipe whose ends are not where faulthandler writes to; one takes that place.  `kept` gets what
 * was there, -1: nothing. */
static bool open_pipe(int ends[2], int *kept)
{
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
        return false;
    for (int i = 0; i < 2; i++)
        if (ends[i] == crash.fd)
            ends[i] = fcntl(crash.fd, F_DUPFD_CLOEXEC, 3);
    *kept = fcntl(crash.fd, F_DUPFD_CLOEXEC, 3);
    return ends[0] >= 0 && ends[1] >= 0 && (*kept >= 0 || errno == EBADF) &&
           dup2(ends[1], crash.fd) >= 0;
}

/* Let there be room for a few descriptors more: a task may have used up, or lowered, its limit.
 * Where there is no higher one some of its files are closed, in a process that dies at once. */
static bool make_room(void)
{
    struct rlimit most;

    if (crash.theirs || getrlimit(RLIMIT_NOFILE, &most) < 0)
        return false;
    if (most.rlim_cur < most.rlim_max) {
        most.rlim_cur = most.rlim_max;
        return setrlimit(RLIMIT_NOFILE, &most) == 0;
    }
    for (int i = 0; i < 3; i++)
        close(crash.fd - i);
    return true;
}

static void on_crash(int sig, siginfo_t *info, void *context)
{
    int err = errno, ends[2], kept = -1;
    bool mine = getpid() == crash.pid;
    bool heard = mine && (open_pipe(ends, &kept) || (make_room() && open_pipe(ends, &kept)));
    sigset_t waiting;

    /* Into no file of a task's, and the library prints nothing. */
    if (!heard && !crash.theirs && kept < 0)
        kept = fcntl(crash.fd, F_DUPFD_CLOEXEC, 3);
    if (!heard && !crash.theirs)
        close(crash.fd);
    call_next(sig, info, context); /* it may have been given another descriptor since */
    if (!heard && kept >= 0) {
        dup2(kept, crash.fd);
        close(kept);
    }
    if (heard) {
        tri_worker_last(crash.w, ends[0], crash.skip, "Current thread");
        if (crash.theirs && kept >= 0)
            pass_on(ends[0], kept);
        if (kept >= 0) {
            dup2(kept, crash.fd);
            close(kept);
        } else {
            close(crash.fd);
        }
        close(ends[0]);
        close(ends[1]);
    }
    /* Or what was called has found that this is no crash. */
    if (!crash.theirs || (sigpending(&waiting) == 0 && sigismember(&waiting, sig)))
        signal(sig, SIG_DFL);
    errno = err;
}

/* How many frames lie below this call. */
static uint32_t depth(void)
{
    PyFrameObject *frame = PyEval_GetFrame(), *back;
    uint32_t n = 0;

    for (Py_XINCREF(frame); frame; frame = back, n++) {
        back = PyFrame_GetBack(frame);
        Py_DECREF(frame);
    }
    return n;
}

/* A task that recurses too deep has no stack left to say so on. */
static void give_stack(void)
{
    static char *stack;
    stack_t now;

    if (sigaltstack(NULL, &now) < 0 || !(now.ss_flags & SS_DISABLE))
        return;
    if (!stack)
        stack = malloc(STACK_BYTES);
    if (stack)
        sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = STACK_BYTES}, NULL);
}

static PyObject *enable_to(PyObject *module, int fd)
{
    PyObject *call = PyObject_GetAttrString(module, "enable"), *args = Py_BuildValue("(i)", fd);
    PyObject *kw = NULL, *r = NULL;

#if PY_VERSION_HEX >= 0x030e0000
    kw = Py_BuildValue("{sO}", "c_stack", Py_False); /* it may allocate memory, and so hang */
#endif
    if (call && args && !PyErr_Occurred())
        r = PyObject_Call(call, args, kw);
    Py_XDECREF(call);
    Py_XDECREF(args);
    Py_XDECREF(kw);
    return r;
}

/* The last number for which the kernel's table of descriptors has room without growing much. */
static int far(void)
{
    struct rlimit most;
    rlim_t n = getrlimit(RLIMIT_NOFILE, &most) == 0 ? most.rlim_cur : 256;

    return (int)(n < 1024 ? n : 1024) - 1;
}

/*
 * Where it is not enabled, which `crash.theirs` says then, have it write to a descriptor.  Only the
 * number matters: it must be open now, it should not become that of a file to which a task has
 * faulthandler write, and nothing is written to it before on_crash() has put a pipe there.  True:
 * faulthandler's handlers are in place.
 */
static bool enable(PyObject *module)
{
    bool ours = crash.ours; /* this is a fork of a worker */
    PyObject *r = PyObject_CallMethod(module, ours ? "disable" : "is_enabled", NULL);
    struct sigaction now;
    int ends[2];

    crash.ours = false;
    crash.theirs = r == Py_True && !ours;
    crash.fd = STDERR_FILENO;
    Py_XDECREF(r);
    if (!r || crash.theirs)
        return r != NULL;
    if (sigaction(SIGSEGV, NULL, &now) < 0 || (now.sa_flags & SA_SIGINFO) ||
        now.sa_handler != SIG_DFL || pipe2(ends, O_CLOEXEC) < 0)
        return false;
    crash.fd = fcntl(ends[1], F_DUPFD_CLOEXEC, far());
    if (crash.fd >= 0) {
        r = enable_to(module, crash.fd);
        crash.ours = r != NULL;
        Py_XDECREF(r);
        close(crash.fd);
    }
    close(ends[0]);
    close(ends[1]);
    return crash.ours;
}

/* One handler for all: faulthandler's, and no other's over it. */
static bool find_next(void)
{
    for (int i = 0; i < NFATAL; i++)
        if (sigaction(fatal[i], NULL, &crash.next[i]) < 0 || crash.next[i].sa_handler == SIG_DFL ||
            crash.next[i].sa_handler != crash.next[0].sa_handler)
            return false;
    return true;
}

void crash_fork(void)
{
    crash.below = depth();
}

void crash_serve(void)
{
    crash.skip = depth();
}

void crash_expect(void)
{
    PyObject *module = imported("faulthandler");
    struct sigaction before[NFATAL];

    for (int i = 0; i < NFATAL; i++)
        sigaction(fatal[i], NULL, &before[i]);
    if (module && !crash.ready && enable(module) && crash.ours) {
        crash.ready = find_next();
        for (int i = 0; i < NFATAL; i++)
            sigaction(fatal[i], &before[i], NULL);
    }
    PyErr_Clear();
    Py_XDECREF(module);
}

void crash_begin(struct tri_worker *w)
{
    struct sigaction sa = {.sa_sigaction = on_crash, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    bool ready = crash.ready;

    crash.w = w;
    crash.pid = getpid();
    crash.ready = false; /* if a task forks workers, these are not forks of the fork server */
    if (!ready) {
        PyObject *module = imported("faulthandler");

        ready = module && enable(module) && find_next();
        PyErr_Clear();
        Py_XDECREF(module);
    }
    if (!ready)
        return;
    crash.skip = crash.below ? crash.below : depth();
    crash.below = 0;
    give_stack();
    sigemptyset(&sa.sa_mask);
    for (int i = 0; i < NFATAL; i++)
        sigaddset(&sa.sa_mask, fatal[i]);
    for (int i = 0; i < NFATAL; i++)
        sigaction(fatal[i], &sa, NULL);
}
