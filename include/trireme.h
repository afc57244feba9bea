/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * trireme.h - the public C API of Trireme, a parallel runtime.
 *
 * A pool is a set of workers owned by the process that opened it.  A task is one call of a
 * function; a future is the owner's handle on its result.  Workers pull tasks from one shared
 * queue, so load balances itself, and a worker that dies costs the task it had started and
 * nothing else: that task ends with TRI_EWORKERLOST, every other task with its value.
 *
 *     static int square(const void *in, void *out)
 *     {
 *         int64_t x = *(const int64_t *)in;
 *         *(int64_t *)out = x * x;
 *         return 0;
 *     }
 *     ...
 *     tri_pool *pool;
 *     int err = tri_pool_open(&pool, NULL);
 *     if (!err) {
 *         err = tri_map(pool, square, in, sizeof *in, out, sizeof *out, n, NULL);
 *         tri_pool_close(pool);
 *     }
 *
 * Errors are 0 or negative: system errors as -errno, the library's own below -4095.  The library
 * never prints, never exits, installs no signal handler in the owner and reaps no child of the
 * user's.  Worker processes have the program's handlers, as its forks do, but for SIGINT and
 * SIGQUIT, which do nothing there, and SIGCHLD, which is the default.  Sizes are in bytes and times
 * in nanoseconds unless a name says otherwise.
 */
#ifndef TRIREME_H
#define TRIREME_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define TRI_API __attribute__((visibility("default")))
#else
#define TRI_API
#endif

#define TRI_VERSION_MAJOR 0
#define TRI_VERSION_MINOR 1
#define TRI_VERSION_PATCH 0

/** The library's version as text, "0.1.0".  Static, never freed. */
TRI_API const char *tri_version(void);

enum tri_error {
    TRI_ETIMEDOUT = -5001,    /* the wait ended before the thing waited for */
    TRI_EWORKERLOST = -5002,  /* the worker died while it ran this task */
    TRI_ETASKTIMEOUT = -5003, /* the task ran longer than its time limit; its worker was killed */
    TRI_ECANCELLED = -5004,   /* the task was cancelled before it started */
    TRI_ECLOSED = -5005,      /* the pool is closed, terminated or closing */
    TRI_EBROKEN = -5006,      /* the pool cannot go on: its warden or too many workers died */
    TRI_EFORKED = -5007,      /* this process is a fork of the pool's owner; it owns no pool */
    TRI_EFAILED = -5008,      /* the task's function returned a code other than 0 */
    TRI_ECORRUPT = -5009,     /* shared memory holds what no sound worker writes */
    TRI_EPLATFORM = -5010     /* this platform lacks something the library cannot do without */
};

/**
 * One sentence for an error code: of this library or a negated errno.
 *
 * Threads: any.  Never NULL, static, never freed; unknown codes give "unknown error".
 */
TRI_API const char *tri_strerror(int err);

/* ------------------------------------------------------------------ the machine */

/**
 * How many CPUs this process may use.
 *
 * @param physical  0: logical CPUs.  Otherwise: physical cores among them.
 *
 * Honours, in this order: PYTHON_CPU_COUNT (logical only; "default" is ignored), the affinity
 * mask, and the quota of cgroup v1 or v2, rounded up.
 *
 * Threads: any.  Blocks: for a few file reads, not cached.
 * @return at least 1
 */
TRI_API int tri_cpu_count(int physical);

/** What the machine offers this process; 0 or negative fields mean "unknown" or "no limit". */
typedef struct tri_machine {
    size_t size;                 /* set by TRI_MACHINE_INIT, or to sizeof(tri_machine) */
    int cpus_online;             /* logical CPUs of the machine */
    int cpus_allowed;            /* in the affinity mask */
    int cpus_usable;             /* tri_cpu_count(0) */
    int cores;                   /* physical cores among the allowed CPUs */
    int packages;                /* sockets */
    int numa_nodes;              /* */
    double cpu_quota;            /* cgroup quota in CPUs; 0: none */
    uint64_t memory_bytes;       /* of the machine */
    uint64_t memory_free_bytes;  /* MemAvailable */
    uint64_t cgroup_limit_bytes; /* tightest cgroup memory limit above this process; 0: none */
    uint64_t cgroup_used_bytes;  /* current use under that limit */
    uint64_t file_limit_bytes;   /* RLIMIT_FSIZE; 0: none */
    uint64_t open_files_limit;   /* RLIMIT_NOFILE */
    uint64_t dev_shm_free_bytes; /* /dev/shm, 0: absent (never needed) */
    int cgroup_version;          /* 1, 2; 0: none */
    int has_hwloc;               /* topology came from hwloc rather than from sysfs */
    int has_memfd, has_pidfd, has_close_range; /* 1 if the kernel answers these calls */
    char kernel[64];                           /* uname -r */
    char cpu_model[96];
} tri_machine;

#define TRI_MACHINE_INIT                                                                     \
    {                                                                                        \
        sizeof(tri_machine), 0, 0, 0, 0, 0, 0, 0.0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, {0}, \
        {                                                                                    \
            0                                                                                \
        }                                                                                    \
    }

/**
 * Fill *m, whose size must be set.
 *
 * Threads: any.  Blocks: for file reads, and while hwloc looks where it is there; not cached.
 * @return 0, or -EINVAL: NULL, or a size this library does not know
 */
TRI_API int tri_machine_get(tri_machine *m);

/* ------------------------------------------------------------------ pools */

typedef struct tri_pool tri_pool;
typedef struct tri_future tri_future;
typedef struct tri_share tri_share;

enum tri_kind {
    TRI_PROCESS = 0, /* workers are processes: they may crash alone */
    TRI_THREAD = 1   /* workers are threads of the owner: no copies at all */
};

typedef struct tri_pool_config {
    size_t size;              /* set by tri_pool_config_init */
    int kind;                 /* enum tri_kind; default TRI_PROCESS */
    int workers;              /* 0: tri_cpu_count(0); at most TRI_MAX_WORKERS */
    uint32_t slots;           /* tasks in flight at most; 0: 8192; rounded up to a power of two,
                               * 64 at least; at most TRI_MAX_SLOTS_IN_FLIGHT */
    uint64_t arena_bytes;     /* shared memory that one participant may fill; 0: the machine's.
                               * Less than 8 MiB is taken as 8 MiB, more in whole 2 MiB;
                               * less than asked where addresses are scarce */
    int64_t spin_ns;          /* longest busy wait before a sleep, 1 s at most; 0: never;
                               * -1: the library's choice, 25 us; never on one CPU */
    uint32_t max_tasks;       /* a process is replaced after so many tasks; 0: never */
    int64_t start_timeout_ns; /* longest wait for the warden; 0: the default, 30 s */
} tri_pool_config;

#define TRI_MAX_WORKERS 1024
#define TRI_MAX_SLOTS_IN_FLIGHT 524288

/**
 * Fill *cfg with the defaults above.  Call it first, then change what you need.  NULL is ignored.
 *
 * Threads: any.  Blocks: no.
 */
TRI_API void tri_pool_config_init(tri_pool_config *cfg);

/**
 * Start a pool of workers.
 *
 * @param out  Receives the pool; untouched on failure.
 * @param cfg  Read during the call only, then the caller's again.  NULL: defaults.
 *
 * Process workers are forked, by a warden forked here, so they see the memory of this moment and
 * may run any function of this program.  They hold what descriptors are open at this moment, too,
 * as long as the pool is open: the end of a pipe whose other end is to see it closed, say.  Thread
 * workers have the signal mask of the caller.
 *
 * Owner:   the caller, who must end it with tri_pool_close() or tri_pool_terminate().
 * Threads: any.  The pool belongs to the process that opened it, not to its forks.
 * Blocks:  until the warden has forked every worker, at most cfg->start_timeout_ns; until the
 *          threads have been started.
 *
 * @return 0, or
 *   -EINVAL             a field of cfg is out of range, cfg->size is not that of
 *                       tri_pool_config_init(), or out is NULL
 *   -ENOMEM, -EMFILE, -EAGAIN, ...  the system refused; nothing is left running
 *   TRI_ETIMEDOUT       the warden did not answer; it was killed
 *   TRI_EPLATFORM       a call that it cannot do without is none of this system's
 */
TRI_API int tri_pool_open(tri_pool **out, const tri_pool_config *cfg);

/**
 * Finish every task that was submitted, then end the workers and free the pool.
 *
 * Futures of the pool stay valid and can be got and freed afterwards.
 * Threads: one, and no task of the pool; no other call on this pool, on its shares, or that waits
 * for or cancels a future of it may run.  None on the pool or its shares may follow.
 * Blocks:  until the tasks are done.  In a fork of the owner it only frees memory; of the futures
 * that had not ended, only tri_future_code() and tri_future_free() may follow there.
 */
TRI_API void tri_pool_close(tri_pool *pool);

/**
 * End the workers at once, whatever they do, and free the pool.
 *
 * Tasks not done end with TRI_ECLOSED.  Process workers are killed; threads cannot be, so a
 * thread pool waits for the tasks that have started.
 * Threads: as tri_pool_close.  Blocks: at most 2 s for process workers.
 */
TRI_API void tri_pool_terminate(tri_pool *pool);

typedef struct tri_stats {
    size_t size;       /* set by the caller to sizeof(tri_stats) */
    int workers;       /* configured */
    int workers_alive; /* running now */
    /* tasks (a chunk of tri_map is one); completed: ran to the end, failed ones among them */
    uint64_t submitted, completed, failed, cancelled, lost, retried, timed_out;
    uint64_t deaths;   /* workers that ended unasked */
    uint64_t restarts; /* workers started in place of another */
    uint64_t owner_sleeps, owner_spins_hit, owner_spins_missed, wakes; /* sleep and wake */
    /* In blocks not yet freed, over all participants.  A result that was freed counts until the
     * worker it came from has run another task. */
    uint64_t arena_live_bytes;
    uint64_t arena_peak_bytes; /* most ever; the sum of the participants' own */
    uint32_t slots, slots_free;
} tri_stats;

/** Read the pool's counters.  Threads: any.  Blocks: no.  @return 0, -EINVAL, TRI_EFORKED */
TRI_API int tri_pool_stats(tri_pool *pool, tri_stats *st);

/* ------------------------------------------------------------------ tasks */

/**
 * A task's function: read *in, fill *out.
 *
 * Both are aligned to 16 bytes (items of a map: as the arrays are, up to 4096).  It runs in a
 * worker; in a process worker only memory from before tri_pool_open and tri_share memory is the
 * caller's.
 * What it prints to stdout in a process worker is written out when it returns; its other streams
 * are its own to flush.  In a thread worker it must return: exit() there ends the program.
 *
 * A process that it forks ends, by _exit(0), where it returns from the function.
 *
 * A task of a thread pool may use the pool itself: tri_map() and, with a negative timeout_ns,
 * tri_future_wait() and tri_future_get() run what they wait for, if no other worker has begun it.
 * In a process worker a pool of the owner's is TRI_EFORKED; the task may open one of its own.
 * @return 0, or any other int: the caller finds TRI_EFAILED, and by tri_future_code() which it was.
 *   tri_map() does not tell which; what a task has to say besides goes into tri_share memory.
 */
typedef int (*tri_fn)(const void *in, void *out);

typedef struct tri_call {
    size_t size;        /* sizeof(tri_call) */
    size_t chunk;       /* tri_map: items per task; 0: the pool measures and decides */
    int64_t timeout_ns; /* a task that runs longer loses its worker; 0: no limit.  -EINVAL in a
                         * thread pool: nobody can stop a thread */
    int retries;        /* how often a task is run again after its worker died; default 0.  It
                         * may have run in part, and so have the items of its chunk */
    int priority;       /* -2 (last) ... 2 (first) */
    int caller;         /* tri_map: the caller works too; a crash then takes the caller, and no
                         * timeout_ns stops it */
} tri_call;

#define TRI_CALL_INIT                   \
    {                                   \
        sizeof(tri_call), 0, 0, 0, 0, 0 \
    }

/**
 * out[i] = fn(in[i]) for n items, on the workers.
 *
 * @param in        n items of in_bytes each; may be NULL when in_bytes is 0
 * @param out       n items of out_bytes each; may be NULL when out_bytes is 0
 * @param opt       options, NULL for the defaults
 *
 * Threads: any.  Blocks: until all items are done or one has failed and the items begun are done;
 * items not started are then dropped and the contents of out are unspecified.
 *
 * @return 0; TRI_EFAILED (with what code is not told), TRI_EWORKERLOST, ... of what failed first;
 *   -ENOMEM; TRI_EBROKEN; TRI_EFORKED; -EINVAL: a NULL, an option out of range, or an array longer
 *   than PTRDIFF_MAX; -EINTR is never returned: signals do not interrupt a map.
 */
TRI_API int tri_map(tri_pool *pool, tri_fn fn, const void *in, size_t in_bytes, void *out,
                    size_t out_bytes, size_t n, const tri_call *opt);

/**
 * Start fn(in) on a worker.
 *
 * @param out_bytes  size of the result; one that the arena has no room for ends with -ENOMEM
 * @param fut        receives the future
 *
 * Owner: *in is copied during the call; the future is the caller's, freed with tri_future_free.
 * Threads: any.  Blocks: while cfg->slots tasks are in flight, and while the arena has no room for
 * *in but tasks in flight may give theirs back.  In a task of the very pool, of threads, it does
 * not block: without a slot it calls fn itself, and without room it is -ENOMEM.
 * @return 0, -EINVAL, -ENOMEM, TRI_EBROKEN, TRI_ECLOSED, TRI_EFORKED
 */
TRI_API int tri_submit(tri_pool *pool, tri_fn fn, const void *in, size_t in_bytes, size_t out_bytes,
                       const tri_call *opt, tri_future **fut);

/**
 * Wait for the result.
 *
 * @param timeout_ns  negative, such as -1: for ever; 0: do not block
 *
 * Threads: any, also several for one future.  Blocks: until the task has ended, at most timeout_ns.
 * @return 0 when the task is done, well or badly; TRI_ETIMEDOUT; -EINTR when a signal handler
 *   interrupted the sleep; TRI_EFORKED: it was not done when this process was forked from the
 *   owner; -EINVAL: NULL
 */
TRI_API int tri_future_wait(tri_future *fut, int64_t timeout_ns);

/**
 * Wait for the result and copy it to out (out_bytes of tri_submit; NULL to leave it).
 *
 * May be called again.  Unless it returns 0, out is as it was.
 *
 * Threads, Blocks: as tri_future_wait.
 * @return as tri_future_wait, or how the task ended: TRI_EFAILED, TRI_EWORKERLOST,
 *   TRI_ETASKTIMEOUT, TRI_ECANCELLED, TRI_EBROKEN, TRI_ECLOSED, TRI_ECORRUPT, -ENOMEM (no room for
 *   the result)
 */
TRI_API int tri_future_get(tri_future *fut, void *out, int64_t timeout_ns);

/**
 * What the task's function returned, once tri_future_wait() has returned 0; before that perhaps 0.
 * 0 if it did not return, as when its worker died, and for NULL.
 *
 * Threads: any.  Blocks: no.
 */
TRI_API int tri_future_code(const tri_future *fut);

/**
 * Cancel a task that has not started.
 *
 * Threads: any.  Blocks: no.
 * @return 0: it never will; -EBUSY: too late, or another thread is cancelling it; TRI_EFORKED: as
 *   tri_future_wait; -EINVAL: NULL
 */
TRI_API int tri_future_cancel(tri_future *fut);

/**
 * Forget the future.  The task runs on; its result is dropped.  NULL is ignored.
 *
 * Threads: any; no other call on this future may run or follow.  Blocks: no.
 */
TRI_API void tri_future_free(tri_future *fut);

/* ------------------------------------------------------------------ shared memory */

/**
 * Memory that the owner and every worker of this pool see at the same address, zeroed.
 *
 * Tell a task the address: the handle is the owner's own.  In a thread pool it is memory like any.
 *
 * Owner: the caller, until tri_share_free() or the pool's end.  Nothing orders accesses to it but
 * the tasks themselves: what was written before tri_submit is visible to the task, and what the
 * task wrote is visible after tri_future_get.
 * Threads: any.  Blocks: no longer than to fill so many bytes takes.
 * @return 0, -ENOMEM, -EINVAL (a NULL, or no bytes), TRI_EFORKED
 */
TRI_API int tri_share_open(tri_pool *pool, size_t bytes, tri_share **out);

/** Where it begins, aligned to 64; NULL for NULL.  Threads: any.  Blocks: no. */
TRI_API void *tri_share_data(tri_share *share);

/** The size it was opened with; 0 for NULL.  Threads: any.  Blocks: no. */
TRI_API size_t tri_share_bytes(const tri_share *share);

/**
 * Give the memory back, which no task may use any more.  NULL is ignored.
 *
 * Before the pool ends: that frees those left, handles and all.
 * Threads: any; no other call on this share may run or follow.  Blocks: no.
 */
TRI_API void tri_share_free(tri_share *share);

#ifdef __cplusplus
}
#endif
#endif
