/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_lock.c - the lock that survives its holder, between threads and between processes.
 *
 * Children end by _exit() with a code that the test checks: 0 as expected, else the line of a
 * broken CHECK aborts them.  Waiting for "they sleep" is waiting for the CONTENDED bit, by polling.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "base/atomic.h"
#include "base/clock.h"
#include "base/self.h"
#include "check.h"
#include "onecpu.h"
#include "shm/lock.h"
#include "shm/sync.h"
#include "trireme.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define ROUNDS 5000
#else
#define ROUNDS 50000
#endif
#define CONTENDED (UINT64_C(1) << 31)
#define SECOND INT64_C(1000000000)
#define TURNS 600
#define NHAD 4

struct shared {
    tri_lock lock;
    tri_sem sem;               /* of one unit */
    uint64_t plain, had[NHAD]; /* written under the lock only */
    _Atomic uint32_t recovered, ready;
};

static struct shared *shared_new(void)
{
    struct shared *s =
        mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    CHECK(s != MAP_FAILED);
    tri_lock_init(&s->lock);
    tri_sem_init(&s->sem, 1, 1);
    return s;
}

static void shared_free(struct shared *s)
{
    munmap(s, sizeof *s);
}

static void nap(void)
{
    usleep(500);
}

static void until_contended(struct shared *s)
{
    while (!(tri_load_acq(&s->lock.word) & CONTENDED))
        nap();
}

static void until_ready(struct shared *s, uint32_t n)
{
    while (tri_load_acq(&s->ready) < n)
        nap();
}

/* A child that takes the lock, says so, and stays until it is killed. */
static pid_t holder_child(struct shared *s)
{
    uint32_t before = tri_load_acq(&s->ready);
    pid_t pid = fork();

    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        CHECK(tri_lock_acquire(&s->lock, 10 * SECOND, NULL) == 0);
        tri_add_sc(&s->ready, 1);
        for (;;)
            pause();
    }
    CHECK(pid > 0);
    until_ready(s, before + 1);
    return pid;
}

static int ended(pid_t pid)
{
    int status;

    CHECK(waitpid(pid, &status, 0) == pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void a_lock_is_taken_once_and_given_back_once(void)
{
    struct shared *s = shared_new();
    bool recovered = true;

    CHECK(tri_lock_release(&s->lock) == -EPERM);
    CHECK(tri_lock_acquire(&s->lock, 0, &recovered) == 0 && !recovered);
    CHECK(tri_lock_holder(&s->lock) == tri_self_name());
    CHECK((tri_self_name() & TRI_NAME_PID) == (uint64_t)getpid() && tri_self_name() >> 32);
    CHECK(tri_lock_acquire(&s->lock, 0, NULL) == TRI_ETIMEDOUT); /* not recursive */
    CHECK(tri_lock_release(&s->lock) == 0);
    CHECK(tri_lock_release(&s->lock) == -EPERM);
    CHECK(tri_lock_acquire(&s->lock, -1, NULL) == 0);
    CHECK(tri_lock_release(&s->lock) == 0 && tri_lock_holder(&s->lock) == 0);
    shared_free(s);
}

static void a_wait_ends_at_its_time_and_not_before(void)
{
    struct shared *s = shared_new();
    int64_t began;

    CHECK(tri_lock_acquire(&s->lock, -1, NULL) == 0);
    began = tri_now_ns();
    CHECK(tri_lock_acquire(&s->lock, 120000000, NULL) == TRI_ETIMEDOUT);
    CHECK(tri_now_ns() - began >= 120000000);
    CHECK(tri_lock_acquire(&s->lock, 1, NULL) == TRI_ETIMEDOUT);
    CHECK(tri_lock_release(&s->lock) == 0);
    CHECK(tri_lock_acquire(&s->lock, 1, NULL) == 0);
    shared_free(s);
}

static void *count_up(void *arg)
{
    struct shared *s = arg;

    for (int i = 0; i < ROUNDS; i++) {
        CHECK(tri_lock_acquire(&s->lock, -1, NULL) == 0);
        s->plain++;
        CHECK(tri_lock_release(&s->lock) == 0);
    }
    return NULL;
}

static void threads_exclude_each_other(void)
{
    struct shared *s = shared_new();
    pthread_t t[4];

    for (int i = 0; i < 4; i++)
        CHECK(pthread_create(&t[i], NULL, count_up, s) == 0);
    for (int i = 0; i < 4; i++)
        pthread_join(t[i], NULL);
    CHECK(s->plain == 4 * ROUNDS && tri_lock_holder(&s->lock) == 0);
    shared_free(s);
}

static void processes_exclude_each_other(void)
{
    struct shared *s = shared_new();
    pid_t pid[4];

    for (int i = 0; i < 4; i++) {
        pid[i] = fork();
        if (pid[i] == 0) {
            count_up(s);
            _exit(0);
        }
    }
    for (int i = 0; i < 4; i++)
        CHECK(ended(pid[i]) == 0);
    CHECK(s->plain == 4 * ROUNDS && tri_lock_holder(&s->lock) == 0);
    shared_free(s);
}

/* Takes one lock, gives the other, which its partner waits for: they take turns. */
static void take_turns(struct shared *take, struct shared *give)
{
    for (uint64_t i = 1; i <= ROUNDS / 10; i++) {
        CHECK(tri_lock_acquire(&take->lock, 20 * SECOND, NULL) == 0);
        CHECK(++take->plain == i);
        CHECK(tri_lock_release(&give->lock) == 0);
    }
}

/* The waiting side yields and does not sleep, unless a third one takes what it yields. */
static void processes_on_one_cpu_take_turns(void)
{
    for (int third = 0; third < 2; third++) {
        struct shared *ping = shared_new(), *pong = shared_new();
        pid_t pid[3];

        CHECK(tri_lock_acquire(&ping->lock, 0, NULL) == 0);
        CHECK(tri_lock_acquire(&pong->lock, 0, NULL) == 0);
        for (int i = 0; i < 2 + third; i++) {
            pid[i] = fork();
            if (pid[i] == 0) {
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                bind_to_one();
                while (i == 2)
                    tri_pause();
                take_turns(i ? pong : ping, i ? ping : pong);
                CHECK(has_yielded());
                _exit(0);
            }
        }
        CHECK(tri_lock_release(&ping->lock) == 0);
        CHECK(ended(pid[0]) == 0 && ended(pid[1]) == 0);
        if (third) {
            kill(pid[2], SIGKILL);
            CHECK(ended(pid[2]) == -SIGKILL);
        }
        CHECK(ping->plain == ROUNDS / 10 && pong->plain == ROUNDS / 10);
        shared_free(ping);
        shared_free(pong);
    }
}

static void a_turn(bool won, bool slow)
{
    _Atomic int32_t hint = 1;
    struct tri_spin spin = {.hint = &hint, .n = 1, .most = 1, .yield = true, .slow = slow};

    tri_spin_end(&spin, won);
}

static int learn(void)
{
    struct tri_spin_turns *t = &tri_spin_turns;

    CHECK(t->left == 0 && t->skips == 0);
    for (int i = 0; i < 10; i++)
        a_turn(false, true);
    CHECK(t->left == 0 && t->skips == 0);
    for (uint32_t skips = TRI_SPIN_SLOW_SKIPS; skips < TRI_SPIN_SLOW_MOST; skips *= 4) {
        a_turn(true, true);
        CHECK(t->left == skips && t->skips == skips);
    }
    for (int i = 0; i < 3; i++)
        a_turn(true, true);
    CHECK(t->left == TRI_SPIN_SLOW_MOST);
    for (uint32_t skips = TRI_SPIN_SLOW_MOST; skips;) {
        for (int i = 0; i < TRI_SPIN_CALM; i++)
            a_turn(true, false);
        skips = skips > TRI_SPIN_SLOW_SKIPS ? skips / 4 : 0;
        CHECK(t->skips == skips);
    }
    return 0;
}

/* Slow turns in vain say nothing; others four times as much each time, and are forgotten. */
static void a_process_learns_from_slow_turns(void)
{
    pid_t pid = fork();

    if (pid == 0)
        _exit(learn());
    CHECK(ended(pid) == 0);
}

static void a_killed_holders_lock_goes_to_one_waiter_who_is_told(void)
{
    for (int reaped = 0; reaped < 2; reaped++) {
        struct shared *s = shared_new();
        pid_t holder = holder_child(s), waiter[3];

        for (int i = 0; i < 3; i++) {
            waiter[i] = fork();
            if (waiter[i] == 0) {
                bool recovered;

                CHECK(tri_lock_acquire(&s->lock, 20 * SECOND, &recovered) == 0);
                if (recovered)
                    tri_add_sc(&s->recovered, 1);
                s->plain++;
                CHECK(tri_lock_release(&s->lock) == 0);
                _exit(0);
            }
        }
        until_contended(s);
        kill(holder, SIGKILL);
        if (reaped)
            CHECK(ended(holder) == -SIGKILL); /* else it stays a zombie while they wait */
        for (int i = 0; i < 3; i++)
            CHECK(ended(waiter[i]) == 0);
        CHECK(s->plain == 3 && tri_load_acq(&s->recovered) == 1);
        if (!reaped)
            CHECK(ended(holder) == -SIGKILL);
        shared_free(s);
    }
}

static void a_try_sees_a_death_too(void)
{
    struct shared *s = shared_new();
    pid_t holder = holder_child(s);
    bool recovered = false;
    int err;

    CHECK(tri_lock_acquire(&s->lock, 0, &recovered) == TRI_ETIMEDOUT); /* it lives */
    kill(holder, SIGKILL);
    CHECK(ended(holder) == -SIGKILL);
    while ((err = tri_lock_acquire(&s->lock, 0, &recovered)) != 0) {
        CHECK(err == TRI_ETIMEDOUT);
        nap();
    }
    CHECK(recovered && tri_lock_release(&s->lock) == 0);
    shared_free(s);
}

static void a_living_holder_keeps_its_lock(void)
{
    struct shared *s = shared_new();
    pid_t holder = holder_child(s);

    kill(holder, SIGSTOP); /* stopped is not dead */
    CHECK(tri_lock_acquire(&s->lock, 300000000, NULL) == TRI_ETIMEDOUT);
    kill(holder, SIGKILL);
    CHECK(tri_lock_acquire(&s->lock, 20 * SECOND, NULL) == 0);
    ended(holder);
    shared_free(s);
}

static void another_process_may_release(void)
{
    struct shared *s = shared_new();
    pid_t pid;

    CHECK(tri_lock_acquire(&s->lock, -1, NULL) == 0);
    pid = fork();
    if (pid == 0) {
        until_contended(s);
        CHECK(tri_lock_release(&s->lock) == 0);
        _exit(0);
    }
    CHECK(tri_lock_acquire(&s->lock, 20 * SECOND, NULL) == 0);
    CHECK(ended(pid) == 0);
    CHECK(tri_lock_holder(&s->lock) == tri_self_name());
    shared_free(s);
}

/* The number lives, but it was another process's when the lock was taken. */
static void a_number_used_again_is_not_the_holder(void)
{
    struct shared *s = shared_new();
    bool recovered = false;
    pid_t other;

    tri_store_rel(&s->lock.word, tri_self_name() ^ UINT64_C(1) << 40); /* our own number */
    CHECK(tri_lock_acquire(&s->lock, 20 * SECOND, &recovered) == 0 && recovered);
    CHECK(tri_lock_release(&s->lock) == 0);
    other = holder_child(s);
    CHECK(!tri_name_gone(tri_lock_holder(&s->lock)));
    tri_store_rel(&s->lock.word, tri_load_acq(&s->lock.word) ^ UINT64_C(1) << 40);
    recovered = false;
    CHECK(tri_lock_acquire(&s->lock, 20 * SECOND, &recovered) == 0 && recovered);
    kill(other, SIGKILL);
    ended(other);
    shared_free(s);
}

static void names_of_another_namespace_are_not_judged(void)
{
    struct shared *s = shared_new();
    pid_t holder;

    s->lock.ns += 1; /* made elsewhere: everybody here is foreign */
    holder = holder_child(s);
    CHECK(tri_load_acq(&s->lock.word) & TRI_NAME_FOREIGN);
    kill(holder, SIGKILL);
    ended(holder);
    CHECK(tri_lock_acquire(&s->lock, 200000000, NULL) == TRI_ETIMEDOUT);
    CHECK(tri_lock_release(&s->lock) == 0); /* whoever knows better may */
    s->lock.ns -= 1;                        /* and a foreign name seen from home */
    tri_store_rel(&s->lock.word, (tri_self_name() ^ UINT64_C(1) << 40) | TRI_NAME_FOREIGN);
    CHECK(tri_lock_acquire(&s->lock, 200000000, NULL) == TRI_ETIMEDOUT);
    shared_free(s);
}

static void a_fork_signs_with_its_own_name(void)
{
    struct shared *s = shared_new();
    uint64_t mine = tri_self_name();
    pid_t pid = fork();

    if (pid == 0) {
        CHECK(tri_lock_acquire(&s->lock, -1, NULL) == 0);
        CHECK(tri_lock_holder(&s->lock) == tri_self_name() && tri_self_name() != mine);
        _exit(0); /* ends, and holds it */
    }
    CHECK(ended(pid) == 0);
    CHECK(tri_name_gone(tri_lock_holder(&s->lock)) && !tri_name_gone(mine));
    CHECK(tri_lock_acquire(&s->lock, 20 * SECOND, NULL) == 0);
    shared_free(s);
}

static void on_alarm(int sig)
{
    (void)sig;
}

/* A child that sends us signals, faster than any slice ends, once somebody waits. */
static pid_t interrupter(struct shared *s)
{
    struct sigaction act = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    pid_t self = getpid(), pid;

    sigaction(SIGUSR1, &act, NULL);
    pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        until_contended(s);
        for (;;) { /* once may be before the sleep; the test kills us */
            kill(self, SIGUSR1);
            nap();
        }
    }
    CHECK(pid > 0);
    return pid;
}

static void a_signal_handler_ends_the_wait(void)
{
    struct shared *s = shared_new();
    pid_t pid;

    CHECK(tri_lock_acquire(&s->lock, -1, NULL) == 0);
    pid = interrupter(s);
    CHECK(tri_lock_acquire(&s->lock, -1, NULL) == -EINTR);
    kill(pid, SIGKILL);
    ended(pid);
    shared_free(s);
}

static void signals_hide_no_death(void)
{
    struct shared *s = shared_new();
    pid_t holder = holder_child(s), pid = interrupter(s);
    bool recovered = false;
    int err, interrupted = 0;

    do {
        err = tri_lock_acquire(&s->lock, -1, &recovered);
        if (err == -EINTR && ++interrupted == 20) {
            kill(holder, SIGKILL);
            CHECK(ended(holder) == -SIGKILL);
        }
    } while (err == -EINTR);
    CHECK(err == 0 && recovered && interrupted >= 20);
    kill(pid, SIGKILL);
    ended(pid);
    shared_free(s);
}

static void take(struct shared *s, bool by_lock)
{
    CHECK((by_lock ? tri_lock_acquire(&s->lock, 20 * SECOND, NULL)
                   : tri_sem_acquire(&s->sem, 20 * SECOND)) == 0);
}

static void give(struct shared *s, bool by_lock)
{
    CHECK((by_lock ? tri_lock_release(&s->lock) : tri_sem_release(&s->sem)) == 0);
}

/* Each holds it for 1 ms and takes it again at once. */
static int hold_in_turn(struct shared *s, bool by_lock, int me)
{
    struct sched_param none = {0};

    bind_to_one();
    CHECK(sched_setscheduler(0, SCHED_BATCH, &none) == 0);
    for (;;) {
        int64_t end;

        take(s, by_lock);
        if (s->plain == TURNS) {
            give(s, by_lock);
            return 0;
        }
        s->plain++;
        s->had[me]++;
        for (end = tri_now_ns() + 1000000; tri_now_ns() < end;)
            tri_pause();
        give(s, by_lock);
    }
}

/* How many turns had who had fewest, on one CPU, where one that is woken waits until the time slice
 * of who woke it ends? */
static uint64_t fewest_turns(bool by_lock)
{
    struct shared *s = shared_new();
    uint64_t fewest = TURNS;
    pid_t pid[NHAD];

    for (int i = 0; i < NHAD; i++) {
        pid[i] = fork();
        if (pid[i] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            _exit(hold_in_turn(s, by_lock, i));
        }
    }
    for (int i = 0; i < NHAD; i++)
        CHECK(ended(pid[i]) == 0);
    for (int i = 0; i < NHAD; i++)
        fewest = s->had[i] < fewest ? s->had[i] : fewest;
    shared_free(s);
    return fewest;
}

/* Unless the kernel does it whatever is waited for: Linux 6.1 switches in the middle of a hold. */
static void nobody_is_shut_out(void)
{
    uint64_t semaphore = fewest_turns(false), lock = fewest_turns(true);

    fprintf(stderr,
            "    of %d turns the last of %d had %" PRIu64 ", with a semaphore %" PRIu64 "\n", TURNS,
            NHAD, lock, semaphore);
    CHECK(lock >= semaphore / 5);
}

/* Holders are killed at random instants; the sum stays what was committed. */
static void a_storm_of_kills_stops_nobody(void)
{
    struct shared *s = shared_new();
    uint64_t seed = tri_test_seed();
    int64_t end = tri_now_ns() + 2 * SECOND;
    pid_t pid[3] = {0};
    unsigned kills = 0;

    while (tri_now_ns() < end) {
        for (int i = 0; i < 3; i++) {
            if (pid[i])
                continue;
            pid[i] = fork();
            if (pid[i] == 0) {
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                for (;;) {
                    bool recovered;

                    CHECK(tri_lock_acquire(&s->lock, 20 * SECOND, &recovered) == 0);
                    if (recovered)
                        tri_add_sc(&s->recovered, 1);
                    tri_add_sc(&s->ready, 1);
                    CHECK(tri_lock_holder(&s->lock) == tri_self_name());
                    CHECK(tri_lock_release(&s->lock) == 0);
                }
            }
        }
        seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        usleep((useconds_t)(seed >> 33) % 3000);
        kill(pid[kills % 3], SIGKILL);
        ended(pid[kills % 3]);
        pid[kills++ % 3] = 0;
    }
    for (int i = 0; i < 3; i++) {
        if (pid[i]) {
            kill(pid[i], SIGKILL);
            ended(pid[i]);
        }
    }
    CHECK(tri_lock_acquire(&s->lock, 20 * SECOND, NULL) == 0);
    fprintf(stderr, "    %u kills, %u recoveries, %u turns\n", kills, tri_load_acq(&s->recovered),
            tri_load_acq(&s->ready));
    shared_free(s);
}

int main(void)
{
    RUN(a_lock_is_taken_once_and_given_back_once);
    RUN(a_wait_ends_at_its_time_and_not_before);
    RUN(threads_exclude_each_other);
    RUN(processes_exclude_each_other);
    RUN(processes_on_one_cpu_take_turns);
    RUN(a_process_learns_from_slow_turns);
    RUN(a_killed_holders_lock_goes_to_one_waiter_who_is_told);
    RUN(a_try_sees_a_death_too);
    RUN(a_living_holder_keeps_its_lock);
    RUN(another_process_may_release);
    RUN(a_number_used_again_is_not_the_holder);
    RUN(names_of_another_namespace_are_not_judged);
    RUN(a_fork_signs_with_its_own_name);
    RUN(a_signal_handler_ends_the_wait);
    RUN(signals_hide_no_death);
    RUN(nobody_is_shut_out);
    RUN(a_storm_of_kills_stops_nobody);
    return 0;
}
