/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * warden_signals.c - what signals do in a warden, and in the workers that it forks.
 *
 * A warden hears of deaths by a descriptor, leaves Ctrl-C to the owner, and runs no handler of the
 * owner's program.  What it ignores for itself is not its workers' to inherit, nor their
 * children's: in a worker SIGINT and SIGQUIT do nothing, and SIGPIPE is what it was in the program.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "pool/pool.h"

/* Where signalfd is refused, a pipe that the handler of SIGCHLD writes to takes its place. */
static int child_pipe = -1;
static bool pipe_ignored; /* by the owner's program */

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

int tri_warden_signals(void)
{
    struct sigaction dfl = {.sa_handler = SIG_DFL}, ign = {.sa_handler = SIG_IGN}, now;
    sigset_t chld;
    int fd;

    sigaction(SIGPIPE, NULL, &now);
    pipe_ignored = now.sa_handler == SIG_IGN;
    for (int s = 1; s < 65; s++)
        if (sigaction(s, NULL, &now) == 0 && now.sa_handler != SIG_IGN)
            sigaction(s, &dfl, NULL);
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
    sigaction(SIGQUIT, &sa, NULL);
    if (!pipe_ignored)
        signal(SIGPIPE, SIG_DFL);
}

void tri_worker_signals_end(bool execs)
{
    struct sigaction sa = {.sa_handler = nothing, .sa_flags = SA_RESTART};
    sigset_t mask;

    sigemptyset(&mask);
    if (execs)
        sigaddset(&mask, SIGINT); /* until the program there has its own handler */
    else
        sigaction(SIGINT, &sa, NULL);
    sigprocmask(SIG_SETMASK, &mask, NULL);
}
