/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * info.c - `trireme info`: what this machine offers this process.
 *
 * The text is for people and may change; the JSON is for programs: its keys stay, what is unknown
 * or unlimited is null, sizes are in bytes.
 */
#include "cli.h"
#include "trireme.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#ifdef __GLIBC__
#include <gnu/libc-version.h>
#endif

#ifdef __clang__
#define COMPILER "clang " __clang_version__
#else
#define COMPILER "gcc " __VERSION__
#endif

struct facts {
    tri_machine m;
    char libc[64];
    char hwloc[32];          /* "2.9", or empty */
    char python[PATH_MAX];   /* or empty */
    char python_version[64]; /* or empty */
};

/* hwloc is asked by its one call that needs no types, so that the program is not linked with it. */
static void find_hwloc(char *version, size_t bytes)
{
    void *handle = dlopen("libhwloc.so.15", RTLD_LAZY | RTLD_LOCAL);
    unsigned (*ask)(void);
    void *symbol;

    version[0] = '\0';
    if (!handle)
        return;
    symbol = dlsym(handle, "hwloc_get_api_version");
    if (symbol) {
        memcpy(&ask, &symbol, sizeof ask); /* ISO C has no cast from data to functions */
        snprintf(version, bytes, "%u.%u", ask() >> 16, ask() >> 8 & 0xff);
    }
}

static void gather(struct facts *f)
{
    memset(f, 0, sizeof *f);
    f->m.size = sizeof f->m;
    tri_machine_get(&f->m);
#ifdef __GLIBC__
    snprintf(f->libc, sizeof f->libc, "glibc %s", gnu_get_libc_version());
#endif
    find_hwloc(f->hwloc, sizeof f->hwloc);
    if (!tri_find_python(f->python, sizeof f->python))
        f->python[0] = '\0';
    else if (!tri_python_version(f->python, f->python_version, sizeof f->python_version))
        f->python_version[0] = '\0';
}

/* The i-th thing that is optional and missing, and what that costs; NULL after the last. */
static const char *missing(const struct facts *f, int i)
{
    const struct {
        bool absent;
        const char *text;
    } all[] = {
        {!f->m.has_memfd,
         "memfd: shared memory is a file of /dev/shm without a name, or has no descriptor"},
        {!f->m.has_pidfd, "pidfd: deaths of workers are noticed by SIGCHLD alone"},
        {!f->m.has_close_range, "close_range: descriptors are closed one by one"},
        {!f->m.has_hwloc, "hwloc: topology is read from sysfs"},
        {!f->python[0], "python3: only C programs and shell scripts can be run"},
    };

    for (size_t k = 0; k < sizeof all / sizeof *all; k++) {
        if (all[k].absent && i-- == 0)
            return all[k].text;
    }
    return NULL;
}

/* ------------------------------------------------------------------ for people */

/* "23.5 GiB" */
static const char *size_text(uint64_t bytes, char *text, size_t room)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)bytes;
    size_t i = 0;

    while (value >= 1024 && i + 1 < sizeof units / sizeof *units) {
        value /= 1024;
        i++;
    }
    snprintf(text, room, i ? "%.1f %s" : "%.0f %s", value, units[i]);
    return text;
}

static void print_text(const struct facts *f)
{
    const tri_machine *m = &f->m;
    char a[32], b[32];

    printf("trireme    %s\n", tri_version());
    printf("cpu        %s\n", m->cpu_model[0] ? m->cpu_model : "unknown");
    printf("cores      %d usable: %d logical online, %d allowed here, on %d physical\n",
           m->cpus_usable, m->cpus_online, m->cpus_allowed, m->cores);
    if (m->cpu_quota > 0)
        printf("quota      %.2f CPUs by cgroup v%d\n", m->cpu_quota, m->cgroup_version);
    else
        printf("quota      none\n");
    printf("topology   %d package%s, %d NUMA node%s, by %s\n", m->packages,
           m->packages == 1 ? "" : "s", m->numa_nodes, m->numa_nodes == 1 ? "" : "s",
           m->has_hwloc ? "hwloc" : "sysfs");
    if (m->memory_bytes)
        printf("memory     %s, %s free\n", size_text(m->memory_bytes, a, sizeof a),
               size_text(m->memory_free_bytes, b, sizeof b));
    else
        printf("memory     unknown\n");
    if (m->cgroup_limit_bytes)
        printf("limit      %s by cgroup v%d, %s used\n",
               size_text(m->cgroup_limit_bytes, a, sizeof a), m->cgroup_version,
               size_text(m->cgroup_used_bytes, b, sizeof b));
    else
        printf("limit      none\n");
    printf("files      %llu open, ", (unsigned long long)m->open_files_limit);
    printf("%s each\n",
           m->file_limit_bytes ? size_text(m->file_limit_bytes, a, sizeof a) : "any size");
    printf("/dev/shm   %s (not used)\n",
           m->dev_shm_free_bytes ? size_text(m->dev_shm_free_bytes, a, sizeof a) : "absent");
    printf("kernel     Linux %s%s%s%s\n", m->kernel, m->has_memfd ? ", memfd" : "",
           m->has_pidfd ? ", pidfd" : "", m->has_close_range ? ", close_range" : "");
    printf("built by   %s%s%s\n", COMPILER, f->libc[0] ? ", runs on " : "", f->libc);
    printf("hwloc      %s%s\n", f->hwloc[0] ? f->hwloc : "absent",
           f->hwloc[0] && !m->has_hwloc ? " found, not used by this build" : "");
    printf("python     %s%s%s\n", f->python[0] ? f->python : "absent", f->python[0] ? " " : "",
           f->python[0] && !f->python_version[0] ? "(does not start)" : f->python_version);
    for (int i = 0; missing(f, i); i++)
        printf("missing    %s\n", missing(f, i));
}

/* ------------------------------------------------------------------ for programs */

/* Bytes of the UTF-8 character at p, 0 where there is none. */
static int utf8_length(const unsigned char *p)
{
    int n = *p < 0x80 ? 1 : *p >= 0xc2 && *p < 0xe0 ? 2 : (*p & 0xf0) == 0xe0 ? 3 : 0;

    if (*p >= 0xf0 && *p < 0xf5)
        n = 4;
    for (int i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    }
    /* Overlong forms, surrogates and numbers above 10ffff are no characters. */
    if ((*p == 0xe0 && p[1] < 0xa0) || (*p == 0xed && p[1] > 0x9f) || (*p == 0xf0 && p[1] < 0x90) ||
        (*p == 0xf4 && p[1] > 0x8f))
        return 0;
    return n;
}

static void json_text(const char *text)
{
    if (!*text) {
        printf("null");
        return;
    }
    putchar('"');
    for (const unsigned char *p = (const unsigned char *)text; *p;) {
        int n = utf8_length(p);

        if (n == 0)
            printf("\\ufffd");
        else if (*p == '"' || *p == '\\')
            printf("\\%c", *p);
        else if (*p < 0x20)
            printf("\\u%04x", *p);
        else
            printf("%.*s", n, (const char *)p);
        p += n ? n : 1;
    }
    putchar('"');
}

static void json_number(const char *key, uint64_t value, bool last)
{
    if (value)
        printf("\"%s\": %llu%s", key, (unsigned long long)value, last ? "" : ", ");
    else
        printf("\"%s\": null%s", key, last ? "" : ", ");
}

static void print_json(const struct facts *f)
{
    const tri_machine *m = &f->m;

    printf("{\n  \"trireme\": \"%s\",\n  \"cpu\": {\"model\": ", tri_version());
    json_text(m->cpu_model);
    printf(", \"usable\": %d, \"online\": %d, \"allowed\": %d, \"cores\": %d, ", m->cpus_usable,
           m->cpus_online, m->cpus_allowed, m->cores);
    printf("\"packages\": %d, \"numa_nodes\": %d, \"quota\": ", m->packages, m->numa_nodes);
    if (m->cpu_quota > 0)
        printf("%.6g", m->cpu_quota);
    else
        printf("null");
    printf("},\n  \"memory\": {");
    json_number("total", m->memory_bytes, false);
    json_number("free", m->memory_free_bytes, false);
    json_number("cgroup_limit", m->cgroup_limit_bytes, false);
    json_number("cgroup_used", m->cgroup_used_bytes, false);
    json_number("dev_shm_free", m->dev_shm_free_bytes, true);
    printf("},\n  \"limits\": {");
    json_number("open_files", m->open_files_limit, false);
    json_number("file_bytes", m->file_limit_bytes, false);
    json_number("cgroup_version", (uint64_t)m->cgroup_version, true);
    printf("},\n  \"versions\": {\"kernel\": ");
    json_text(m->kernel);
    printf(", \"compiler\": ");
    json_text(COMPILER);
    printf(", \"libc\": ");
    json_text(f->libc);
    printf(", \"hwloc\": ");
    json_text(f->hwloc);
    printf(", \"python\": ");
    json_text(f->python_version);
    printf("},\n  \"python\": ");
    json_text(f->python);
    printf(",\n  \"optional\": {\"memfd\": %s, \"pidfd\": %s, \"close_range\": %s, \"hwloc\": %s, "
           "\"python\": %s},\n  \"missing\": [",
           m->has_memfd ? "true" : "false", m->has_pidfd ? "true" : "false",
           m->has_close_range ? "true" : "false", m->has_hwloc ? "true" : "false",
           f->python[0] ? "true" : "false");
    for (int i = 0; missing(f, i); i++) {
        printf(i ? ", " : "");
        json_text(missing(f, i));
    }
    printf("]\n}\n");
}

int tri_cmd_info(int argc, char **argv)
{
    struct facts f;
    bool json = false;

    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--json")) {
            json = true;
        } else if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            printf("usage: trireme info [--json]\n\n"
                   "What this machine offers: cores, memory, limits, versions, and what is\n"
                   "optional and missing.\n");
            return 0;
        } else {
            tri_complain("info", "unexpected argument \"%s\"; usage: trireme info [--json]",
                         argv[i]);
            return TRI_EXIT_USAGE;
        }
    }
    gather(&f);
    if (json)
        print_json(&f);
    else
        print_text(&f);
    return 0;
}
