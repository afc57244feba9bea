/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_pool_life.c - a pool and the processes around it, where nobody dies before his time: how it
 * is opened and ends, what it leaves (nothing), forks and children of its owner, pools in tasks,
 * tasks that spoil their process, workers that retire, pools that have nothing to do.
 *
 * What its calls promise is in test_pool.c, deaths are in test_deaths.c and test_warden.c.
 */
#include "pools.h"

#include <pthread.h>
#include <sys/resource.h>

static const int kinds[] = {TRI_PROCESS, TRI_THREAD};

/* ------------------------------------------------------------------ ends */

static void closing_finishes_what_was_queued_and_futures_outlive_it(void)
{
    for (size_t k = 0; k < 2; k++) {
        tri_pool *p = pool_of(kinds[k], 2);
        tri_future *f[500];
        int64_t out;

        for (int64_t i = 0; i < 500; i++)
            f[i] = submit(p, square, &i, 8, 8);
        tri_pool_close(p);
        for (int64_t i = 0; i < 500; i++) {
            CHECK(tri_future_wait(f[i], 0) == 0);
            CHECK(tri_future_cancel(f[i]) == -EBUSY);
            CHECK(ended(f[i], &out) == 0 && out == i * i);
        }
    }
}

enum { MANY = 5000, ROUNDS = 3 }; /* more than a pool keeps of freed futures */

struct crowd {
    tri_pool *pool;
    tri_future *f[MANY];
};

/* Futures of several threads, freed and used again.  Every second one of the last is left. */
static void *submit_and_free(void *arg)
{
    struct crowd *c = arg;
    int64_t out;

    for (int round = 0; round < ROUNDS; round++) {
        for (int64_t i = 0; i < MANY; i++)
            c->f[i] = submit(c->pool, square, &i, 8, 8);
        for (int64_t i = 0; i < MANY; i++) {
            CHECK(tri_future_get(c->f[i], &out, -1) == 0 && out == i * i);
            if (round < ROUNDS - 1 || i % 2)
                tri_future_free(c->f[i]);
        }
    }
    return NULL;
}

static void *free_the_rest(void *arg)
{
    struct crowd *c = arg;
    int64_t out;

    for (int64_t i = 0; i < MANY; i += 2)
        CHECK(ended(c->f[i], &out) == 0 && out == i * i);
    return NULL;
}

static void the_last_future_takes_the_memory_of_all_along(void)
{
    for (size_t k = 0; k < 2; k++) {
        struct crowd *c = calloc(3, sizeof *c);
        tri_pool *p = pool_of(kinds[k], 2);
        pthread_t t[3];

        for (int i = 0; i < 3; i++) {
            c[i].pool = p;
            CHECK(pthread_create(&t[i], NULL, submit_and_free, &c[i]) == 0);
        }
        for (int i = 0; i < 3; i++)
            pthread_join(t[i], NULL);
        for (int i = 0; i < 3; i++) /* while and after the pool ends */
            CHECK(pthread_create(&t[i], NULL, free_the_rest, &c[i]) == 0);
        tri_pool_close(p);
        for (int i = 0; i < 3; i++)
            pthread_join(t[i], NULL);
        free(c);
    }
}

static int stuck(const void *in, void *out)
{
    struct gate *g;

    memcpy(&g, in, sizeof g);
    block_all_signals();
    atomic_fetch_add(&g->inside, 1);
    return deaf_for_ever(in, out);
}

static void terminating_does_not_wait_for_stuck_tasks(void)
{
    tri_pool *p = pool_of(TRI_PROCESS, 2);
    tri_share *s;
    struct gate *g = gate_of(p, &s);
    tri_future *f[100];
    int64_t start;
    int32_t warden = pid_from(p, pid_of_warden);

    for (int i = 0; i < 100; i++)
        f[i] = submit(p, stuck, &g, sizeof g, 0);
    WAIT_UNTIL(atomic_load(&g->inside) == 2, 10 * SECOND);
    start = tri_now_ns();
    tri_pool_terminate(p);
    CHECK(tri_now_ns() - start < 2 * SECOND * TRI_SLOW);
    for (int i = 0; i < 100; i++)
        CHECK(ended(f[i], NULL) == TRI_ECLOSED);
    WAIT_UNTIL(!process_lives(warden), SECOND);
}

struct opener {
    struct gate *gate;
    tri_future *queued;
};

/* The pool is being ended once what was queued has: only then may who has started go on. */
static void *opens_when_queued_have_ended(void *arg)
{
    struct opener *o = arg;

    WAIT_UNTIL(tri_future_wait(o->queued, 0) == 0, 10 * SECOND);
    atomic_store(&o->gate->open, 1);
    return NULL;
}

static void terminating_threads_waits_for_started_tasks_only(void)
{
    tri_pool *p = pool_of(TRI_THREAD, 2);
    static struct gate g;
    struct gate *gp = &g;
    struct opener o = {.gate = &g};
    tri_future *f[100];
    pthread_t t;

    occupy(p, gp, 2, f);
    for (int i = 2; i < 100; i++)
        f[i] = submit(p, stand_at_gate, &gp, sizeof gp, 0);
    o.queued = f[99];
    CHECK(pthread_create(&t, NULL, opens_when_queued_have_ended, &o) == 0);
    tri_pool_terminate(p);
    pthread_join(t, NULL);
    for (int i = 0; i < 100; i++)
        CHECK(ended(f[i], NULL) == (i < 2 ? 0 : TRI_ECLOSED));
    CHECK(atomic_load(&g.passed) == 2);
}

static void an_opening_that_fails_for_want_of_descriptors_leaves_none(void)
{
    struct rlimit old, few;
    int fds = open_fds(), opened = 0;

    CHECK(getrlimit(RLIMIT_NOFILE, &old) == 0);
    for (rlim_t n = 3; n < 40; n++) {
        struct tri_pool_inside in = {.shared_warden = -1, .want_output = true};
        tri_pool_config cfg;
        tri_pool *p = NULL;
        int err;

        tri_pool_config_init(&cfg);
        cfg.workers = 2;
        few = (struct rlimit){n, old.rlim_max};
        CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
        err = tri_pool_open_inside(&p, &cfg, &in);
        CHECK(setrlimit(RLIMIT_NOFILE, &old) == 0);
        CHECK(err == 0 || err == -EMFILE || err == TRI_EBROKEN);
        if (!err) {
            opened++;
            tri_pool_terminate(p);
        }
        CHECK(open_fds() == fds);
        CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
    }
    CHECK(opened > 0);
}

static void a_pool_leaves_no_descriptor_and_no_process_behind(void)
{
    tri_pool *later = NULL;
    int fds = open_fds();

    for (int i = 0; i < 20; i++) {
        tri_pool *p = pool_of(TRI_PROCESS, 2);
        int32_t warden = pid_from(p, pid_of_warden), worker = pid_from(p, pid_of_worker);

        if (i == 0)
            later = pool_of(TRI_PROCESS, 1); /* its warden inherits all that the first pool has */
        if (i % 2)
            tri_pool_terminate(p);
        else
            tri_pool_close(p);
        WAIT_UNTIL(!process_lives(worker) && !process_lives(warden), SECOND);
    }
    tri_pool_close(later);
    CHECK(open_fds() == fds);
}

/* ------------------------------------------------------------------ the owner and its family */

static void a_fork_of_the_owner_owns_no_pool_and_harms_none(void)
{
    for (size_t k = 0; k < 2; k++) {
        tri_pool *p = pool_of(kinds[k], 2);
        tri_share *s, *kept;
        struct gate *g = gate_of(p, &s);
        tri_future *busy[2], *f[20], *got;
        int64_t x = 3, out;
        int status;
        pid_t pid;

        CHECK(tri_share_open(p, 1 << 20, &kept) == 0);
        memset(tri_share_data(kept), 7, 1 << 20);
        occupy(p, g, 2, busy);
        for (int64_t i = 0; i < 20; i++)
            f[i] = submit(p, square, &i, 8, 8);
        pid = fork();
        if (pid == 0) {
            tri_stats st = {.size = sizeof st};
            int64_t start = tri_now_ns();

            CHECK(tri_submit(p, square, &x, 8, 8, NULL, &got) == TRI_EFORKED);
            CHECK(tri_map(p, square, &x, 8, &out, 8, 1, NULL) == TRI_EFORKED);
            CHECK(tri_future_wait(f[0], -1) == TRI_EFORKED);
            CHECK(tri_future_get(f[1], &out, 0) == TRI_EFORKED);
            CHECK(tri_future_cancel(f[2]) == TRI_EFORKED);
            CHECK(tri_share_open(p, 8, &s) == TRI_EFORKED);
            CHECK(tri_pool_stats(p, &st) == TRI_EFORKED);
            CHECK(tri_now_ns() - start < 10 * MS * TRI_SLOW);
            tri_share_free(kept);
            for (int i = 0; i < 20; i++)
                tri_future_free(f[i]);
            tri_pool_close(p);
            _exit(0);
        }
        CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
        atomic_store(&g->open, 1);
        CHECK(ended(busy[0], NULL) == 0 && ended(busy[1], NULL) == 0);
        for (int64_t i = 0; i < 20; i++)
            CHECK(ended(f[i], &out) == 0 && out == i * i);
        for (int i = 0; i < 1 << 20; i++)
            CHECK(((uint8_t *)tri_share_data(kept))[i] == 7);
        CHECK(squares_work(p, 1000));
        tri_share_free(kept);
        tri_share_free(s);
        tri_pool_close(p);
    }
}

static _Atomic int chlds;

static void on_chld(int sig)
{
    (void)sig;
    atomic_fetch_add(&chlds, 1);
}

static void children_of_the_owner_stay_its_own(void)
{
    tri_pool *p = pool_of(TRI_PROCESS, 2);
    struct sigaction sa = {.sa_handler = on_chld}, now;
    int status, before;
    pid_t pid;

    CHECK(squares_work(p, 100));
    errno = 0;
    CHECK(waitpid(-1, &status, WNOHANG) == -1 && errno == ECHILD);
    sigaction(SIGCHLD, &sa, NULL);
    before = atomic_load(&chlds);
    pid = fork();
    if (pid == 0)
        _exit(17);
    CHECK(squares_work(p, 100));
    while (waitpid(pid, &status, 0) < 0)
        CHECK(errno == EINTR);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 17);
    CHECK(atomic_load(&chlds) == before + 1);
    sigaction(SIGCHLD, NULL, &now);
    CHECK(now.sa_handler == on_chld);
    signal(SIGCHLD, SIG_DFL);
    tri_pool_close(p);
}

static int maps_in_a_pool_of_its_own(const void *in, void *out)
{
    tri_pool_config cfg;
    tri_pool *p;
    int err;

    tri_pool_config_init(&cfg);
    cfg.workers = 1;
    err = tri_pool_open(&p, &cfg);
    if (err)
        return err;
    err = tri_map(p, square, in, 8, out, 8, 1, NULL);
    tri_pool_close(p);
    return err;
}

static void a_task_may_open_a_pool(void)
{
    for (size_t k = 0; k < 2; k++) {
        tri_pool *p = pool_of(kinds[k], 2);
        tri_future *f[6];
        int64_t out;

        for (int64_t i = 0; i < 6; i++)
            f[i] = submit(p, maps_in_a_pool_of_its_own, &i, 8, 8);
        for (int64_t i = 0; i < 6; i++)
            CHECK(ended(f[i], &out) == 0 && out == i * i);
        tri_pool_close(p);
    }
}

static int hostile(const void *in, void *out)
{
    (void)in;
    (void)out;
    for (int fd = 3; fd < 1024; fd++)
        close(fd);
    block_all_signals();
    return chdir("/");
}

static void a_hostile_task_does_not_spoil_the_next(void)
{
    tri_pool *p = pool_of(TRI_PROCESS, 2);
    int64_t start = tri_now_ns();

    for (int i = 0; i < 4; i++)
        CHECK(ended(submit(p, hostile, NULL, 0, 0), NULL) == 0);
    CHECK(squares_work(p, 1000));
    tri_pool_close(p);
    CHECK(tri_now_ns() - start < 4 * SECOND * TRI_SLOW);
}

static void five_tasks(tri_pool_config *c)
{
    c->max_tasks = 5;
}

static void workers_retire_after_max_tasks(void)
{
    tri_pool *p = pool_with(TRI_PROCESS, 1, five_tasks);
    int32_t pid, last = 0, changes = 0;

    for (int i = 0; i < 50; i++) {
        pid = pid_from(p, pid_of_worker);
        changes += pid != last;
        last = pid;
    }
    CHECK(changes == 10);
    WAIT_UNTIL(stats_of(p).restarts == 10, SECOND);
    CHECK(stats_of(p).deaths == 0);
    tri_pool_close(p);
}

/* ------------------------------------------------------------------ rest */

/* What a process has used of the processor, in ticks of a hundredth of a second. */
static unsigned long ticks_of(int32_t pid)
{
    unsigned long user, system;
    char path[64];
    FILE *f;

    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    f = fopen(path, "re");
    CHECK(f && fscanf(f, "%*d %*s %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user,
                      &system) == 2);
    fclose(f);
    return user + system;
}

static void idle_pools_use_no_processor(void)
{
    tri_pool *p = pool_of(TRI_PROCESS, 2);
    int32_t pid[4] = {getpid(), pid_from(p, pid_of_warden), 0, 0};
    unsigned long used[4];

    pids_of(p, 2, &pid[2]);
    CHECK(squares_work(p, 1000));
    WAIT_UNTIL(tri_load_sc(&p->view.ctl->sleepers[0]) == 3, 5 * SECOND);
    for (int i = 0; i < 4; i++)
        used[i] = ticks_of(pid[i]);
    usleep(300000); /* long enough for who spins to show */
    for (int i = 0; i < 4; i++)
        CHECK(ticks_of(pid[i]) - used[i] <= 1 + 4 * TRI_SANITIZED); /* its runtime has a thread */
    tri_pool_close(p);
}

int main(void)
{
    RUN(closing_finishes_what_was_queued_and_futures_outlive_it);
    RUN(the_last_future_takes_the_memory_of_all_along);
    RUN(terminating_does_not_wait_for_stuck_tasks);
    RUN(terminating_threads_waits_for_started_tasks_only);
    RUN(an_opening_that_fails_for_want_of_descriptors_leaves_none);
    RUN(a_pool_leaves_no_descriptor_and_no_process_behind);
    RUN(a_fork_of_the_owner_owns_no_pool_and_harms_none);
    RUN(children_of_the_owner_stay_its_own);
    RUN(a_task_may_open_a_pool);
    RUN(a_hostile_task_does_not_spoil_the_next);
    RUN(workers_retire_after_max_tasks);
    RUN(idle_pools_use_no_processor);
    return 0;
}
