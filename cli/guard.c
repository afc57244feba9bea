/* SPDX-License-Identifier: BSD-3-Clause */
/* guard.c - kills the process groups that a killed program left; see guard.h. */
#include "guard.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SYS_close_range
#define SYS_close_range 436
#endif

/* More than any default limit on open files, and quick to walk where close_range is missing. */
#define DESCRIPTORS_MOST 65536

static void close_all_but_stdin(void)
{
    if (syscall(SYS_close_range, 1, ~0U, 0) == 0)
        return;
    for (int fd = 1; fd < DESCRIPTORS_MOST; fd++)
        close(fd);
}

/* A positive number is a group that has started, a negative one a group that has ended. */
_Noreturn static void watch(pid_t *groups, int most)
{
    pid_t word;
    ssize_t n;

    while ((n = read(0, &word, sizeof word)) == (ssize_t)sizeof word || (n < 0 && errno == EINTR)) {
        pid_t from = word > 0 ? 0 : -word, to = word > 0 ? word : 0;

        for (int i = 0; n > 0 && i < most; i++) {
            if (groups[i] == from) {
                groups[i] = to;
                break;
            }
        }
    }
    for (int i = 0; i < most; i++) {
        if (groups[i] > 0)
            kill(-groups[i], SIGKILL);
    }
    _exit(0);
}

int tri_guard_start(struct tri_guard *guard, int most)
{
    pid_t *groups = calloc((size_t)most, sizeof *groups);
    sigset_t all;
    int fd[2], err;

    if (!groups)
        return -ENOMEM;
    if (pipe2(fd, O_CLOEXEC) < 0) {
        err = -errno;
        free(groups);
        return err;
    }
    guard->pid = fork();
    if (guard->pid == 0) {
        sigfillset(&all);
        sigprocmask(SIG_SETMASK, &all, NULL);
        setsid();
        prctl(PR_SET_NAME, "trireme-guard");
        dup2(fd[0], 0);
        close_all_but_stdin();
        watch(groups, most);
    }
    err = guard->pid < 0 ? -errno : 0;
    free(groups);
    close(fd[0]);
    guard->fd = fd[1];
    if (err)
        close(fd[1]);
    else
        fcntl(fd[1], F_SETFL, O_NONBLOCK); /* a guard that was stopped must not stop us */
    return err;
}

static void tell(const struct tri_guard *guard, pid_t word)
{
    ssize_t n;

    do {
        n = write(guard->fd, &word, sizeof word);
    } while (n < 0 && errno == EINTR);
    /* A guard that is gone protects nobody, and is no reason to stop. */
}

void tri_guard_add(const struct tri_guard *guard, pid_t group)
{
    tell(guard, group);
}

void tri_guard_remove(const struct tri_guard *guard, pid_t group)
{
    tell(guard, -group);
}

void tri_guard_end(struct tri_guard *guard)
{
    if (guard->pid <= 0)
        return;
    close(guard->fd);
    while (waitpid(guard->pid, NULL, 0) < 0 && errno == EINTR)
        continue;
    guard->pid = 0;
}
