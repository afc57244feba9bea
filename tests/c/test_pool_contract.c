/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_pool_contract.c - what trireme.h promises to those who hold it wrongly, or in a way that is
 * not the usual one: sizes that no array has, fields out of range, tasks that print, that exit with
 * a code of ours, or that use the pool they run in.
 */
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "pools.h"

static const int kinds[] = {TRI_PROCESS, TRI_THREAD};

/* ------------------------------------------------------------------ refusals */

static int nothing(const void *in, void *out)
{
    (void)in;
    (void)out;
    return 0;
}

static int by_kill(const void *in, void *out)
{
    (void)in;
    (void)out;
    return kill(getpid(), SIGKILL);
}

static void an_array_that_cannot_be_is_refused(void)
{
    for (size_t k = 0; k < 2; k++) {
        tri_pool *p = pool_of(kinds[k], 2);
        int64_t x[4] = {1, 2, 3, 4};

        CHECK(tri_map(p, nothing, x, 8, x, 8, SIZE_MAX, NULL) == -EINVAL);
        CHECK(tri_map(p, nothing, x, SIZE_MAX, x, 8, 1, NULL) == -EINVAL);
        CHECK(tri_map(p, nothing, x, SIZE_MAX / 4 + 1, NULL, 0, 4, NULL) == -EINVAL);
        CHECK(tri_map(p, nothing, NULL, 0, x, SIZE_MAX / 2, 3, NULL) == -EINVAL);
        CHECK(squares_work(p, 10));
        tri_pool_close(p);
    }
}

static int open_with(int kind, void (*change)(tri_pool_config *))
{
    tri_pool_config cfg;
    tri_pool *p = NULL;
    int err;

    tri_pool_config_init(&cfg);
    cfg.kind = kind;
    cfg.workers = 1;
    change(&cfg);
    err = tri_pool_open(&p, &cfg);
    CHECK(!err == (p != NULL));
    tri_pool_close(p);
    return err;
}

static void spin_less(tri_pool_config *c)
{
    c->spin_ns = -2;
}
static void spin_long(tri_pool_config *c)
{
    c->spin_ns = INT64_MAX;
}
static void wait_less(tri_pool_config *c)
{
    c->start_timeout_ns = -1;
}
static void wait_default(tri_pool_config *c)
{
    c->start_timeout_ns = 0;
}
static void slots_most(tri_pool_config *c)
{
    c->slots = TRI_MAX_SLOTS_IN_FLIGHT;
}
static void slots_many(tri_pool_config *c)
{
    c->slots = TRI_MAX_SLOTS_IN_FLIGHT + 1;
}
static void another_size(tri_pool_config *c)
{
    c->size += 8;
}

static void each_field_of_a_config_has_its_range(void)
{
    for (size_t k = 0; k < 2; k++) {
        CHECK(open_with(kinds[k], spin_less) == -EINVAL);
        CHECK(open_with(kinds[k], spin_long) == 0);
        CHECK(open_with(kinds[k], wait_less) == -EINVAL);
        CHECK(open_with(kinds[k], wait_default) == 0);
        CHECK(open_with(kinds[k], slots_most) == 0);
        CHECK(open_with(kinds[k], slots_many) == -EINVAL);
        CHECK(open_with(kinds[k], another_size) == -EINVAL);
    }
}

static void an_option_that_cannot_be_kept_is_refused(void)
{
    for (size_t k = 0; k < 2; k++) {
        tri_pool *p = pool_of(kinds[k], 1);
        int want = kinds[k] == TRI_THREAD ? -EINVAL : 0;
        tri_call opt = TRI_CALL_INIT;
        tri_future *f = NULL;
        int64_t x = 3;

        opt.retries = -1;
        CHECK(tri_map(p, square, &x, 8, &x, 8, 1, &opt) == -EINVAL);
        CHECK(tri_submit(p, square, &x, 8, 8, &opt, &f) == -EINVAL && !f);
        opt.retries = 0;
        opt.timeout_ns = 100 * SECOND; /* nobody can stop a thread */
        CHECK(tri_map(p, square, &x, 8, &x, 8, 1, &opt) == want);
        CHECK(tri_submit(p, square, &x, 8, 8, &opt, &f) == want);
        CHECK(!f == (want != 0));
        if (f)
            CHECK(ended(f, NULL) == 0);
        CHECK(stats_of(p).slots_free == stats_of(p).slots);
        tri_pool_close(p);
    }
}

static void one_byte(tri_pool_config *c)
{
    c->arena_bytes = 1;
}
static void between_two_sizes(tri_pool_config *c)
{
    c->arena_bytes = (10 << 20) - 1;
}

static void an_arena_has_8_mib_at_least(void)
{
    void (*const less[])(tri_pool_config *) = {one_byte, between_two_sizes};

    for (size_t i = 0; i < 4; i++) {
        tri_pool *p = pool_with(kinds[i / 2], 1, less[i % 2]);
        tri_share *s = NULL;

        CHECK(p->view.heap_bytes == 8 << 20);
        CHECK(tri_share_open(p, 8 << 20, &s) == -ENOMEM && !s);
        CHECK(tri_share_open(p, 5 << 20, &s) == 0);
        CHECK(tri_share_bytes(s) == 5 << 20 && tri_share_data(s));
        tri_share_free(s);
        tri_pool_close(p);
    }
}

static int open_gate(const void *in, void *out)
{
    struct gate *g;

    (void)out;
    memcpy(&g, in, sizeof g);
    tri_store_rel(&g->open, 1);
    return 0;
}

static void any_negative_wait_has_no_end(void)
{
    const int64_t times[] = {-1, -7, INT64_MIN, INT64_MAX};

    for (size_t i = 0; i < 8; i++) {
        tri_pool *p = pool_of(kinds[i / 4], 2);
        tri_share *s;
        struct gate *g = gate_of(p, &s);
        tri_future *f[2];

        occupy(p, g, 1, f);
        CHECK(tri_future_wait(f[0], 0) == TRI_ETIMEDOUT);
        f[1] = submit(p, open_gate, &g, sizeof g, 0);
        CHECK(tri_future_wait(f[0], times[i % 4]) == 0);
        CHECK(tri_future_get(f[1], NULL, times[i % 4]) == 0);
        tri_future_free(f[0]);
        tri_future_free(f[1]);
        tri_pool_close(p);
    }
}

static int forty_two(const void *in, void *out)
{
    (void)in;
    (void)out;
    return 42;
}

/* That of a task which was submitted can be asked for. */
static void of_a_map_the_code_is_not_told(void)
{
    for (size_t k = 0; k < 2; k++) {
        tri_pool *p = pool_of(kinds[k], 1);
        tri_future *f = submit(p, forty_two, NULL, 0, 0);
        tri_call opt = TRI_CALL_INIT;

        CHECK(tri_future_wait(f, -1) == 0 && tri_future_code(f) == 42);
        CHECK(ended(f, NULL) == TRI_EFAILED);
        CHECK(tri_map(p, forty_two, NULL, 0, NULL, 0, 3, NULL) == TRI_EFAILED);
        opt.caller = 1;
        CHECK(tri_map(p, forty_two, NULL, 0, NULL, 0, 3, &opt) == TRI_EFAILED);
        tri_pool_close(p);
    }
}

static void after_the_pool_a_fork_may_free_its_futures(void)
{
    for (size_t k = 0; k < 2; k++) {
        tri_pool *p = pool_of(kinds[k], 1);
        tri_share *s;
        struct gate *g = gate_of(p, &s);
        tri_future *f[2] = {submit(p, forty_two, NULL, 0, 0)};
        int status;
        pid_t pid;

        CHECK(tri_future_wait(f[0], -1) == 0);
        occupy(p, g, 1, f + 1);
        pid = fork();
        if (pid == 0) {
            CHECK(tri_future_wait(f[0], 0) == 0 && tri_future_wait(f[1], -1) == TRI_EFORKED);
            CHECK(tri_future_cancel(f[0]) == -EBUSY && tri_future_cancel(f[1]) == TRI_EFORKED);
            CHECK(tri_share_data(s) == g && tri_share_bytes(s) == sizeof *g);
            tri_share_free(s);
            tri_pool_close(p);
            CHECK(tri_future_get(f[0], NULL, 0) == TRI_EFAILED && tri_future_code(f[0]) == 42);
            CHECK(tri_future_code(f[1]) == 0);
            tri_future_free(f[0]);
            tri_future_free(f[1]);
            _exit(0);
        }
        CHECK(waitpid(pid, &status, 0) == pid && status == 0);
        open_gate(&g, NULL);
        CHECK(ended(f[0], NULL) == TRI_EFAILED && ended(f[1], NULL) == 0);
        tri_pool_close(p);
    }
}

static void null_is_no_crash(void)
{
    tri_pool_config_init(NULL);
    CHECK(tri_share_data(NULL) == NULL);
    CHECK(tri_share_bytes(NULL) == 0);
    CHECK(tri_future_wait(NULL, -1) == -EINVAL && tri_future_get(NULL, NULL, 0) == -EINVAL);
    CHECK(tri_future_cancel(NULL) == -EINVAL && tri_future_code(NULL) == 0);
    CHECK(tri_machine_get(NULL) == -EINVAL);
    tri_future_free(NULL);
    tri_share_free(NULL);
}

/* From here on these calls are none that this kernel knows.  False: it cannot be told so. */
static bool forbid(uint32_t one, uint32_t other)
{
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, one, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, other, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
    };
    struct sock_fprog program = {sizeof rules / sizeof *rules, rules};

    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static void a_pool_opens_without_the_calls_it_can_do_without(void)
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        if (forbid(SYS_memfd_create, SYS_pidfd_open)) {
            tri_pool *p = pool_of(TRI_PROCESS, 2);

            CHECK(ended(submit(p, by_kill, NULL, 0, 0), NULL) == TRI_EWORKERLOST);
            CHECK(squares_work(p, 1000));
            tri_pool_close(p);
        }
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

static void a_call_it_cannot_do_without_is_named_so(void)
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        tri_pool *p = NULL;

        if (!forbid(SYS_socketpair, SYS_socketpair))
            _exit(0);
        _exit(tri_pool_open(&p, NULL) == TRI_EPLATFORM && !p ? 0 : 1);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

static void a_result_without_room_is_a_failure_in_the_counters(void)
{
    tri_pool *p = pool_of(TRI_PROCESS, 1);
    tri_future *f = submit(p, nothing, NULL, 0, SIZE_MAX);

    CHECK(ended(f, NULL) == -ENOMEM);
    CHECK(stats_of(p).failed == 1 && stats_of(p).completed == 1);
    tri_pool_close(p);
}

/* ------------------------------------------------------------------ tasks that leave or print */

static int leave(const void *in, void *out)
{
    int code;

    (void)out;
    memcpy(&code, in, sizeof code);
    _exit(code);
}

static void no_exit_code_of_a_task_is_mistaken_for_ours(void)
{
    const int codes[] = {0, 1, TRI_EXIT_RETIRED, TRI_EXIT_BEGIN, 255};
    tri_pool *p = pool_of(TRI_PROCESS, 2);

    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        CHECK(ended(submit(p, leave, &codes[i], sizeof codes[i], 0), NULL) == TRI_EWORKERLOST);
        CHECK(squares_work(p, 50));
        CHECK(stats_of(p).deaths == i + 1);
    }
    tri_pool_close(p);
}

static int print(const void *in, void *out)
{
    int i;

    (void)out;
    memcpy(&i, in, sizeof i);
    printf("task %d\n", i);
    return 0;
}

static int print_and_exit(const void *in, void *out)
{
    print(in, out);
    exit(3);
}

/* In a process of its own, whose stdout is a file as that of a batch job is. */
static void print_all(int fd)
{
    tri_pool *p;
    int i = 7;

    CHECK(dup2(fd, 1) == 1);
    /* Stays in the buffer, and comes out once.  (A sanitizer's _exit() writes buffers out.) */
    if (!TRI_SANITIZED)
        printf("owner\n");
    p = pool_of(TRI_PROCESS, 2);
    CHECK(ended(submit(p, print, &i, sizeof i, 0), NULL) == 0);
    i = 8;
    CHECK(ended(submit(p, print_and_exit, &i, sizeof i, 0), NULL) == TRI_EWORKERLOST);
    i = 9;
    CHECK(tri_map(p, print, &i, sizeof i, NULL, 0, 1, NULL) == 0);
    tri_pool_terminate(p);
    exit(0);
}

static void what_a_task_prints_comes_out_once(void)
{
    char path[] = "/tmp/trireme-test.XXXXXX", text[256];
    int fd = mkstemp(path), status;
    ssize_t n;
    pid_t pid;

    CHECK(fd >= 0);
    unlink(path);
    CHECK(fcntl(fd, F_SETFL, O_APPEND) == 0);
    pid = fork();
    if (pid == 0)
        print_all(fd);
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    n = pread(fd, text, sizeof text - 1, 0);
    CHECK(n > 0);
    text[n] = 0;
    CHECK(strcmp(text, TRI_SANITIZED ? "task 7\ntask 8\ntask 9\n"
                                     : "task 7\ntask 8\ntask 9\nowner\n") == 0);
    close(fd);
}

/* ------------------------------------------------------------------ tasks that use their pool */

struct sum {
    tri_pool *pool;
    int64_t n;
};

/* 1 + ... + n, each step a task of the same pool. */
static int add_up(const void *in, void *out)
{
    struct sum s;
    int64_t rest = 0;
    int err = 0;

    memcpy(&s, in, sizeof s);
    if (s.n > 1) {
        struct sum less = {s.pool, s.n - 1};
        tri_future *f;

        err = tri_submit(s.pool, add_up, &less, sizeof less, sizeof rest, NULL, &f);
        if (!err)
            err = ended(f, &rest);
    }
    rest += s.n;
    memcpy(out, &rest, sizeof rest);
    return err;
}

static int map_inside(const void *in, void *out)
{
    int64_t x[100], y[100], sum = 0;
    struct sum s;
    int err;

    memcpy(&s, in, sizeof s);
    for (int i = 0; i < 100; i++)
        x[i] = i;
    err = tri_map(s.pool, square, x, 8, y, 8, 100, NULL);
    for (int i = 0; i < 100; i++)
        sum += y[i];
    memcpy(out, &sum, sizeof sum);
    return err;
}

static void a_task_of_a_thread_pool_may_wait_for_others(void)
{
    for (int workers = 1; workers <= 3; workers++) {
        tri_pool *p = pool_with(TRI_THREAD, workers, NULL);
        struct sum s[40];
        int64_t sums[40];

        for (int i = 0; i < 40; i++)
            s[i] = (struct sum){p, 30};
        CHECK(tri_map(p, add_up, s, sizeof *s, sums, 8, 40, NULL) == 0);
        for (int i = 0; i < 40; i++)
            CHECK(sums[i] == 465);
        CHECK(tri_map(p, map_inside, s, sizeof *s, sums, 8, 40, NULL) == 0);
        for (int i = 0; i < 40; i++)
            CHECK(sums[i] == 328350);
        CHECK(stats_of(p).slots_free == stats_of(p).slots);
        tri_pool_close(p);
    }
}

static void sixty_four_slots(tri_pool_config *c)
{
    c->slots = 64;
}

/* Every slot is taken by a task that maps in its turn: what finds no slot is done by the caller. */
static void a_map_inside_a_task_needs_no_slot(void)
{
    tri_pool *p = pool_with(TRI_THREAD, 2, sixty_four_slots);
    struct sum s = {p, 0};
    tri_future *f[64];
    int64_t sum;

    for (int i = 0; i < 64; i++)
        f[i] = submit(p, map_inside, &s, sizeof s, sizeof sum);
    for (int i = 0; i < 64; i++)
        CHECK(ended(f[i], &sum) == 0 && sum == 328350);
    tri_pool_close(p);
}

int main(void)
{
    RUN(an_array_that_cannot_be_is_refused);
    RUN(each_field_of_a_config_has_its_range);
    RUN(an_option_that_cannot_be_kept_is_refused);
    RUN(an_arena_has_8_mib_at_least);
    RUN(any_negative_wait_has_no_end);
    RUN(of_a_map_the_code_is_not_told);
    RUN(after_the_pool_a_fork_may_free_its_futures);
    RUN(null_is_no_crash);
    RUN(a_pool_opens_without_the_calls_it_can_do_without);
    RUN(a_call_it_cannot_do_without_is_named_so);
    RUN(a_result_without_room_is_a_failure_in_the_counters);
    RUN(no_exit_code_of_a_task_is_mistaken_for_ours);
    RUN(what_a_task_prints_comes_out_once);
    RUN(a_task_of_a_thread_pool_may_wait_for_others);
    RUN(a_map_inside_a_task_needs_no_slot);
    return 0;
}
