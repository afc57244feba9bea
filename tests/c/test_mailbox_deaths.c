/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_mailbox_deaths.c - a writer and reader of mailboxes dies at its 1st, 2nd, 3rd ... step.
 *
 * The core is compiled with -DTRI_CHECKPOINTS, so a child that armed itself is killed at the n-th
 * CP(name) it passes; n grows until children end alive.  A child puts and takes small messages and
 * one of several chunks, wakes a reader, sleeps, trims.  Whatever n is:
 *
 *   M1  what is left are the messages that follow each other in the order in which they were put,
 *       each whole: the child's last put is there or not, its last get has happened or not
 *   M2  everybody else goes on: the mailbox takes and gives messages of every size, and a reader
 *       that slept has been woken, or wakes by itself within its slice
 *   M3  the bell is readable when there is a message
 *
 * The test fails when a name in `expected` was never died at.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/cp.h"
#include "check.h"
#include "shm/mailbox_inside.h"
#include "trireme.h"

#define SECOND 1000000000ll
#define LARGE 200000
#define MESSAGES 7 /* 0 to 2 are there before the child is */

static const char *const expected[] = {
    "mail_swept",          "mail_begun",
    "mail_writers_locked", "mail_written",
    "mail_stamped",        "mail_chained",
    "mail_before_tail",    "mail_tail",
    "mail_writers_unlock", "mail_credit_taken",
    "mail_readers_locked", "mail_copied",
    "mail_head",           "mail_readers_unlocked",
    "mail_sleep_declared", "mail_trim_locked",
    "mail_trimmed",        "mail_done",
};
#define NEXPECTED (sizeof expected / sizeof *expected)
static bool seen[NEXPECTED];

static struct tri_mailbox box, other; /* somebody sleeps at the other */

static size_t length_of(int i)
{
    return i == 1 || i == 4 ? LARGE : 8;
}

static void put(struct tri_mailbox *m, int i)
{
    size_t n = length_of(i);
    uint8_t *p = malloc(n);
    struct iovec v = {p, n};
    int err;

    memset(p, i, n);
    while ((err = tri_mailbox_put(m, &v, 1, (uint8_t)i, -1, false)) == -EINTR)
        ;
    CHECK(err == 0);
    free(p);
}

/* The number of the message, or -1: there is none. */
static int get(struct tri_mailbox *m, int64_t deadline)
{
    struct tri_letter l;
    uint8_t area[64], *p;
    int err;

    while ((err = tri_mailbox_get(m, area, sizeof area, &l, deadline, false)) == -EINTR)
        ;
    if (err == TRI_ETIMEDOUT)
        return -1;
    CHECK(err == 0 && l.len == length_of(l.kind));
    p = l.big ? l.big : area;
    for (size_t i = 0; i < l.len; i++)
        CHECK(p[i] == l.kind);
    free(l.big);
    return l.kind;
}

static void *sleeper(void *arg)
{
    *(int *)arg = get(&other, tri_now_ns() + 20 * SECOND);
    return NULL;
}

static void child(long n)
{
    tri_cp_arm(n);
    put(&box, 3);
    put(&other, 6);
    put(&box, 4); /* large */
    for (int i = 0; i < 4; i++) {
        if (get(&box, -1) < 0)
            _exit(8);
        tri_mailbox_done(&box);
    }
    put(&box, 5);
    tri_store_rlx(&box.ctl->trimmed_ns, 0);
    tri_store_rlx(&box.ctl->touched, 1000); /* as after a burst */
    get(&box, -1);
    put(&box, 6);
    get(&box, -1);
    get(&box, -1);
    get(&box, tri_now_ns() + SECOND / 1000); /* nothing comes: it sleeps */
    tri_cp_arm(0);
    _exit(0);
}

static bool read_name(int fd)
{
    char name[64] = {0};
    ssize_t n = read(fd, name, sizeof name - 1);

    for (size_t i = 0; i < NEXPECTED && n > 0; i++)
        if (strlen(expected[i]) + 1 == (size_t)n && memcmp(name, expected[i], (size_t)n - 1) == 0)
            seen[i] = true;
    return n > 0;
}

static bool one_run(long n, int names)
{
    struct pollfd p;
    pthread_t t;
    pid_t pid;
    int status, woken = -2, first, i;

    CHECK(tri_mailbox_make(&box, 0) == 0 && tri_mailbox_make(&other, 0) == 0);
    box.spins = other.spins = false;
    CHECK(tri_mailbox_watch(&box) == 0);
    for (i = 0; i < 3; i++)
        put(&box, i);
    tri_store_rlx(&box.ctl->begun, UINT64_MAX); /* as if a writer had died */
    CHECK(pthread_create(&t, NULL, sleeper, &woken) == 0);
    for (int64_t until = tri_now_ns() + 10 * SECOND;
         tri_load_sc(&other.ctl->filled.word) >> 32 == 0;)
        CHECK(tri_now_ns() < until);
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0)
        child(n);
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(WIFSIGNALED(status) ? WTERMSIG(status) == SIGKILL : status == 0);

    if (tri_mailbox_count(&other) == 0 && WIFSIGNALED(status))
        put(&other, 5); /* the child did not come to it, or its message was taken */
    CHECK(pthread_join(t, NULL) == 0);
    CHECK(woken == 5 || woken == 6); /* M2 */

    p = (struct pollfd){.fd = box.bell_fd, .events = POLLIN};
    CHECK(tri_mailbox_count(&box) == 0 || poll(&p, 1, 0) == 1); /* M3 */
    first = get(&box, 0);
    for (i = first; i >= 0; i = status) { /* M1 */
        status = get(&box, 0);
        CHECK(status < 0 || status == i + 1);
    }
    CHECK(tri_mailbox_count(&box) == 0 && poll(&p, 1, 0) == 0);
    for (int round = 0; round < 3; round++)
        for (i = 0; i < MESSAGES; i++) {
            put(&box, i);
            CHECK(get(&box, tri_now_ns() + 5 * SECOND) == i);
        }
    while (tri_mailbox_done(&box) == 0)
        ;
    CHECK(tri_mailbox_join(&box, 0) == 0);
    tri_mailbox_drop(&box);
    tri_mailbox_drop(&other);
    return read_name(names);
}

static void a_death_at_any_step_harms_nobody_else(void)
{
    int names[2], quiet = 0;
    long n;

    CHECK(pipe2(names, O_NONBLOCK) == 0 && dup2(names[1], 9) == 9);
    close(names[1]);
    for (n = 1; quiet < 3; n++)
        quiet = one_run(n, names[0]) ? 0 : quiet + 1;
    fprintf(stderr, "%ld points\n", n - 1 - quiet);
    close(names[0]);
    close(9);
}

static void every_point_was_visited(void)
{
    size_t missing = 0;

    for (size_t i = 0; i < NEXPECTED; i++)
        if (!seen[i]) {
            fprintf(stderr, "nobody died at %s\n", expected[i]);
            missing++;
        }
    CHECK(missing == 0);
}

/* Killed by the clock while copying: most often in the middle of it, under a lock. */
static void writers_and_readers_killed_at_random_harm_nobody_else(void)
{
    uint64_t seed = tri_test_seed();
    int taken = 0;

    CHECK(tri_mailbox_make(&box, 0) == 0);
    for (int round = 0; round < 60; round++) {
        bool reads = round % 2;
        pid_t pid = fork();
        int i, last = 4;

        CHECK(pid >= 0);
        while (pid == 0)
            if (reads)
                get(&box, -1);
            else
                put(&box, 4);
        if (reads)
            for (i = 0; i < 20; i++)
                put(&box, 4);
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        usleep(300 + (useconds_t)(seed >> 33) % 3000);
        CHECK(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid);
        put(&box, 3);
        for (; last != 3; taken++) {
            last = get(&box, tri_now_ns() + 5 * SECOND);
            CHECK(last == 3 || last == 4);
        }
    }
    CHECK(taken > 60 && tri_mailbox_count(&box) == 0);
    tri_mailbox_drop(&box);
}

int main(void)
{
    RUN(a_death_at_any_step_harms_nobody_else);
    RUN(every_point_was_visited);
    RUN(writers_and_readers_killed_at_random_harm_nobody_else);
    return 0;
}
