/* SPDX-License-Identifier: BSD-3-Clause */
/* test_segment.c - shared memory without a name, and pools where memory or files are limited. */
#include "pools.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

static void a_segment_is_zero_private_to_its_user_and_sealed(void)
{
    struct tri_segment s;
    struct stat st;
    int fds = open_fds();

    CHECK(tri_segment_make(&s, 8 << 20, true) == 0);
    CHECK(s.fd >= 64 && s.shared && s.bytes == 8 << 20);
    CHECK(fstat(s.fd, &st) == 0 && (st.st_mode & 0777) == 0600 && st.st_size == 8 << 20);
    CHECK(st.st_blocks == 0); /* sparse */
    CHECK(fcntl(s.fd, F_GETFD) & FD_CLOEXEC);
    CHECK(ftruncate(s.fd, 0) < 0 && errno == EPERM);
    CHECK(ftruncate(s.fd, 16 << 20) < 0 && errno == EPERM);
    CHECK(fcntl(s.fd, F_ADD_SEALS, F_SEAL_WRITE) < 0);
    for (int i = 0; i < 8 << 20; i += 4096)
        CHECK(((char *)s.base)[i] == 0);
    tri_segment_drop(&s);
    CHECK(open_fds() == fds && s.fd == -1 && !s.base);
    tri_segment_drop(&s); /* harmless */
}

static void a_segment_travels_by_descriptor(void)
{
    struct tri_segment a, b;

    CHECK(tri_segment_make(&a, 4 << 20, true) == 0);
    CHECK(tri_segment_attach(&b, dup(a.fd)) == 0 && b.bytes == a.bytes && b.base != a.base);
    strcpy((char *)a.base + 5000, "hello");
    CHECK(strcmp((char *)b.base + 5000, "hello") == 0);
    tri_segment_punch(&b, 4096, 8192);
    CHECK(((char *)a.base)[5000] == 0);
    strcpy((char *)a.base + 4000, "edge");
    tri_segment_punch(&b, 4001, 100); /* whole pages only: there is none */
    CHECK(strcmp((char *)a.base + 4000, "edge") == 0);
    tri_segment_drop(&a);
    tri_segment_drop(&b);
}

static void what_is_no_segment_is_refused(void)
{
    struct tri_segment s;
    int fd = memfd_create("other", MFD_ALLOW_SEALING | MFD_CLOEXEC), fds;
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    CHECK(ftruncate(fd, 1 << 20) == 0 && null >= 0);
    fds = open_fds();
    CHECK(tri_segment_attach(&s, fd) == TRI_ECORRUPT); /* not sealed: it could be cut under us */
    CHECK(tri_segment_attach(&s, null) != 0);
    CHECK(tri_segment_attach(&s, -1) == -EBADF);
    CHECK(open_fds() == fds);
    close(fd);
    close(null);
}

static void private_segments_have_no_descriptor(void)
{
    struct tri_segment s;
    int fds = open_fds();

    CHECK(tri_segment_make(&s, 1 << 20, false) == 0 && s.fd == -1 && open_fds() == fds);
    ((char *)s.base)[9000] = 1;
    tri_segment_punch(&s, 0, 1 << 20);
    CHECK(((char *)s.base)[9000] == 0);
    tri_segment_drop(&s);
}

static void layouts_that_do_not_fit_are_refused(void)
{
    struct tri_pool *p = bare_pool(2, 64, 8 << 20);
    struct tri_ctl good, *c = p->view.ctl;
    struct tri_view v;
    uint64_t seed = tri_test_seed();

    memcpy(&good, c, sizeof good);
    CHECK(tri_view_init(&v, c, p->seg.bytes) == 0);
    CHECK(tri_view_init(&v, c, p->seg.bytes - 1) == TRI_ECORRUPT);
    CHECK(tri_view_init(&v, c, sizeof *c - 1) == TRI_ECORRUPT);
    for (size_t at = 0; at < offsetof(struct tri_ctl, spin_ns); at++)
        for (int k = 0; k < 4; k++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            ((uint8_t *)c)[at] ^= (uint8_t)(seed >> 40) | 1;
            /* max_tasks is a number like any other; all else must fit */
            CHECK(tri_view_init(&v, c, p->seg.bytes) == TRI_ECORRUPT ||
                  (at >= offsetof(struct tri_ctl, max_tasks) &&
                   at < offsetof(struct tri_ctl, max_tasks) + sizeof c->max_tasks));
            memcpy(c, &good, offsetof(struct tri_ctl, closing));
        }
    tri_pool_free(p);
}

/* ------------------------------------------------------------------ limits */

/* Run fn in a child, which may set limits for itself; it must come back alive. */
static void in_child(void (*fn)(void))
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        alarm(50);
        fn();
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void limit(int what, rlim_t n)
{
    struct rlimit r = {n, n};

    CHECK(setrlimit(what, &r) == 0);
}

static int sum_bytes(const void *in, void *out)
{
    uint64_t sum = 0;

    for (int i = 0; i < 1 << 20; i++)
        sum += ((const uint8_t *)in)[i];
    memcpy(out, &sum, sizeof sum);
    return 0;
}

static void pool_does_its_work(void)
{
    tri_pool *p = pool_of(TRI_PROCESS, 2);
    uint8_t *big = malloc(1 << 20);
    uint64_t sum;

    CHECK(big && squares_work(p, 2000));
    memset(big, 3, 1 << 20);
    CHECK(ended(submit(p, sum_bytes, big, 1 << 20, 8), &sum) == 0 && sum == 3 << 20);
    free(big);
    tri_pool_close(p);
}

static void under_file_size_limit(void)
{
    struct tri_segment s;
    sigset_t pending;

    limit(RLIMIT_FSIZE, 1 << 20);
    signal(SIGXFSZ, SIG_DFL); /* would kill */
    CHECK(tri_segment_make(&s, 64 << 20, true) == 0 && s.fd == -1 && s.shared);
    memset(s.base, 1, 64 << 20);
    tri_segment_drop(&s);
    sigpending(&pending);
    CHECK(!sigismember(&pending, SIGXFSZ));
    pool_does_its_work();
    limit(RLIMIT_FSIZE, 0);
    pool_does_its_work();
}

static void a_file_size_limit_neither_kills_nor_hinders(void)
{
    in_child(under_file_size_limit);
}

static void under_address_space_limit(void)
{
    limit(RLIMIT_AS, 1ull << 30);
    pool_does_its_work();
    CHECK(malloc(256 << 20) != NULL); /* most of it is left to the program */
}

static void under_tight_address_space_limit(void)
{
    tri_pool *p = NULL;
    tri_pool_config cfg;
    int err, fds = open_fds();

    limit(RLIMIT_AS, 64 << 20);
    tri_pool_config_init(&cfg);
    cfg.workers = 64;
    err = tri_pool_open(&p, &cfg);
    CHECK(err == -ENOMEM && !p && open_fds() == fds);
}

static void a_limit_of_address_space_shrinks_the_arena(void)
{
    if (TRI_SANITIZED)
        return; /* their shadow is larger than any limit */
    in_child(under_address_space_limit);
    in_child(under_tight_address_space_limit);
}

static void without_descriptors(void)
{
    struct rlimit r;
    tri_pool *p = NULL;
    int first = open("/dev/null", O_RDONLY | O_CLOEXEC), opened = 0, refused = 0;

    CHECK(first >= 0 && getrlimit(RLIMIT_NOFILE, &r) == 0);
    for (int spare = 0; spare < 12; spare++) {
        int err;

        r.rlim_cur = (rlim_t)(first + spare);
        CHECK(setrlimit(RLIMIT_NOFILE, &r) == 0);
        err = tri_pool_open(&p, NULL);
        if (!err) {
            CHECK(squares_work(p, 100));
            tri_pool_close(p);
            opened++;
        } else {
            CHECK(err == -EMFILE);
            refused++;
        }
        if (spare > 1) { /* whatever came of it, nothing is left open */
            CHECK(open("/dev/null", O_RDONLY | O_CLOEXEC) == first + 1);
            close(first + 1);
        }
    }
    CHECK(opened > 0 && refused > 0);
}

static void a_pool_without_descriptors_fails_cleanly(void)
{
    in_child(without_descriptors);
}

int main(void)
{
    RUN(a_segment_is_zero_private_to_its_user_and_sealed);
    RUN(a_segment_travels_by_descriptor);
    RUN(what_is_no_segment_is_refused);
    RUN(private_segments_have_no_descriptor);
    RUN(layouts_that_do_not_fit_are_refused);
    RUN(a_file_size_limit_neither_kills_nor_hinders);
    RUN(a_limit_of_address_space_shrinks_the_arena);
    RUN(a_pool_without_descriptors_fails_cleanly);
    return 0;
}
