/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_warden.c - the warden dies, answers no more, or cleans up behind its owner's death: every
 * future ends, and no process and no descriptor is left.
 *
 * Tests that kill an owner run this program again as that owner (main's second half), with a tag in
 * its environment, so that each process that comes of it can be found in /proc.
 */
#include "pools.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>

static char *self;

/* ------------------------------------------------------------------ the warden's death */

static void a_dead_warden_breaks_the_pool_within_a_second(void)
{
    /* Few tasks: the owner sleeps for one of them.  Many: it sleeps lazily, in short naps. */
    static const int queued[] = {2, 40, 400};

    for (int k = 0; k < 3; k++) {
        tri_pool *p = durable_pool(2);
        tri_share *s;
        struct gate *g = gate_of(p, &s);
        tri_future *f[400];
        int32_t pid[2], warden = pid_from(p, pid_of_warden);
        int64_t start;

        pids_of(p, 2, pid);
        occupy(p, g, 2, f);
        for (int i = 2; i < queued[k]; i++)
            f[i] = submit(p, stand_at_gate, &g, sizeof g, 0);
        start = tri_now_ns();
        kill(warden, SIGKILL);
        for (int i = queued[k] - 1; i >= 0; i--)
            CHECK(ended(f[i], NULL) == TRI_EBROKEN);
        CHECK(tri_now_ns() - start < SECOND * TRI_SLOW);
        CHECK(tri_submit(p, square, &start, 8, 8, NULL, &f[0]) == TRI_EBROKEN);
        WAIT_UNTIL(!process_lives(pid[0]) && !process_lives(pid[1]), SECOND);
        tri_share_free(s);
        if (k)
            tri_pool_close(p);
        else
            tri_pool_terminate(p);
    }
}

static void polling_notices_a_dead_warden_too(void)
{
    tri_pool *p = durable_pool(1);
    tri_share *s;
    struct gate *g = gate_of(p, &s);
    tri_future *f;
    int32_t warden = pid_from(p, pid_of_warden);

    occupy(p, g, 1, &f);
    kill(warden, SIGKILL);
    WAIT_UNTIL(tri_future_wait(f, 0) == 0, SECOND);
    CHECK(ended(f, NULL) == TRI_EBROKEN);
    tri_share_free(s);
    tri_pool_close(p);
}

/* ------------------------------------------------------------------ what a worker inherits */

/* What the C library keeps of a thread: its number, and the CPU that it runs on. */
static int knows_itself(const void *in, void *out)
{
    pthread_mutexattr_t checks;
    pthread_mutex_t lock;
    cpu_set_t all, one;
    bool ok = getpid() == syscall(SYS_gettid) && sched_getaffinity(0, sizeof all, &all) == 0;

    (void)in;
    for (int cpu = 0; cpu < CPU_SETSIZE && ok; cpu++) {
        if (!CPU_ISSET(cpu, &all))
            continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        ok = sched_setaffinity(0, sizeof one, &one) == 0 && sched_getcpu() == cpu;
    }
    pthread_mutexattr_init(&checks);
    pthread_mutexattr_settype(&checks, PTHREAD_MUTEX_ERRORCHECK);
    pthread_mutex_init(&lock, &checks);
    ok = ok && pthread_mutex_lock(&lock) == 0 && pthread_mutex_lock(&lock) == EDEADLK &&
         pthread_mutex_unlock(&lock) == 0 && pthread_kill(pthread_self(), 0) == 0;
    memcpy(out, &ok, sizeof ok);
    return 0;
}

static void *wait_for_end(void *gate)
{
    while (!atomic_load((_Atomic int *)gate))
        poll(NULL, 0, 1);
    return NULL;
}

/* The owner has one thread, then two: the warden's memory comes to it in the same way. */
static void a_worker_is_a_process_like_any_other(void)
{
    _Atomic int end = 0;
    pthread_t other;

    for (int threads = 1; threads <= 2; threads++) {
        tri_pool *p;
        tri_future *f;
        bool ok = false;

        if (threads == 2)
            CHECK(pthread_create(&other, NULL, wait_for_end, &end) == 0);
        p = pool_of(TRI_PROCESS, 1);
        CHECK(tri_submit(p, knows_itself, NULL, 0, sizeof ok, NULL, &f) == 0);
        CHECK(ended(f, &ok) == 0 && ok);
        tri_pool_close(p);
        CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
    }
    atomic_store(&end, 1);
    pthread_join(other, NULL);
}

/* ------------------------------------------------------------------ a warden that is stuck */

static struct {
    /* As in a library's handler: the child of this many forks from now hangs, or who would be the
     * parent of this many. */
    _Atomic int children, parents;
    _Atomic int32_t pid;
} * stuck; /* shared with all forks */

static void hang(void)
{
    atomic_store(&stuck->pid, (int32_t)getpid());
    for (int i = 0; i < 200; i++) /* longer than the test waits, not for ever should it fail */
        poll(NULL, 0, 100);
    _exit(0);
}

static void hang_before(void)
{
    if (stuck && atomic_fetch_sub(&stuck->parents, 1) == 1)
        hang();
}

static void hang_after(void)
{
    if (stuck && atomic_fetch_sub(&stuck->children, 1) == 1)
        hang();
}

static void an_opening_that_gets_no_answer_leaves_no_process(void)
{
    int fds = open_fds();

    stuck = mmap(NULL, sizeof *stuck, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(stuck != MAP_FAILED);
    CHECK(pthread_atfork(hang_before, NULL, hang_after) == 0);
    for (int between = 0; between < 2; between++) {
        struct tri_pool_inside in = {.shared_warden = -1, .want_output = true};
        tri_pool_config cfg;
        tri_pool *p = NULL;
        int64_t start = tri_now_ns();

        tri_pool_config_init(&cfg);
        cfg.workers = 2;
        cfg.start_timeout_ns = SECOND / 2;
        /* The second to fork is the warden, or where that is another fork the one in between. */
        atomic_store(between ? &stuck->children : &stuck->parents, between ? 1 : 2);
        CHECK(tri_pool_open_inside(&p, &cfg, &in) == TRI_ETIMEDOUT && !p);
        CHECK(tri_now_ns() - start < 2 * SECOND * TRI_SLOW);
        CHECK(atomic_load(&stuck->pid) > 0);
        WAIT_UNTIL(!process_lives(atomic_load(&stuck->pid)), SECOND);
        CHECK(open_fds() == fds);
        CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
    }
    for (int i = 0; i < 2; i++) { /* and it is no harm to the next pool */
        tri_pool *p = pool_of(TRI_PROCESS, 2);

        CHECK(squares_work(p, 100));
        tri_pool_close(p);
    }
    CHECK(open_fds() == fds);
    munmap(stuck, sizeof *stuck);
    stuck = NULL;
}

/* ------------------------------------------------------------------ the owner's death */

static int tagged(const char *tag)
{
    DIR *d = opendir("/proc");
    struct dirent *e;
    int n = 0;

    CHECK(d != NULL);
    while ((e = readdir(d)) != NULL) {
        char path[300], env[65536];
        ssize_t got;
        int fd;

        if (e->d_name[0] < '0' || e->d_name[0] > '9')
            continue;
        snprintf(path, sizeof path, "/proc/%s/environ", e->d_name);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        got = read(fd, env, sizeof env);
        close(fd);
        n += got > 0 && memmem(env, (size_t)got, tag, strlen(tag)) != NULL;
    }
    closedir(d);
    return n;
}

/* Run this program as an owner in the given state; *up gets a byte when it is there. */
static pid_t start_owner(const char *state, const char *tag, int *up)
{
    char arg[16];
    char *argv[] = {self, (char *)(uintptr_t)state, arg, NULL};
    char *envp[] = {(char *)(uintptr_t)tag, NULL};
    int fd[2];
    pid_t pid;

    CHECK(pipe(fd) == 0);
    snprintf(arg, sizeof arg, "%d", fd[1]);
    pid = fork();
    if (pid == 0) {
        close(fd[0]);
        execve("/proc/self/exe", argv, envp);
        _exit(127);
    }
    close(fd[1]);
    *up = fd[0];
    return pid;
}

static int says_started(const void *in, void *out)
{
    int fd;

    memcpy(&fd, in, sizeof fd);
    return write(fd, "x", 1) == 1 ? deaf_for_ever(in, out) : 1;
}

static void be_owner(const char *state, int fd)
{
    tri_pool *p = pool_of(TRI_PROCESS, 3);

    while (strcmp(state, "starting") == 0) { /* for ever: the kill comes at any moment of it */
        tri_pool_close(p);
        p = pool_of(TRI_PROCESS, 3);
    }
    if (strcmp(state, "idle") == 0)
        CHECK(squares_work(p, 100) && write(fd, "x", 1) == 1);
    else
        CHECK(submit(p, says_started, &fd, sizeof fd, 0) != NULL);
    for (;;)
        pause();
}

static void nothing_is_left_of_an_owner_killed_in_any_state(void)
{
    static const char *const state[] = {"idle", "busy", "starting"};
    uint64_t seed = tri_test_seed();

    for (int round = 0; round < (TRI_SANITIZED ? 6 : 24); round++) {
        const char *s = state[round % 3];
        char tag[64], byte;
        int status, up;
        pid_t pid;

        snprintf(tag, sizeof tag, "TRI_DEATH_TAG=%d.%d", (int)getpid(), round);
        pid = start_owner(s, tag, &up);
        if (round % 3 < 2) {
            CHECK(read(up, &byte, 1) == 1);
            CHECK(tagged(tag) >= 5); /* owner, warden, three workers */
        } else {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            usleep((useconds_t)(seed >> 33) % 20000 * TRI_SLOW);
        }
        kill(pid, SIGKILL);
        CHECK(waitpid(pid, &status, 0) == pid);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        WAIT_UNTIL(tagged(tag) == 0, SECOND);
        close(up);
    }
}
int main(int argc, char **argv)
{
    self = argv[0];
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    if (argc == 3) {
        be_owner(argv[1], atoi(argv[2]));
        return 0;
    }
    RUN(a_dead_warden_breaks_the_pool_within_a_second);
    RUN(polling_notices_a_dead_warden_too);
    RUN(a_worker_is_a_process_like_any_other);
    RUN(an_opening_that_gets_no_answer_leaves_no_process);
    RUN(nothing_is_left_of_an_owner_killed_in_any_state);
    return 0;
}
