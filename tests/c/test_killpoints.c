/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_killpoints.c - a worker dies at its 1st, 2nd, 3rd ... step in shared memory.
 *
 * The core is compiled once more for this program with -DTRI_CHECKPOINTS, so that every CP(name)
 * counts.  Worker 0 arms itself before its first task and is killed at its n-th point; n grows
 * until runs end without a death.  Whatever n is:
 *
 *   R1  every future ends, with its value or, for the one task that had started, WORKERLOST
 *   R2  no task starts twice, and each that did not start before the death starts after it
 *   R4  the pool heals to its full number, and arena, slots and heaps are what they were; the owner
 *       has the descriptors and the mappings that it had, and nothing waits in the output socket
 *
 * A run has all that a worker does: tasks one by one (it spins), after a pause (it sleeps), many at
 * once (it passes wake-ups on), results inline and in blocks (it claims a heap), argument blocks
 * kept beyond their task (it pushes blocks of the owner's heap).  In a run that spills, results
 * that would be blocks find the heap full and leave as memfds, some of them through a socket that
 * has no room for them, and output goes to the backlog.  The test fails when a name in `expected`
 * was never died at, so a point that goes out of use does not go unnoticed.
 */
#include "pools.h"

#include <sys/mman.h>
#include <sys/socket.h>

#include "base/cp.h"
#include "pool/worker.h"
#include "shm/queue.h"

#define TASKS 30
#define BIG 4000
#define HEAP (8u << 20) /* the smallest; a run that spills fills it up to less than BIG */

static const char *const expected[] = {
    "claim_before",   "claim_after",     "claim_head_moved", "start_before",    "start_after",
    "heap_claimed",   "result_block",    "result_written",   "done_stored",     "ring_written",
    "ring_published", "want_taken",      "wake_taken",       "sleep_declared",  "sleep_undeclared",
    "spin_declared",  "spin_undeclared", "block_push",       "spill_room",      "spill_before",
    "spill_waits",    "spill_sent",      "spill_counted",    "backlog_written", "backlog_put",
};
#define NEXPECTED (sizeof expected / sizeof *expected)
static bool seen[NEXPECTED];

static int marks = -1; /* O_APPEND: the number of each task as it starts */
static long armed;
static bool spills;

/* ------------------------------------------------------------------ the worker's half */

static uint64_t kept_off; /* an argument block of the task before */

static int begin(struct tri_worker *w)
{
    kept_off = 0;
    if (w->id == 0 && w->gen == 0)
        tri_cp_arm(armed);
    return 0;
}

/* Room for a result in a worker whose heap is full. */
static uint8_t *spill_room(struct tri_worker *w, uint64_t bytes, uint64_t *off)
{
    uint64_t full = tri_worker_block_new(w, HEAP - 1000);
    uint8_t *res = tri_worker_result_room(w, bytes, off);

    if (!full || *off || !w->spill_fd)
        _exit(11);
    tri_worker_block_free(w, full);
    return res;
}

/* Output until the socket takes no more; the owner reads it when it is woken. */
static void fill_socket(struct tri_worker *w)
{
    char bytes[sizeof(struct tri_output_head) + 20000] = {1};

    while (send(w->output_fd, bytes, sizeof bytes, MSG_NOSIGNAL | MSG_DONTWAIT) > 0)
        ;
}

static void run(struct tri_worker *w, struct tri_slot *s)
{
    const uint8_t *arg = s->arg_off ? w->view.base + s->arg_off : s->arg;
    uint64_t bytes, off;
    uint16_t task;
    uint8_t *res;

    memcpy(&task, arg, sizeof task);
    if (write(marks, &task, sizeof task) != sizeof task)
        _exit(9);
    if (task % 4 == 0)
        tri_wake_worker(&w->view); /* as after a claim that left more behind, which is rare here */
    bytes = task % 3 == 1 ? BIG : 8;
    s->res_flags = 0;
    res = spills && bytes == BIG ? spill_room(w, bytes, &off)
                                 : tri_worker_result_room(w, bytes, &off);
    if (!res)
        _exit(10);
    if (w->spill_fd && task % 2) {
        fill_socket(w);
        if (tri_worker_output(w, 1, res, BIG) != 0)
            _exit(12);
    }
    memset(res, task + 1, bytes);
    if (kept_off) {
        tri_block_push(&w->view, kept_off);
        kept_off = 0;
    }
    if (s->arg_off) {
        kept_off = s->arg_off;
        s->res_flags |= TRI_R_ARGS_KEPT;
    }
    s->code = 0;
    s->res_off = off;
    s->res_len = bytes;
}

/* ------------------------------------------------------------------ the owner's half */

struct job {
    struct tri_user user;
    bool done;
    int status;
    uint16_t task;
    uint32_t slot;
    uint64_t ticket;
};

static void job_ended(struct tri_user *u, struct tri_pool *p, struct tri_done *d)
{
    struct job *j = (struct job *)u;

    CHECK(!j->done);
    j->done = true;
    j->status = d->status;
    if (!d->status) {
        uint64_t bytes = j->task % 3 == 1 ? BIG : 8;
        const uint8_t *res = tri_done_bytes(p, d);

        CHECK(d->res_len == bytes);
        CHECK(!d->spill == !(spills && bytes == BIG));
        for (uint64_t i = 0; i < bytes; i++)
            CHECK(res[i] == (uint8_t)(j->task + 1));
    }
    if (d->spill)
        munmap(d->spill, d->res_len);
    if (d->res_off)
        tri_pool_block_free(p, d->res_off);
}

/* A slot, waiting while all are in use. */
static void slot_for(struct tri_pool *p, uint32_t *slot)
{
    for (;;) {
        uint32_t key = tri_wait_key(p);
        int err = tri_task_new(p, slot);

        if (!err)
            return;
        CHECK(err == -EAGAIN);
        if (tri_pump(p) == 0)
            tri_wait(p, key, TRI_ANY_SLOT, 0, -1);
    }
}

static void send_job(struct tri_pool *p, struct job *j, uint16_t task)
{
    struct tri_slot *s;
    uint8_t *arg;

    memset(j, 0, sizeof *j);
    j->user.ended = job_ended;
    j->task = task;
    slot_for(p, &j->slot);
    s = &p->view.slot[j->slot];
    s->flags = TRI_F_PY;
    s->timeout_ns = 0;
    s->items = 1;
    s->arg_off = 0;
    arg = s->arg;
    if (task % 4 == 2) {
        s->arg_off = tri_pool_block_new(p, 300);
        CHECK(s->arg_off);
        arg = p->view.base + s->arg_off;
    }
    memcpy(arg, &task, sizeof task);
    CHECK(tri_task_push(p, j->slot, 0, 0, j, &j->ticket) == 0);
}

/* As a language's owner does whenever it looks: a worker may wait for room in the socket. */
static void read_output(struct tri_pool *p)
{
    static char buf[64 << 10];
    uint32_t stream;
    int32_t pid;
    size_t n;

    while (tri_pool_output(p, &stream, &pid, buf, sizeof buf, &n))
        CHECK(stream == 1);
}

static void await(struct tri_pool *p, struct job *j)
{
    while (!j->done) {
        uint32_t key = tri_wait_key(p);
        struct tri_done d;

        read_output(p);
        if (tri_take_one(p, j->slot, j->ticket, &d))
            job_ended(d.user, p, &d);
        else if (tri_pump(p) == 0 && !j->done)
            tri_wait(p, key, j->slot, j->ticket, -1);
    }
}

static void mark_starts(const struct job *jobs)
{
    uint16_t mark[4 * TASKS];
    int starts[TASKS] = {0}, lost = 0;
    ssize_t n = pread(marks, mark, sizeof mark, 0);

    CHECK(n >= 0 && (size_t)n < sizeof mark);
    for (ssize_t i = 0; i < n / 2; i++) {
        CHECK(mark[i] < TASKS);
        starts[mark[i]]++;
    }
    for (int i = 0; i < TASKS; i++) {
        CHECK(jobs[i].done);
        CHECK(jobs[i].status == 0 || jobs[i].status == TRI_EWORKERLOST);
        lost += jobs[i].status != 0;
        CHECK(jobs[i].status ? starts[i] <= 1 : starts[i] == 1);
    }
    CHECK(lost <= 1);
    CHECK(ftruncate(marks, 0) == 0);
}

/* Did it die, and where? */
static bool read_name(int fd)
{
    char name[64] = {0};
    ssize_t n = read(fd, name, sizeof name - 1);

    for (size_t i = 0; i < NEXPECTED && n > 0; i++)
        if (strlen(expected[i]) + 1 == (size_t)n && memcmp(name, expected[i], (size_t)n - 1) == 0) {
            seen[i] = true;
            return true;
        }
    if (n > 0)
        fprintf(stderr, "a point that the test does not know: %s", name);
    CHECK(n <= 0);
    return false;
}

/* Mappings of memory that has no name, among them those of results outside the arena. */
static int shared_maps(void)
{
    FILE *f = fopen("/proc/self/maps", "re");
    char line[512];
    int n = 0;

    CHECK(f != NULL);
    while (fgets(line, sizeof line, f))
        n += strstr(line, "memfd:trireme") != NULL;
    fclose(f);
    return n;
}

/* True when the worker died. */
static bool one_run(long n, int64_t spin_ns, int names)
{
    struct tri_pool_inside in;
    struct job jobs[TASKS];
    tri_pool_config cfg;
    tri_pool *p;
    uint64_t live;
    bool died, reported;
    int i = 0, fds, maps;

    memset(&in, 0, sizeof in);
    in.shared_warden = -1;
    in.hooks.begin = begin;
    in.hooks.run = run;
    in.want_output = spills;
    armed = n;
    tri_pool_config_init(&cfg);
    cfg.workers = 2;
    cfg.spin_ns = spin_ns;
    if (spills)
        cfg.arena_bytes = HEAP;
    CHECK(tri_pool_open_inside(&p, &cfg, &in) == 0);
    live = stats_of(p).arena_live_bytes;
    fds = open_fds();
    maps = shared_maps();

    for (; i < TASKS / 3; i++) { /* one by one */
        send_job(p, &jobs[i], (uint16_t)i);
        await(p, &jobs[i]);
        if (i % 4 == 3)
            WAIT_UNTIL(atomic_load(&p->view.ctl->sleepers[0]) == 3 || stats_of(p).deaths, SECOND);
    }
    for (; i < 2 * TASKS / 3; i += 2) { /* two for one spinner, who has to wake the other worker */
        send_job(p, &jobs[i], (uint16_t)i);
        send_job(p, &jobs[i + 1], (uint16_t)(i + 1));
        await(p, &jobs[i]);
        await(p, &jobs[i + 1]);
    }
    for (int k = i; k < TASKS; k++) /* all at once */
        send_job(p, &jobs[k], (uint16_t)k);
    for (int k = i; k < TASKS; k++)
        await(p, &jobs[k]);
    mark_starts(jobs);

    /* Not yet dead, it dies at one of the next points, in a task of this map for example, or not
     * at all in this run. */
    WAIT_UNTIL(stats_of(p).workers_alive == 2, SECOND);
    CHECK(squares_work(p, 50) || squares_work(p, 50));
    CHECK(stats_of(p).deaths <= 1);
    WAIT_UNTIL(stats_of(p).slots_free == stats_of(p).slots, SECOND);
    /* Blocks freed by others are home once their participants have looked around. */
    for (int64_t until = tri_now_ns() + 5 * SECOND; stats_of(p).arena_live_bytes != live;) {
        struct job more[4];

        CHECK(tri_now_ns() < until);
        for (int k = 0; k < 4; k++) {
            send_job(p, &more[k], (uint16_t)(k % 2 ? 1 : 0));
        }
        for (int k = 0; k < 4; k++)
            await(p, &more[k]);
        CHECK(squares_work(p, 8) || squares_work(p, 8));
    }
    CHECK(ftruncate(marks, 0) == 0);
    CHECK(tri_heap_check(&p->heap) == 0);
    CHECK(p->nkept == 0);
    for (uint32_t h = 1; h < p->view.nheaps; h++)
        CHECK(p->held[h] == 0);
    read_output(p);
    for (uint32_t w = 0; w < 2; w++) {
        uint64_t put = atomic_load(&p->view.worker[w].backlog_put);

        CHECK(p->member[w].backlog_got == put && p->member[w].backlog_goal == put);
    }
    CHECK(p->nspill == 0 && open_fds() == fds && shared_maps() == maps);
    reported = stats_of(p).deaths > 0;
    tri_pool_close(p); /* where it may die, too */
    died = read_name(names);
    CHECK(died || !reported);
    return died;
}

static void enumerate(int64_t spin_ns)
{
    char path[] = "/tmp/trireme-marks.XXXXXX";
    int names[2], quiet = 0;
    long n;

    marks = mkostemp(path, O_APPEND);
    CHECK(marks >= 0 && unlink(path) == 0);
    CHECK(pipe2(names, O_NONBLOCK) == 0 && dup2(names[1], 9) == 9);
    close(names[1]);
    for (n = 1; quiet < 4; n++)
        quiet = one_run(n, spin_ns, names[0]) ? 0 : quiet + 1;
    fprintf(stderr, "%ld points\n", n - 1 - quiet);
    CHECK(n > 60);
    close(names[0]);
    close(9);
    close(marks);
}

static void a_death_at_any_point_of_a_worker_that_sleeps_is_repaired(void)
{
    enumerate(0);
}

static void a_death_at_any_point_of_a_worker_that_spins_is_repaired(void)
{
    enumerate(200000);
}

static void a_death_at_any_point_of_a_worker_that_sleeps_and_spills_is_repaired(void)
{
    spills = true;
    enumerate(0);
    spills = false;
}

static void a_death_at_any_point_of_a_worker_that_spins_and_spills_is_repaired(void)
{
    spills = true;
    enumerate(200000);
    spills = false;
}

/* Which points a run has depends on who is quicker: a rare one may take another round. */
static void every_point_was_visited(void)
{
    size_t missing = NEXPECTED;

    for (int round = 0; missing && round < 8; round++) {
        missing = 0;
        for (size_t i = 0; i < NEXPECTED; i++)
            if (!seen[i]) {
                fprintf(stderr, "no worker died at %s yet\n", expected[i]);
                missing++;
            }
        spills = !spills;
        if (missing)
            enumerate(round % 2 ? 50000 : 1000000);
    }
    spills = false;
    CHECK(missing == 0);
}

int main(void)
{
    RUN(a_death_at_any_point_of_a_worker_that_sleeps_is_repaired);
    RUN(a_death_at_any_point_of_a_worker_that_spins_is_repaired);
    RUN(a_death_at_any_point_of_a_worker_that_sleeps_and_spills_is_repaired);
    RUN(a_death_at_any_point_of_a_worker_that_spins_and_spills_is_repaired);
    RUN(every_point_was_visited);
    return 0;
}
