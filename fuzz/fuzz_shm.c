/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * fuzz_shm.c - an owner whose workers scribble over the shared memory.
 *
 * The pool has no workers: the input plays them.  It is a program of small steps, the owner's
 * (push, cancel, take, free, read output, hear of a death, break) and the workers' (claim, publish
 * soundly or not, push blocks, print, write any word anywhere in the mapping).  Whatever they do,
 * the owner must neither crash nor read or write outside its memory nor loop for ever, its private
 * accounts stay exact, and a task is reported at most once.  In the end the pool is broken off, and
 * then every task that was pushed and not cancelled has been reported.
 */
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/pages.h"
#include "input.h"
#include "pool/pool.h"
#include "shm/queue.h"

#define SLOTS 64u
#define WORKERS 3u
#define HEAP (1ull << 20)

struct job {
    struct tri_user user;
    bool pushed, reported;
    uint32_t slot;
    uint64_t ticket;
};

#define JOBS 200
static struct job jobs[JOBS];
static int njobs;
static uint64_t held[JOBS * 2]; /* result blocks not yet freed */
static int nheld;
static int socket_end;

static void job_ended(struct tri_user *u, struct tri_pool *p, struct tri_done *d)
{
    struct job *j = (struct job *)u;
    volatile uint8_t sum = 0;

    require(j >= jobs && j < jobs + njobs && j->pushed && !j->reported);
    j->reported = true;
    if (!d->status) /* what a future does: read it all */
        for (uint64_t i = 0; i < d->res_len; i += 512)
            sum = (uint8_t)(sum + tri_done_bytes(p, d)[i]);
    if (!d->res_off)
        return;
    if (nheld < (int)(sizeof held / sizeof *held) && (d->worker & 1))
        held[nheld++] = d->res_off;
    else
        tri_pool_block_free(p, d->res_off);
}

static struct tri_pool *pool_new(void)
{
    struct tri_pool *p = calloc(1, sizeof *p);
    struct tri_ctl plan;
    int fd[2];

    memset(&plan, 0, sizeof plan);
    plan.nworkers = WORKERS;
    plan.nslots = SLOTS;
    plan.nheaps = WORKERS + 2;
    plan.heap_bytes = HEAP;
    tri_layout_plan(&plan);
    require(p && tri_segment_make(&p->seg, plan.total_bytes, false) == 0);
    memcpy(p->seg.base, &plan, offsetof(struct tri_ctl, closing));
    require(tri_view_init(&p->view, p->seg.base, p->seg.bytes) == 0);
    require(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fd) == 0);
    p->ctl_fd = -1;
    p->output_fd = fd[0];
    socket_end = fd[1];
    p->output_tail = &p->output_head;
    p->fork_stamp = tri_fork_count();
    pthread_mutex_init(&p->lock, NULL);
    p->cfg.kind = TRI_THREAD;
    p->priv = tri_pages_new(SLOTS * sizeof *p->priv);
    p->member = calloc(WORKERS, sizeof *p->member);
    p->held = calloc(plan.nheaps, sizeof *p->held);
    require(p->priv && p->member && p->held);
    p->free_slot = UINT32_MAX;
    tri_store_rel(&p->view.heap[0].state, TRI_H_OWNED);
    require(tri_heap_init(&p->heap, &p->view, &p->seg, 0) == 0);
    p->heap.home = tri_kept_home;
    p->heap.home_ctx = p;
    return p;
}

static void push(struct tri_pool *p, struct input *in)
{
    uint8_t how = byte(in);
    struct job *j = &jobs[njobs];
    struct tri_slot *s;

    if (njobs == JOBS || tri_task_new(p, &j->slot) != 0)
        return;
    s = &p->view.slot[j->slot];
    s->arg_off = how & 1 ? tri_pool_block_new(p, 1u << (how >> 4)) : 0;
    s->timeout_ns = how & 2 ? 1 : 0;
    s->items = 1;
    j->user.ended = job_ended;
    njobs++;
    j->pushed = tri_task_push(p, j->slot, (int)(how >> 2) % 5 - 2, how >> 6, j, &j->ticket) == 0;
    if (!j->pushed)
        tri_task_drop(p, j->slot);
}

/* A worker's step on the slot of some task, sound or not. */
static void work(struct tri_pool *p, struct input *in)
{
    uint8_t how = byte(in);
    uint32_t worker = how % WORKERS, slot, cap = 2 * SLOTS;
    struct tri_worker_line *line = &p->view.worker[worker];
    struct tri_slot *s;
    uint64_t word;

    if (!tri_queue_claim(&p->view, worker, how >> 6, &slot, &word) || slot >= SLOTS)
        return;
    s = &p->view.slot[slot];
    if (how & 4)
        return;
    tri_store_rel(&s->state, tri_word(TRI_S_STARTED, worker, how >> 6, tri_word_ticket(word)));
    if (how & 8)
        return;
    s->res_flags = byte(in);
    s->res_off = how & 16 ? number(in) : 0;
    if (how & 32) { /* inside a heap, most likely a block */
        s->res_off = p->view.off_heaps + (1 + worker) * HEAP + byte(in) * 256u + 64;
        tri_store_rel(&p->view.heap[1 + worker].state, tri_word(TRI_H_OWNED, worker, how >> 6, 0));
    }
    s->res_len = s->res_off ? number(in) : byte(in);
    tri_store_sc(&s->state, tri_word(TRI_S_DONE, worker, how >> 6, tri_word_ticket(word)));
    if (how & 64)
        return;
    word = tri_load_rlx(&line->done_tail);
    tri_store_rlx(&p->view.rings[worker * cap + (word & (cap - 1))],
                  tri_word_ticket(tri_load_rlx(&s->state)) << TRI_CELL_SLOT_BITS | slot);
    tri_store_sc(&line->done_tail, word + 1);
}

static void scribble(struct tri_pool *p, struct input *in)
{
    static const uint32_t near[] = {0, 1, 2, 3, 4, 5, 6, 7};
    uint64_t at, value;
    uint8_t where = byte(in);

    switch (where & 7) {
    case 0:
        at = number(in) % p->view.total_bytes;
        break;
    case 1:
        at = (uint64_t)((uint8_t *)&p->view.slot[byte(in) % SLOTS] - p->view.base) +
             (byte(in) & 31) * 8u;
        break;
    case 2:
        at = (uint64_t)((uint8_t *)&p->view.ctl->closing - p->view.base) +
             byte(in) * 8u % (sizeof(struct tri_ctl) - offsetof(struct tri_ctl, closing));
        break;
    case 3:
        at = (uint64_t)((uint8_t *)&p->view.worker[byte(in) % WORKERS].done_tail - p->view.base);
        break;
    case 4:
        at = (uint64_t)((uint8_t *)&p->view.heap[byte(in) % (WORKERS + 2)] - p->view.base) +
             (byte(in) & 1) * TRI_LINE;
        break;
    case 5:
        at = (uint64_t)((uint8_t *)&p->view.rings[byte(in)] - p->view.base);
        break;
    case 6:
        at = (uint64_t)((uint8_t *)&p->view.cells[byte(in)] - p->view.base);
        break;
    default:
        at = p->view.off_heaps + byte(in) * 256u;
        break; /* a block's link */
    }
    value = where & 8 ? near[byte(in) & 7] : number(in);
    if (where & 16) /* an offset of some block */
        value = p->view.off_heaps + (value & 0xffffff) * 64;
    at &= ~7ull;
    if (at + 8 <= p->view.total_bytes)
        memcpy(p->view.base + at, &value, 8);
}

/* A worker's record in its backlog, sound or not; or the owner reads all there is. */
static void print(struct tri_pool *p, struct input *in)
{
    uint8_t how = byte(in), buf[256];
    struct tri_worker_line *line = &p->view.worker[how % WORKERS];
    uint8_t *ring = p->view.base + tri_backlog_at(&p->view, how % WORKERS);
    uint64_t put = tri_load_rlx(&line->backlog_put);
    uint32_t head[4] = {how & 3, 1, 0, how & 4 ? byte(in) : (uint32_t)number(in)}, stream;
    int32_t pid;
    size_t n;

    if (how & 8) {
        for (int i = 0; tri_pool_output(p, &stream, &pid, buf, sizeof buf, &n); i++)
            require(n <= sizeof buf && i < (1 << 18));
        return;
    }
    if (how & 16)
        put = number(in) % TRI_BACKLOG;
    for (uint64_t i = 0; i < sizeof head; i++)
        ring[(put + i) % TRI_BACKLOG] = ((uint8_t *)head)[i];
    tri_store_rel(&line->backlog_put, put + (how & 32 ? number(in) : 16 + (head[3] + 7) / 8 * 8));
}

static void step(struct tri_pool *p, struct input *in)
{
    uint8_t what = byte(in);
    struct tri_msg died = {.type = TRI_M_DIED, .signal = 9};
    struct tri_done d;
    struct job *j;

    if (what >= 248) {
        print(p, in);
        return;
    }
    switch (what % 12) {
    case 0:
    case 1:
    case 2:
        push(p, in);
        break;
    case 3:
    case 4:
        work(p, in);
        break;
    case 5:
    case 6:
        scribble(p, in);
        break;
    case 7:
        tri_pump(p);
        break;
    case 8:
        j = njobs ? &jobs[byte(in) % njobs] : NULL;
        if (j && j->pushed && !j->reported && tri_take_one(p, j->slot, j->ticket, &d)) {
            require(d.user == j);
            job_ended(d.user, p, &d);
        }
        break;
    case 9:
        j = njobs ? &jobs[byte(in) % njobs] : NULL;
        if (j && j->pushed && !j->reported && tri_task_cancel(p, j->slot, j->ticket) == 0)
            j->pushed = false;
        break;
    case 10:
        died.worker = byte(in) % WORKERS;
        died.gen = byte(in) & 3;
        pthread_mutex_lock(&p->lock);
        tri_repair_death(p, &died);
        pthread_mutex_unlock(&p->lock);
        break;
    default:
        if (nheld)
            tri_pool_block_free(p, held[--nheld]);
        tri_wait(p, tri_wait_key(p), TRI_ANY_SLOT, 0, 0);
        tri_lanes_mend(p);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, data + size};
    struct tri_pool *p = pool_new();

    memset(jobs, 0, sizeof jobs);
    njobs = nheld = 0;
    for (int steps = 0; in.p < in.end && steps < 600; steps++)
        step(p, &in);
    require(tri_heap_check(&p->heap) == 0);
    while (tri_pump(p))
        ;
    pthread_mutex_lock(&p->lock);
    p->broken = true;
    tri_repair_broken(p, TRI_EBROKEN);
    pthread_mutex_unlock(&p->lock);
    while (tri_pump(p))
        ;
    for (int i = 0; i < njobs; i++)
        require(!jobs[i].pushed || jobs[i].reported);
    while (nheld)
        tri_pool_block_free(p, held[--nheld]);
    require(tri_heap_check(&p->heap) == 0);
    tri_pool_free(p);
    close(socket_end);
    return 0;
}
