/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * warden.c - the single-threaded process that starts, reaps, kills and replaces workers.
 *
 * It is the only process that forks workers, so it is their parent and learns of each death at
 * once (SIGCHLD by signalfd).  It holds no task state and trusts nothing in shared memory; all it
 * writes there is the owner's bell, and for a worker that is dead what only that worker may write.
 * So it can always clean up:
 *
 *   owner gone (pidfd, or the socket's end)   every worker is killed, the warden leaves
 *   warden gone                               workers die by PR_SET_PDEATHSIG; the owner sees the
 *                                             socket's end
 *   worker gone                               DIED is sent, then a successor is forked
 *   worker's children left behind             they come to the warden (subreaper) and are killed
 *
 * PR_SET_PDEATHSIG fires when the forking *thread* ends, which is why the warden has one only.
 * It is a grandchild of the owner: the owner's wait() never sees it.
 *
 * A forked warden serves the one pool it was forked for.  A shared one (started by exec, so that
 * it is small and clean) is sent pools over its main socket.
 *
 * A forked warden runs nothing of the owner's language: the owner's before_fork holds from the
 * owner's fork to the workers', each of which runs after_fork_child.  So an interpreter is put in
 * order once on the way to the first task, and a handler of the program's is called once.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cpu.h"
#include "pool/pool.h"

#define INTENSITY_NS (10 * 1000000000ll)
#define MISSING_MS 100

struct child {
    pid_t pid; /* 0: none */
    uint32_t gen;
    int64_t born_ns;
    bool asked;   /* we were told to kill it */
    bool missing; /* the system refused a successor: tried again every so often */
};

struct ward {
    struct ward *next;
    int fd, output_fd;
    struct tri_segment seg;
    struct tri_view view;
    uint32_t n, alive;
    struct child *child;
    bool open, closing, ending, broken, told_ended, gone, spawn, fragile;
    uint32_t max_restarts, nrestarts;
    int64_t *restarts;      /* times of the last max_restarts replacements, a ring */
    struct tri_msg *unsent; /* news that the owner has no room for now: a warden never blocks */
    uint32_t nunsent, unsent_cap;
};

struct warden {
    const struct tri_warden_start *start;
    struct ward *wards;
    int sigfd, main_fd, owner_pidfd;
    bool idle_done;
    bool missing; /* a worker is, somewhere */
    bool orphans; /* some were killed: their children become ours when they are reaped */
    uint64_t oom_kills;
};

/* ------------------------------------------------------------------ news */

static bool try_send(struct ward *wd, const struct tri_msg *m)
{
    return send(wd->fd, m, sizeof *m, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0 ||
           (errno != EAGAIN && errno != EINTR && errno != ENOBUFS);
}

/* Tell the owner that something waits at the socket.  A pool that could not be opened, perhaps
 * because its owner gave up meanwhile and took the memory away, has no bell. */
static void ring(struct ward *wd)
{
    if (!wd->view.ctl)
        return;
    tri_add_sc(&wd->view.ctl->deaths, 1);
    tri_wake_owner(&wd->view);
}

static void send_unsent(struct ward *wd)
{
    uint32_t sent = 0;

    while (sent < wd->nunsent && try_send(wd, &wd->unsent[sent]))
        sent++;
    if (!sent)
        return;
    wd->nunsent -= sent;
    memmove(wd->unsent, wd->unsent + sent, wd->nunsent * sizeof *wd->unsent);
    ring(wd);
}

static void tell(struct ward *wd, struct tri_msg *m)
{
    if (wd->fd < 0)
        return;
    if (wd->nunsent || !try_send(wd, m)) {
        if (wd->nunsent == wd->unsent_cap) {
            uint32_t cap = wd->unsent_cap ? 2 * wd->unsent_cap : 16;
            struct tri_msg *u = realloc(wd->unsent, cap * sizeof *u);

            if (!u)
                abort(); /* workers die with us and the owner hears of it */
            wd->unsent = u;
            wd->unsent_cap = cap;
        }
        wd->unsent[wd->nunsent++] = *m;
        return;
    }
    ring(wd);
}

static void tell_ended(struct ward *wd)
{
    struct tri_msg m = {.type = TRI_M_ENDED};

    if (!wd->told_ended)
        tell(wd, &m);
    wd->told_ended = true;
}

/* ------------------------------------------------------------------ start */

static _Noreturn void worker_process(struct warden *wa, struct ward *wd, uint32_t id, pid_t warden)
{
    const struct tri_hooks *hooks = wa->start->hooks;
    static struct tri_worker w; /* a page of its own; one worker per process */

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != warden)
        _exit(0);
    prctl(PR_SET_CHILD_SUBREAPER, 0);
    prctl(PR_SET_NAME, "trireme-worker");
    close(wa->sigfd);
    tri_worker_signals_begin();
    if (wa->main_fd >= 0)
        close(wa->main_fd);
    if (wa->owner_pidfd >= 0)
        close(wa->owner_pidfd);
    for (struct ward *o = wa->wards; o; o = o->next) {
        if (o->fd >= 0)
            close(o->fd);
        if (o != wd) {
            tri_segment_drop(&o->seg);
            if (o->output_fd >= 0)
                close(o->output_fd);
        }
    }
    if (wd->spawn && hooks->exec_worker) {
        tri_worker_signals_end(true);
        hooks->exec_worker(hooks->ctx, wd->seg.fd, wd->output_fd, id, wd->child[id].gen);
        _exit(127);
    }
    if (hooks->after_fork_child) {
        /* Handlers of the program's: nobody waits for us yet who could lose patience. */
        memset(&w, 0, sizeof w);
        if (wa->start->handlers_ns)
            tri_deadline_set(&w, wa->start->handlers_ns);
        hooks->after_fork_child(hooks->ctx);
        tri_deadline_clear(&w);
    }
    tri_worker_signals_end(false);
    /* What the owner printed and has not written yet is the owner's to write, once. */
    if (!hooks->run)
        __fpurge(stdout);
    if (tri_worker_attach(&w, &wd->seg, hooks, id, wd->child[id].gen, wd->output_fd, true) == 0)
        tri_worker_loop(&w);
    _exit(0);
}

static int start_worker(struct warden *wa, struct ward *wd, uint32_t id)
{
    const struct tri_hooks *hooks = wa->start->hooks;
    bool speaks = wa->start->pool_fd < 0 && !(wd->spawn && hooks->exec_worker);
    pid_t warden = getpid(), pid;

    if (!wd->child)
        return -ENOMEM;
    tri_store_rel(&wd->view.worker[id].status, TRI_W_FORKED);
    wd->child[id].born_ns = tri_now_ns();
    if (speaks && hooks->before_fork)
        hooks->before_fork(hooks->ctx);
    pid = fork();
    if (pid == 0)
        worker_process(wa, wd, id, warden);
    if (speaks && hooks->after_fork_parent) {
        int err = errno;

        hooks->after_fork_parent(hooks->ctx);
        errno = err;
    }
    if (pid < 0)
        return -errno;
    wd->child[id].pid = pid;
    wd->child[id].asked = false;
    wd->alive++;
    return 0;
}

static void kill_all(struct ward *wd)
{
    for (uint32_t i = 0; i < wd->n; i++)
        if (wd->child[i].pid) {
            wd->child[i].asked = true;
            kill(wd->child[i].pid, SIGKILL);
        }
}

static void open_ward(struct warden *wa, struct ward *wd, const struct tri_msg *m, int fds[2])
{
    struct tri_msg reply = {.type = TRI_M_OPENED};
    int err = 0;

    if (wd->open || m->nworkers == 0)
        return;
    wd->open = true;
    if (fds[0] >= 0) {
        err = tri_segment_attach(&wd->seg, fds[0]);
        if (wd->seg.fd != fds[0])
            close(fds[0]); /* it is no segment */
        wd->output_fd = fds[1];
    }
    if (!err)
        err = tri_view_init(&wd->view, wd->seg.base, wd->seg.bytes);
    if (!err && m->nworkers != wd->view.nworkers)
        err = TRI_ECORRUPT;
    wd->n = m->nworkers;
    wd->spawn = m->spawn != 0;
    wd->fragile = m->fragile != 0;
    wd->max_restarts = m->max_restarts < 1        ? 1
                       : m->max_restarts > 100000 ? 100000
                                                  : m->max_restarts;
    wd->child = calloc(wd->n, sizeof *wd->child);
    wd->restarts = calloc(wd->max_restarts, sizeof *wd->restarts);
    if (!wd->child || !wd->restarts) {
        wd->n = 0;
        err = -ENOMEM;
    }
    for (uint32_t i = 0; i < wd->n && !err; i++)
        err = start_worker(wa, wd, i);
    if (err) {
        wd->ending = true;
        kill_all(wd);
    }
    reply.err = err;
    tell(wd, &reply);
    if (err && !wd->alive)
        tell_ended(wd);
}

/* ------------------------------------------------------------------ deaths */

static void hear(struct warden *wa, struct ward *wd);

static bool too_many(struct ward *wd)
{
    int64_t now = tri_now_ns(), *slot = &wd->restarts[wd->nrestarts % wd->max_restarts];
    bool over = wd->nrestarts >= wd->max_restarts && now - *slot < INTENSITY_NS;

    *slot = now;
    wd->nrestarts++;
    return over;
}

/*
 * Only deaths at the start count towards the limit: each later one costs the task that caused it,
 * so there are no more of them than tasks, and a thousand bad tasks are no reason to give up on
 * the good ones.  A start that fails would be tried for ever.
 */
static void replace(struct warden *wa, struct ward *wd, uint32_t id, bool counts, bool stuck,
                    const struct tri_msg *died)
{
    struct tri_msg m = {.worker = id};
    int err = 0;

    if (wd->ending || wd->broken)
        return;
    wd->child[id].gen++;
    if (stuck) { /* the next one would hang in that handler, too */
        m.type = TRI_M_BROKEN;
        m.err = TRI_ETIMEDOUT;
    } else if (wd->fragile && died && !died->err && !wd->child[id].asked) {
        m.type = TRI_M_BROKEN;
        m.err = TRI_EWORKERLOST;
    } else if (counts && too_many(wd)) {
        m.type = TRI_M_BROKEN;
        m.err = -ECHILD;
    } else if ((err = start_worker(wa, wd, id)) != 0 && wd->alive == 0) {
        m.type = TRI_M_BROKEN; /* a pool shrinks rather than fails, but not to nothing */
        m.err = err;
    } else if (!err) {
        m.type = TRI_M_REPLACED;
        m.gen = wd->child[id].gen;
        m.pid = wd->child[id].pid;
    } else {
        wd->child[id].missing = true;
        wa->missing = true;
        return;
    }
    if (m.type == TRI_M_BROKEN && died) {
        m.pid = died->pid;
        m.signal = died->signal;
        m.exitcode = died->exitcode;
        m.oom = died->oom;
    }
    if (m.type == TRI_M_BROKEN) {
        wd->broken = true;
        kill_all(wd);
    }
    tell(wd, &m);
}

/* Try again to start the workers that the system refused. */
static void start_missing(struct warden *wa)
{
    wa->missing = false;
    for (struct ward *wd = wa->wards; wd; wd = wd->next)
        for (uint32_t i = 0; i < wd->n; i++)
            if (wd->child[i].missing) {
                wd->child[i].missing = false;
                replace(wa, wd, i, false, false, NULL);
            }
}

/* Did the kernel's OOM killer act since we last looked? */
static bool oom_acted(struct warden *wa)
{
    uint64_t now = tri_memory_oom_kills();
    bool acted = now > wa->oom_kills;

    wa->oom_kills = now;
    return acted;
}

/* The dead neither sleep nor spin.  Here, not at the owner: it may look much later, when the bits
 * are the successor's, and a sleeper whose bit is gone is never woken again. */
static void forget_sleep(struct ward *wd, uint32_t id)
{
    uint64_t others = ~(1ull << (id & 63));

    if (!wd->view.ctl)
        return;
    tri_and_sc(&wd->view.ctl->sleepers[id / 64], others);
    tri_and_sc(&wd->view.ctl->spinners[id / 64], others);
    tri_wake_stranded(&wd->view);
    tri_and_sc(&wd->view.ctl->ready[id / 64], others);
    tri_store_rlx(&wd->view.worker[id].pid, 0); /* it may be a stranger's soon */
}

/* True when a worker has ended. */
static bool reap_one(struct warden *wa, pid_t pid, int status)
{
    for (struct ward *wd = wa->wards; wd; wd = wd->next)
        for (uint32_t i = 0; i < wd->n; i++) {
            struct child *c = &wd->child[i];
            struct tri_msg m = {.type = TRI_M_DIED, .worker = i, .gen = c->gen, .pid = pid};
            bool left, retired, failed, clean, starting, stuck;
            uint32_t at;

            if (c->pid != pid)
                continue;
            if (WIFSTOPPED(status) || WIFCONTINUED(status)) {
                m.type = TRI_M_STOPPED;
                m.err = WIFSTOPPED(status) != 0;
                /* A spinner is trusted to find new work; one that was stopped is not. */
                tri_and_sc(&wd->view.ctl->spinners[i / 64], ~(1ull << (i & 63)));
                tell(wd, &m);
                return false;
            }
            at = tri_load_acq(&wd->view.worker[i].status);
            left = at == TRI_W_LEFT;
            /* It left because the pool closes?  The word of that came before, and may wait. */
            if ((left || (WIFEXITED(status) && WEXITSTATUS(status) == 0)) && wd->fd >= 0)
                hear(wa, wd);
            c->pid = 0;
            wd->alive--;
            forget_sleep(wd, i);
            m.signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
            m.exitcode = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
            m.oom = m.signal == SIGKILL && !c->asked && oom_acted(wa);
            starting = at == TRI_W_FORKED || at == TRI_W_STARTING;
            retired = left || at == TRI_W_RETIRED; /* however it ended: all its tasks have */
            /* A task may call exit() with any number: the code counts only where it can be ours. */
            failed = !m.signal && m.exitcode == TRI_EXIT_BEGIN && at == TRI_W_STARTING;
            stuck = at == TRI_W_FORKED && wa->start->handlers_ns &&
                    (m.signal == SIGKILL || m.signal == SIGALRM) &&
                    tri_now_ns() - c->born_ns >= wa->start->handlers_ns;
            clean = (left || (!m.signal && m.exitcode == 0)) && wd->closing;
            m.err = retired;
            tell(wd, &m);
            if (failed) {
                struct tri_msg b = {.type = TRI_M_BROKEN, .worker = i, .err = TRI_EXIT_BEGIN};

                if (!wd->broken && !wd->ending) {
                    wd->broken = true;
                    kill_all(wd);
                    tell(wd, &b);
                }
            } else if (!clean) {
                replace(wa, wd, i, starting && !retired && !c->asked, stuck && !c->asked, &m);
            }
            if (!wd->alive)
                tell_ended(wd);
            return true;
        }
    return false; /* somebody's grandchild */
}

static bool is_worker(const void *ctx, pid_t pid)
{
    const struct warden *wa = ctx;

    for (const struct ward *wd = wa->wards; wd; wd = wd->next)
        for (uint32_t i = 0; i < wd->n; i++)
            if (wd->child[i].pid == pid)
                return true;
    return false;
}

static void reap(struct warden *wa)
{
    int status;
    pid_t pid;
    bool look = false;

    while ((pid = waitpid(-1, &status, WNOHANG | WUNTRACED | WCONTINUED)) > 0)
        look |= reap_one(wa, pid, status) || wa->orphans;
    if (look)
        wa->orphans = tri_orphans_kill(is_worker, wa);
}

/* ------------------------------------------------------------------ the loop */

static struct ward *new_ward(struct warden *wa, int fd)
{
    struct ward *wd = calloc(1, sizeof *wd);

    if (!wd) {
        close(fd);
        return NULL;
    }
    wd->fd = fd;
    wd->output_fd = -1;
    wd->seg.fd = -1;
    wd->next = wa->wards;
    wa->wards = wd;
    return wd;
}

static void hear(struct warden *wa, struct ward *wd)
{
    struct tri_msg m;
    int fds[2], got;

    while ((got = tri_msg_recv(wd->fd, &m, fds, MSG_DONTWAIT)) == 1) {
        bool used = false;

        if (tri_msg_ok(&m, sizeof m, true)) {
            if (m.type == TRI_M_OPEN) {
                used = !wd->open && fds[0] >= 0;
                open_ward(wa, wd, &m, fds);
            } else if (m.type == TRI_M_KILL && m.worker < wd->n) {
                struct child *c = &wd->child[m.worker];

                if (c->pid && (c->gen & TRI_GEN_MASK) == (m.gen & TRI_GEN_MASK)) {
                    c->asked = true;
                    kill(c->pid, m.signal);
                }
            } else if (m.type == TRI_M_CLOSE) {
                wd->closing = true;
            } else if (m.type == TRI_M_END) {
                wd->ending = true;
                kill_all(wd);
            }
            if (wd->open && !wd->alive && (wd->closing || wd->ending))
                tell_ended(wd);
        }
        for (int i = 0; i < 2 && !used; i++)
            if (fds[i] >= 0)
                close(fds[i]);
    }
    if (got < 0) { /* the owner is gone, or has done with this pool */
        close(wd->fd);
        wd->fd = -1;
        wd->ending = wd->gone = true;
        kill_all(wd);
    }
}

static void hear_main(struct warden *wa)
{
    struct tri_msg m;
    int fds[2], got;

    while ((got = tri_msg_recv(wa->main_fd, &m, fds, MSG_DONTWAIT)) == 1) {
        if (fds[1] >= 0)
            close(fds[1]);
        if (fds[0] >= 0) {
            struct ward *wd = new_ward(wa, fds[0]);

            /* Its first message usually waits already: one round less before workers run. */
            if (wd)
                hear(wa, wd);
        }
    }
    if (got < 0) {
        close(wa->main_fd);
        wa->main_fd = -1;
    }
}

/* Is there a pool whose workers have a use for what this process has imported? */
static bool forks_workers(const struct warden *wa)
{
    for (const struct ward *wd = wa->wards; wd; wd = wd->next)
        if (wd->open && !wd->spawn)
            return true;
    return false;
}

static void drop_gone(struct warden *wa)
{
    struct ward **at = &wa->wards;

    while (*at) {
        struct ward *wd = *at;

        if (!wd->gone || wd->alive) {
            at = &wd->next;
            continue;
        }
        *at = wd->next;
        tri_segment_drop(&wd->seg);
        if (wd->output_fd >= 0)
            close(wd->output_fd);
        free(wd->child);
        free(wd->restarts);
        free(wd->unsent);
        free(wd);
    }
}

static _Noreturn void leave(struct warden *wa)
{
    for (struct ward *wd = wa->wards; wd; wd = wd->next)
        kill_all(wd);
    /* Workers' children come to us only once the workers are gone. */
    while (waitpid(-1, NULL, WNOHANG) > 0)
        ;
    for (int round = 0; round < 200; round++) {
        tri_orphans_kill(is_worker, wa);
        if (waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD)
            break;
        poll(NULL, 0, 1);
    }
    _exit(0);
}

_Noreturn void tri_warden_run(const struct tri_warden_start *start)
{
    static struct warden warden;
    struct warden *wa = &warden;
    struct pollfd *pf = NULL;
    uint32_t npf = 0;
    bool ahead = false; /* there is work that may be done ahead while nothing else is */

    /* A task that opens a pool runs in a child of another warden: what that one knew, first of all
     * the pids it may kill, is here too and is not ours. */
    memset(wa, 0, sizeof *wa);
    wa->start = start;
    wa->main_fd = start->main_fd;
    wa->owner_pidfd = start->owner_pidfd;
    wa->sigfd = tri_warden_signals(start->pool_fd >= 0 ? &start->mask : NULL);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    prctl(PR_SET_NAME, "trireme-warden");
    if (start->pool_fd >= 0) {
        struct ward *wd = new_ward(wa, start->pool_fd);

        if (!wd)
            _exit(1);
        wd->seg = start->seg;
        wd->output_fd = start->output_fd;
        if (start->open)
            open_ward(wa, wd, start->open, (int[]){-1, -1});
    }
    /* Now, for the first workers have a use for the time it takes. */
    wa->oom_kills = tri_memory_oom_kills();
    for (;;) {
        uint32_t n = 0, count = 3;

        for (struct ward *wd = wa->wards; wd; wd = wd->next)
            count++;
        if (count > npf) {
            free(pf);
            pf = calloc(count, sizeof *pf);
            if (!pf)
                leave(wa);
            npf = count;
        }
        pf[n++] = (struct pollfd){wa->sigfd, POLLIN, 0};
        pf[n++] = (struct pollfd){wa->owner_pidfd, POLLIN, 0};
        pf[n++] = (struct pollfd){wa->main_fd, POLLIN, 0};
        for (struct ward *wd = wa->wards; wd; wd = wd->next)
            pf[n++] = (struct pollfd){wd->fd, wd->nunsent ? POLLIN | POLLOUT : POLLIN, 0};
        if (poll(pf, n, ahead ? 0 : wa->missing ? MISSING_MS : -1) < 0 && errno != EINTR)
            leave(wa);
        if (wa->missing)
            start_missing(wa);

        if (wa->owner_pidfd >= 0 && pf[1].revents)
            leave(wa);
        if (pf[0].revents) {
            struct signalfd_siginfo si;

            while (read(wa->sigfd, &si, sizeof si) > 0)
                ;
            reap(wa);
        }
        for (struct ward *wd = wa->wards; wd; wd = wd->next)
            if (wd->fd >= 0) {
                hear(wa, wd);
                if (wd->nunsent && wd->fd >= 0)
                    send_unsent(wd);
            }
        if (wa->main_fd >= 0 && pf[2].revents) {
            hear_main(wa);
            if (!wa->idle_done && start->hooks->warden_idle && forks_workers(wa))
                ahead = wa->idle_done = true;
        } else if (ahead) {
            ahead = start->hooks->warden_idle(start->hooks->ctx);
        }
        drop_gone(wa);
        if (!wa->wards && wa->main_fd < 0)
            leave(wa);
        /* A warden of one pool has nothing left to do when that has ended and knows it. */
        if (start->pool_fd >= 0 && wa->wards->told_ended && !wa->wards->nunsent)
            leave(wa);
    }
}
