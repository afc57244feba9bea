/* SPDX-License-Identifier: BSD-3-Clause */
/* test_message.c - the talk between owner and warden: garbage is dropped, no descriptor leaks. */
#include "pools.h"

#include <sys/socket.h>

static void pair(int fd[2])
{
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fd) == 0);
}

static void messages_arrive_whole_and_in_order(void)
{
    int fd[2];
    struct tri_msg m;

    pair(fd);
    CHECK(tri_msg_recv(fd[1], &m, NULL, MSG_DONTWAIT) == 0);
    for (uint32_t i = 0; i < 20; i++) {
        struct tri_msg s = {.type = TRI_M_KILL, .worker = i, .gen = ~i, .signal = (int)i};

        CHECK(tri_msg_send(fd[0], &s, NULL, 0) == 0);
    }
    for (uint32_t i = 0; i < 20; i++) {
        CHECK(tri_msg_recv(fd[1], &m, NULL, 0) == 1);
        CHECK(m.type == TRI_M_KILL && m.worker == i && m.gen == ~i && m.signal == (int)i);
        CHECK(tri_msg_ok(&m, sizeof m, true) && !tri_msg_ok(&m, sizeof m, false));
    }
    close(fd[0]);
    CHECK(tri_msg_recv(fd[1], &m, NULL, 0) == -1);
    CHECK(tri_msg_send(fd[1], &m, NULL, 0) == -EPIPE); /* and no signal */
    close(fd[1]);
}

static void messages_of_the_wrong_size_are_not_messages(void)
{
    uint8_t bytes[4096];
    int fd[2];

    pair(fd);
    memset(bytes, 1, sizeof bytes);
    for (size_t n = 1; n < 200; n++) {
        struct tri_msg m;

        CHECK(send(fd[0], bytes, n, 0) == (ssize_t)n);
        CHECK(tri_msg_recv(fd[1], &m, NULL, 0) == 1);
        if (n != sizeof m) {
            CHECK(m.type == 0 && !tri_msg_ok(&m, sizeof m, true));
            CHECK(!tri_msg_ok(&m, sizeof m, false));
        }
        CHECK(!tri_msg_ok(bytes, n, true));
    }
    close(fd[0]);
    close(fd[1]);
}

static void each_side_takes_only_what_the_other_may_say(void)
{
    for (uint32_t type = 0; type < 40; type++)
        for (int to_warden = 0; to_warden < 2; to_warden++) {
            struct tri_msg m = {.type = type, .nworkers = 1};
            bool owners = type >= TRI_M_OPEN && type <= TRI_M_ADOPT;
            bool wardens = type >= TRI_M_OPENED && type <= TRI_M_BORN;

            CHECK(tri_msg_ok(&m, sizeof m, to_warden) == (to_warden ? owners : wardens));
            m.worker = TRI_MAX_WORKERS;
            CHECK(!tri_msg_ok(&m, sizeof m, to_warden));
        }
    for (int sig = -3; sig < 200; sig++) {
        struct tri_msg m = {.type = TRI_M_KILL, .signal = sig};

        CHECK(tri_msg_ok(&m, sizeof m, true) == (sig >= 0 && sig < 65));
    }
    for (uint32_t n = 0; n < 3000; n++) {
        struct tri_msg m = {.type = TRI_M_OPEN, .nworkers = n};

        CHECK(tri_msg_ok(&m, sizeof m, true) == (n > 0 && n <= TRI_MAX_WORKERS));
    }
}

/* Send n descriptors with bytes bytes, whatever the receiver expects. */
static void send_fds(int to, int n, size_t bytes)
{
    char room[CMSG_SPACE(32 * sizeof(int))], data[256] = {0};
    struct iovec iov = {data, bytes};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = room};
    struct cmsghdr *c;
    int fds[32];

    memset(room, 0, sizeof room);
    for (int i = 0; i < n; i++)
        fds[i] = 0;
    msg.msg_controllen = CMSG_SPACE((size_t)n * sizeof(int));
    c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN((size_t)n * sizeof(int));
    memcpy(CMSG_DATA(c), fds, (size_t)n * sizeof(int));
    CHECK(sendmsg(to, &msg, 0) == (ssize_t)bytes);
}

static void descriptors_are_received_or_closed(void)
{
    struct tri_msg m;
    int fd[2], got[2], before;

    pair(fd);
    before = open_fds();
    for (int n = 1; n <= 30; n++)
        for (int want = 0; want < 2; want++) {
            send_fds(fd[0], n, n % 3 ? sizeof m : 7);
            CHECK(tri_msg_recv(fd[1], &m, want ? got : NULL, 0) == 1);
            for (int i = 0; want && i < 2; i++) {
                CHECK(i >= n || got[i] >= 0);
                if (got[i] >= 0) {
                    CHECK(fcntl(got[i], F_GETFD) & FD_CLOEXEC);
                    close(got[i]);
                }
            }
            CHECK(open_fds() == before);
        }
    CHECK(tri_msg_send(fd[0], &m, fd, 2) == 0);
    CHECK(tri_msg_recv(fd[1], &m, got, 0) == 1 && got[0] >= 0 && got[1] >= 0);
    close(got[0]);
    close(got[1]);
    close(fd[0]);
    close(fd[1]);
    CHECK(open_fds() == before - 2);
}

/* Garbage from an owner neither stops a real warden nor starts or kills anything. */
static void a_warden_survives_an_owner_gone_mad(void)
{
    tri_pool *p = pool_of(TRI_PROCESS, 2);
    uint64_t seed = tri_test_seed();
    int32_t warden, pid;

    CHECK(ended(submit(p, pid_of_warden, NULL, 0, 4), &warden) == 0);
    CHECK(ended(submit(p, pid_of_worker, NULL, 0, 4), &pid) == 0);
    for (int i = 0; i < 3000; i++) {
        uint8_t bytes[sizeof(struct tri_msg) + 16];
        struct tri_msg m;
        size_t n;

        for (size_t k = 0; k < sizeof bytes; k++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            bytes[k] = (uint8_t)(seed >> 56);
        }
        n = i % 2 ? sizeof m : (size_t)(seed >> 40) % sizeof bytes + 1;
        memcpy(&m, bytes, sizeof m);
        if (i % 4 == 1) { /* nearly right: a known type for a worker that is not there */
            m.type = i % 8 == 1 ? TRI_M_OPEN : i % 16 == 5 ? TRI_M_KILL : TRI_M_ADOPT;
            m.worker = 2 + m.worker % 5000;
            memcpy(bytes, &m, sizeof m);
        } else if (n == sizeof m && tri_msg_ok(bytes, n, true)) {
            continue; /* a real order, if an odd one */
        }
        if (i % 5 == 0)
            send_fds(p->ctl_fd, 1 + i % 8, 9);
        CHECK(send(p->ctl_fd, bytes, n, 0) == (ssize_t)n);
    }
    CHECK(squares_work(p, 1000) && process_lives(warden) && process_lives(pid));
    CHECK(stats_of(p).deaths == 0 && stats_of(p).workers_alive == 2);
    tri_pool_close(p);
}

static int fds_of(pid_t pid)
{
    char path[64];
    DIR *d;
    int n = 0;

    snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    d = opendir(path);
    CHECK(d != NULL);
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

static void a_shared_warden_keeps_nothing_of_what_is_no_pool(void)
{
    static const struct tri_hooks none;
    int main_fd[2], before = 0, null = open("/dev/null", O_RDWR | O_CLOEXEC);
    pid_t pid;

    pair(main_fd);
    pid = fork();
    if (pid == 0) {
        struct tri_warden_start start = {.main_fd = main_fd[1],
                                         .pool_fd = -1,
                                         .owner_pidfd = -1,
                                         .seg.fd = -1,
                                         .output_fd = -1,
                                         .hooks = &none};

        close(main_fd[0]);
        tri_warden_run(&start);
    }
    close(main_fd[1]);
    for (int i = 0; i < 20; i++) {
        struct tri_msg adopt = {.type = TRI_M_ADOPT}, open = {.type = TRI_M_OPEN, .nworkers = 1};
        struct tri_msg m;
        int ctl[2], fds[2];

        pair(ctl);
        fds[0] = fds[1] = null;
        CHECK(tri_msg_send(ctl[0], &open, fds, 2) == 0);
        CHECK(tri_msg_send(main_fd[0], &adopt, &ctl[1], 1) == 0);
        close(ctl[1]);
        CHECK(tri_msg_recv(ctl[0], &m, NULL, 0) == 1);
        CHECK(m.type == TRI_M_OPENED && m.err != 0);
        close(ctl[0]);
        if (i == 0) /* all that it opens for itself is open, and two of this round at most */
            WAIT_UNTIL((before = fds_of(pid)) > 0, SECOND);
        else
            WAIT_UNTIL(fds_of(pid) <= before, SECOND);
    }
    close(null);
    close(main_fd[0]);
    CHECK(waitpid(pid, NULL, 0) == pid);
}

int main(void)
{
    RUN(messages_arrive_whole_and_in_order);
    RUN(messages_of_the_wrong_size_are_not_messages);
    RUN(each_side_takes_only_what_the_other_may_say);
    RUN(descriptors_are_received_or_closed);
    RUN(a_shared_warden_keeps_nothing_of_what_is_no_pool);
    RUN(a_warden_survives_an_owner_gone_mad);
    return 0;
}
