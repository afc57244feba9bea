/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_cpu.c - CPU counts, quotas and memory limits, on machines made of plain files.
 *
 * Each test builds the few files of /proc and /sys that it is about in a fresh directory and asks
 * the functions of base/cpu.h with that directory as their root.
 */
#include "base/cpu.h"
#include "check.h"
#include "trireme.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <sys/stat.h>

#define GIB ((uint64_t)1 << 30)
#define MIB ((uint64_t)1 << 20)

static char root[64];

/* ------------------------------------------------------------------ fake machines */

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st;
    (void)flag;
    (void)ftw;
    return remove(path);
}

static void fake_end(void)
{
    CHECK(nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS) == 0);
}

static void fake_begin(void)
{
    snprintf(root, sizeof root, "/tmp/trireme-cpu-XXXXXX");
    CHECK(mkdtemp(root));
}

/* Write a file of the fake machine, and the folders above it. */
static void put(const char *path, const char *text)
{
    char full[PATH_MAX];
    FILE *file;

    CHECK(tri_text_path(full, sizeof full, root, path));
    for (char *p = full + strlen(root) + 1; (p = strchr(p, '/')) != NULL; p++) {
        *p = '\0';
        CHECK(mkdir(full, 0700) == 0 || errno == EEXIST);
        *p = '/';
    }
    file = fopen(full, "we");
    CHECK(file);
    fputs(text, file);
    fclose(file);
}

static struct tri_cgroup cgroup(void)
{
    struct tri_cgroup cg;

    tri_cgroup_read(root, TRI_CGROUP_CPU | TRI_CGROUP_MEMORY | TRI_CGROUP_OOM, &cg);
    return cg;
}

#define V2_MOUNT "30 20 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
#define V1_MOUNTS                                                                 \
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"                  \
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n" \
    "34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"           \
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"

/* ------------------------------------------------------------------ cgroups */

static void v2_takes_the_tightest_ancestor(void)
{
    struct tri_cgroup cg;

    put("/proc/self/cgroup", "0::/a/b/c\n");
    put("/proc/self/mountinfo", V2_MOUNT);
    put("/sys/fs/cgroup/a/cpu.max", "150000 100000\n");
    put("/sys/fs/cgroup/a/b/cpu.max", "800000 100000\n");
    put("/sys/fs/cgroup/a/b/c/cpu.max", "max 100000\n");
    put("/sys/fs/cgroup/a/memory.max", "1073741824\n");
    put("/sys/fs/cgroup/a/memory.current", "104857600\n");
    put("/sys/fs/cgroup/a/b/memory.max", "2147483648\n");
    put("/sys/fs/cgroup/a/b/memory.current", "2146435072\n");
    put("/sys/fs/cgroup/a/b/c/memory.max", "max\n");
    put("/sys/fs/cgroup/a/b/c/memory.current", "4096\n");
    put("/sys/fs/cgroup/a/b/c/memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 0\n");
    cg = cgroup();
    CHECK(cg.version == 2);
    CHECK(cg.cpus == 1.5 && cg.cpus_ceil == 2);
    CHECK(cg.memory_limit == GIB && cg.memory_used == 100 * MIB);
    CHECK(cg.memory_headroom == MIB); /* b has the larger limit and less room under it */
    CHECK(cg.oom_kills == 2);
    CHECK(tri_cpu_count_at(root, NULL, 16) == 2);
    CHECK(tri_cpu_count_at(root, NULL, 1) == 1);
}

static void page_cache_counts_as_room(void)
{
    put("/proc/self/cgroup", "0::/a\n");
    put("/proc/self/mountinfo", V2_MOUNT);
    put("/sys/fs/cgroup/a/memory.max", "1073741824\n");
    put("/sys/fs/cgroup/a/memory.current", "1073741824\n");
    put("/sys/fs/cgroup/a/memory.stat",
        "anon 1\nfile 838860800\nactive_file 104857600\ninactive_file 524288000\n");
    CHECK(cgroup().memory_headroom == 550 * MIB);
}

static void memory_high_is_a_limit(void)
{
    put("/proc/self/cgroup", "0::/a\n");
    put("/proc/self/mountinfo", V2_MOUNT);
    put("/sys/fs/cgroup/a/memory.max", "max\n");
    put("/sys/fs/cgroup/a/memory.high", "1048576\n");
    CHECK(cgroup().memory_limit == MIB);
}

static void use_above_the_limit_leaves_no_room(void)
{
    put("/proc/self/cgroup", "0::/a\n");
    put("/proc/self/mountinfo", V2_MOUNT);
    put("/sys/fs/cgroup/a/memory.max", "1048576\n");
    put("/sys/fs/cgroup/a/memory.current", "2097152\n");
    CHECK(cgroup().memory_headroom == 0);
}

static void v1_takes_the_tightest_ancestor(void)
{
    struct tri_cgroup cg;

    put("/proc/self/cgroup", "5:cpuset:/\n4:memory:/job/step\n2:cpu,cpuacct:/job/step\n");
    put("/proc/self/mountinfo", V1_MOUNTS);
    put("/sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "250000\n");
    put("/sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000\n");
    put("/sys/fs/cgroup/cpu,cpuacct/job/step/cpu.cfs_quota_us", "-1\n");
    put("/sys/fs/cgroup/cpu,cpuacct/job/step/cpu.cfs_period_us", "100000\n");
    put("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "2147483648\n");
    put("/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "1073741824\n");
    put("/sys/fs/cgroup/memory/job/step/memory.limit_in_bytes", "9223372036854771712\n");
    put("/sys/fs/cgroup/memory/job/step/memory.usage_in_bytes", "4096\n");
    put("/sys/fs/cgroup/memory/job/step/memory.oom_control",
        "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n");
    cg = cgroup();
    CHECK(cg.version == 1);
    CHECK(cg.cpus == 2.5 && cg.cpus_ceil == 3);
    CHECK(cg.memory_limit == 2 * GIB && cg.memory_used == GIB);
    CHECK(cg.memory_headroom == GIB);
    CHECK(cg.oom_kills == 7);
}

static void v1_sees_limits_of_ancestors_it_cannot_visit(void)
{
    put("/proc/self/cgroup", "4:memory:/docker/abc\n");
    put("/proc/self/mountinfo",
        "35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "0\n");
    put("/sys/fs/cgroup/memory/memory.stat", "cache 0\nhierarchical_memory_limit 1073741824\n");
    CHECK(cgroup().memory_limit == GIB);
}

static void a_container_sees_its_subtree_at_the_mount_point(void)
{
    put("/proc/self/cgroup", "2:cpu,cpuacct:/docker/abc/sub\n");
    put("/proc/self/mountinfo",
        "32 31 0:29 /docker/abc /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n");
    put("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "400000\n");
    put("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
    put("/sys/fs/cgroup/cpu,cpuacct/sub/cpu.cfs_quota_us", "50000\n");
    put("/sys/fs/cgroup/cpu,cpuacct/sub/cpu.cfs_period_us", "100000\n");
    CHECK(cgroup().cpus == 0.5 && cgroup().cpus_ceil == 1);
}

static void a_path_that_does_not_fit_the_mount_means_the_mount_point(void)
{
    static const char *const paths[] = {"0::/docker/abc\n", "0::/../../elsewhere\n", "0::/\n"};
    static const char *const mounts[] = {
        "30 20 0:26 /docker/xyz /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "30 20 0:26 /docker/ab /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", /* prefix, not parent */
        "30 20 0:26 /.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
    };

    put("/sys/fs/cgroup/cpu.max", "200000 100000\n");
    for (size_t i = 0; i < 3; i++) {
        for (size_t k = 0; k < 3; k++) {
            put("/proc/self/cgroup", paths[i]);
            put("/proc/self/mountinfo", mounts[k]);
            CHECK(cgroup().cpus_ceil == 2);
        }
    }
}

static void of_several_mounts_the_one_that_shows_most_counts(void)
{
    static const char small[] = "40 20 0:26 /a/b /mnt/part rw - cgroup2 cgroup2 rw\n";
    static const char other[] = "41 20 0:26 /z /mnt/other rw - cgroup2 cgroup2 rw\n";
    char text[1024];

    put("/proc/self/cgroup", "0::/a/b\n");
    put("/sys/fs/cgroup/a/cpu.max", "100000 100000\n");
    put("/mnt/part/cpu.max", "900000 100000\n");
    put("/mnt/other/cpu.max", "10000 100000\n");
    snprintf(text, sizeof text, "%s%s%s", small, V2_MOUNT, other);
    put("/proc/self/mountinfo", text);
    CHECK(cgroup().cpus == 1.0);
    snprintf(text, sizeof text, "%s%s%s", other, V2_MOUNT, small);
    put("/proc/self/mountinfo", text);
    CHECK(cgroup().cpus == 1.0);
}

static void a_hybrid_reads_the_hierarchy_that_has_the_controller(void)
{
    struct tri_cgroup cg;

    put("/proc/self/cgroup", "9:name=systemd:/\n4:memory:/m\n1:cpu:/\n0::/u\n");
    put("/proc/self/mountinfo",
        V1_MOUNTS "38 31 0:35 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
    put("/sys/fs/cgroup/memory/m/memory.limit_in_bytes", "1048576\n");
    put("/sys/fs/cgroup/unified/u/cpu.max", "300000 100000\n");
    put("/sys/fs/cgroup/unified/u/cgroup.procs", "1\n");
    cg = cgroup();
    CHECK(cg.version == 1);
    CHECK(cg.cpus == 3.0 && cg.memory_limit == MIB);
}

static void odd_names_are_found(void)
{
    char path[PATH_MAX], text[PATH_MAX + 32];

    /* Colons, blanks, backslashes, and a path of 3000 bytes. */
    put("/proc/self/cgroup", "0::/a:b c/d\n");
    put("/proc/self/mountinfo", "30 20 0:26 / /sys/fs\\040x\\134y rw - cgroup2 none rw\n");
    put("/sys/fs x\\y/a:b c/cpu.max", "700000 100000\n");
    CHECK(cgroup().cpus_ceil == 7);

    snprintf(path, sizeof path, "/sys/fs/cgroup");
    for (size_t n = strlen(path), i = 0; i < 15; i++, n += 200)
        snprintf(path + n, sizeof path - n, "/%0199d", 7);
    snprintf(text, sizeof text, "0::%s\n", path + strlen("/sys/fs/cgroup"));
    put("/proc/self/cgroup", text);
    put("/proc/self/mountinfo", V2_MOUNT);
    strcat(path, "/cpu.max");
    put(path, "500000 100000\n");
    CHECK(cgroup().cpus_ceil == 5);
}

static void absent_and_senseless_files_are_no_limit(void)
{
    static const char *const junk[] = {
        "",
        "\n",
        "max",
        "max max",
        "-5 100000",
        "100000",
        "100000 0",
        "0 100000",
        "1e5 100000",
        "0x10 100000",
        "nan inf",
        "\xff\xfe\xfd",
        "99999999999999999999999999 100000",
        "100000 -1",
        "100000,5",
        ":::::",
    };
    static const char *const mounts[] = {
        "",           "\n",
        "-",          " - ",
        " - cgroup2", "1 2 3 - cgroup2 cgroup2 rw\n",
        ":\n0::\n",   "0:/x\n0::",
        V2_MOUNT,     "30 20 0:26 / /x rw - cgroup\n",
    };

    CHECK(cgroup().version == 0); /* nothing at all */
    CHECK(cgroup().memory_headroom == UINT64_MAX && cgroup().memory_limit == 0);
    CHECK(tri_cpu_count_at(root, NULL, 0) == 1);
    CHECK(tri_cpu_count_at(root, NULL, 6) == 6);
    CHECK(tri_memory_headroom_at(root) == UINT64_MAX);

    for (size_t i = 0; i < sizeof mounts / sizeof *mounts; i++) {
        put("/proc/self/cgroup", mounts[i]);
        for (size_t k = 0; k < sizeof mounts / sizeof *mounts; k++) {
            put("/proc/self/mountinfo", mounts[k]);
            CHECK(cgroup().cpus_ceil == 0);
        }
    }
    for (size_t i = 0; i < sizeof junk / sizeof *junk; i++) {
        put("/proc/self/cgroup", "0::/a\n4:memory:/a\n1:cpu,cpuacct:/a\n");
        put("/proc/self/mountinfo", V2_MOUNT V1_MOUNTS);
        put("/sys/fs/cgroup/a/cpu.max", junk[i]);
        put("/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", junk[i]);
        put("/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "garbage");
        put("/sys/fs/cgroup/memory/a/memory.stat", junk[i]);
        put("/sys/fs/cgroup/memory/a/memory.usage_in_bytes", junk[i]);
        put("/proc/meminfo", junk[i]);
        put("/sys/devices/system/cpu/online", junk[i]);
        CHECK(cgroup().cpus_ceil == 0 && cgroup().memory_limit == 0);
        CHECK(tri_cpu_count_at(root, NULL, 3) == 3);
    }
}

static void an_endless_quota_does_not_overflow(void)
{
    put("/proc/self/cgroup", "0::/\n");
    put("/proc/self/mountinfo", V2_MOUNT);
    put("/sys/fs/cgroup/cpu.max", "18446744073709551615 1\n");
    CHECK(cgroup().cpus_ceil == INT_MAX);
    CHECK(tri_cpu_count_at(root, NULL, 4) == 4);
}

/* ------------------------------------------------------------------ counts and memory */

static void the_users_count_overrides_the_rest(void)
{
    static const char *const ignored[] = {"",   "default", "0",  "-3",
                                          "4x", "1.5",     " 2", "99999999999"};

    put("/proc/self/cgroup", "0::/\n");
    put("/proc/self/mountinfo", V2_MOUNT);
    put("/sys/fs/cgroup/cpu.max", "100000 100000\n");
    CHECK(tri_cpu_count_at(root, "12", 4) == 12);
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++)
        CHECK(tri_cpu_count_at(root, ignored[i], 4) == 1);
    CHECK(tri_cpu_count_at(root, NULL, 4) == 1);
}

static void without_a_mask_the_online_cpus_count(void)
{
    put("/sys/devices/system/cpu/online", "0-3,8,10-11\n");
    CHECK(tri_cpu_online(root) == 7);
    CHECK(tri_cpu_count_at(root, NULL, 0) == 7);
}

static void headroom_is_the_least_of_all_limits(void)
{
    put("/proc/meminfo", "MemTotal:       4194304 kB\nMemFree:  100 kB\n"
                         "MemAvailable:   2097152 kB\nCommitLimit:    1048576 kB\n"
                         "Committed_AS:    524288 kB\n");
    CHECK(tri_memory_headroom_at(root) == 2 * GIB);
    put("/proc/sys/vm/overcommit_memory", "2\n");
    CHECK(tri_memory_headroom_at(root) == GIB / 2);
    put("/proc/self/cgroup", "0::/\n");
    put("/proc/self/mountinfo", V2_MOUNT);
    put("/sys/fs/cgroup/memory.max", "1048576\n");
    CHECK(tri_memory_headroom_at(root) == MIB);
}

/* ------------------------------------------------------------------ topology */

static void cpu_file(int cpu, const char *name, const char *text)
{
    char path[128];

    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/%s", cpu, name);
    put(path, text);
}

static struct tri_affinity mask_of(const int *cpus, int n)
{
    struct tri_affinity aff = {NULL, CPU_ALLOC_SIZE(4096), n};

    aff.set = CPU_ALLOC(4096);
    CHECK(aff.set);
    CPU_ZERO_S(aff.bytes, aff.set);
    for (int i = 0; i < n; i++)
        CPU_SET_S((size_t)cpus[i], aff.bytes, aff.set);
    return aff;
}

/* Two sockets of two cores of two threads: core of CPU c is c % 4, socket c % 2. */
static void sysfs_counts_cores_that_are_allowed(void)
{
    static const int all[] = {0, 1, 2, 3, 4, 5, 6, 7}, some[] = {2, 4, 6}, far[] = {4000};
    struct tri_topology topo;
    struct tri_affinity aff;
    char text[32];

    put("/sys/devices/system/cpu/online", "0-7\n");
    for (int cpu = 0; cpu < 8; cpu++) {
        snprintf(text, sizeof text, "%d,%d\n", cpu % 4, cpu % 4 + 4);
        cpu_file(cpu, cpu % 2 ? "thread_siblings_list" : "core_cpus_list", text);
        cpu_file(cpu, "core_siblings_list", cpu % 2 ? "1,3,5,7\n" : "0,2,4,6\n");
    }
    put("/sys/devices/system/node/node0/cpulist", "0,2,4,6\n");
    put("/sys/devices/system/node/node1/cpulist", "1,3,5,7\n");
    put("/sys/devices/system/node/node2/cpulist", "\n"); /* memory without CPUs */
    put("/sys/devices/system/node/possible", "0-2\n");

    aff = mask_of(all, 8);
    tri_topology_sysfs(root, &aff, &topo);
    CHECK(topo.cores == 4 && topo.packages == 2 && topo.numa_nodes == 2 && !topo.from_hwloc);
    tri_affinity_free(&aff);

    aff = mask_of(some, 3); /* 2 and 6 share a core */
    tri_topology_sysfs(root, &aff, &topo);
    CHECK(topo.cores == 2 && topo.packages == 1 && topo.numa_nodes == 1);
    tri_affinity_free(&aff);

    aff = mask_of(far, 1); /* a mask that the files know nothing of */
    tri_topology_sysfs(root, &aff, &topo);
    CHECK(topo.cores == 1 && topo.packages == 1 && topo.numa_nodes == 1);
    tri_affinity_free(&aff);
}

static void without_topology_files_a_cpu_is_a_core(void)
{
    static const int two[] = {0, 1};
    struct tri_affinity aff = mask_of(two, 2);
    struct tri_topology topo;

    put("/sys/devices/system/cpu/online", "0-3\n");
    tri_topology_sysfs(root, &aff, &topo);
    CHECK(topo.cores == 2 && topo.packages == 1 && topo.numa_nodes == 1);
    tri_affinity_free(&aff);
}

/* ------------------------------------------------------------------ this machine */

static void the_real_mask_is_honoured(void)
{
    struct tri_affinity aff, one;
    int first = 0;

    tri_affinity_get(&aff);
    CHECK(aff.set && aff.count >= 1 && aff.count <= tri_cpu_online(""));
    while (!tri_affinity_has(&aff, first))
        first++;
    one = mask_of(&first, 1);
    CHECK(sched_setaffinity(0, one.bytes, one.set) == 0);
    CHECK(setenv("PYTHON_CPU_COUNT", "default", 1) == 0);
    CHECK(tri_cpu_count(0) == 1 && tri_cpu_count(1) == 1);
    CHECK(setenv("PYTHON_CPU_COUNT", "5", 1) == 0);
    CHECK(tri_cpu_count(0) == 5 && tri_cpu_count(1) == 1);
    unsetenv("PYTHON_CPU_COUNT");
    CHECK(sched_setaffinity(0, aff.bytes, aff.set) == 0);
    tri_affinity_free(&one);
    tri_affinity_free(&aff);
}

static void hwloc_and_sysfs_agree_here(void)
{
    struct tri_topology a, b;
    struct tri_affinity aff;

    tri_affinity_get(&aff);
    tri_topology_get(&aff, &a);
    tri_topology_sysfs("", &aff, &b);
    CHECK(a.cores == b.cores && a.packages >= 1 && a.numa_nodes >= 1);
    tri_affinity_free(&aff);
}

static void the_summary_adds_up(void)
{
    tri_machine m = {.size = sizeof m}, wrong = {.size = sizeof m - 1};

    CHECK(tri_machine_get(NULL) == -EINVAL && tri_machine_get(&wrong) == -EINVAL);
    CHECK(tri_machine_get(&m) == 0);
    CHECK(m.cpus_allowed >= 1 && m.cpus_allowed <= m.cpus_online);
    CHECK(m.cpus_usable >= 1 && m.cpus_usable == tri_cpu_count(0));
    CHECK(m.cores >= 1 && m.cores <= m.cpus_allowed && m.packages >= 1 && m.packages <= m.cores);
    CHECK(m.memory_bytes > m.memory_free_bytes && m.memory_free_bytes > 0);
    CHECK(tri_memory_headroom() <= m.memory_bytes);
    CHECK(m.kernel[0] && m.open_files_limit != 1);
}

static void asking_leaves_no_descriptor_open(void)
{
    tri_machine m = {.size = sizeof m};
    int before, after;

    CHECK(tri_machine_get(&m) == 0); /* libraries that open something once have done so */
    before = open("/dev/null", O_RDONLY | O_CLOEXEC);
    for (int i = 0; i < 20; i++) {
        CHECK(tri_machine_get(&m) == 0 && tri_cpu_count(0) >= 1);
        CHECK(tri_memory_headroom() > 0 && tri_memory_oom_kills() < UINT64_MAX);
    }
    after = open("/dev/null", O_RDONLY | O_CLOEXEC);
    CHECK(before >= 0 && after == before + 1);
    close(before);
    close(after);
}

#define RUN_FAKE(fn)  \
    do {              \
        fake_begin(); \
        RUN(fn);      \
        fake_end();   \
    } while (0)

int main(void)
{
    RUN_FAKE(v2_takes_the_tightest_ancestor);
    RUN_FAKE(page_cache_counts_as_room);
    RUN_FAKE(memory_high_is_a_limit);
    RUN_FAKE(use_above_the_limit_leaves_no_room);
    RUN_FAKE(v1_takes_the_tightest_ancestor);
    RUN_FAKE(v1_sees_limits_of_ancestors_it_cannot_visit);
    RUN_FAKE(a_container_sees_its_subtree_at_the_mount_point);
    RUN_FAKE(a_path_that_does_not_fit_the_mount_means_the_mount_point);
    RUN_FAKE(of_several_mounts_the_one_that_shows_most_counts);
    RUN_FAKE(a_hybrid_reads_the_hierarchy_that_has_the_controller);
    RUN_FAKE(odd_names_are_found);
    RUN_FAKE(absent_and_senseless_files_are_no_limit);
    RUN_FAKE(an_endless_quota_does_not_overflow);
    RUN_FAKE(the_users_count_overrides_the_rest);
    RUN_FAKE(without_a_mask_the_online_cpus_count);
    RUN_FAKE(headroom_is_the_least_of_all_limits);
    RUN_FAKE(sysfs_counts_cores_that_are_allowed);
    RUN_FAKE(without_topology_files_a_cpu_is_a_core);
    RUN(the_real_mask_is_honoured);
    RUN(hwloc_and_sysfs_agree_here);
    RUN(the_summary_adds_up);
    RUN(asking_leaves_no_descriptor_open);
    return 0;
}
