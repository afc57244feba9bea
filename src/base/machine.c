/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * machine.c - memory, and the summary of the machine that tri_machine_get() gives.
 *
 * Optional system calls are probed by calling them in a way that changes nothing, never by the
 * kernel's version: a container's filter may refuse what the kernel knows.
 */
#include "base/cpu.h"
#include "trireme.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

/* Both numbers are the same on every architecture; old C libraries do not name them. */
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif

/* ------------------------------------------------------------------ memory */

/* "MemTotal:   16318480 kB" -> bytes; false when the key is absent. */
static bool meminfo(const char *text, const char *key, uint64_t *bytes)
{
    const char *p = strstr(text, key);
    uint64_t kib;

    if (!p || (p > text && p[-1] != '\n'))
        return false;
    p += strlen(key);
    p += strspn(p, " \t");
    if (!tri_text_u64(&p, &kib) || kib > UINT64_MAX / 1024)
        return false;
    *bytes = kib * 1024;
    return true;
}

void tri_memory_read(const char *root, struct tri_memory *mem)
{
    uint64_t limit, used;
    char text[8192], mode[8];

    memset(mem, 0, sizeof *mem);
    mem->commit = UINT64_MAX;
    if (!tri_text_read(root, "/proc/meminfo", text, sizeof text))
        return;
    meminfo(text, "MemTotal:", &mem->total);
    if (!meminfo(text, "MemAvailable:", &mem->free))
        meminfo(text, "MemFree:", &mem->free);
    if (tri_text_read(root, "/proc/sys/vm/overcommit_memory", mode, sizeof mode) &&
        mode[0] == '2' && meminfo(text, "CommitLimit:", &limit) &&
        meminfo(text, "Committed_AS:", &used))
        mem->commit = limit > used ? limit - used : 0;
}

uint64_t tri_memory_headroom_at(const char *root)
{
    struct tri_cgroup cg;
    struct tri_memory mem;
    uint64_t room;

    tri_memory_read(root, &mem);
    tri_cgroup_read(root, TRI_CGROUP_MEMORY, &cg);
    room = cg.memory_headroom;
    if (mem.total > 0 && mem.free < room)
        room = mem.free;
    if (mem.commit < room)
        room = mem.commit;
    return room;
}

uint64_t tri_memory_headroom(void)
{
    return tri_memory_headroom_at("");
}

/* ------------------------------------------------------------------ the summary */

static uint64_t limit_of(int resource)
{
    struct rlimit limit;

    if (getrlimit(resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY)
        return 0;
    return limit.rlim_cur > 0 ? limit.rlim_cur : 1; /* 0 would say "none" */
}

/* Calls that may be missing give a descriptor or an error, both without a trace. */
static int answers(long fd)
{
    if (fd < 0)
        return 0;
    close((int)fd);
    return 1;
}

/* The CPU's name: x86 and others have it in cpuinfo, boards in the device tree. */
static void cpu_model(char *model, size_t bytes)
{
    static const char *const keys[] = {"model name", "cpu model", "cpu\t", "Model", "Hardware"};
    char text[8192];

    model[0] = '\0';
    if (tri_text_read("", "/proc/cpuinfo", text, sizeof text)) {
        for (size_t i = 0; i < sizeof keys / sizeof *keys && !model[0]; i++) {
            const char *p = strstr(text, keys[i]);

            if (!p || (p > text && p[-1] != '\n'))
                continue;
            p += strcspn(p, ":\n");
            p += strspn(p, ": \t");
            snprintf(model, bytes, "%.*s", (int)strcspn(p, "\n"), p);
        }
    }
    if (!model[0] && tri_text_read("", "/sys/firmware/devicetree/base/model", text, sizeof text))
        snprintf(model, bytes, "%.*s", (int)bytes - 1, text);
}

int tri_machine_get(tri_machine *m)
{
    struct tri_affinity aff;
    struct tri_topology topo;
    struct tri_cgroup cg;
    struct tri_memory mem;
    struct statvfs shm;
    struct utsname uts;

    if (!m || m->size != sizeof *m)
        return -EINVAL;
    memset(m, 0, sizeof *m);
    m->size = sizeof *m;

    tri_affinity_get(&aff);
    tri_topology_get(&aff, &topo);
    m->cpus_online = tri_cpu_online("");
    m->cpus_allowed = aff.count;
    m->cpus_usable = tri_cpu_count_at("", getenv("PYTHON_CPU_COUNT"), aff.count);
    m->cores = topo.cores;
    m->packages = topo.packages;
    m->numa_nodes = topo.numa_nodes;
    m->has_hwloc = topo.from_hwloc;
    tri_affinity_free(&aff);

    tri_memory_read("", &mem);
    tri_cgroup_read("", TRI_CGROUP_CPU | TRI_CGROUP_MEMORY, &cg);
    m->memory_bytes = mem.total;
    m->memory_free_bytes = mem.free;
    m->cgroup_version = cg.version;
    m->cpu_quota = cg.cpus;
    m->cgroup_limit_bytes = cg.memory_limit;
    m->cgroup_used_bytes = cg.memory_used;

    m->file_limit_bytes = limit_of(RLIMIT_FSIZE);
    m->open_files_limit = limit_of(RLIMIT_NOFILE);
    if (statvfs("/dev/shm", &shm) == 0)
        m->dev_shm_free_bytes = (uint64_t)shm.f_bavail * shm.f_frsize;

    m->has_memfd = answers(memfd_create("trireme-probe", MFD_CLOEXEC));
    m->has_pidfd = answers(syscall(SYS_pidfd_open, getpid(), 0));
    /* No descriptor has this number, so nothing is closed. */
    m->has_close_range = syscall(SYS_close_range, ~0U, ~0U, 0) == 0;

    if (uname(&uts) == 0)
        snprintf(m->kernel, sizeof m->kernel, "%.*s", (int)sizeof m->kernel - 1, uts.release);
    cpu_model(m->cpu_model, sizeof m->cpu_model);
    return 0;
}
