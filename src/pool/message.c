/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * message.c - the fixed-size messages between owner and warden.
 *
 * A SOCK_SEQPACKET socketpair keeps message boundaries, needs no name and is inherited or passed,
 * so no stranger can ever be its other end.  Even so a reader takes nothing for granted: a message
 * of the wrong size, type or range is dropped.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "pool/pool.h"

bool tri_msg_ok(const void *bytes, size_t n, bool to_warden)
{
    struct tri_msg m;

    if (n != sizeof m)
        return false;
    memcpy(&m, bytes, sizeof m);
    if (m.worker >= TRI_MAX_WORKERS)
        return false;
    if (!to_warden)
        return m.type >= TRI_M_OPENED && m.type <= TRI_M_BORN;
    if (m.type == TRI_M_OPEN)
        return m.nworkers > 0 && m.nworkers <= TRI_MAX_WORKERS;
    return m.type > TRI_M_OPEN && m.type <= TRI_M_ADOPT && m.signal >= 0 && m.signal < 65;
}

int tri_msg_send(int fd, const struct tri_msg *m, const int *fds, int nfds)
{
    char room[CMSG_SPACE(2 * sizeof(int))];
    struct iovec iov = {(void *)(uintptr_t)m, sizeof *m};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    struct cmsghdr *c;

    if (nfds > 0) {
        memset(room, 0, sizeof room);
        msg.msg_control = room;
        msg.msg_controllen = CMSG_SPACE((size_t)nfds * sizeof(int));
        c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN((size_t)nfds * sizeof(int));
        memcpy(CMSG_DATA(c), fds, (size_t)nfds * sizeof(int));
    }
    while (sendmsg(fd, &msg, MSG_NOSIGNAL) < 0)
        if (errno != EINTR)
            return -errno;
    return 0;
}

int tri_msg_recv(int fd, struct tri_msg *m, int fds[2], int flags)
{
    char room[CMSG_SPACE(8 * sizeof(int))];
    struct iovec iov = {m, sizeof *m};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    int got = 0, all[8];
    ssize_t n;

    msg.msg_control = room;
    msg.msg_controllen = sizeof room;
    memset(m, 0, sizeof *m);
    if (fds)
        fds[0] = fds[1] = -1;
    do
        n = recvmsg(fd, &msg, flags | MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -1;
    if (n == 0)
        return -1;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
        size_t k;

        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        k = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(all, CMSG_DATA(c), k * sizeof(int));
        for (size_t i = 0; i < k; i++) {
            if (fds && got < 2)
                fds[got++] = all[i];
            else
                close(all[i]);
        }
    }
    if (n != sizeof *m || (msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
        memset(m, 0, sizeof *m);
    return 1;
}
