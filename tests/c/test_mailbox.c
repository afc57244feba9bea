/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_mailbox.c - messages between threads and processes: order, growth, limits, damage.
 *
 * Deaths at every step are in test_mailbox_deaths.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "check.h"
#include "shm/mailbox_inside.h"
#include "trireme.h"

#define SECOND 1000000000ll
#define CHUNK TRI_MAILBOX_CHUNK

static struct tri_mailbox fresh(uint32_t most)
{
    struct tri_mailbox m;

    CHECK(tri_mailbox_make(&m, most) == 0);
    return m;
}

static int put(struct tri_mailbox *m, const void *p, size_t n, int64_t deadline)
{
    struct iovec v = {(void *)(uintptr_t)p, n};
    int err;

    do
        err = tri_mailbox_put(m, &v, 1, 3, deadline, false);
    while (err == -EINTR);
    return err;
}

static int get(struct tri_mailbox *m, void *area, size_t cap, struct tri_letter *l,
               int64_t deadline)
{
    int err;

    do
        err = tri_mailbox_get(m, area, cap, l, deadline, false);
    while (err == -EINTR);
    return err;
}

static void put_number(struct tri_mailbox *m, uint64_t x)
{
    CHECK(put(m, &x, sizeof x, -1) == 0);
}

static uint64_t get_number(struct tri_mailbox *m)
{
    struct tri_letter l;
    uint64_t x;

    CHECK(get(m, &x, sizeof x, &l, tri_now_ns() + 30 * SECOND) == 0);
    CHECK(!l.big && l.len == sizeof x && l.kind == 3);
    return x;
}

static uint64_t random_of(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

/* Of each length the bytes are known, so a reader can check what it got by itself. */
static void fill(uint8_t *p, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)(seed * 31 + i * 7 + (i >> 8));
}

static bool is_filled(const uint8_t *p, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] != (uint8_t)(seed * 31 + i * 7 + (i >> 8)))
            return false;
    return true;
}

static uint64_t resident(const struct tri_mailbox *m)
{
    struct stat st;

    CHECK(fstat(m->seg.fd, &st) == 0);
    return (uint64_t)st.st_blocks * 512;
}

/* ------------------------------------------------------------------ one process */

static void messages_of_every_length_come_out_whole_and_in_order(void)
{
    struct tri_mailbox m = fresh(0);
    size_t edges[] = {0,         1,         7,         8,     9,         CHUNK - 16, CHUNK - 9,
                      CHUNK - 8, CHUNK - 7, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK,  1000000};
    size_t n = sizeof edges / sizeof *edges;
    uint8_t *p = malloc(1 << 20), area[64];
    struct tri_letter l;

    /* Begun at each of several places in a chunk, so that each edge is met in the middle, too. */
    for (size_t shift = 0; shift < 200; shift += 8) {
        CHECK(put(&m, p, CHUNK - 8 * 8 - shift, 0) == 0);
        for (size_t i = 0; i < n; i++) {
            fill(p, edges[i], i + shift);
            CHECK(put(&m, p, edges[i], 0) == 0);
        }
        CHECK(tri_mailbox_count(&m) == n + 1);
        CHECK(get(&m, area, sizeof area, &l, 0) == 0);
        free(l.big);
        for (size_t i = 0; i < n; i++) {
            CHECK(get(&m, area, sizeof area, &l, 0) == 0);
            CHECK(l.len == edges[i] && !l.big == (edges[i] <= sizeof area));
            CHECK(is_filled(l.big ? l.big : area, l.len, i + shift));
            free(l.big);
        }
        CHECK(get(&m, area, sizeof area, &l, 0) == TRI_ETIMEDOUT);
    }
    free(p);
    tri_mailbox_drop(&m);
}

static void parts_of_a_message_arrive_as_one(void)
{
    struct tri_mailbox m = fresh(0);
    struct iovec v[3] = {{"abc", 3}, {"", 0}, {"defgh", 5}};
    struct tri_letter l;
    char area[16];

    CHECK(tri_mailbox_put(&m, v, 3, 200, -1, true) == 0);
    CHECK(tri_mailbox_get(&m, area, sizeof area, &l, -1, true) == 0);
    CHECK(l.len == 8 && l.kind == 200 && memcmp(area, "abcdefgh", 8) == 0);
    tri_mailbox_drop(&m);
}

static void a_full_mailbox_refuses_and_loses_nothing(void)
{
    struct tri_mailbox m = fresh(2);
    int64_t start = tri_now_ns();
    uint64_t x = 99;

    put_number(&m, 1);
    CHECK(!tri_mailbox_full(&m));
    put_number(&m, 2);
    CHECK(tri_mailbox_full(&m));
    CHECK(put(&m, &x, sizeof x, 0) == TRI_ETIMEDOUT);
    CHECK(put(&m, &x, sizeof x, start + SECOND / 20) == TRI_ETIMEDOUT);
    CHECK(tri_now_ns() - start >= SECOND / 20);
    CHECK(get_number(&m) == 1);
    put_number(&m, 3);
    CHECK(get_number(&m) == 2 && get_number(&m) == 3 && tri_mailbox_count(&m) == 0);
    CHECK(tri_mailbox_sent(&m) == 3);
    tri_mailbox_drop(&m);
}

static void counts_go_on_over_their_end(void)
{
    struct tri_mailbox m = fresh(3);
    uint64_t last = (1u << 30) - 2;

    tri_store_rlx(&m.ctl->head, last); /* chunk 0, offset 0 */
    tri_store_rlx(&m.ctl->tail, last);
    tri_store_rlx(&m.ctl->done, (uint32_t)last);
    for (uint64_t i = 0; i < 3; i++)
        put_number(&m, i);
    CHECK(tri_mailbox_count(&m) == 3 && tri_mailbox_full(&m));
    for (uint64_t i = 0; i < 3; i++) {
        CHECK(get_number(&m) == i);
        CHECK(tri_mailbox_done(&m) == 0);
    }
    CHECK(tri_mailbox_count(&m) == 0 && tri_mailbox_done(&m) == -EINVAL);
    CHECK(tri_mailbox_join(&m, 0) == 0 && tri_mailbox_sent(&m) == 1);
    tri_mailbox_drop(&m);
}

static void a_mailbox_that_is_emptied_as_it_is_filled_stays_small(void)
{
    struct tri_mailbox m = fresh(0);

    for (uint64_t i = 0; i < 200000; i++) {
        put_number(&m, i);
        CHECK(get_number(&m) == i);
    }
    CHECK(resident(&m) <= 4 * CHUNK + 65536);
    tri_mailbox_drop(&m);
}

static void memory_of_a_burst_comes_back(void)
{
    struct tri_mailbox m = fresh(0);
    uint8_t *p = calloc(1, 1 << 20), area[8];
    struct tri_letter l;

    for (int i = 0; i < 64; i++)
        CHECK(put(&m, p, 1 << 20, 0) == 0);
    CHECK(resident(&m) >= 64u << 20);
    for (int i = 0; i < 64; i++) {
        CHECK(get(&m, area, sizeof area, &l, 0) == 0);
        free(l.big);
    }
    /* The last trim may have been a moment ago: a reader that waits trims, too. */
    CHECK(get(&m, area, sizeof area, &l, tri_now_ns() + SECOND / 2) == TRI_ETIMEDOUT);
    CHECK(resident(&m) <= 8u << 20);
    put_number(&m, 5);
    CHECK(get_number(&m) == 5);
    free(p);
    tri_mailbox_drop(&m);
}

/* As a damaged word says, or a clock that began anew. */
static void memory_of_a_burst_comes_back_whatever_the_last_time_was(void)
{
    uint64_t times[] = {UINT64_MAX, UINT64_C(1) << 63, (uint64_t)INT64_MAX};
    uint8_t *p = calloc(1, 1 << 20), area[8];
    struct tri_letter l;

    for (size_t i = 0; i < sizeof times / sizeof *times; i++) {
        struct tri_mailbox m = fresh(0);

        for (int k = 0; k < 32; k++)
            CHECK(put(&m, p, 1 << 20, 0) == 0);
        tri_store_rlx(&m.ctl->trimmed_ns, times[i]);
        for (int k = 0; k < 32; k++) {
            CHECK(get(&m, area, sizeof area, &l, 0) == 0);
            free(l.big);
        }
        CHECK(get(&m, area, sizeof area, &l, tri_now_ns() + SECOND / 2) == TRI_ETIMEDOUT);
        CHECK(resident(&m) <= 8u << 20);
        tri_mailbox_drop(&m);
    }
    free(p);
}

static void a_segment_that_is_full_refuses_and_goes_on_when_it_is_read(void)
{
    struct tri_mailbox m = fresh(0);
    uint8_t *p = calloc(1, 3 * CHUNK), area[8];
    struct tri_letter l;
    int n = 0, err;

    m.nchunks = 16; /* as if the segment had no more */
    while ((err = put(&m, p, 3 * CHUNK, 0)) == 0)
        n++;
    CHECK(err == -ENOSPC && n >= 4 && tri_mailbox_count(&m) == (uint32_t)n);
    for (int round = 0; round < 40; round++) {
        CHECK(get(&m, area, sizeof area, &l, 0) == 0 && l.len == 3 * CHUNK);
        free(l.big);
        CHECK(put(&m, p, 3 * CHUNK, 0) == 0);
    }
    CHECK(put(&m, p, (size_t)1 << 40, 0) == -ENOSPC); /* refused by its length alone */
    free(p);
    tri_mailbox_drop(&m);
}

/* A box of 6 chunks, empty between two messages, takes one of 5 whatever was refused before. */
static void what_was_refused_is_in_nobodys_way(void)
{
    uint64_t seed = tri_test_seed() | 1;
    uint8_t *p = calloc(1, 6 * CHUNK), area[8];
    int refused = 0, lost = 0;
    struct tri_mailbox m;
    struct tri_letter l;

    CHECK(tri_mailbox_make_of(&m, 0, 2 * 4096 + 6 * (CHUNK + sizeof *m.chunk)) == 0);
    CHECK(m.nchunks == 6);
    for (int round = 0; round < 500; round++) {
        size_t n = random_of(&seed) % (6 * CHUNK);
        int err = put(&m, p, round % 5 ? n : 4 * CHUNK, 0);

        CHECK(err == 0 || err == -ENOSPC);
        refused += err != 0;
        lost += err && round % 5 == 0;
        if (err == 0) {
            CHECK(get(&m, area, sizeof area, &l, 0) == 0);
            free(l.big);
        }
    }
    CHECK(refused > 10 && lost == 0);
    free(p);
    tri_mailbox_drop(&m);
}

/* Three writers were killed, each when it had given one more chunk the next stamp. */
static void what_dead_writers_had_begun_is_in_nobodys_way(void)
{
    uint8_t *p = calloc(1, 2 * CHUNK), area[8];
    struct tri_mailbox m;
    struct tri_letter l;

    CHECK(tri_mailbox_make_of(&m, 0, 2 * 4096 + 5 * (CHUNK + sizeof *m.chunk)) == 0);
    for (int i = 1; i <= 4; i++)
        tri_store_rlx(&m.chunk[i].stamp, 2);
    tri_store_rlx(&m.ctl->top, 5);
    tri_store_rlx(&m.ctl->begun, 2);
    for (int i = 0; i < 20; i++) {
        CHECK(put(&m, p, 2 * CHUNK, 0) == 0);
        CHECK(get(&m, area, sizeof area, &l, 0) == 0 && l.len == 2 * CHUNK);
        free(l.big);
    }
    free(p);
    tri_mailbox_drop(&m);
}

static void the_bell_is_readable_exactly_while_there_are_messages(void)
{
    struct tri_mailbox m = fresh(0);
    struct pollfd p;
    struct tri_letter l;
    uint64_t x;

    put_number(&m, 1);
    CHECK(tri_mailbox_watch(&m) == 0);
    p = (struct pollfd){.fd = m.bell_fd, .events = POLLIN};
    CHECK(poll(&p, 1, 0) == 1);
    put_number(&m, 2);
    CHECK(get_number(&m) == 1 && poll(&p, 1, 0) == 1);
    CHECK(get_number(&m) == 2 && poll(&p, 1, 0) == 0);
    put_number(&m, 3);
    CHECK(poll(&p, 1, 0) == 1 && get_number(&m) == 3 && poll(&p, 1, 0) == 0);
    /* A writer that died before its message was there. */
    CHECK(write(m.bell_fd, "", 1) == 1 && poll(&p, 1, 0) == 1);
    CHECK(get(&m, &x, sizeof x, &l, 0) == TRI_ETIMEDOUT && poll(&p, 1, 0) == 0);
    tri_mailbox_drop(&m);
}

static void *look_without_waiting(void *arg)
{
    return (void *)(intptr_t)tri_mailbox_await(arg, 0);
}

/* The bell rings a moment before the message is there; both under the writers' lock. */
static void who_hears_the_bell_gets_the_message(void)
{
    struct tri_mailbox m = fresh(0);
    uint64_t tail;
    pthread_t t;
    void *found;

    CHECK(tri_mailbox_watch(&m) == 0);
    put_number(&m, 1);
    tail = tri_load_sc(&m.ctl->tail);
    CHECK(tri_lock_acquire(&m.ctl->writers, -1, NULL) == 0);
    tri_store_sc(&m.ctl->tail, tri_load_sc(&m.ctl->head)); /* not yet there */
    CHECK(pthread_create(&t, NULL, look_without_waiting, &m) == 0);
    usleep(5000);
    tri_store_sc(&m.ctl->tail, tail);
    CHECK(tri_lock_release(&m.ctl->writers) == 0);
    CHECK(pthread_join(t, &found) == 0 && found == NULL);
    CHECK(get_number(&m) == 1);
    tri_mailbox_drop(&m);
}

static void what_is_no_mailbox_is_refused(void)
{
    struct tri_mailbox m;
    struct tri_segment s;
    int fd;

    CHECK(tri_segment_make(&s, 1 << 20, true) == 0);
    fd = dup(s.fd);
    CHECK(tri_mailbox_attach(&m, fd, -1) == TRI_ECORRUPT);
    CHECK(fcntl(fd, F_GETFD) == -1);
    tri_segment_drop(&s);
    CHECK(tri_segment_make(&s, 4096, true) == 0);
    CHECK(tri_mailbox_attach(&m, dup(s.fd), -1) == TRI_ECORRUPT);
    tri_segment_drop(&s);
    fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    CHECK(tri_mailbox_attach(&m, fd, -1) < 0);
}

/* Any word may hold anything: an error, or bytes, but no crash, no endless loop. */
static void memory_that_others_scribble_in_crashes_nobody(void)
{
    uint64_t seed = tri_test_seed() | 1, errors = 0;
    uint8_t *p = calloc(1, 4 * CHUNK);

    for (int round = 0; round < 1000; round++) {
        struct tri_mailbox m = fresh(round % 3 ? 0 : 100);
        struct tri_letter l;
        uint8_t area[64];

        m.nchunks = 32;
        for (int i = 0; i < 6; i++)
            put(&m, p, random_of(&seed) % (3 * CHUNK), 0);
        for (int i = 0; i < 3; i++) {
            uint64_t value = random_of(&seed);
            _Atomic uint64_t *word;

            if (value & 1)
                value >>= value >> 1 & 63;
            switch (random_of(&seed) % 6) {
            case 0:
                word = &m.ctl->head;
                break;
            case 1:
                word = &m.ctl->tail;
                break;
            case 2:
                word = &m.chunk[random_of(&seed) % 8].stamp;
                break;
            case 3:
                tri_store_rlx(&m.chunk[random_of(&seed) % 8].next, (uint32_t)value);
                continue;
            case 4:
                word = (_Atomic uint64_t *)(m.data + random_of(&seed) % 8 * CHUNK);
                break;
            default:
                tri_store_rlx(&m.ctl->cursor, (uint32_t)value);
                tri_store_rlx(&m.ctl->touched, (uint32_t)(value >> 32));
                continue;
            }
            /* A few bits, or all. */
            tri_store_rlx(word,
                          random_of(&seed) & 1 ? value : tri_load_rlx(word) ^ 1ull << (value & 63));
        }
        for (int i = 0; i < 10; i++) {
            int err = get(&m, area, sizeof area, &l, 0);

            errors += err == TRI_ECORRUPT;
            if (!err)
                free(l.big);
            put(&m, p, random_of(&seed) % CHUNK, 0);
        }
        tri_mailbox_count(&m);
        tri_mailbox_drop(&m);
    }
    CHECK(errors > 50);
    free(p);
}

/* It had been rung for, but its time was up a moment before: its credit is spent already. */
static void who_stops_waiting_takes_nobody_elses_credit(void)
{
    struct tri_mailbox_bell b = {0};
    uint32_t one = tri_bell_enter(&b), other;

    tri_bell_ring(&b, false);
    other = tri_bell_enter(&b);
    tri_bell_leave(&b, one);
    CHECK(tri_load_sc(&b.word) >> 32 == 1);
    tri_bell_leave(&b, other);
    CHECK(tri_load_sc(&b.word) >> 32 == 0);
    tri_bell_ring(&b, true); /* nobody: nothing moves */
    CHECK((uint32_t)tri_load_sc(&b.word) == other);
    tri_bell_enter(&b);
    tri_bell_enter(&b);
    tri_bell_ring(&b, true);
    CHECK(tri_load_sc(&b.word) == other + 1);
}

static void a_bell_rings_on_over_the_end_of_its_count(void)
{
    struct tri_mailbox_bell b = {0};

    tri_store_rlx(&b.word, UINT32_MAX);
    CHECK(tri_bell_enter(&b) == UINT32_MAX);
    CHECK(tri_bell_enter(&b) == UINT32_MAX);
    tri_bell_ring(&b, false);
    CHECK(tri_load_sc(&b.word) == TRI_BELL_CREDIT);
}

/* ------------------------------------------------------------------ several */

#define WRITERS 3
#define READERS 3
#define EACH 10000
#define LONG (3 * CHUNK)

struct crowd {
    struct tri_mailbox *m;
    uint32_t id;
    _Atomic uint64_t *sum, *taken;
};

static void *writer(void *arg)
{
    struct crowd *c = arg;

    uint64_t *p = calloc(1, LONG);

    /* Now and then one of several chunks, during which readers go on. */
    for (uint64_t i = 0; i < EACH; i++) {
        p[0] = p[LONG / 8 - 1] = (uint64_t)c->id << 32 | i;
        CHECK(put(c->m, p, i % 64 ? 8 : LONG, -1) == 0);
    }
    free(p);
    return NULL;
}

static uint64_t get_either(struct tri_mailbox *m)
{
    struct tri_letter l;
    uint64_t x, *p;

    CHECK(get(m, &x, sizeof x, &l, tri_now_ns() + 30 * SECOND) == 0);
    p = l.big;
    CHECK(p ? l.len == LONG && p[0] == p[LONG / 8 - 1] : l.len == sizeof x);
    x = p ? p[0] : x;
    free(p);
    return x;
}

/* Of each writer's messages a reader sees some, in their order. */
static void *reader(void *arg)
{
    struct crowd *c = arg;
    int64_t last[WRITERS];

    memset(last, -1, sizeof last);
    while (tri_add_sc(c->taken, 1) < (uint64_t)WRITERS * EACH) {
        uint64_t x = get_either(c->m);
        uint32_t who = (uint32_t)(x >> 32);

        CHECK(who < WRITERS && (int64_t)(x & 0xffffffff) > last[who]);
        last[who] = (int64_t)(x & 0xffffffff);
        tri_add_sc(c->sum, x & 0xffffffff);
    }
    return NULL;
}

static void crowded(uint32_t most, bool processes)
{
    struct tri_mailbox m = fresh(most);
    _Atomic uint64_t *shared =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct crowd c[WRITERS + READERS];
    pthread_t thread[WRITERS + READERS];
    pid_t pid[WRITERS + READERS];
    int status;

    CHECK(shared != MAP_FAILED);
    for (uint32_t i = 0; i < WRITERS + READERS; i++) {
        void *(*body)(void *) = i < WRITERS ? writer : reader;

        c[i] = (struct crowd){&m, i, &shared[0], &shared[16]};
        if (!processes) {
            CHECK(pthread_create(&thread[i], NULL, body, &c[i]) == 0);
            continue;
        }
        pid[i] = fork();
        CHECK(pid[i] >= 0);
        if (pid[i] == 0) {
            body(&c[i]);
            _exit(0);
        }
    }
    for (uint32_t i = 0; i < WRITERS + READERS; i++) {
        if (!processes)
            CHECK(pthread_join(thread[i], NULL) == 0);
        else
            CHECK(waitpid(pid[i], &status, 0) == pid[i] && status == 0);
    }
    CHECK(tri_load_sc(&shared[0]) == (uint64_t)WRITERS * EACH * (EACH - 1) / 2);
    CHECK(tri_mailbox_count(&m) == 0);
    munmap((void *)shared, 4096);
    tri_mailbox_drop(&m);
}

static void threads_lose_nothing_and_keep_each_writers_order(void)
{
    crowded(0, false);
    crowded(5, false);
}

static void processes_lose_nothing_and_keep_each_writers_order(void)
{
    crowded(0, true);
    crowded(5, true);
}

static void a_process_with_the_descriptors_alone_has_the_mailbox(void)
{
    struct tri_mailbox m = fresh(0), other;

    put_number(&m, 7);
    CHECK(tri_mailbox_attach(&other, dup(m.seg.fd), dup(m.bell_fd)) == 0);
    CHECK(get_number(&other) == 7);
    put_number(&other, 8);
    tri_mailbox_drop(&other);
    CHECK(get_number(&m) == 8);
    tri_mailbox_drop(&m);
}

static void *done_with_all(void *arg)
{
    struct tri_mailbox *m = arg;

    for (int i = 0; i < 3; i++) {
        usleep(1000);
        CHECK(tri_mailbox_done(m) == 0);
    }
    return NULL;
}

static void join_waits_until_all_is_done_with(void)
{
    struct tri_mailbox m = fresh(0);
    pthread_t t;
    int err;

    for (int i = 0; i < 3; i++)
        put_number(&m, 1);
    CHECK(tri_mailbox_join(&m, 0) == TRI_ETIMEDOUT);
    CHECK(pthread_create(&t, NULL, done_with_all, &m) == 0);
    while ((err = tri_mailbox_join(&m, tri_now_ns() + 30 * SECOND)) == -EINTR)
        ;
    CHECK(err == 0);
    pthread_join(t, NULL);
    CHECK(tri_mailbox_done(&m) == -EINVAL);
    tri_mailbox_drop(&m);
}

int main(void)
{
    RUN(messages_of_every_length_come_out_whole_and_in_order);
    RUN(parts_of_a_message_arrive_as_one);
    RUN(a_full_mailbox_refuses_and_loses_nothing);
    RUN(counts_go_on_over_their_end);
    RUN(a_mailbox_that_is_emptied_as_it_is_filled_stays_small);
    RUN(memory_of_a_burst_comes_back);
    RUN(memory_of_a_burst_comes_back_whatever_the_last_time_was);
    RUN(a_segment_that_is_full_refuses_and_goes_on_when_it_is_read);
    RUN(what_was_refused_is_in_nobodys_way);
    RUN(what_dead_writers_had_begun_is_in_nobodys_way);
    RUN(the_bell_is_readable_exactly_while_there_are_messages);
    RUN(who_hears_the_bell_gets_the_message);
    RUN(what_is_no_mailbox_is_refused);
    RUN(memory_that_others_scribble_in_crashes_nobody);
    RUN(who_stops_waiting_takes_nobody_elses_credit);
    RUN(a_bell_rings_on_over_the_end_of_its_count);
    RUN(threads_lose_nothing_and_keep_each_writers_order);
    RUN(processes_lose_nothing_and_keep_each_writers_order);
    RUN(a_process_with_the_descriptors_alone_has_the_mailbox);
    RUN(join_waits_until_all_is_done_with);
    return 0;
}
