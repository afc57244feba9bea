/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * cpu.h - what this process may use of its machine: CPUs, memory, and who says so.
 *
 * Every function reads the kernel's files anew, keeps nothing, prints nothing, and treats a file
 * that is absent, unreadable or senseless as "no limit".  No function may fail in a way that
 * stops a pool from opening: the worst answer is one CPU or an unknown amount of memory.
 *
 * `root` is put before every path ("" in production), so that tests show these functions whole
 * machines made of plain files.
 *
 * Threads: any.  Blocks: for file reads of the proc, sys and cgroup file systems only.
 */
#ifndef TRI_BASE_CPU_H
#define TRI_BASE_CPU_H

#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ------------------------------------------------------------------ text of the kernel */

/*
 * Read a decimal number at *text and step over it.  Digits only, whatever the locale says.
 * false, and *text unmoved, when there is none or it does not fit.
 */
bool tri_text_u64(const char **text, uint64_t *value);

/* A path below root, for fopen() and friends; false when it does not fit. */
bool tri_text_path(char *buf, size_t bytes, const char *root, const char *path);

/* The file's first bytes, ended by a NUL.  false when it cannot be read. */
bool tri_text_read(const char *root, const char *path, char *buf, size_t bytes);

/* ------------------------------------------------------------------ CPUs */

/* The affinity mask, of whatever size this kernel needs. */
struct tri_affinity {
    cpu_set_t *set; /* allocated; NULL when the kernel would not say */
    size_t bytes;   /* size of *set */
    int count;      /* CPUs in it; 0 when unknown */
};

/* Owner: the caller, who ends it with tri_affinity_free().  The calling thread's mask. */
void tri_affinity_get(struct tri_affinity *aff);
void tri_affinity_free(struct tri_affinity *aff);

/* Is this CPU in the mask?  An unknown mask holds every CPU. */
bool tri_affinity_has(const struct tri_affinity *aff, int cpu);

struct tri_topology {
    int cores; /* physical cores, sockets and memory nodes with an allowed CPU; at least 1 each */
    int packages;
    int numa_nodes;
    bool from_hwloc;
};

/* From sysfs.  A machine without topology files has one core per allowed CPU. */
void tri_topology_sysfs(const char *root, const struct tri_affinity *aff,
                        struct tri_topology *topo);

/*
 * From hwloc where this library was built with its headers and finds it at run time, otherwise
 * from sysfs.  Slow: the first call in a process loads libhwloc (6 ms on 2 cores, tens on big
 * machines), so nothing on the way to an open pool may call it.
 */
void tri_topology_get(const struct tri_affinity *aff, struct tri_topology *topo);

/* CPUs that are online, or 0. */
int tri_cpu_online(const char *root);

/*
 * The count of tri_cpu_count(0) from its parts: the value of PYTHON_CPU_COUNT or NULL, the CPUs
 * of the affinity mask (0: unknown), and the files below root.
 */
int tri_cpu_count_at(const char *root, const char *env, int allowed);

/* ------------------------------------------------------------------ cgroups and memory */

enum { TRI_CGROUP_CPU = 1, TRI_CGROUP_MEMORY = 2, TRI_CGROUP_OOM = 4 };

struct tri_cgroup {
    int version;              /* 1, 2; 0: none found.  A hybrid counts as 1: that one limits */
    double cpus;              /* tightest quota over all ancestors, in CPUs; 0: none */
    int cpus_ceil;            /* the same, rounded up; 0: none */
    uint64_t memory_limit;    /* tightest limit over all ancestors, in bytes; 0: none */
    uint64_t memory_used;     /* use, with page cache, of the cgroup that has this limit */
    uint64_t memory_headroom; /* least of limit - use, over all ancestors; UINT64_MAX: no limit */
    uint64_t oom_kills;       /* processes of this cgroup that the kernel killed for memory */
};

/* what: TRI_CGROUP_* flags; fields of a part not asked for say "no limit". */
void tri_cgroup_read(const char *root, unsigned what, struct tri_cgroup *cg);

struct tri_memory {
    uint64_t total;  /* of the machine; 0: unknown */
    uint64_t free;   /* what can be had without swapping; 0: unknown */
    uint64_t commit; /* what strict overcommit still grants; UINT64_MAX: not in force */
};

void tri_memory_read(const char *root, struct tri_memory *mem);

/*
 * Bytes that may still be allocated before a cgroup limit or the machine's memory is hit: the
 * least of all that is known, UINT64_MAX when nothing is.  Page cache that the kernel would give
 * back counts as free.  A moment's answer: others allocate too, so take a part of it only.
 */
uint64_t tri_memory_headroom(void);
uint64_t tri_memory_headroom_at(const char *root);

/*
 * How many processes of this cgroup the kernel has killed for memory.  A worker's death is its
 * doing when the count rose meanwhile.  0 when there is no such counter.
 */
uint64_t tri_memory_oom_kills(void);

#endif
