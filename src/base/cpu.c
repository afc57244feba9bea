/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * cpu.c - how many CPUs this process may use, and how they are built.
 *
 * Three parties limit the count: the user (PYTHON_CPU_COUNT, which overrides the others), the
 * affinity mask (taskset, cpusets, batch systems) and a cgroup's quota (containers).  The mask is
 * a set and the quota a rate, so the smaller of the two counts, the quota rounded up: with 1.5
 * CPUs two workers finish sooner than one.
 *
 * Topology comes from hwloc or from sysfs.  hwloc is opened with dlopen() at the first question:
 * a program that never asks loads nothing, and one binary serves machines with and without it.
 * Only its plain functions are used, because its inline ones would bind at link time.
 *
 * In sysfs, a core is counted at the first allowed CPU of its list of siblings; so nothing has
 * to be remembered, and CPU numbers with holes and cores that span numbers cost nothing.
 */
#include "base/cpu.h"
#include "trireme.h"

#include "base/atomic.h"
#include "base/clock.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef TRI_HAVE_HWLOC
#include <dlfcn.h>
#include <hwloc.h>
#endif

/* More CPUs than any kernel can be built for; an end for the search of the mask's size. */
#define CPUS_MOST (1 << 20)

/* ------------------------------------------------------------------ text of the kernel */

bool tri_text_u64(const char **text, uint64_t *value)
{
    const char *p = *text;
    uint64_t v = 0;

    if (*p < '0' || *p > '9')
        return false;
    for (; *p >= '0' && *p <= '9'; p++) {
        uint64_t digit = (uint64_t)(*p - '0');

        if (v > (UINT64_MAX - digit) / 10)
            return false;
        v = v * 10 + digit;
    }
    *text = p;
    *value = v;
    return true;
}

bool tri_text_path(char *buf, size_t bytes, const char *root, const char *path)
{
    int n = snprintf(buf, bytes, "%s%s", root, path);

    return n >= 0 && (size_t)n < bytes;
}

bool tri_text_read(const char *root, const char *path, char *buf, size_t bytes)
{
    char full[PATH_MAX];
    size_t have = 0;
    ssize_t n;
    int fd;

    if (!tri_text_path(full, sizeof full, root, path))
        return false;
    fd = open(full, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    do {
        n = read(fd, buf + have, bytes - 1 - have);
        if (n > 0)
            have += (size_t)n;
    } while ((n > 0 && have < bytes - 1) || (n < 0 && errno == EINTR));
    close(fd);
    buf[have] = '\0';
    return n >= 0;
}

/*
 * The next range of a list like "0-3,8,10-11": true and *first..*last, or false at its end or
 * where it makes no sense.
 */
static bool list_next(const char **text, int *first, int *last)
{
    const char *p = *text;
    uint64_t a, b;

    while (*p == ',' || *p == ' ')
        p++;
    if (!tri_text_u64(&p, &a))
        return false;
    b = a;
    if (*p == '-') {
        p++;
        if (!tri_text_u64(&p, &b))
            return false;
    }
    if (a > b || b >= CPUS_MOST)
        return false;
    *text = p;
    *first = (int)a;
    *last = (int)b;
    return true;
}

/* ------------------------------------------------------------------ affinity */

void tri_affinity_get(struct tri_affinity *aff)
{
    memset(aff, 0, sizeof *aff);

    /* The kernel refuses a buffer smaller than its own mask and does not tell the size. */
    for (int cpus = 1024; cpus <= CPUS_MOST; cpus *= 2) {
        cpu_set_t *set = CPU_ALLOC(cpus);
        size_t bytes = CPU_ALLOC_SIZE(cpus);

        if (!set)
            return;
        CPU_ZERO_S(bytes, set);
        if (sched_getaffinity(0, bytes, set) == 0) {
            aff->set = set;
            aff->bytes = bytes;
            aff->count = CPU_COUNT_S(bytes, set);
            return;
        }
        CPU_FREE(set);
        if (errno != EINVAL)
            return;
    }
}

void tri_affinity_free(struct tri_affinity *aff)
{
    if (aff->set)
        CPU_FREE(aff->set);
    memset(aff, 0, sizeof *aff);
}

bool tri_affinity_has(const struct tri_affinity *aff, int cpu)
{
    if (!aff->set)
        return true;
    return cpu >= 0 && (size_t)cpu < aff->bytes * 8 &&
           CPU_ISSET_S((size_t)cpu, aff->bytes, aff->set);
}

/* ------------------------------------------------------------------ topology */

/* The lowest allowed CPU of a list, -1 when it has none. */
static int list_first_allowed(const char *list, const struct tri_affinity *aff)
{
    int first, last, best = -1;

    while (list_next(&list, &first, &last)) {
        for (int cpu = first; cpu <= last; cpu++) {
            if (!tri_affinity_has(aff, cpu))
                continue;
            if (best < 0 || cpu < best)
                best = cpu;
            break;
        }
    }
    return best;
}

/* Is this CPU the one at which its core or package is counted?  The files' new and old names. */
static bool counts_here(const char *root, int cpu, const char *name, const char *old_name,
                        const struct tri_affinity *aff)
{
    char path[128], list[4096];
    int first;

    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/%s", cpu, name);
    if (!tri_text_read(root, path, list, sizeof list)) {
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/%s", cpu, old_name);
        if (!tri_text_read(root, path, list, sizeof list))
            return true;
    }
    first = list_first_allowed(list, aff);
    return first < 0 || first == cpu;
}

static int numa_nodes(const char *root, const struct tri_affinity *aff)
{
    char path[PATH_MAX], list[4096];
    struct dirent *entry;
    int nodes = 0;
    DIR *dir;

    if (!tri_text_path(path, sizeof path, root, "/sys/devices/system/node"))
        return 1;
    dir = opendir(path);
    if (!dir)
        return 1;
    while ((entry = readdir(dir)) != NULL) {
        const char *digits = entry->d_name + 4;
        uint64_t number;

        if (strncmp(entry->d_name, "node", 4) != 0 || !tri_text_u64(&digits, &number) || *digits)
            continue;
        snprintf(path, sizeof path, "/sys/devices/system/node/node%llu/cpulist",
                 (unsigned long long)number);
        if (tri_text_read(root, path, list, sizeof list) && list_first_allowed(list, aff) >= 0)
            nodes++;
    }
    closedir(dir);
    return nodes > 0 ? nodes : 1;
}

void tri_topology_sysfs(const char *root, const struct tri_affinity *aff, struct tri_topology *topo)
{
    char list[4096];
    const char *p = list;
    int first, last, packages = 0, cores = 0;

    if (!tri_text_read(root, "/sys/devices/system/cpu/online", list, sizeof list))
        list[0] = '\0';
    while (list_next(&p, &first, &last)) {
        for (int cpu = first; cpu <= last; cpu++) {
            if (!tri_affinity_has(aff, cpu))
                continue;
            cores += counts_here(root, cpu, "core_cpus_list", "thread_siblings_list", aff);
            packages += counts_here(root, cpu, "package_cpus_list", "core_siblings_list", aff);
        }
    }
    /* Without topology files every CPU counted as a package of its own, which none is. */
    if (!tri_text_read(root, "/sys/devices/system/cpu/cpu0/topology/core_siblings_list", list,
                       sizeof list))
        packages = 1;
    if (cores == 0)
        cores = aff->count;
    topo->cores = cores > 0 ? cores : 1;
    topo->packages = packages > 0 ? packages : 1;
    topo->numa_nodes = numa_nodes(root, aff);
    topo->from_hwloc = false;
}

#ifdef TRI_HAVE_HWLOC

struct hwloc_calls {
    __typeof__(&hwloc_get_api_version) get_api_version;
    __typeof__(&hwloc_topology_init) init;
    __typeof__(&hwloc_topology_load) load;
    __typeof__(&hwloc_topology_destroy) destroy;
    __typeof__(&hwloc_get_type_depth) type_depth;
    __typeof__(&hwloc_get_nbobjs_by_depth) count_at;
    __typeof__(&hwloc_get_obj_by_depth) object_at;
    __typeof__(&hwloc_bitmap_isset) bit;
    __typeof__(&hwloc_bitmap_next) next_bit;
};

/* Fill the table from the library of the ABI of our headers; its handle, or NULL. */
static void *hwloc_open(struct hwloc_calls *h)
{
    static const char *const names[] = {
        "hwloc_get_api_version",  "hwloc_topology_init",  "hwloc_topology_load",
        "hwloc_topology_destroy", "hwloc_get_type_depth", "hwloc_get_nbobjs_by_depth",
        "hwloc_get_obj_by_depth", "hwloc_bitmap_isset",   "hwloc_bitmap_next",
    };
    void *found[sizeof names / sizeof *names];
    void *handle;

    _Static_assert(sizeof found == sizeof *h, "one name per pointer of the table, in its order");
#if HWLOC_API_VERSION >> 16 == 2
    handle = dlopen("libhwloc.so.15", RTLD_NOW | RTLD_LOCAL);
#else
    handle = dlopen("libhwloc.so", RTLD_NOW | RTLD_LOCAL);
#endif
    if (!handle)
        return NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        found[i] = dlsym(handle, names[i]);
        if (!found[i])
            goto close;
    }
    memcpy(h, found, sizeof found);
    if (h->get_api_version() >> 16 != HWLOC_API_VERSION >> 16)
        goto close;
    return handle;
close:
    dlclose(handle);
    return NULL;
}

/* How many objects of this type hold an allowed CPU. */
static int hwloc_count(const struct hwloc_calls *h, hwloc_topology_t t, hwloc_obj_type_t type,
                       const struct tri_affinity *aff)
{
    int depth = h->type_depth(t, type);
    unsigned n;
    int count = 0;

    if (depth == HWLOC_TYPE_DEPTH_UNKNOWN || depth == HWLOC_TYPE_DEPTH_MULTIPLE)
        return 0;
    n = h->count_at(t, depth);
    for (unsigned i = 0; i < n; i++) {
        hwloc_obj_t object = h->object_at(t, depth, i);

        if (!object || !object->cpuset)
            continue;
        for (int cpu = h->next_bit(object->cpuset, -1); cpu >= 0 && cpu < CPUS_MOST;
             cpu = h->next_bit(object->cpuset, cpu)) {
            if (tri_affinity_has(aff, cpu)) {
                count++;
                break;
            }
        }
    }
    return count;
}

static bool topology_hwloc(const struct tri_affinity *aff, struct tri_topology *topo)
{
    struct hwloc_calls h;
    hwloc_topology_t t;
    bool good = false;
    void *handle;

    /* Without it hwloc finds nothing and says so on stderr, where we say nothing. */
    if (access("/sys/devices/system/cpu/cpu0/topology", F_OK) < 0)
        return false;
    handle = hwloc_open(&h);
    if (!handle)
        return false;
    if (h.init(&t) == 0) {
        if (h.load(t) == 0) {
            topo->cores = hwloc_count(&h, t, HWLOC_OBJ_CORE, aff);
            topo->packages = hwloc_count(&h, t, HWLOC_OBJ_PACKAGE, aff);
            topo->numa_nodes = hwloc_count(&h, t, HWLOC_OBJ_NUMANODE, aff);
            topo->from_hwloc = good = topo->cores > 0;
            if (topo->packages < 1)
                topo->packages = 1;
            if (topo->numa_nodes < 1)
                topo->numa_nodes = 1;
        }
        h.destroy(t);
    }
    /*
     * The handle stays open: plugins of hwloc bring libraries that do not survive being unloaded,
     * and dlopen() of a loaded library costs nothing.
     */
    return good;
}

#else

static bool topology_hwloc(const struct tri_affinity *aff, struct tri_topology *topo)
{
    (void)aff;
    (void)topo;
    return false;
}

#endif

void tri_topology_get(const struct tri_affinity *aff, struct tri_topology *topo)
{
    if (!topology_hwloc(aff, topo))
        tri_topology_sysfs("", aff, topo);
}

/* ------------------------------------------------------------------ counts */

int tri_cpu_online(const char *root)
{
    char list[4096];
    const char *p = list;
    int first, last, count = 0;

    if (tri_text_read(root, "/sys/devices/system/cpu/online", list, sizeof list)) {
        while (list_next(&p, &first, &last))
            count += last - first + 1;
    }
    if (count == 0 && !*root) {
        long n = sysconf(_SC_NPROCESSORS_ONLN);

        count = n > 0 && n < CPUS_MOST ? (int)n : 0;
    }
    return count;
}

/* The user's own count, as CPython reads it: a positive number, or 0 for anything else. */
static int count_of_env(const char *env)
{
    uint64_t n;

    if (!env || !tri_text_u64(&env, &n) || *env || n > INT_MAX)
        return 0;
    return (int)n;
}

/* To read this machine's takes 70 us, and who opens a pool asks several times at once. */
#define QUOTA_NS 20000000
static _Atomic int64_t quota_read_ns;
static _Atomic int quota_ceil;

static int least_of_quota(int count, const char *root)
{
    int64_t now = tri_now_ns(), read = tri_load_acq(&quota_read_ns);
    struct tri_cgroup cg;

    if (*root || !read || now - read > QUOTA_NS) {
        tri_cgroup_read(root, TRI_CGROUP_CPU, &cg);
        if (!*root) {
            tri_store_rlx(&quota_ceil, cg.cpus_ceil);
            tri_store_rel(&quota_read_ns, now);
        }
    } else {
        cg.cpus_ceil = tri_load_rlx(&quota_ceil);
    }
    if (cg.cpus_ceil > 0 && cg.cpus_ceil < count)
        count = cg.cpus_ceil;
    return count;
}

int tri_cpu_count_at(const char *root, const char *env, int allowed)
{
    int count = count_of_env(env);

    if (count > 0)
        return count;
    count = allowed > 0 ? allowed : tri_cpu_online(root);
    return least_of_quota(count > 0 ? count : 1, root);
}

int tri_cpu_count(int physical)
{
    struct tri_affinity aff;
    struct tri_topology topo;
    int count;

    tri_affinity_get(&aff);
    if (physical) {
        tri_topology_get(&aff, &topo);
        count = least_of_quota(topo.cores, "");
    } else {
        count = tri_cpu_count_at("", getenv("PYTHON_CPU_COUNT"), aff.count);
    }
    tri_affinity_free(&aff);
    return count;
}
