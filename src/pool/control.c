/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * control.c - the owner's end of the talk with its warden.
 *
 * A warden is forked twice, so that it is nobody the owner could wait() for: the one in between
 * leaves at once and is reaped by its pid here.  (A program with a SIGCHLD handler of its own may
 * see that one signal; if its handler reaps everything, our waitpid finds nothing and goes on.)
 *
 * Both run what a library has registered with pthread_atfork, and may be stopped, so either may
 * never come to answer.  The one in between is our child; it or the warden says who the warden is
 * before the first worker is forked.  So whoever is stuck when the time is up can be killed.
 *
 * Nobody waits for a word from the owner on the way to the first worker: the warden is born with
 * its order, and what it and the one in between have to say is read when it comes, in either order.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "pool/pool.h"
#include "pool/worker.h"

static int high_pair(int type, int fd[2])
{
    int raw[2];

    if (socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, raw) < 0)
        return -errno;
    for (int i = 0; i < 2; i++) {
        /* Away from the numbers that scripts close; the low ones if there is no room. */
        fd[i] = fcntl(raw[i], F_DUPFD_CLOEXEC, 64);
        if (fd[i] < 0)
            fd[i] = raw[i];
        else
            close(raw[i]);
    }
    return 0;
}

/* The warden as the one in between named it. */
struct born {
    pid_t pid; /* 0: nobody we know */
    int pidfd; /* -1: the system has none, or no room for one */
};

/* Name the warden to the owner, who waits at the socket's other end. */
static void announce(int pool_fd, pid_t pid, int err)
{
    struct tri_msg m = {.type = TRI_M_BORN, .pid = pid, .err = err};
    int fd = err ? -1 : (int)syscall(SYS_pidfd_open, pid, 0);

    if (fd < 0 || tri_msg_send(pool_fd, &m, &fd, 1) < 0)
        tri_msg_send(pool_fd, &m, NULL, 0);
    if (fd >= 0)
        close(fd);
}

/* In the process in between.  Returns in the warden, whom the owner has been told of. */
static void fork_again(int pool_fd)
{
    pid_t pid;

    if (tri_pass_on() == 0) {
        announce(pool_fd, getpid(), 0);
        return;
    }
    pid = fork();
    if (pid == 0)
        return;
    announce(pool_fd, pid, pid < 0 ? -errno : 0);
    _exit(0);
}

/* Where the process in between is.  LEFT: it has done its part, or a handler of the program's has
 * reaped it.  Then there is a warden, who may still be about to say so. */
enum between { RUNS, LEFT, FAILED };

static enum between in_between(pid_t pid)
{
    siginfo_t si = {0};

    if (waitid(P_PID, (id_t)pid, &si, WEXITED | WNOHANG | WNOWAIT) < 0)
        return LEFT;
    if (si.si_pid != pid)
        return RUNS;
    return si.si_code == CLD_EXITED && si.si_status == 0 ? LEFT : FAILED;
}

/* Wait until the warden has forked its workers.  between: who is to name it; 0: nobody. */
static int await_opened(struct tri_pool *p, pid_t between, int64_t until, struct born *b)
{
    for (;;) {
        struct pollfd pf = {p->ctl_fd, POLLIN, 0};
        int64_t left = until - tri_now_ns();
        bool unborn = between > 0 && !b->pid;
        bool silent = unborn && in_between(between) == FAILED;
        struct tri_msg m;
        int fds[2], got;

        /* In slices: another fork of ours may hold a copy of its end, and hide that it died. */
        if (silent || left < 0)
            left = 0;
        else if (unborn && left > 50000000)
            left = 50000000;
        if (poll(&pf, 1, (int)((left + 999999) / 1000000)) < 0 && errno != EINTR)
            return -errno;
        got = tri_msg_recv(p->ctl_fd, &m, fds, MSG_DONTWAIT);
        for (int i = 0; got == 1 && i < 2; i++)
            if (fds[i] >= 0 && (i || m.type != TRI_M_BORN || b->pid))
                close(fds[i]);
        if (got == 1 && m.type == TRI_M_BORN && !b->pid) {
            if (m.err)
                return m.err;
            b->pid = m.pid;
            b->pidfd = fds[0];
        } else if (got == 1 && m.type == TRI_M_OPENED) {
            return m.err;
        } else if (got < 0 || (got == 0 && silent)) {
            return TRI_EBROKEN;
        } else if (got == 0 && until - tri_now_ns() <= 0) {
            return TRI_ETIMEDOUT;
        }
    }
}

/* Without a pidfd its number may be somebody else's by now: its name tells, which it has from
 * birth. */
static bool named_warden(pid_t pid)
{
    char path[32], name[16] = "";
    FILE *f;

    snprintf(path, sizeof path, "/proc/%d/comm", (int)pid);
    f = fopen(path, "re");
    if (!f)
        return false;
    if (!fgets(name, sizeof name, f))
        name[0] = 0;
    fclose(f);
    return strncmp(name, "trireme-warden", 14) == 0;
}

/* Its workers die with it; all are gone, or on their way, when this returns. */
static void kill_warden(const struct born *b)
{
    if (b->pidfd >= 0) {
        struct pollfd pf = {b->pidfd, POLLIN, 0};

        syscall(SYS_pidfd_send_signal, b->pidfd, SIGKILL, NULL, 0);
        poll(&pf, 1, 100);
    } else if (b->pid > 0 && named_warden(b->pid)) {
        kill(b->pid, SIGKILL);
    }
}

/* Returns the pid of the process in between. */
static pid_t fork_twice(struct tri_pool *p, int pool_fd, int output_fd, const struct tri_msg *open)
{
    struct tri_hooks *h = &p->hooks;
    struct tri_warden_start start = {.main_fd = -1,
                                     .pool_fd = pool_fd,
                                     .seg = p->seg,
                                     .output_fd = output_fd,
                                     .open = open,
                                     .handlers_ns = p->cfg.start_timeout_ns,
                                     .hooks = h};
    char name[16] = "";
    sigset_t all;
    int err = 0;
    pid_t pid;

    start.owner_pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    sigfillset(&all);
    tri_pass_on_prepare();
    if (h->before_fork)
        h->before_fork(h->ctx);
    pthread_sigmask(SIG_SETMASK, &all, &start.mask);
    /* Named before it is born: when this is a task that opens a pool, the warden of our own pool
     * must not take it for something that a dead worker left behind. */
    prctl(PR_GET_NAME, name);
    prctl(PR_SET_NAME, "trireme-warden");
    pid = fork();
    if (pid == 0) {
        fork_again(pool_fd);
        close(p->ctl_fd);
        if (p->output_fd >= 0)
            close(p->output_fd);
        tri_warden_run(&start);
    }
    if (pid < 0)
        err = -errno;
    prctl(PR_SET_NAME, name);
    pthread_sigmask(SIG_SETMASK, &start.mask, NULL);
    if (h->after_fork_parent)
        h->after_fork_parent(h->ctx);
    if (start.owner_pidfd >= 0)
        close(start.owner_pidfd);
    return err ? err : pid;
}

/* The process in between has done its part, or is not needed for it any more. */
static void end_between(pid_t between, bool done)
{
    if (!done && in_between(between) == RUNS)
        kill(between, SIGKILL);
    while (waitpid(between, NULL, 0) < 0 && errno == EINTR)
        ;
}

/* Held from the making of the sockets until the warden's ends are closed here: a warden forked
 * meanwhile by another thread would keep them open and so hide the death of this one. */
static pthread_mutex_t opening = PTHREAD_MUTEX_INITIALIZER;

void tri_control_forked(void)
{
    static const pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;

    opening = fresh; /* a warden is forked with it held */
}

int tri_control_open(struct tri_pool *p, const struct tri_pool_inside *in)
{
    struct tri_msg m = {.type = TRI_M_OPEN, .nworkers = p->view.nworkers};
    int ctl[2] = {-1, -1}, out[2] = {-1, -1}, fds[2], err;
    int64_t until = tri_now_ns() + p->cfg.start_timeout_ns;
    struct born born = {0, -1};
    pid_t between = 0;
    bool shared = in->shared_warden >= 0 && p->seg.fd >= 0;

    pthread_mutex_lock(&opening);
    err = high_pair(SOCK_SEQPACKET, ctl);
    if (err) {
        pthread_mutex_unlock(&opening);
        return err;
    }
    if (in->want_output)
        err = high_pair(SOCK_SEQPACKET, out);
    if (err) {
        pthread_mutex_unlock(&opening);
        close(ctl[0]);
        close(ctl[1]);
        return err;
    }
    p->ctl_fd = ctl[0];
    p->output_fd = out[0];
    m.spawn = in->spawn;
    m.fragile = in->fragile;
    m.max_restarts = in->max_restarts            ? in->max_restarts
                     : 3 * p->view.nworkers > 10 ? 3 * p->view.nworkers
                                                 : 10;
    if (shared) {
        struct tri_msg adopt = {.type = TRI_M_ADOPT};

        fds[0] = p->seg.fd;
        fds[1] = out[1];
        err = tri_msg_send(p->ctl_fd, &m, fds, out[1] >= 0 ? 2 : 1);
        if (!err)
            err = tri_msg_send(in->shared_warden, &adopt, &ctl[1], 1);
    } else {
        between = fork_twice(p, ctl[1], out[1], &m);
        err = between < 0 ? between : 0;
    }
    close(ctl[1]);
    if (out[1] >= 0)
        close(out[1]);
    pthread_mutex_unlock(&opening);
    if (!err)
        err = await_opened(p, between, until, &born);
    if (between > 0)
        end_between(between, !err && born.pid);
    if (err == TRI_ETIMEDOUT && shared)
        shutdown(in->shared_warden, SHUT_RDWR);
    /* One that did answer, or is about to, takes all with it when it sees the socket's end. */
    if (err == TRI_ETIMEDOUT)
        kill_warden(&born);
    if (born.pidfd >= 0)
        close(born.pidfd);
    if (err) {
        shutdown(p->ctl_fd, SHUT_RDWR);
        close(p->ctl_fd);
        if (p->output_fd >= 0)
            close(p->output_fd);
        p->ctl_fd = p->output_fd = -1;
        return err;
    }
    for (uint32_t i = 0; i < p->view.nworkers; i++)
        p->member[i].alive = true;
    return 0;
}

int tri_control_send(struct tri_pool *p, enum tri_msg_type type, uint32_t worker, int sig)
{
    struct tri_msg m = {.type = type, .worker = worker, .signal = sig};

    if (p->ctl_fd < 0)
        return -EPIPE;
    if (type == TRI_M_KILL)
        m.gen = p->member[worker].gen;
    return tri_msg_send(p->ctl_fd, &m, NULL, 0);
}

const char *tri_broken_why(const struct tri_pool *p)
{
    if (p->broken_err == TRI_EBROKEN)
        return "its warden died";
    if (p->broken_err == TRI_EWORKERLOST)
        return "a worker died";
    if (p->broken_err == -ECHILD)
        return "its workers died again and again while they started";
    if (p->broken_err == TRI_ETIMEDOUT)
        return "a worker hung in a handler that the program or a library runs after a fork";
    if (p->broken_err < 0)
        return "the system refused to start another worker";
    return "a worker could not start";
}

static void broken(struct tri_pool *p, int err)
{
    struct tri_worker_line *l;

    if (p->broken)
        return;
    p->broken = true;
    p->broken_err = err;
    for (uint32_t i = 0; i < p->view.nworkers && !p->note_len; i++) {
        l = &p->view.worker[i];
        p->note_len = tri_load_acq(&l->note_len);
        if (p->note_len > TRI_WORKER_NOTE)
            p->note_len = 0;
        memcpy(p->note, l->note, p->note_len);
    }
    tri_repair_broken(p, TRI_EBROKEN);
    tri_wake_owner(&p->view); /* other threads, which may sleep for tasks just given up */
}

void tri_control_poll(struct tri_pool *p)
{
    struct tri_msg m;
    uint32_t seen = tri_load_acq(&p->view.ctl->deaths);
    int got;

    if (p->ctl_fd < 0)
        return;
    while ((got = tri_msg_recv(p->ctl_fd, &m, NULL, MSG_DONTWAIT)) == 1) {
        struct tri_member *mem;

        if (!tri_msg_ok(&m, sizeof m, false) || m.worker >= p->view.nworkers)
            continue;
        mem = &p->member[m.worker];
        switch (m.type) {
        case TRI_M_DIED:
            mem->alive = false;
            mem->stopped = false;
            if (!m.err && !(p->closing && !m.signal && !m.exitcode))
                p->stats.deaths++;
            tri_repair_death(p, &m);
            break;
        case TRI_M_REPLACED:
            mem->alive = true;
            mem->gen = m.gen;
            mem->pid = m.pid;
            p->stats.restarts++;
            break;
        case TRI_M_STOPPED:
            mem->stopped = m.err != 0;
            break;
        case TRI_M_BROKEN:
            p->broken_loss = (struct tri_loss){m.pid, m.signal, m.exitcode, m.oom, m.worker};
            broken(p, m.err);
            break;
        case TRI_M_ENDED:
            p->ended = true;
            break;
        default:
            break;
        }
    }
    if (got < 0 && !p->ended) {
        p->warden_gone = p->ended = true;
        broken(p, TRI_EBROKEN);
    }
    tri_store_rlx(&p->deaths_seen, seen);
}
