/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * fuzz_message.c - packets on the socket between owner and warden.
 *
 * The input is a row of packets, each {length, how many descriptors, bytes}.  They go through a
 * real socketpair into tri_msg_recv, as either side reads them.  Whatever comes: a message that
 * passes tri_msg_ok names only what its reader may index, and no descriptor is left open.
 */
#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "input.h"
#include "pool/pool.h"

static void send_packet(int to, const uint8_t *bytes, size_t n, int nfds)
{
    char room[CMSG_SPACE(16 * sizeof(int))];
    struct iovec iov = {(void *)(uintptr_t)bytes, n};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    int fds[16];

    if (nfds) {
        struct cmsghdr *c;

        for (int i = 0; i < nfds; i++)
            fds[i] = to;
        memset(room, 0, sizeof room);
        msg.msg_control = room;
        msg.msg_controllen = CMSG_SPACE((size_t)nfds * sizeof(int));
        c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN((size_t)nfds * sizeof(int));
        memcpy(CMSG_DATA(c), fds, (size_t)nfds * sizeof(int));
    }
    require(sendmsg(to, &msg, MSG_DONTWAIT) == (ssize_t)n);
}

static void check(const struct tri_msg *m, bool to_warden)
{
    if (!tri_msg_ok(m, sizeof *m, to_warden))
        return;
    require(m->worker < TRI_MAX_WORKERS);
    if (!to_warden)
        return;
    require(m->type == TRI_M_OPEN ? m->nworkers >= 1 && m->nworkers <= TRI_MAX_WORKERS
                                  : m->signal >= 0 && m->signal < 65);
}

/* The lowest free number: it moves when something was left open. */
static int next_fd(void)
{
    int fd = dup(0);

    close(fd);
    return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t at = 0;
    int pair[2], before, fds[2];
    struct tri_msg m;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return 0;
    before = next_fd();
    for (int packets = 0; at + 2 < size && packets < 64; packets++) {
        size_t n = data[at] % 96 + 1u;
        int nfds = data[at + 1] % 16;
        bool to_warden = data[at + 1] & 16, want = data[at + 1] & 32;

        at += 2;
        if (n > 64) /* most are of the right size */
            n = sizeof m;
        if (n > size - at)
            n = size - at;
        send_packet(pair[0], data + at, n, nfds);
        require(tri_msg_recv(pair[1], &m, want ? fds : NULL, MSG_DONTWAIT) == 1);
        check(&m, to_warden);
        require(!tri_msg_ok(data + at, n, to_warden) || n == sizeof m);
        for (int i = 0; want && i < 2; i++)
            if (fds[i] >= 0)
                close(fds[i]);
        require(next_fd() == before);
        at += n;
    }
    require(tri_msg_recv(pair[1], &m, NULL, MSG_DONTWAIT) == 0);
    close(pair[0]);
    require(tri_msg_recv(pair[1], &m, NULL, MSG_DONTWAIT) == -1);
    close(pair[1]);
    return 0;
}
