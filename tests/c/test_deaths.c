/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_deaths.c - whatever a task does to its worker, and whoever kills it: every future ends, the
 * pool heals, nothing is left behind.
 *
 * Deaths of the warden and of the owner are in test_warden.c, deaths of a worker at each single
 * step in test_killpoints.c.
 */
#include "pools.h"

#include <sys/mman.h>
#include <sys/resource.h>

/* ------------------------------------------------------------------ ways to die */

static int by_sigkill(const void *in, void *out)
{
    (void)in;
    (void)out;
    return kill(getpid(), SIGKILL);
}

static int by_sigterm(const void *in, void *out)
{
    (void)in;
    (void)out;
    return kill(getpid(), SIGTERM);
}

static volatile int *volatile nowhere = NULL;

static int by_segv(const void *in, void *out)
{
    (void)in;
    (void)out;
    signal(SIGSEGV, SIG_DFL); /* a sanitizer would rather write a report */
    return *nowhere;
}

static int by_abort(const void *in, void *out)
{
    (void)in;
    (void)out;
    abort();
}

static int by_exit_0(const void *in, void *out)
{
    (void)in;
    (void)out;
    _exit(0);
}

static int by_exit_3(const void *in, void *out)
{
    (void)in;
    (void)out;
    _exit(3);
}

/* The exit codes by which a worker speaks to its warden, from a task that knows no better. */
static int by_exit_retired(const void *in, void *out)
{
    (void)in;
    (void)out;
    _exit(TRI_EXIT_RETIRED);
}

static volatile int deeper = 1;

static int recurse(volatile char *above)
{
    volatile char here[4096];

    here[0] = above[0];
    return deeper ? recurse(here) + here[0] : 0;
}

static int by_stack_overflow(const void *in, void *out)
{
    volatile char here[16] = {0};

    (void)in;
    (void)out;
    signal(SIGSEGV, SIG_DFL);
    return recurse(here);
}

static void heals(tri_pool *p, int workers)
{
    WAIT_UNTIL(stats_of(p).workers_alive == workers, SECOND);
    CHECK(squares_work(p, 300));
    CHECK(stats_of(p).slots_free == stats_of(p).slots);
}

static void any_death_costs_its_task_and_nothing_else(void)
{
    static const tri_fn ways[] = {by_sigkill, by_sigterm, by_segv,         by_abort,
                                  by_exit_0,  by_exit_3,  by_exit_retired, by_stack_overflow};
    size_t n = sizeof ways / sizeof *ways;
    tri_pool *p = durable_pool(2);
    uint64_t live = stats_of(p).arena_live_bytes;

    for (size_t w = 0; w < n; w++) {
        tri_future *f[8];
        int64_t out, start = tri_now_ns();

        for (int64_t i = 0; i < 8; i++)
            f[i] = submit(p, i == 3 ? ways[w] : square, &i, 8, i == 3 ? 0 : 8);
        for (int64_t i = 0; i < 8; i++) {
            int err = ended(f[i], &out);

            CHECK(i == 3 ? err == TRI_EWORKERLOST : err == 0 && out == i * i);
        }
        CHECK(tri_now_ns() - start < SECOND * TRI_SLOW);
        heals(p, 2);
    }
    CHECK(stats_of(p).lost == n && stats_of(p).deaths == n);
    CHECK(stats_of(p).restarts == n);
    WAIT_UNTIL((squares_work(p, 64), stats_of(p).arena_live_bytes == live), 5 * SECOND);
    tri_pool_close(p);
}

static int dies_for_77(const void *in, void *out)
{
    int64_t x;

    memcpy(&x, in, sizeof x);
    if (x == 77)
        by_sigkill(in, out);
    return square(in, out);
}

static void a_death_in_a_map_ends_the_map(void)
{
    tri_pool *p = durable_pool(2);
    int64_t in[200], out[200];

    for (int i = 0; i < 200; i++)
        in[i] = i;
    for (int i = 0; i < 10; i++) {
        CHECK(tri_map(p, dies_for_77, in, 8, out, 8, 200, NULL) == TRI_EWORKERLOST);
        CHECK(squares_work(p, 1000));
    }
    heals(p, 2);
    tri_pool_close(p);
}

static void idle_workers_may_die_one_by_one_or_all_at_once(void)
{
    tri_pool *p = durable_pool(3);
    int32_t pid[3];

    for (int round = 0; round < 12; round++) {
        tri_stats before = stats_of(p);
        int victims = round % 3 + 1;

        pids_of(p, 3, pid);
        for (int i = 0; i < victims; i++)
            kill(pid[i], SIGKILL);
        if (round % 2)
            CHECK(squares_work(p, 100)); /* at once, before anything is repaired */
        WAIT_UNTIL(stats_of(p).restarts == before.restarts + (uint64_t)victims, SECOND);
        heals(p, 3);
        for (int i = 0; i < victims; i++)
            CHECK(!process_lives(pid[i]));
    }
    CHECK(stats_of(p).lost == 0);
    tri_pool_close(p);
}

static void queued_tasks_survive_the_death_of_all_workers(void)
{
    tri_pool *p = durable_pool(2);

    for (int round = 0; round < 10; round++) {
        tri_share *s;
        struct gate *g = gate_of(p, &s);
        tri_future *busy[2], *f[50];
        int64_t out;
        int32_t pid[2];

        pids_of(p, 2, pid);
        occupy(p, g, 2, busy);
        for (int64_t i = 0; i < 50; i++)
            f[i] = submit(p, square, &i, 8, 8);
        kill(pid[0], SIGKILL);
        kill(pid[1], SIGKILL);
        CHECK(ended(busy[0], NULL) == TRI_EWORKERLOST);
        CHECK(ended(busy[1], NULL) == TRI_EWORKERLOST);
        for (int64_t i = 0; i < 50; i++)
            CHECK(ended(f[i], &out) == 0 && out == i * i);
        tri_share_free(s);
        heals(p, 2);
    }
    tri_pool_close(p);
}

/* ------------------------------------------------------------------ retries */

static int counts_then_dies(const void *in, void *out)
{
    _Atomic uint32_t *n;
    uint32_t lives;

    memcpy(&n, in, sizeof n);
    memcpy(&lives, (const char *)in + 8, sizeof lives);
    if (atomic_fetch_add(n, 1) < lives)
        by_exit_3(in, out);
    return 0;
}

static void retries_are_bounded_and_can_be_waited_for(void)
{
    tri_pool *p = durable_pool(2);

    for (uint32_t lives = 0; lives < 6; lives++)
        for (int retries = 0; retries < 5; retries++) {
            struct {
                _Atomic uint32_t *n;
                uint32_t lives, pad;
            } a = {NULL, lives, 0};
            tri_call opt = TRI_CALL_INIT;
            tri_future *f;
            tri_share *s;
            int err;

            CHECK(tri_share_open(p, 8, &s) == 0);
            a.n = tri_share_data(s);
            opt.retries = retries;
            CHECK(tri_submit(p, counts_then_dies, &a, sizeof a, 0, &opt, &f) == 0);
            err = ended(f, NULL);
            CHECK(err == ((int)lives <= retries ? 0 : TRI_EWORKERLOST));
            CHECK(*a.n == (lives <= (uint32_t)retries ? lives + 1 : (uint32_t)retries + 1));
            tri_share_free(s);
        }
    heals(p, 2);
    tri_pool_close(p);
}

/* A task that came back from the dead is the same task to who waits for it and who cancels it. */
static void a_requeued_task_can_be_cancelled(void)
{
    tri_pool *p = durable_pool(1);
    tri_share *s;
    struct gate *g = gate_of(p, &s);
    tri_call opt = TRI_CALL_INIT, last = TRI_CALL_INIT;
    int32_t pid = pid_from(p, pid_of_worker);
    tri_future *f, *other;

    opt.retries = 3;
    opt.priority = -1;
    last.priority = 0;
    CHECK(tri_submit(p, stand_at_gate, &g, sizeof g, 0, &opt, &f) == 0);
    WAIT_UNTIL(atomic_load(&g->inside) == 1, SECOND);
    CHECK(tri_submit(p, stand_at_gate, &g, sizeof g, 0, &last, &other) == 0);
    kill(pid, SIGKILL);
    WAIT_UNTIL(stats_of(p).retried == 1 && atomic_load(&g->inside) == 2, SECOND);
    CHECK(tri_future_cancel(f) == 0); /* it waits behind the other */
    atomic_store(&g->open, 1);
    CHECK(ended(f, NULL) == TRI_ECANCELLED && ended(other, NULL) == 0);
    CHECK(g->inside == 2);
    tri_share_free(s);
    tri_pool_close(p);
}

/* ------------------------------------------------------------------ time limits */

static int stops_itself(const void *in, void *out)
{
    (void)in;
    (void)out;
    return kill(getpid(), SIGSTOP);
}

static void a_time_limit_kills_the_late_task_only(void)
{
    static const tri_fn late[] = {deaf_for_ever, stops_itself};
    const int64_t limit = 200 * MS; /* the innocent keep it on a busy machine too */
    tri_pool *p = durable_pool(2);

    for (int k = 0; k < 2; k++) {
        tri_call opt = TRI_CALL_INIT;
        tri_future *f[10];
        int64_t out, start = tri_now_ns();

        opt.timeout_ns = limit;
        opt.retries = 5; /* not for this */
        for (int64_t i = 0; i < 10; i++)
            CHECK(tri_submit(p, i == 2 ? late[k] : square, &i, 8, 8, &opt, &f[i]) == 0);
        for (int64_t i = 0; i < 10; i++) {
            int err = ended(f[i], &out);

            CHECK(i == 2 ? err == TRI_ETASKTIMEOUT : err == 0 && out == i * i);
        }
        CHECK(tri_now_ns() - start >= limit && tri_now_ns() - start < SECOND * TRI_SLOW);
        heals(p, 2);
    }
    CHECK(stats_of(p).timed_out == 2 && stats_of(p).lost == 0);
    /* A limit that was kept is gone with its task. */
    for (int i = 0; i < 20; i++) {
        tri_call opt = TRI_CALL_INIT;
        tri_future *f;
        int64_t out;

        opt.timeout_ns = limit;
        CHECK(tri_submit(p, square, &(int64_t){i}, 8, 8, &opt, &f) == 0);
        CHECK(ended(f, &out) == 0);
    }
    usleep((useconds_t)(2 * limit / 1000));
    CHECK(stats_of(p).deaths == 2);
    tri_pool_close(p);
}

static void a_stopped_worker_loses_nothing_when_it_goes_on(void)
{
    tri_pool *p = durable_pool(1);
    tri_share *s;
    struct gate *g = gate_of(p, &s);
    tri_future *f;
    int32_t pid = pid_from(p, pid_of_worker);

    occupy(p, g, 1, &f);
    kill(pid, SIGSTOP);
    WAIT_UNTIL((stats_of(p), p->member[0].stopped), SECOND);
    atomic_store(&g->open, 1);
    CHECK(tri_future_wait(f, 20 * MS) == TRI_ETIMEDOUT);
    kill(pid, SIGCONT);
    CHECK(ended(f, NULL) == 0);
    WAIT_UNTIL((stats_of(p), !p->member[0].stopped), SECOND);
    CHECK(squares_work(p, 100) && stats_of(p).deaths == 0);
    tri_share_free(s);
    tri_pool_close(p);
}

static void a_stopped_idle_worker_does_not_hold_up_the_others(void)
{
    tri_pool *p = durable_pool(2);
    int32_t pid[2];

    pids_of(p, 2, pid);
    for (int k = 0; k < 2; k++) {
        int64_t start = tri_now_ns(), out;

        kill(pid[k], SIGSTOP);
        for (int64_t i = 0; i < 4; i++)
            CHECK(ended(submit(p, square, &i, 8, 8), &out) == 0 && out == i * i);
        CHECK(tri_now_ns() - start < SECOND * TRI_SLOW);
        kill(pid[k], SIGCONT);
        CHECK(squares_work(p, 100));
    }
    tri_pool_close(p);
}

/* ------------------------------------------------------------------ restarts */

static int children_of(int pid)
{
    char path[64], word[16];
    int n = 0;
    FILE *f;

    snprintf(path, sizeof path, "/proc/%d/task/%d/children", pid, pid);
    f = fopen(path, "re");
    while (f && fscanf(f, "%15s", word) == 1)
        n++;
    if (f)
        fclose(f);
    return n;
}

static void a_thousand_restarts_leave_no_zombie_and_no_memory(void)
{
    tri_pool *p = durable_pool(2);
    int n = TRI_SANITIZED ? 100 : 1000;
    uint64_t live = stats_of(p).arena_live_bytes;
    int fds = open_fds();
    int32_t warden = pid_from(p, pid_of_warden);

    for (int i = 0; i < n; i += 4) {
        tri_future *f[4];

        for (int k = 0; k < 4; k++)
            f[k] = submit(p, k % 2 ? by_exit_0 : by_sigkill, NULL, 0, 1000);
        for (int k = 0; k < 4; k++)
            CHECK(ended(f[k], NULL) == TRI_EWORKERLOST);
    }
    WAIT_UNTIL(stats_of(p).restarts == (uint64_t)n && children_of(warden) == 2, SECOND);
    heals(p, 2);
    CHECK(open_fds() == fds);
    WAIT_UNTIL((squares_work(p, 64), stats_of(p).arena_live_bytes == live), 5 * SECOND);
    for (uint32_t h = 1, free = 0; h < p->view.nheaps; h++) {
        free += p->view.heap[h].state == TRI_H_FREE;
        CHECK(h + 1 < p->view.nheaps || free >= p->view.nheaps - 3);
    }
    tri_pool_close(p);
    WAIT_UNTIL(!process_lives(warden), SECOND);
}

/* Each costs its task, so they end with the tasks. */
static void deaths_by_tasks_do_not_break_the_pool(void)
{
    tri_pool *p = pool_of(TRI_PROCESS, 2);
    tri_future *f[200];

    for (int i = 0; i < 200; i++)
        f[i] = submit(p, by_sigkill, NULL, 0, 0);
    for (int i = 0; i < 200; i++)
        CHECK(ended(f[i], NULL) == TRI_EWORKERLOST);
    heals(p, 2);
    tri_pool_close(p);
}

static _Atomic uint32_t *starts; /* shared with all that is forked */

static int begin_dies(struct tri_worker *w)
{
    /* The first two start well, and none that follows. */
    if (atomic_fetch_add(starts, 1) < 2 && w->gen == 0)
        return 0;
    return kill(getpid(), SIGKILL);
}

static void starts_that_fail_for_ever_break_the_pool(void)
{
    tri_future *f[50];
    tri_pool *p;
    int64_t out, start;
    int lost = 0, broken = 0;

    starts = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(starts != MAP_FAILED);
    p = pool_inside(2, (struct tri_pool_inside){.hooks.begin = begin_dies});
    CHECK(ended(submit(p, square, &(int64_t){3}, 8, 8), &out) == 0 && out == 9);
    start = tri_now_ns();
    for (int i = 0; i < 50; i++)
        if (tri_submit(p, i < 2 ? by_sigkill : square, &start, 8, i < 2 ? 0 : 8, NULL, &f[i]) != 0)
            f[i] = NULL;
    for (int i = 0; i < 50; i++) {
        int err = f[i] ? ended(f[i], NULL) : TRI_EBROKEN;

        lost += err == TRI_EWORKERLOST;
        broken += err == TRI_EBROKEN;
    }
    CHECK(tri_now_ns() - start < SECOND * TRI_SLOW);
    CHECK(lost >= 1 && lost <= 2 && broken >= 1);
    CHECK(tri_submit(p, square, &start, 8, 8, NULL, &f[0]) == TRI_EBROKEN);
    CHECK(tri_map(p, square, &start, 8, &out, 8, 1, NULL) == TRI_EBROKEN);
    WAIT_UNTIL(stats_of(p).workers_alive == 0, SECOND);
    CHECK(*starts <= 2 + 2 + 10); /* max(10, 3 x workers) more than were asked for */
    tri_pool_close(p);
    munmap(starts, 4096);
    starts = NULL;
}

/* Its warden ends the other workers, whoever is looking. */
static void a_death_breaks_a_fragile_pool(void)
{
    tri_pool *p = pool_inside(2, (struct tri_pool_inside){.fragile = true});
    tri_future *deaf[2], *queued;
    int32_t pid[2];
    int64_t out, x = 3;
    int err[2];

    CHECK(ended(submit(p, square, &x, 8, 8), &out) == 0 && out == 9);
    pids_of(p, 2, pid);
    for (int i = 0; i < 2; i++)
        deaf[i] = submit(p, deaf_for_ever, &x, 8, 0);
    queued = submit(p, square, &x, 8, 8);
    kill(pid[0], SIGKILL);
    WAIT_UNTIL(!process_lives(pid[0]) && !process_lives(pid[1]), SECOND);
    for (int i = 0; i < 2; i++)
        err[i] = ended(deaf[i], NULL);
    CHECK(err[0] == TRI_EWORKERLOST || err[0] == TRI_EBROKEN);
    CHECK(err[1] == TRI_EWORKERLOST || err[1] == TRI_EBROKEN);
    CHECK(ended(queued, &out) == TRI_EBROKEN);
    CHECK(tri_submit(p, square, &x, 8, 8, NULL, &queued) == TRI_EBROKEN);
    WAIT_UNTIL(stats_of(p).workers_alive == 0, SECOND); /* the last death may be told later */
    CHECK(stats_of(p).restarts == 0);
    tri_pool_close(p);
}

static void as_nobody(void)
{
    struct rlimit r, none;
    tri_pool *p;
    int32_t warden, pid[2];

    if (geteuid() == 0 && setresuid(65534, 65534, 65534) != 0)
        return; /* root is refused no process, and there is nobody else to be */
    p = durable_pool(2);
    warden = pid_from(p, pid_of_warden);
    pids_of(p, 2, pid);
    CHECK(prlimit(warden, RLIMIT_NPROC, NULL, &r) == 0);
    none = (struct rlimit){0, r.rlim_max};
    CHECK(prlimit(warden, RLIMIT_NPROC, &none, NULL) == 0);
    kill(pid[0], SIGKILL);
    WAIT_UNTIL(stats_of(p).workers_alive == 1, SECOND);
    CHECK(squares_work(p, 1000) && stats_of(p).workers_alive == 1);
    CHECK(prlimit(warden, RLIMIT_NPROC, &r, NULL) == 0);
    heals(p, 2);
    tri_pool_close(p);
}

static void a_pool_refused_a_process_shrinks_and_grows_again(void)
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        alarm(50);
        as_nobody();
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static int leaves_children(const void *in, void *out)
{
    int32_t pid[2];
    int up[2];

    (void)in;
    if (pipe(up) < 0)
        return errno;
    pid[0] = (int32_t)fork();
    if (pid[0] == 0) { /* a child with a child: the second is found when the first is gone */
        pid[1] = (int32_t)fork();
        if (pid[1] == 0)
            for (;;)
                pause();
        if (write(up[1], &pid[1], 4) != 4)
            _exit(1);
        for (;;)
            pause();
    }
    if (read(up[0], &pid[1], 4) != 4)
        return 1;
    memcpy(out, pid, sizeof pid);
    return 0;
}

static void children_of_a_dead_worker_are_killed(void)
{
    tri_pool *p = durable_pool(1);
    int32_t pid[2], worker = pid_from(p, pid_of_worker);

    CHECK(ended(submit(p, leaves_children, NULL, 0, 8), pid) == 0);
    CHECK(process_lives(pid[0]) && process_lives(pid[1]));
    kill(worker, SIGKILL);
    WAIT_UNTIL(!process_lives(pid[0]) && !process_lives(pid[1]), SECOND);
    heals(p, 1);
    tri_pool_close(p);
}

static tri_pool *inner;

static int opens_and_keeps_a_pool(const void *in, void *out)
{
    tri_pool_config cfg;
    tri_future *f;
    int err;

    (void)in;
    tri_pool_config_init(&cfg);
    cfg.workers = 1;
    err = tri_pool_open(&inner, &cfg);
    if (!err)
        err = tri_submit(inner, pid_of_worker, NULL, 0, 4, NULL, &f);
    if (!err)
        err = tri_future_get(f, out, -1);
    return err;
}

static void a_nested_pool_dies_with_its_worker_and_not_before(void)
{
    tri_pool *p = durable_pool(2);
    int32_t deep, pid[2];

    CHECK(ended(submit(p, opens_and_keeps_a_pool, NULL, 0, 4), &deep) == 0);
    CHECK(squares_work(p, 1000) && process_lives(deep));
    pids_of(p, 2, pid);
    for (int i = 0; i < 2; i++)
        kill(pid[i], SIGKILL);
    WAIT_UNTIL(!process_lives(deep), SECOND);
    heals(p, 2);
    tri_pool_close(p);
}
int main(void)
{
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    RUN(any_death_costs_its_task_and_nothing_else);
    RUN(a_death_in_a_map_ends_the_map);
    RUN(idle_workers_may_die_one_by_one_or_all_at_once);
    RUN(queued_tasks_survive_the_death_of_all_workers);
    RUN(retries_are_bounded_and_can_be_waited_for);
    RUN(a_requeued_task_can_be_cancelled);
    RUN(a_time_limit_kills_the_late_task_only);
    RUN(a_stopped_worker_loses_nothing_when_it_goes_on);
    RUN(a_stopped_idle_worker_does_not_hold_up_the_others);
    RUN(a_thousand_restarts_leave_no_zombie_and_no_memory);
    RUN(deaths_by_tasks_do_not_break_the_pool);
    RUN(starts_that_fail_for_ever_break_the_pool);
    RUN(a_death_breaks_a_fragile_pool);
    RUN(a_pool_refused_a_process_shrinks_and_grows_again);
    RUN(children_of_a_dead_worker_are_killed);
    RUN(a_nested_pool_dies_with_its_worker_and_not_before);
    return 0;
}
