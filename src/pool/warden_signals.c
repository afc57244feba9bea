/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * warden_signals.c - what signals do in a warden, and in the workers that it forks.
 *
 * A warden hears of deaths by a descriptor, runs no handler of the owner's program, and stays for
 * as long as its owner: what a terminal, a batch system or a time limit sends to the whole group is
 * the owner's to answer, and a warden that died of it would take away what it answers with.
 *
 * What is so for the warden is not its workers' to inherit, nor their children's.  A worker has
 * what the program had that it is a copy of, handlers included (faulthandler's among them), but for
 * three: SIGINT and SIGQUIT do nothing there (if the program ignores them, they are ignored),
 * SIGCHLD is the default.  It blocks what the program blocks, but not SIGINT.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "pool/pool.h"

/* Where signalfd is refused, a pipe that the handler of SIGCHLD writes to takes its place. */
static int child_pipe = -1;
static struct sigaction was[NSIG]; /* what each signal did in the program */
static sigset_t blocked;           /* and which of them it blocks */
static bool known;                 /* both are: this is a warden, or a fork of one */

/* A signal that does nothing, rather than SIG_IGN, which programs started by tasks would inherit:
 * Ctrl-C is the owner's business. */
static void nothing(int sig)
{
    (void)sig;
}

static void on_child(int sig)
{
    int err = errno;
    ssize_t n = write(child_pipe, "", 1);

    (void)sig;
    (void)n; /* full: it will be read all the same */
    errno = err;
}

static int open_child_pipe(const sigset_t *chld)
{
    struct sigaction sa = {.sa_handler = on_child, .sa_flags = SA_RESTART};
    int fd[2];

    if (pipe2(fd, O_CLOEXEC | O_NONBLOCK) < 0)
        _exit(1); /* deaf to deaths it would be worse than none; the owner sees the socket's end */
    child_pipe = fd[1];
    sigaction(SIGCHLD, &sa, NULL);
    sigprocmask(SIG_UNBLOCK, chld, NULL);
    return fd[0];
}

/* Those by which a process of its own says what is wrong with it, or by which it stops. */
static bool stays_default(int sig)
{
    static const int those[] = {SIGSEGV, SIGBUS,  SIGFPE,  SIGILL,  SIGABRT, SIGTRAP,
                                SIGSYS,  SIGXCPU, SIGXFSZ, SIGTSTP, SIGTTIN, SIGTTOU,
                                SIGCONT, SIGCHLD, SIGURG,  SIGWINCH};

    for (size_t i = 0; i < sizeof those / sizeof *those; i++)
        if (those[i] == sig)
            return true;
    return false;
}

int tri_warden_signals(const sigset_t *mask)
{
    struct sigaction dfl = {.sa_handler = SIG_DFL}, ign = {.sa_handler = SIG_IGN};
    struct sigaction none = {.sa_handler = nothing, .sa_flags = SA_RESTART};
    sigset_t chld;
    int fd;

    if (mask)
        blocked = *mask;
    else
        sigprocmask(SIG_SETMASK, NULL, &blocked);
    sigdelset(&blocked, SIGINT);
    known = true;
    for (int s = 1; s < NSIG; s++)
        if (sigaction(s, NULL, &was[s]) == 0 && was[s].sa_handler != SIG_IGN)
            sigaction(s, stays_default(s) ? &dfl : &none, NULL);
    sigaction(SIGCHLD, &dfl, NULL);
    sigaction(SIGINT, &ign, NULL);
    sigaction(SIGQUIT, &ign, NULL);
    sigaction(SIGPIPE, &ign, NULL);
    sigemptyset(&chld);
    sigaddset(&chld, SIGCHLD);
    sigprocmask(SIG_SETMASK, &chld, NULL);
    child_pipe = -1;
    fd = signalfd(-1, &chld, SFD_CLOEXEC | SFD_NONBLOCK);
    return fd < 0 ? open_child_pipe(&chld) : fd;
}

void tri_worker_signals_begin(void)
{
    struct sigaction sa = {.sa_handler = nothing, .sa_flags = SA_RESTART};

    if (child_pipe >= 0) {
        signal(SIGCHLD, SIG_DFL);
        close(child_pipe);
    }
    for (int s = 1; s < NSIG; s++)
        if (was[s].sa_handler != SIG_IGN || s == SIGPIPE)
            if (s != SIGCHLD && s != SIGINT)
                sigaction(s, s == SIGQUIT ? &sa : &was[s], NULL);
}

void tri_worker_signals_end(bool execs)
{
    struct sigaction sa = {.sa_handler = nothing, .sa_flags = SA_RESTART}, now;
    sigset_t mask;

    if (known)
        mask = blocked;
    else /* started by an exec */
        sigprocmask(SIG_SETMASK, NULL, &mask);
    sigaction(SIGINT, NULL, &now);
    if (known)
        now = was[SIGINT];
    if (execs) {
        if (now.sa_handler != SIG_IGN)
            signal(SIGINT, SIG_DFL);
        sigaddset(&mask, SIGINT); /* until the program there has its own handler */
    } else {
        sigdelset(&mask, SIGINT);
        if (now.sa_handler != SIG_IGN)
            sigaction(SIGINT, &sa, NULL);
    }
    sigprocmask(SIG_SETMASK, &mask, NULL);
}
