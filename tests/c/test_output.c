/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_output.c - what workers print while nobody reads it: it comes in order and whole, through
 * the socket and the backlog; a worker waits only when both are full; and a backlog that was
 * scribbled over costs what is in it.  Deaths on the way are test_killpoints.c's.
 */
#include "pools.h"

#include "pool/worker.h"

/* The owner's half of a pool, and the workers, which are this test's threads. */
static struct tri_pool *p;
static struct tri_worker w[2];
static int lines[2];

static void set_up(void)
{
    p = bare_pool_played(w, 2);
    lines[0] = lines[1] = 0;
}

static void tear_down(void)
{
    close(w[0].output_fd);
    tri_pool_free(p);
}

/* Line `number` of this worker: its length and its bytes follow from the number. */
static size_t line(char *buf, int worker, int number)
{
    size_t n = number % 50 == 49 ? 20000 : 10u + (unsigned)number % 37;

    memset(buf, 'a' + number % 26, n);
    CHECK(snprintf(buf, n, "%d %d", worker, number) < (int)n);
    return n;
}

static void say(int worker, int number)
{
    static _Thread_local char buf[20000];
    size_t n = line(buf, worker, number);

    CHECK(tri_worker_output(&w[worker], (uint32_t)worker + 1, buf, n) == 0);
}

/* Read one record and check that it is the next one of its worker. */
static bool hear(void)
{
    static char buf[TRI_OUTPUT_MAX], want[20000];
    uint32_t stream;
    int32_t pid;
    size_t n;

    if (!tri_pool_output(p, &stream, &pid, buf, sizeof buf, &n))
        return false;
    CHECK((stream == 1 || stream == 2) && pid == getpid());
    CHECK(n == line(want, (int)stream - 1, lines[stream - 1]++));
    CHECK(memcmp(buf, want, n) == 0);
    return true;
}

static uint64_t backlog(int worker)
{
    return tri_load_acq(&p->view.worker[worker].backlog_put) -
           tri_load_acq(&p->view.worker[worker].backlog_got);
}

static void a_task_prints_on_while_nobody_reads(void)
{
    set_up();
    for (int round = 0; round < 5; round++) {
        int from[2] = {lines[0], lines[1]};

        for (int i = 0; i < 1500; i++)
            for (int k = 0; k < 2; k++)
                say(k, from[k] + i);
        CHECK(backlog(0) > 0 && backlog(1) > 0);
        while (hear())
            ;
        CHECK(lines[0] == from[0] + 1500 && lines[1] == from[1] + 1500);
        CHECK(backlog(0) == 0 && backlog(1) == 0);
    }
    tear_down();
}

static void while_there_is_a_backlog_nothing_passes_it(void)
{
    int said = 0;

    set_up();
    while (!backlog(0))
        say(0, said++);
    for (int i = 0; i < 4000; i++) { /* reads about as much as is written */
        say(0, said++);
        if (i % 3)
            hear();
        if (i % 7 == 0)
            hear();
        if (i % 400 == 399)
            while (hear())
                ;
    }
    while (hear())
        ;
    CHECK(lines[0] == said);
    tear_down();
}

#define MANY 200000

static void *prints(void *arg)
{
    int worker = *(int *)arg;

    for (int i = 0; i < MANY; i++)
        say(worker, i);
    return NULL;
}

static void workers_that_print_more_than_there_is_room_for_wait(void)
{
    int id[2] = {0, 1};
    pthread_t t[2];

    set_up();
    for (int k = 0; k < 2; k++)
        CHECK(pthread_create(&t[k], NULL, prints, &id[k]) == 0);
    WAIT_UNTIL(backlog(0) > TRI_BACKLOG - 40000 && backlog(1) > TRI_BACKLOG - 40000, 20 * SECOND);
    while (lines[0] < MANY || lines[1] < MANY)
        hear();
    for (int k = 0; k < 2; k++)
        pthread_join(t[k], NULL);
    CHECK(!hear());
    tear_down();
}

static void a_child_of_a_task_has_the_socket_alone(void)
{
    pid_t child;

    set_up();
    while (!backlog(0))
        say(0, lines[1]++); /* as many lines as there are */
    lines[1] = 0;
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        tri_worker_output(&w[0], 1, "child", 5); /* waits: the socket is full */
        _exit(0);
    }
    for (int got = 0; got < 1;) {
        char buf[TRI_OUTPUT_MAX];
        uint32_t stream;
        int32_t pid;
        size_t n;

        if (tri_pool_output(p, &stream, &pid, buf, sizeof buf, &n) && pid == child) {
            CHECK(n == 5 && memcmp(buf, "child", 5) == 0);
            got++;
        }
    }
    CHECK(waitpid(child, NULL, 0) == child);
    tear_down();
}

static void a_scribbled_backlog_costs_what_is_in_it(void)
{
    uint64_t x = tri_test_seed() | 1;

    for (int round = 0; round < 300; round++) {
        struct tri_worker_line *l;
        uint8_t *ring;
        int said = 0;

        set_up();
        l = &p->view.worker[0];
        ring = p->view.base + tri_backlog_at(&p->view, 0);
        for (int i = 0; i < round % 5; i++) { /* also where the ring has been round before */
            for (int k = 0; k < 1500; k++)
                say(0, said++);
            while (hear())
                ;
        }
        while (!backlog(0))
            say(0, said++);
        for (int i = 0; i < 100; i++)
            say(0, said++);
        for (int i = 0; i < 20; i++) {
            x ^= x << 13; /* Marsaglia's xorshift */
            x ^= x >> 7;
            x ^= x << 17;
            switch (x % 3) {
            case 0:
                ring[(x >> 8) % TRI_BACKLOG] = (uint8_t)(x >> 56);
                break;
            case 1:
                memset(ring +
                           (tri_load_acq(&l->backlog_got) + (x >> 8) % 4096) % TRI_BACKLOG / 8 * 8,
                       (int)(x >> 60), 8);
                break;
            default:
                if (i == 19)
                    tri_store_rel(&l->backlog_put, x >> (x >> 8) % 64);
            }
        }
        for (int i = 0; i < 1000000; i++) {
            char buf[TRI_OUTPUT_MAX];
            uint32_t stream;
            int32_t pid;
            size_t n;

            if (!tri_pool_output(p, &stream, &pid, buf, sizeof buf, &n))
                break;
            CHECK(n <= sizeof buf && i < 999999);
        }
        CHECK(p->member[0].backlog_got == p->member[0].backlog_goal);
        tear_down();
    }
}

static void a_worker_whose_backlog_is_lost_has_the_socket(void)
{
    struct tri_worker_line *l;
    char buf[TRI_OUTPUT_MAX];
    uint32_t stream;
    int32_t pid;
    size_t n;

    set_up();
    l = &p->view.worker[0];
    for (int k = 0; k < 2; k++) {
        tri_store_rel(k ? &l->backlog_put : &l->backlog_got, 7777777777);
        for (int i = 0; i < 1000; i++) {
            CHECK(tri_worker_output(&w[0], 1, "again", 5) == 0);
            while (tri_pool_output(p, &stream, &pid, buf, sizeof buf, &n))
                CHECK(n == 5 && memcmp(buf, "again", 5) == 0);
        }
    }
    tear_down();
}

int main(void)
{
    RUN(a_task_prints_on_while_nobody_reads);
    RUN(while_there_is_a_backlog_nothing_passes_it);
    RUN(workers_that_print_more_than_there_is_room_for_wait);
    RUN(a_child_of_a_task_has_the_socket_alone);
    RUN(a_scribbled_backlog_costs_what_is_in_it);
    RUN(a_worker_whose_backlog_is_lost_has_the_socket);
    return 0;
}
