/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_sync.c - semaphore, event and condition between processes that may be killed, and the pages
 * in which such objects live.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "base/atomic.h"
#include "base/clock.h"
#include "base/self.h"
#include "check.h"
#include "onecpu.h"
#include "shm/slots.h"
#include "shm/sync.h"
#include "trireme.h"

#define SECOND INT64_C(1000000000)
#define ROUNDS 5000

struct shared {
    tri_sem sem, back;
    tri_event event;
    tri_lock lock;
    tri_cond cond;
    _Atomic uint32_t woken;
    uint32_t under_lock; /* counted by who holds the lock */
    bool lines_up;       /* who is notified waits for the lock at once */
};

static struct shared *shared_new(void)
{
    struct shared *s =
        mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    CHECK(s != MAP_FAILED);
    tri_sem_init(&s->sem, 0, 10);
    tri_sem_init(&s->back, 0, 10);
    tri_lock_init(&s->lock);
    tri_cond_init(&s->cond);
    return s;
}

static void shared_free(struct shared *s)
{
    munmap(s, sizeof *s);
}

static void until(bool (*true_now)(struct shared *s, uint32_t n), struct shared *s, uint32_t n)
{
    while (!true_now(s, n))
        usleep(500);
}

static pid_t start(int (*run)(struct shared *s), struct shared *s)
{
    pid_t pid = fork();

    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        _exit(run(s));
    }
    CHECK(pid > 0);
    return pid;
}

static int ended(pid_t pid)
{
    int status;

    CHECK(waitpid(pid, &status, 0) == pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void killed(pid_t pid)
{
    kill(pid, SIGKILL);
    CHECK(ended(pid) == -SIGKILL);
}

/* ------------------------------------------------------------------ semaphore */

static void a_semaphore_counts_up_to_its_maximum(void)
{
    struct shared *s = shared_new();
    int64_t began = tri_now_ns();

    CHECK(tri_sem_acquire(&s->sem, 0) == TRI_ETIMEDOUT);
    CHECK(tri_sem_acquire(&s->sem, 60000000) == TRI_ETIMEDOUT);
    CHECK(tri_now_ns() - began >= 60000000);
    for (uint32_t i = 0; i < 10; i++)
        CHECK(tri_sem_value(&s->sem) == i && tri_sem_release(&s->sem) == 0);
    CHECK(tri_sem_release(&s->sem) == -EOVERFLOW);
    for (int i = 0; i < 10; i++)
        CHECK(tri_sem_acquire(&s->sem, -1) == 0);
    CHECK(tri_sem_value(&s->sem) == 0 && tri_load_acq(&s->sem.waiters) == 0);
    shared_free(s);
}

static int echo(struct shared *s)
{
    for (int i = 0; i < ROUNDS; i++) {
        CHECK(tri_sem_acquire(&s->sem, 20 * SECOND) == 0);
        CHECK(tri_sem_release(&s->back) == 0);
    }
    return 0;
}

static void two_processes_play_ping_pong(void)
{
    struct shared *s = shared_new();
    pid_t pid = start(echo, s);

    for (int i = 0; i < ROUNDS; i++) {
        CHECK(tri_sem_release(&s->sem) == 0);
        CHECK(tri_sem_acquire(&s->back, 20 * SECOND) == 0);
    }
    CHECK(ended(pid) == 0);
    shared_free(s);
}

static int ping_pong_on_one_cpu(struct shared *unused)
{
    (void)unused;
    bind_to_one();
    two_processes_play_ping_pong();
    CHECK(has_yielded());
    return 0;
}

static void so_do_two_on_one_cpu(void)
{
    CHECK(ended(start(ping_pong_on_one_cpu, NULL)) == 0);
}

static int wait_sem_forever(struct shared *s)
{
    return tri_sem_acquire(&s->sem, -1) != 0;
}

static bool sem_waiters(struct shared *s, uint32_t n)
{
    return tri_load_sc(&s->sem.waiters) >= n;
}

static void a_killed_waiter_takes_no_unit_with_it(void)
{
    struct shared *s = shared_new();
    pid_t dead = start(wait_sem_forever, s), living;

    until(sem_waiters, s, 1);
    killed(dead);
    living = start(wait_sem_forever, s);
    until(sem_waiters, s, 2);
    CHECK(tri_sem_release(&s->sem) == 0);
    CHECK(ended(living) == 0 && tri_sem_value(&s->sem) == 0);
    shared_free(s);
}

/* ------------------------------------------------------------------ event */

static int wait_event(struct shared *s)
{
    tri_add_sc(&s->woken, 1);
    return tri_event_wait(&s->event, 20 * SECOND) != 0;
}

static bool woken_is(struct shared *s, uint32_t n)
{
    return tri_load_sc(&s->woken) >= n;
}

static void an_event_wakes_all_and_stays_set(void)
{
    struct shared *s = shared_new();
    pid_t pid[3];

    CHECK(tri_event_wait(&s->event, 1000000) == TRI_ETIMEDOUT && !tri_event_is_set(&s->event));
    for (int i = 0; i < 3; i++)
        pid[i] = start(wait_event, s);
    until(woken_is, s, 3);
    tri_event_set(&s->event);
    tri_event_set(&s->event);
    for (int i = 0; i < 3; i++)
        CHECK(ended(pid[i]) == 0);
    CHECK(tri_event_is_set(&s->event) && tri_event_wait(&s->event, 0) == 0);
    tri_event_clear(&s->event);
    tri_event_clear(&s->event);
    CHECK(!tri_event_is_set(&s->event) && tri_event_wait(&s->event, 0) == TRI_ETIMEDOUT);
    shared_free(s);
}

static void *pulse(void *arg)
{
    struct shared *s = arg;

    until(woken_is, s, 1); /* from here on the waiter may be anywhere before or in its wait */
    while (tri_load_sc(&s->woken) == 1) {
        tri_event_set(&s->event);
        tri_event_clear(&s->event);
        usleep(100);
    }
    return NULL;
}

static void a_set_that_is_cleared_at_once_is_seen(void)
{
    struct shared *s = shared_new();
    pthread_t t;

    CHECK(pthread_create(&t, NULL, pulse, s) == 0);
    CHECK(wait_event(s) == 0);
    tri_add_sc(&s->woken, 1);
    pthread_join(t, NULL);
    shared_free(s);
}

/* ------------------------------------------------------------------ condition */

static int wait_cond(struct shared *s)
{
    int cell, err;

    CHECK(tri_lock_acquire(&s->lock, 20 * SECOND, NULL) == 0);
    cell = tri_cond_enter(&s->cond);
    CHECK(cell >= 0 && tri_lock_release(&s->lock) == 0);
    err = tri_cond_wait(&s->cond, cell, 20 * SECOND);
    CHECK(tri_cond_leave(&s->cond, cell) == (err == 0));
    CHECK(tri_lock_acquire_again(&s->lock, 20 * SECOND, NULL) == 0);
    s->under_lock++;
    CHECK(tri_lock_release(&s->lock) == 0);
    tri_add_sc(&s->woken, 1);
    return err != 0;
}

static bool cond_waiters(struct shared *s, uint32_t n)
{
    return tri_cond_waiters(&s->cond) == n;
}

static uint32_t notify(struct shared *s, uint32_t n)
{
    uint32_t woken;

    CHECK(tri_lock_acquire(&s->lock, 20 * SECOND, NULL) == 0);
    woken = tri_cond_notify(&s->cond, n, s->lines_up ? &s->lock : NULL);
    CHECK(tri_lock_release(&s->lock) == 0);
    return woken;
}

static void wakes_the_first_and_no_more(bool lines_up)
{
    struct shared *s = shared_new();
    pid_t pid[4];

    s->lines_up = lines_up;
    CHECK(notify(s, 5) == 0);
    for (uint32_t i = 0; i < 4; i++) {
        pid[i] = start(wait_cond, s);
        until(cond_waiters, s, i + 1);
    }
    CHECK(notify(s, 1) == 1 && ended(pid[0]) == 0);
    CHECK(notify(s, 2) == 2 && ended(pid[1]) == 0 && ended(pid[2]) == 0);
    CHECK(tri_load_sc(&s->woken) == 3 && tri_cond_waiters(&s->cond) == 1);
    CHECK(notify(s, UINT32_MAX) == 1 && ended(pid[3]) == 0);
    CHECK(tri_cond_waiters(&s->cond) == 0 && notify(s, 1) == 0);
    CHECK(s->under_lock == 4 && tri_lock_holder(&s->lock) == 0);
    shared_free(s);
}

static void notify_wakes_the_first_and_no_more(void)
{
    wakes_the_first_and_no_more(false);
    wakes_the_first_and_no_more(true);
}

/* All sleep for the lock then, and each lets the next one in. */
static void all_that_are_notified_get_the_lock(void)
{
    struct shared *s = shared_new();
    pid_t pid[8];

    s->lines_up = true;
    for (int round = 0; round < 20; round++) {
        for (uint32_t i = 0; i < 8; i++)
            pid[i] = start(wait_cond, s);
        until(cond_waiters, s, 8);
        if (round % 2)
            killed(pid[3]);
        CHECK(notify(s, UINT32_MAX) == (round % 2 ? 7 : 8));
        for (uint32_t i = 0; i < 8; i++)
            CHECK((round % 2 && i == 3) || ended(pid[i]) == 0);
    }
    CHECK(s->under_lock == 150 && tri_lock_holder(&s->lock) == 0);
    shared_free(s);
}

static void a_killed_waiter_is_not_notified(void)
{
    struct shared *s = shared_new();
    pid_t pid[3];

    for (uint32_t i = 0; i < 3; i++) {
        pid[i] = start(wait_cond, s);
        until(cond_waiters, s, i + 1);
    }
    killed(pid[0]);
    kill(pid[1], SIGKILL); /* a zombie until the end */
    until(cond_waiters, s, 1);
    CHECK(notify(s, 1) == 1 && ended(pid[2]) == 0);
    CHECK(notify(s, 1) == 0);
    ended(pid[1]);
    shared_free(s);
}

static void time_outs_and_cells_of_the_dead_leave_room(void)
{
    struct shared *s = shared_new();
    pid_t pid = start(wait_cond, s);
    int cell;

    until(cond_waiters, s, 1);
    killed(pid);
    for (uint32_t i = 1; i < TRI_COND_CELLS; i++) {
        cell = tri_cond_enter(&s->cond);
        CHECK(cell == (int)i);
    }
    cell = tri_cond_enter(&s->cond);
    CHECK(cell == 0); /* the dead one's */
    CHECK(tri_cond_enter(&s->cond) == -ENOSPC);
    CHECK(tri_cond_wait(&s->cond, 0, 1000000) == TRI_ETIMEDOUT && !tri_cond_leave(&s->cond, 0));
    CHECK(tri_cond_enter(&s->cond) == 0);
    CHECK(tri_cond_notify(&s->cond, UINT32_MAX, NULL) == TRI_COND_CELLS);
    CHECK(tri_cond_wait(&s->cond, 0, -1) == 0 && tri_cond_leave(&s->cond, 0));
    shared_free(s);
}

/* ------------------------------------------------------------------ slots */

static void slots_are_apart_and_are_used_again(void)
{
    struct tri_slots all = {NULL};
    struct tri_page *page[3069], *again;
    uint32_t slot[3069], s;

    for (int i = 0; i < 3069; i++) {
        CHECK(tri_slot_new(&all, 64, &page[i], &slot[i]) == 0 && slot[i] > 0);
        CHECK(*(uint64_t *)tri_slot_at(page[i], slot[i]) == 0);
        *(uint64_t *)tri_slot_at(page[i], slot[i]) = (uint64_t)i + 1;
    }
    for (int i = 0; i < 3069; i++)
        CHECK(*(uint64_t *)tri_slot_at(page[i], slot[i]) == (uint64_t)i + 1);
    tri_slot_drop(&all, page[5], slot[5]);
    CHECK(tri_slot_new(&all, 64, &again, &s) == 0 && again == page[5] && s == slot[5]);
    CHECK(*(uint64_t *)tri_slot_at(again, s) == 0);
    for (int i = 0; i < 3069; i++)
        tri_slot_drop(&all, page[i], slot[i]);
    CHECK(!all.pages);
}

static void large_slots_are_zeros_again(void)
{
    struct tri_slots all = {NULL};
    struct tri_page *page, *keep;
    uint32_t slot, other;
    uint8_t *at;

    CHECK(tri_slot_new(&all, TRI_COND_BYTES, &keep, &other) == 0);
    CHECK(tri_slot_new(&all, TRI_COND_BYTES, &page, &slot) == 0 && page == keep);
    memset(tri_slot_at(page, slot), 7, TRI_COND_BYTES);
    tri_slot_drop(&all, page, slot);
    CHECK(tri_slot_new(&all, TRI_COND_BYTES, &page, &slot) == 0);
    at = tri_slot_at(page, slot);
    for (uint32_t i = 0; i < TRI_COND_BYTES; i++)
        CHECK(at[i] == 0);
    tri_slot_drop(&all, page, slot);
    tri_slot_drop(&all, keep, other);
    CHECK(!all.pages);
}

static void a_slot_that_others_may_hold_is_not_used_again(void)
{
    struct tri_slots all = {NULL};
    struct tri_page *page, *keep, *now;
    uint32_t slot, other, s;
    pid_t pid;

    CHECK(tri_slot_new(&all, 64, &keep, &other) == 0);
    CHECK(tri_slot_new(&all, 64, &page, &slot) == 0);
    CHECK(tri_slot_lend(page, slot) >= 0);
    tri_slot_drop(&all, page, slot);
    CHECK(tri_slot_new(&all, 64, &now, &s) == 0 && s != slot); /* lent */
    pid = fork();
    if (pid == 0) {
        struct tri_page *own;
        uint32_t mine;

        /* A fork hands out nothing of its parent's page. */
        CHECK(tri_slot_new(&all, 64, &own, &mine) == 0 && own != page);
        tri_slot_drop(&all, now, s);
        tri_slot_drop(&all, keep, other);
        CHECK(all.pages == own && !own->next);
        _exit(0);
    }
    CHECK(ended(pid) == 0);
    slot = s;
    tri_slot_drop(&all, now, slot);
    CHECK(tri_slot_new(&all, 64, &now, &s) == 0 && s != slot); /* inherited by the fork */
    slot = s;
    tri_slot_drop(&all, now, slot);
    CHECK(tri_slot_new(&all, 64, &now, &s) == 0 && s == slot); /* made after it */
    tri_slot_drop(&all, now, s);
    tri_slot_drop(&all, keep, other);
    CHECK(!all.pages);
}

static void a_page_travels_by_descriptor_and_only_a_sound_one_is_taken(void)
{
    struct tri_slots all = {NULL}, theirs = {NULL};
    struct tri_page *page, *got;
    uint8_t wrong[TRI_UID_BYTES] = {1};
    uint32_t slot;
    int fd;

    CHECK(tri_slot_new(&all, 64, &page, &slot) == 0);
    fd = tri_slot_lend(page, slot);
    CHECK(tri_slot_attach(&theirs, wrong, dup(fd), &got) == TRI_ECORRUPT && !theirs.pages);
    CHECK(tri_slot_attach(&theirs, page->uid, open("/dev/null", O_RDWR), &got) < 0);
    CHECK(!tri_slot_find(&theirs, page->uid));
    CHECK(tri_slot_attach(&theirs, page->uid, dup(fd), &got) == 0);
    CHECK(tri_slot_find(&theirs, page->uid) == got);
    CHECK(tri_slot_hold(got, 0, 64) == TRI_ECORRUPT && tri_slot_hold(got, 1024, 64) < 0);
    CHECK(tri_slot_hold(got, slot, TRI_COND_BYTES) == TRI_ECORRUPT);
    CHECK(tri_slot_hold(got, slot, 64) == 0);
    *(uint64_t *)tri_slot_at(got, slot) = 42;
    CHECK(*(uint64_t *)tri_slot_at(page, slot) == 42);
    tri_slot_drop(&theirs, got, slot);
    tri_slot_drop(&all, page, slot);
    CHECK(!theirs.pages && !all.pages);
}

static void a_descriptor_that_was_closed_behind_us_is_not_closed_again(void)
{
    struct tri_slots all = {NULL};
    struct tri_page *page;
    uint32_t slot;
    int fd, other;

    CHECK(tri_slot_new(&all, 64, &page, &slot) == 0);
    fd = tri_slot_lend(page, slot);
    other = open("/dev/null", O_RDONLY);
    CHECK(dup2(other, fd) == fd);
    CHECK(tri_slot_lend(page, slot) == -1);
    tri_slot_drop(&all, page, slot);
    CHECK(fcntl(fd, F_GETFD) >= 0);
    close(fd);
    close(other);
}

int main(void)
{
    RUN(a_semaphore_counts_up_to_its_maximum);
    RUN(two_processes_play_ping_pong);
    RUN(so_do_two_on_one_cpu);
    RUN(a_killed_waiter_takes_no_unit_with_it);
    RUN(an_event_wakes_all_and_stays_set);
    RUN(a_set_that_is_cleared_at_once_is_seen);
    RUN(notify_wakes_the_first_and_no_more);
    RUN(all_that_are_notified_get_the_lock);
    RUN(a_killed_waiter_is_not_notified);
    RUN(time_outs_and_cells_of_the_dead_leave_room);
    RUN(slots_are_apart_and_are_used_again);
    RUN(large_slots_are_zeros_again);
    RUN(a_slot_that_others_may_hold_is_not_used_again);
    RUN(a_page_travels_by_descriptor_and_only_a_sound_one_is_taken);
    RUN(a_descriptor_that_was_closed_behind_us_is_not_closed_again);
    return 0;
}
