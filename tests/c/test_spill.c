/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_spill.c - results outside the arena: whatever comes through the socket, the owner keeps no
 * descriptor and no mapping that nobody asked for.  Deaths on the way are test_killpoints.c's.
 */
#include "pools.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "pool/worker.h"
#include "shm/queue.h"

#define BYTES 5000

/* The owner's half of a pool, and one worker that this test plays. */
static struct tri_pool *p;
static struct tri_worker w;

static void set_up(void)
{
    p = bare_pool_played(&w, 1);
}

static void tear_down(void)
{
    close(w.output_fd);
    tri_heap_drop(&w.heap);
    tri_pool_free(p);
}

static int shared_maps(void)
{
    FILE *f = fopen("/proc/self/maps", "re");
    char line[512];
    int n = 0;

    CHECK(f != NULL);
    while (fgets(line, sizeof line, f))
        n += strstr(line, "memfd:trireme") != NULL;
    fclose(f);
    return n;
}

static void ignored(struct tri_user *u, struct tri_pool *pool, struct tri_done *d)
{
    (void)u;
    (void)pool;
    (void)d;
}

static struct tri_user user = {ignored};

/* A task whose result is in a memfd, sent, DONE, and not in the worker's ring. */
static uint32_t spilled_task(uint64_t *ticket)
{
    uint32_t slot, idx;
    struct tri_slot *s;
    uint8_t *res;

    CHECK(tri_task_new(p, &slot) == 0);
    s = &p->view.slot[slot];
    s->flags = TRI_F_PY;
    s->arg_off = 0;
    CHECK(tri_task_push(p, slot, 0, 0, &user, ticket) == 0);
    CHECK(tri_queue_claim(&w.view, 0, 0, &idx, &w.word) && idx == slot);
    w.slot = s;
    s->res_flags = 0;
    tri_store_rel(&s->state, tri_word(TRI_S_STARTED, 0, 0, *ticket));
    res = tri_spill_room(&w, BYTES);
    CHECK(res != NULL);
    memset(res, 7, BYTES);
    s->res_off = 0;
    s->res_len = BYTES;
    s->code = 0;
    tri_spill_send(&w);
    tri_store_sc(&s->state, tri_word(TRI_S_DONE, 0, 0, *ticket));
    return slot;
}

static void send_raw(const void *bytes, size_t n, int nfds)
{
    char room[CMSG_SPACE(8 * sizeof(int))];
    struct iovec iov = {(void *)(uintptr_t)bytes, n};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    struct cmsghdr *c;
    int fds[8] = {0};

    memset(room, 0, sizeof room);
    if (nfds) {
        msg.msg_control = room;
        msg.msg_controllen = CMSG_SPACE((size_t)nfds * sizeof(int));
        c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN((size_t)nfds * sizeof(int));
        memcpy(CMSG_DATA(c), fds, (size_t)nfds * sizeof(int));
    }
    CHECK(sendmsg(w.output_fd, &msg, 0) == (ssize_t)n);
}

/* A task may send anything: with too many descriptors, too short, empty. */
static void odd_datagrams_leave_no_descriptor_and_hide_no_result(void)
{
    static const uint32_t streams[] = {TRI_OUT_SPILL, 1};
    char buf[1 << 10];
    int fds;

    set_up();
    fds = open_fds();
    for (size_t k = 0; k < 2; k++)
        for (int n = 0; n <= 8; n++)
            for (size_t bytes = 0; bytes < 40; bytes++) {
                struct {
                    struct tri_output_head head;
                    uint64_t more[4];
                } m = {.head = {streams[k], 1, 0}};
                struct tri_done d;
                uint64_t ticket;
                uint32_t slot, stream;
                int32_t pid;
                size_t got;

                send_raw(&m, bytes, n);
                slot = spilled_task(&ticket);
                CHECK(tri_take(p, &d, 1) == 0); /* its ring has nothing */
                CHECK(tri_take_one(p, slot, ticket, &d) == 1);
                CHECK(d.status == 0 && d.spill && ((uint8_t *)d.spill)[BYTES - 1] == 7);
                munmap(d.spill, d.res_len);
                send_raw(&m, bytes, n);
                send_raw("", 0, n);
                while (tri_pool_output(p, &stream, &pid, buf, sizeof buf, &got))
                    ;
                tri_spill_forget(p, 0, 0); /* a well-formed one that nobody asked for */
                CHECK(open_fds() == fds && p->nspill == 0);
            }
    tear_down();
}

static void a_socket_without_a_writer_is_read_to_its_end_and_no_further(void)
{
    set_up();
    CHECK(shutdown(w.output_fd, SHUT_WR) == 0);
    tri_spill_forget(p, 0, 0);
    tear_down();
}

static void results_that_nobody_takes_go_with_the_pool(void)
{
    int fds = open_fds(), maps = shared_maps();
    struct tri_msg died = {.type = TRI_M_DIED, .worker = 0, .gen = 0, .signal = 9};
    uint64_t ticket;

    for (int dies = 0; dies < 2; dies++) {
        set_up();
        for (int i = 0; i < 5; i++)
            spilled_task(&ticket);
        pthread_mutex_lock(&p->lock);
        if (dies)
            tri_repair_death(p, &died);
        else
            tri_repair_broken(p, TRI_ECLOSED);
        pthread_mutex_unlock(&p->lock);
        tear_down();
        CHECK(open_fds() == fds && shared_maps() == maps);
    }
}

static void an_owner_without_descriptors_loses_the_value_and_nothing_else(void)
{
    struct rlimit old, none;
    struct tri_done d;
    uint64_t ticket;
    uint32_t slot;
    int fds;

    set_up();
    fds = open_fds();
    slot = spilled_task(&ticket);
    CHECK(getrlimit(RLIMIT_NOFILE, &old) == 0);
    none = (struct rlimit){3, old.rlim_max};
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    CHECK(tri_take_one(p, slot, ticket, &d) == 1);
    CHECK(d.status == -ENOMEM && !d.spill && d.res_len == 0);
    CHECK(setrlimit(RLIMIT_NOFILE, &old) == 0);
    slot = spilled_task(&ticket);
    CHECK(tri_take_one(p, slot, ticket, &d) == 1 && d.status == 0);
    munmap(d.spill, d.res_len);
    CHECK(open_fds() == fds && p->nspill == 0 && p->outstanding == 0);
    tear_down();
}

int main(void)
{
    RUN(odd_datagrams_leave_no_descriptor_and_hide_no_result);
    RUN(a_socket_without_a_writer_is_read_to_its_end_and_no_further);
    RUN(results_that_nobody_takes_go_with_the_pool);
    RUN(an_owner_without_descriptors_loses_the_value_and_nothing_else);
    return 0;
}
