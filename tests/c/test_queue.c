/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_queue.c - the shared queue between one owner and many claimers on one mapping.
 *
 * The owner's half is the real one (tri_task_push and its kin on a pool without workers); the
 * claimers are threads that call tri_queue_claim as workers do.  Slots carry plain data both ways,
 * so ThreadSanitizer sees each hand-over that the protocol promises.
 */
#include "pools.h"

#include <pthread.h>

#include "shm/queue.h"

#define CLAIMERS 4
#define WORK (TRI_SANITIZED ? 20000u : 200000u)

static void bare_free(struct tri_pool *p)
{
    tri_pool_free(p);
}

static int push(struct tri_pool *p, uint64_t id, int priority, uint32_t *slot, uint64_t *ticket)
{
    int err = tri_task_new(p, slot);

    if (err)
        return err;
    p->view.slot[*slot].fn_id = id;
    p->view.slot[*slot].arg_off = 0;
    p->view.slot[*slot].items = 1;
    err = tri_task_push(p, *slot, priority, 0, (void *)(uintptr_t)(id + 1), ticket);
    if (err)
        tri_task_drop(p, *slot);
    return err;
}

/* What a worker does between claim and the owner's look; the ring is left out on purpose. */
static void finish(struct tri_pool *p, uint32_t worker, uint32_t slot, uint64_t word)
{
    struct tri_slot *s = &p->view.slot[slot];

    tri_store_rel(&s->state, tri_word(TRI_S_STARTED, worker, 0, tri_word_ticket(word)));
    s->res_flags = 0;
    s->code = 0;
    s->res_off = 0;
    s->res_len = 8;
    memcpy(s->res, &s->fn_id, 8);
    tri_store_sc(&s->state, tri_word(TRI_S_DONE, worker, 0, tri_word_ticket(word)));
}

/* ------------------------------------------------------------------ one thread */

static void empty_queues_give_nothing(void)
{
    struct tri_pool *p = bare_pool(2, 64, 8 << 20);
    uint32_t slot;
    uint64_t word;

    CHECK(!tri_queue_claim(&p->view, 0, 0, &slot, &word) && !tri_queue_ready(&p->view));
    tri_or_sc(&p->view.ctl->lanes_used, 31);
    CHECK(!tri_queue_claim(&p->view, 0, 0, &slot, &word) && !tri_queue_ready(&p->view));
    bare_free(p);
}

static void claims_follow_priority_then_age(void)
{
    struct tri_pool *p = bare_pool(1, 64, 8 << 20);
    uint64_t ticket, word, last = 0;
    uint32_t slot;

    for (uint64_t i = 0; i < 60; i++)
        CHECK(push(p, i, (int)(i % 5) - 2, &slot, &ticket) == 0);
    for (int i = 0; i < 60; i++) {
        uint64_t id;

        CHECK(tri_queue_claim(&p->view, 0, 0, &slot, &word));
        CHECK(tri_word_state(word) == TRI_S_CLAIMED && p->view.slot[slot].state == word);
        id = p->view.slot[slot].fn_id;
        CHECK(i == 0 || id % 5 < last % 5 || (id % 5 == last % 5 && id > last));
        last = id;
    }
    CHECK(!tri_queue_ready(&p->view));
    bare_free(p);
}

static void positions_wrap_and_slots_are_used_again(void)
{
    struct tri_pool *p = bare_pool(1, 64, 8 << 20);
    struct tri_done d;
    uint64_t ticket, word, id;
    uint32_t slot, got;

    for (uint64_t i = 0; i < 1000; i++) {
        CHECK(push(p, i, 0, &slot, &ticket) == 0);
        CHECK(tri_queue_claim(&p->view, 0, 0, &got, &word) && got == slot);
        CHECK(tri_word_ticket(word) == ticket);
        CHECK(!tri_take_one(p, slot, ticket, &d));
        finish(p, 0, got, word);
        p->direct = 0;
        CHECK(tri_take_one(p, slot, ticket, &d) && (uintptr_t)d.user == i + 1);
        memcpy(&id, d.res, 8);
        CHECK(id == i && !tri_take_one(p, slot, ticket, &d));
    }
    CHECK(p->outstanding == 0 && p->tail[2] == 1000);
    bare_free(p);
}

/* A worker killed between its claim and the head's move: whoever comes next moves it. */
static void a_head_left_behind_is_moved_by_the_next(void)
{
    struct tri_pool *p = bare_pool(2, 64, 8 << 20);
    uint64_t ticket, word, dead[3];
    uint32_t slot[4], got;

    for (uint64_t i = 0; i < 4; i++)
        CHECK(push(p, i, 0, &slot[i], &ticket) == 0);
    for (int i = 0; i < 3; i++) { /* C2 without C3 */
        dead[i] = p->view.slot[slot[i]].state;
        CHECK(tri_word_state(dead[i]) == TRI_S_QUEUED);
        CHECK(tri_cas_sc(&p->view.slot[slot[i]].state, &dead[i],
                         tri_word(TRI_S_CLAIMED, 1, 0, tri_word_ticket(dead[i]))));
    }
    CHECK(tri_queue_ready(&p->view) && p->view.ctl->lane[2].head == 0);
    CHECK(tri_queue_claim(&p->view, 0, 0, &got, &word) && got == slot[3]);
    CHECK(p->view.ctl->lane[2].head == 4 && !tri_queue_ready(&p->view));
    bare_free(p);
}

static void a_dead_claimers_tasks_come_back_under_their_own_ticket(void)
{
    struct tri_pool *p = bare_pool(2, 64, 8 << 20);
    struct tri_msg died = {.type = TRI_M_DIED, .worker = 1, .gen = 5, .signal = 9};
    uint64_t ticket[8], word;
    uint32_t slot[8], got;
    struct tri_done d[8];

    for (uint64_t i = 0; i < 6; i++)
        CHECK(push(p, i, 0, &slot[i], &ticket[i]) == 0);
    CHECK(tri_queue_claim(&p->view, 1, 5, &got, &word) && got == slot[0]);
    CHECK(tri_queue_claim(&p->view, 1, 5, &got, &word) && got == slot[1]);
    tri_store_rel(&p->view.slot[got].state, tri_word(TRI_S_STARTED, 1, 5, tri_word_ticket(word)));
    CHECK(tri_queue_claim(&p->view, 1, 5, &got, &word) && got == slot[2]);
    finish(p, 1, got, word);
    tri_store_rel(&p->view.slot[got].state, tri_word(TRI_S_DONE, 1, 5, tri_word_ticket(word)));
    CHECK(tri_queue_claim(&p->view, 0, 5, &got, &word) && got == slot[3]); /* another's */
    pthread_mutex_lock(&p->lock);
    tri_repair_death(p, &died);
    pthread_mutex_unlock(&p->lock);
    CHECK(tri_take(p, d, 8) == 2);
    for (int i = 0; i < 2; i++)
        CHECK((uintptr_t)d[i].user == 2 ? d[i].status == TRI_EWORKERLOST
                                        : (uintptr_t)d[i].user == 3 && d[i].status == 0);
    CHECK(tri_queue_claim(&p->view, 0, 0, &got, &word) && got == slot[4]);
    CHECK(tri_queue_claim(&p->view, 0, 0, &got, &word) && got == slot[5]);
    CHECK(tri_queue_claim(&p->view, 0, 0, &got, &word) && got == slot[0]);
    CHECK(tri_word_ticket(word) == ticket[0]);
    CHECK(!tri_queue_claim(&p->view, 0, 0, &got, &word));
    bare_free(p);
}

/* However many tasks are cancelled behind some that have not started, there is room for new ones,
 * for all that a dead worker had claimed, and those that wait keep their order. */
static void a_lane_full_of_cancelled_tasks_takes_new_ones(void)
{
    struct tri_pool *p = bare_pool(1, 64, 8 << 20);
    struct tri_msg died = {.type = TRI_M_DIED, .worker = 0, .gen = 0, .signal = 9};
    uint64_t ticket, word, id = 1;
    uint32_t slot, got, first;
    struct tri_done d;

    CHECK(push(p, 0, 0, &first, &ticket) == 0);
    for (int i = 0; i < 1000; i++) {
        CHECK(push(p, 1000, 0, &slot, &ticket) == 0);
        CHECK(tri_task_cancel(p, slot, ticket) == 0);
        if (i % 100 == 0)
            CHECK(push(p, id++, 0, &slot, &ticket) == 0);
    }
    CHECK(p->outstanding == 11);
    CHECK(tri_queue_claim(&p->view, 0, 0, &got, &word) && got == first);
    for (int deaths = 0; deaths < 200; deaths++) {
        pthread_mutex_lock(&p->lock);
        tri_repair_death(p, &died);
        pthread_mutex_unlock(&p->lock);
        CHECK(tri_take(p, &d, 1) == 0 && p->stats.lost == 0);
        died.gen++;
        CHECK(tri_queue_claim(&p->view, 0, died.gen, &got, &word));
        for (int i = 0; i < 10; i++) {
            CHECK(push(p, 1000, 0, &slot, &ticket) == 0);
            CHECK(tri_task_cancel(p, slot, ticket) == 0);
        }
    }
    CHECK(p->outstanding == 11);
    bare_free(p);
}

/* All slots are taken by tasks that wait, again and again others' place was in between. */
static void a_turn_of_the_lane_keeps_the_order(void)
{
    struct tri_pool *p = bare_pool(1, 64, 8 << 20);
    uint64_t ticket, word;
    uint32_t slot, got;

    for (uint64_t i = 0; i < 63; i++) {
        CHECK(push(p, i, 0, &slot, &ticket) == 0);
        for (int n = 0; n < 40; n++) {
            CHECK(push(p, 1000, 0, &slot, &ticket) == 0);
            CHECK(tri_task_cancel(p, slot, ticket) == 0);
        }
    }
    for (uint64_t i = 0; i < 63; i++) {
        CHECK(tri_queue_claim(&p->view, 0, 0, &got, &word));
        CHECK(p->view.slot[got].fn_id == i);
    }
    CHECK(!tri_queue_claim(&p->view, 0, 0, &got, &word));
    bare_free(p);
}

static void a_scribbled_head_costs_no_endless_loop(void)
{
    static const uint64_t head[] = {5, 1000, 1ull << 63, UINT64_MAX, UINT64_MAX - 64};

    for (size_t k = 0; k < sizeof head / sizeof *head; k++) {
        struct tri_pool *p = bare_pool(1, 64, 8 << 20);
        uint64_t ticket, word;
        uint32_t slot, got;

        CHECK(push(p, 0, 0, &slot, &ticket) == 0 && push(p, 1, 0, &slot, &ticket) == 0);
        tri_store_rel(&p->view.ctl->lane[2].head, head[k]);
        CHECK(push(p, 2, 0, &slot, &ticket) == 0);
        tri_lanes_mend(p); /* what a waiter does when nothing comes */
        for (int i = 0; i < 3; i++)
            CHECK(tri_queue_claim(&p->view, 0, 0, &got, &word));
        bare_free(p);
    }
}

/* ------------------------------------------------------------------ threads */

struct arena {
    struct tri_pool *p;
    _Atomic uint32_t stop, started[WORK];
    _Atomic uint64_t claimed;
};
static struct arena A;

static void *claimer(void *arg)
{
    uint32_t id = (uint32_t)(uintptr_t)arg, slot;
    uint64_t word;

    while (!atomic_load_explicit(&A.stop, memory_order_relaxed)) {
        if (!tri_queue_claim(&A.p->view, id, 0, &slot, &word))
            continue;
        CHECK(tri_word_worker(word) == id);
        CHECK(atomic_fetch_add_explicit(&A.started[A.p->view.slot[slot].fn_id], 1,
                                        memory_order_relaxed) == 0);
        atomic_fetch_add_explicit(&A.claimed, 1, memory_order_relaxed);
        finish(A.p, id, slot, word);
    }
    return NULL;
}

struct pending {
    uint32_t slot;
    uint64_t ticket;
    bool used;
};

/* Push, cancel at random, take, until WORK tasks were pushed; then all must have run or not. */
static void stress(int lanes, bool cancel)
{
    uint64_t seed = tri_test_seed(), pushed = 0, cancelled = 0, taken = 0;
    struct pending out[64];
    struct tri_done d;
    pthread_t t[CLAIMERS];
    uint32_t n = 0;

    memset(out, 0, sizeof out);
    memset(A.started, 0, sizeof A.started);
    A.p = bare_pool(CLAIMERS, 64, 8 << 20);
    atomic_store(&A.stop, 0);
    atomic_store(&A.claimed, 0);
    for (uintptr_t i = 0; i < CLAIMERS; i++)
        CHECK(pthread_create(&t[i], NULL, claimer, (void *)i) == 0);
    while (pushed < WORK || n) {
        uint32_t i;

        seed = seed * 6364136223846793005u + 1442695040888963407u;
        i = (uint32_t)(seed >> 33) % 64;
        if (!out[i].used && pushed < WORK) {
            if (push(A.p, pushed, (int)(seed >> 40) % lanes - lanes / 2, &out[i].slot,
                     &out[i].ticket) != 0)
                continue;
            out[i].used = true;
            pushed++;
            n++;
        } else if (out[i].used && cancel && seed >> 60 == 0 &&
                   tri_task_cancel(A.p, out[i].slot, out[i].ticket) == 0) {
            out[i].used = false;
            cancelled++;
            n--;
        } else if (out[i].used) {
            A.p->direct = 0;
            if (tri_take_one(A.p, out[i].slot, out[i].ticket, &d)) {
                uint64_t id;

                memcpy(&id, d.res, 8);
                CHECK(d.status == 0 && (uintptr_t)d.user == id + 1);
                out[i].used = false;
                taken++;
                n--;
            }
        }
    }
    atomic_store(&A.stop, 1);
    for (int i = 0; i < CLAIMERS; i++)
        pthread_join(t[i], NULL);
    CHECK(taken + cancelled == WORK && A.claimed == taken && A.p->outstanding == 0);
    CHECK(!cancel || cancelled > 0);
    bare_free(A.p);
}

static void each_task_is_claimed_exactly_once(void)
{
    stress(1, false);
}

static void priorities_share_claimers(void)
{
    stress(5, false);
}

static void a_cancelled_task_is_never_claimed(void)
{
    stress(5, true);
}

int main(void)
{
    RUN(empty_queues_give_nothing);
    RUN(claims_follow_priority_then_age);
    RUN(positions_wrap_and_slots_are_used_again);
    RUN(a_head_left_behind_is_moved_by_the_next);
    RUN(a_dead_claimers_tasks_come_back_under_their_own_ticket);
    RUN(a_lane_full_of_cancelled_tasks_takes_new_ones);
    RUN(a_turn_of_the_lane_keeps_the_order);
    RUN(a_scribbled_head_costs_no_endless_loop);
    RUN(each_task_is_claimed_exactly_once);
    RUN(priorities_share_claimers);
    RUN(a_cancelled_task_is_never_claimed);
    return 0;
}
