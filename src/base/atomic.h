/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * atomic.h - atomics whose order is in the name.
 *
 * rlx: no order.  acq/rel: hand-over between one store and the loads that see it.  sc: takes part
 * in the single total order, used only where a store must be ordered before a later load of
 * another word (sleep.c).  There are no stand-alone fences: ThreadSanitizer cannot see them.
 */
#ifndef TRI_BASE_ATOMIC_H
#define TRI_BASE_ATOMIC_H

#include <stdatomic.h>
#include <stdint.h>

/* Two lines: adjacent-line prefetch makes neighbours share fate on x86. */
#define TRI_LINE 128

#define tri_load_rlx(p) atomic_load_explicit((p), memory_order_relaxed)
#define tri_load_acq(p) atomic_load_explicit((p), memory_order_acquire)
#define tri_load_sc(p) atomic_load_explicit((p), memory_order_seq_cst)
#define tri_store_rlx(p, v) atomic_store_explicit((p), (v), memory_order_relaxed)
#define tri_store_rel(p, v) atomic_store_explicit((p), (v), memory_order_release)
#define tri_store_sc(p, v) atomic_store_explicit((p), (v), memory_order_seq_cst)
#define tri_add_rlx(p, v) atomic_fetch_add_explicit((p), (v), memory_order_relaxed)
#define tri_add_sc(p, v) atomic_fetch_add_explicit((p), (v), memory_order_seq_cst)
#define tri_or_sc(p, v) atomic_fetch_or_explicit((p), (v), memory_order_seq_cst)
#define tri_and_sc(p, v) atomic_fetch_and_explicit((p), (v), memory_order_seq_cst)
#define tri_swap_sc(p, v) atomic_exchange_explicit((p), (v), memory_order_seq_cst)
/* On failure *e receives the value seen. */
#define tri_cas_sc(p, e, v)                                                      \
    atomic_compare_exchange_strong_explicit((p), (e), (v), memory_order_seq_cst, \
                                            memory_order_acquire)

static inline void tri_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

#endif
