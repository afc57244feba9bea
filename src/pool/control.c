/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * control.c - the owner's end of the talk with its warden.
 *
 * A warden is forked twice, so that it is nobody the owner could wait() for: the one in between
 * leaves at once and is reaped by its pid here.  (A program with a SIGCHLD handler of its own may
 * see that one signal; if its handler reaps everything, our waitpid finds nothing and goes on.)
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
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

static int fork_warden(struct tri_pool *p, int pool_fd, int output_fd)
{
    struct tri_hooks *h = &p->hooks;
    struct tri_warden_start start = {
        .main_fd = -1, .pool_fd = pool_fd, .seg = p->seg, .output_fd = output_fd, .hooks = h};
    char name[16] = "";
    sigset_t all, old;
    int status = 0, err = 0;
    pid_t pid;

    start.owner_pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    sigfillset(&all);
    if (h->before_fork)
        h->before_fork(h->ctx);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    /* Named before it is born: when this is a task that opens a pool, the warden of our own pool
     * must not take it for something that a dead worker left behind. */
    prctl(PR_GET_NAME, name);
    prctl(PR_SET_NAME, "trireme-warden");
    pid = fork();
    if (pid == 0) {
        pid = fork();
        if (pid != 0)
            _exit(pid < 0 ? errno & 0x7f : 0);
        close(p->ctl_fd);
        if (p->output_fd >= 0)
            close(p->output_fd);
        if (h->after_fork_child)
            h->after_fork_child(h->ctx);
        tri_warden_run(&start);
    }
    if (pid < 0)
        err = -errno;
    prctl(PR_SET_NAME, name);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (h->after_fork_parent)
        h->after_fork_parent(h->ctx);
    if (start.owner_pidfd >= 0)
        close(start.owner_pidfd);
    if (!err) {
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
            ;
        if (WIFEXITED(status) && WEXITSTATUS(status))
            err = -WEXITSTATUS(status);
    }
    return err;
}

static int await_opened(struct tri_pool *p)
{
    int64_t until = tri_now_ns() + p->cfg.start_timeout_ns;

    for (;;) {
        struct pollfd pf = {p->ctl_fd, POLLIN, 0};
        int64_t left = until - tri_now_ns();
        struct tri_msg m;
        int got;

        if (left <= 0)
            return TRI_ETIMEDOUT;
        if (poll(&pf, 1, (int)(left / 1000000) + 1) < 0 && errno != EINTR)
            return -errno;
        got = tri_msg_recv(p->ctl_fd, &m, NULL, MSG_DONTWAIT);
        if (got < 0)
            return TRI_EBROKEN;
        if (got == 1 && m.type == TRI_M_OPENED)
            return m.err;
    }
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
    m.max_restarts = in->max_restarts            ? in->max_restarts
                     : 3 * p->view.nworkers > 10 ? 3 * p->view.nworkers
                                                 : 10;
    if (in->shared_warden >= 0 && p->seg.fd >= 0) {
        struct tri_msg adopt = {.type = TRI_M_ADOPT};

        fds[0] = p->seg.fd;
        fds[1] = out[1];
        err = tri_msg_send(p->ctl_fd, &m, fds, out[1] >= 0 ? 2 : 1);
        if (!err)
            err = tri_msg_send(in->shared_warden, &adopt, &ctl[1], 1);
        close(ctl[1]);
    } else {
        err = fork_warden(p, ctl[1], out[1]);
        close(ctl[1]);
        if (!err)
            err = tri_msg_send(p->ctl_fd, &m, NULL, 0);
    }
    if (out[1] >= 0)
        close(out[1]);
    pthread_mutex_unlock(&opening);
    if (!err)
        err = await_opened(p);
    if (err) {
        /* The warden, if there is one, sees the end of the socket and takes all with it. */
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
    if (p->broken_err == -ECHILD)
        return "its workers died again and again while they started";
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
            if ((m.signal || m.exitcode != TRI_EXIT_RETIRED) &&
                !(p->closing && !m.signal && !m.exitcode))
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
