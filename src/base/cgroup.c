/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * cgroup.c - what the cgroups of this process permit.
 *
 * A limit may sit at any ancestor of the process's own cgroup, so every level that can be seen is
 * read and the tightest counts.  Which levels can be seen follows from two files:
 *
 *     /proc/self/cgroup      "4:cpu,cpuacct:/user/job"   this process's path in each hierarchy
 *     /proc/self/mountinfo   "... /user /sys/fs/cgroup/cpu ... - cgroup ... rw,cpu,cpuacct"
 *                            which subtree of a hierarchy is mounted where
 *
 * The path less the mounted subtree's own path, put after the mount point, is the process's
 * directory; its parents up to the mount point are the visible ancestors.  In a container the two
 * may not fit each other (a path from outside of a mount from inside, or the other way round);
 * then the mount point itself is the nearest ancestor that can be seen.
 *
 * Three hierarchies matter: version 2, and version 1's cpu and memory.  A hybrid system has them
 * all and a controller lives in one of them, so all are read: a hierarchy without the controller
 * lacks its files, and an absent file is no limit.
 */
#include "base/cpu.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Version 1 says "unlimited" with LONG_MAX rounded down to a page, whatever the page's size. */
#define UNLIMITED_V1 ((uint64_t)1 << 62)

enum hierarchy { V2, V1_CPU, V1_MEMORY, HIERARCHIES };

/* Where this process is in a hierarchy: dir[0..top) is the mount point, the rest is below it. */
struct place {
    char dir[PATH_MAX];
    size_t top;
    size_t subtree; /* length of the mounted subtree's path: shorter shows more ancestors */
    bool fits;      /* the process's path is inside the mounted subtree */
    bool found;
};

/* ------------------------------------------------------------------ finding the directories */

/* Is `word` an element of the comma-separated list? */
static bool list_has(const char *list, const char *word)
{
    size_t n = strlen(word);

    for (const char *p = list; p; p = strchr(p, ',')) {
        if (*p == ',')
            p++;
        if (strncmp(p, word, n) == 0 && (p[n] == ',' || p[n] == '\0' || p[n] == '\n'))
            return true;
    }
    return false;
}

/* Read the process's path in each hierarchy; an empty path where it has none. */
static void read_paths(const char *root, char path[HIERARCHIES][PATH_MAX])
{
    char name[PATH_MAX], *line = NULL;
    size_t size = 0;
    FILE *file;

    for (int h = 0; h < HIERARCHIES; h++)
        path[h][0] = '\0';
    if (!tri_text_path(name, sizeof name, root, "/proc/self/cgroup"))
        return;
    file = fopen(name, "re");
    if (!file)
        return;
    while (getline(&line, &size, file) > 0) {
        char *controllers = strchr(line, ':');
        char *where = controllers ? strchr(controllers + 1, ':') : NULL;
        size_t n;

        if (!where)
            continue;
        *controllers++ = '\0';
        *where++ = '\0';
        n = strcspn(where, "\n");
        where[n] = '\0';
        if (where[0] != '/' || n >= PATH_MAX)
            continue;
        if (strcmp(line, "0") == 0 && !*controllers)
            memcpy(path[V2], where, n + 1);
        if (list_has(controllers, "cpu"))
            memcpy(path[V1_CPU], where, n + 1);
        if (list_has(controllers, "memory"))
            memcpy(path[V1_MEMORY], where, n + 1);
    }
    free(line);
    fclose(file);
}

/* Turn the kernel's \ooo for blanks and backslashes back into bytes, in place. */
static void unescape(char *text)
{
    char *to = text;

    for (const char *from = text; *from; to++) {
        if (from[0] == '\\' && from[1] >= '0' && from[1] <= '3' && from[2] >= '0' &&
            from[2] <= '7' && from[3] >= '0' && from[3] <= '7') {
            *to = (char)((from[1] - '0') << 6 | (from[2] - '0') << 3 | (from[3] - '0'));
            from += 4;
        } else {
            *to = *from++;
        }
    }
    *to = '\0';
}

/* Does the path climb out of where it starts?  Such a one names nothing that can be seen. */
static bool climbs(const char *path)
{
    for (const char *p = path; (p = strstr(p, "/..")) != NULL; p += 3) {
        if (p[3] == '/' || p[3] == '\0')
            return true;
    }
    return false;
}

/*
 * Take a mount of the process's hierarchy into account.  The one that shows most wins: a fitting
 * one before any other, then the shorter subtree, then the later, which may hide an earlier one.
 */
static void consider(struct place *best, const char *root, const char *path, const char *subtree,
                     const char *point)
{
    size_t n = strcmp(subtree, "/") == 0 ? 0 : strlen(subtree);
    bool fits = !climbs(path) && !climbs(subtree) && strncmp(path, subtree, n) == 0 &&
                (path[n] == '/' || path[n] == '\0');
    const char *rest = fits && strcmp(path + n, "/") != 0 ? path + n : "";
    int top, all;

    if (best->found && (best->fits > fits || (best->fits == fits && best->subtree < n)))
        return;
    top = snprintf(best->dir, sizeof best->dir, "%s%s", root, point);
    if (top < 0 || (size_t)top >= sizeof best->dir) {
        best->found = false;
        return;
    }
    all = snprintf(best->dir + top, sizeof best->dir - (size_t)top, "%s", rest);
    if (all < 0 || (size_t)all >= sizeof best->dir - (size_t)top)
        best->dir[top] = '\0';
    best->top = (size_t)top;
    best->subtree = n;
    best->fits = fits;
    best->found = true;
}

/*
 * One line of mountinfo:
 *     id parent device SUBTREE POINT options [tag...] - TYPE source SUPER_OPTIONS
 */
static void read_mount(char *line, const char *root, char path[HIERARCHIES][PATH_MAX],
                       struct place place[HIERARCHIES])
{
    char *tail = strstr(line, " - "), *field[5], *type, *super = NULL, *save = NULL;
    int n = 0;

    if (!tail)
        return;
    *tail = '\0';
    for (char *word = strtok_r(line, " ", &save); word && n < 5; word = strtok_r(NULL, " ", &save))
        field[n++] = word;
    type = strtok_r(tail + 3, " \n", &save);
    if (n < 5 || !type || strncmp(type, "cgroup", 6) != 0)
        return;
    for (char *word = strtok_r(NULL, " \n", &save); word; word = strtok_r(NULL, " \n", &save))
        super = word;
    unescape(field[3]);
    unescape(field[4]);

    if (strcmp(type, "cgroup2") == 0) {
        if (path[V2][0])
            consider(&place[V2], root, path[V2], field[3], field[4]);
    } else if (strcmp(type, "cgroup") == 0 && super) {
        if (path[V1_CPU][0] && list_has(super, "cpu"))
            consider(&place[V1_CPU], root, path[V1_CPU], field[3], field[4]);
        if (path[V1_MEMORY][0] && list_has(super, "memory"))
            consider(&place[V1_MEMORY], root, path[V1_MEMORY], field[3], field[4]);
    }
}

static void find_places(const char *root, struct place place[HIERARCHIES])
{
    char path[HIERARCHIES][PATH_MAX], name[PATH_MAX], *line = NULL;
    size_t size = 0;
    FILE *file;

    for (int h = 0; h < HIERARCHIES; h++)
        place[h].found = false;
    read_paths(root, path);
    if (!tri_text_path(name, sizeof name, root, "/proc/self/mountinfo"))
        return;
    file = fopen(name, "re");
    if (!file)
        return;
    while (getline(&line, &size, file) > 0)
        read_mount(line, root, path, place);
    free(line);
    fclose(file);
}

/* ------------------------------------------------------------------ reading one level */

/* Read dir/name whole; false when it is not there. */
static bool read_in(const char *dir, const char *name, char *buf, size_t bytes)
{
    char path[PATH_MAX];
    int n = snprintf(path, sizeof path, "%s/%s", dir, name);

    return n >= 0 && (size_t)n < sizeof path && tri_text_read("", path, buf, bytes);
}

/* A file that holds one number; false for anything else, such as "max" or "-1". */
static bool number_in(const char *dir, const char *name, uint64_t *value)
{
    char text[64];
    const char *p = text;

    return read_in(dir, name, text, sizeof text) && tri_text_u64(&p, value);
}

/* The number after `key ` at the start of a line. */
static bool number_after(const char *text, const char *key, uint64_t *value)
{
    size_t n = strlen(key);

    for (const char *line = text; line; line = strchr(line, '\n')) {
        if (*line == '\n')
            line++;
        if (strncmp(line, key, n) == 0 && line[n] == ' ') {
            const char *p = line + n + 1;

            return tri_text_u64(&p, value);
        }
    }
    return false;
}

static void take_quota(struct tri_cgroup *cg, uint64_t quota, uint64_t period)
{
    uint64_t ceil;
    double cpus;

    if (quota == 0 || period == 0)
        return;
    cpus = (double)quota / (double)period;
    if (cg->cpus > 0 && cg->cpus <= cpus)
        return;
    ceil = quota / period + (quota % period != 0);
    cg->cpus = cpus;
    cg->cpus_ceil = ceil < INT_MAX ? (int)ceil : INT_MAX;
}

static void read_cpu(const char *dir, bool v2, struct tri_cgroup *cg)
{
    uint64_t quota, period;

    if (v2) {
        char text[64];
        const char *p = text;

        if (read_in(dir, "cpu.max", text, sizeof text) && tri_text_u64(&p, &quota) && *p++ == ' ' &&
            tri_text_u64(&p, &period))
            take_quota(cg, quota, period);
    } else if (number_in(dir, "cpu.cfs_quota_us", &quota) &&
               number_in(dir, "cpu.cfs_period_us", &period)) {
        take_quota(cg, quota, period);
    }
}

/*
 * Page cache is use, but use that the kernel gives back when asked: all that was not touched
 * lately and, with the caution of its own MemAvailable, half of what was.
 */
static uint64_t reclaimable(const char *stat, bool v2)
{
    uint64_t inactive = 0, active = 0;

    number_after(stat, v2 ? "inactive_file" : "total_inactive_file", &inactive);
    number_after(stat, v2 ? "active_file" : "total_active_file", &active);
    return inactive + active / 2;
}

static void take_memory(struct tri_cgroup *cg, uint64_t limit, uint64_t used, uint64_t cache)
{
    uint64_t held = used > cache ? used - cache : 0;
    uint64_t room = limit > held ? limit - held : 0;

    if (cg->memory_limit == 0 || limit < cg->memory_limit) {
        cg->memory_limit = limit > 0 ? limit : 1; /* a limit of 0 is one, not none */
        cg->memory_used = used;
    }
    if (room < cg->memory_headroom)
        cg->memory_headroom = room;
}

static void read_memory(const char *dir, bool v2, bool own, struct tri_cgroup *cg)
{
    uint64_t limit = UINT64_MAX, other, used = 0, cache;
    char stat[8192] = "";

    read_in(dir, "memory.stat", stat, sizeof stat);
    cache = reclaimable(stat, v2);
    if (v2) {
        /* Above memory.high a process is slowed until it stands still: a limit like the other. */
        if (number_in(dir, "memory.max", &other))
            limit = other;
        if (number_in(dir, "memory.high", &other) && other < limit)
            limit = other;
        number_in(dir, "memory.current", &used);
    } else {
        if (number_in(dir, "memory.limit_in_bytes", &other))
            limit = other;
        /* The kernel's own minimum, with ancestors that a container cannot see. */
        if (own && number_after(stat, "hierarchical_memory_limit", &other) && other < limit)
            limit = other;
        number_in(dir, "memory.usage_in_bytes", &used);
    }
    if (limit < UNLIMITED_V1)
        take_memory(cg, limit, used, cache);
}

static void read_oom(const char *dir, bool v2, struct tri_cgroup *cg)
{
    uint64_t kills;
    char text[1024];

    if (read_in(dir, v2 ? "memory.events" : "memory.oom_control", text, sizeof text) &&
        number_after(text, "oom_kill", &kills))
        cg->oom_kills += kills;
}

/* Call with the process's directory, then with each parent up to the mount point. */
static void read_levels(struct place *place, enum hierarchy h, unsigned what, struct tri_cgroup *cg)
{
    bool own = true;

    if (what & TRI_CGROUP_OOM && h != V1_CPU)
        read_oom(place->dir, h == V2, cg);
    while (what & (TRI_CGROUP_CPU | TRI_CGROUP_MEMORY)) {
        char *slash;

        if (what & TRI_CGROUP_CPU && h != V1_MEMORY)
            read_cpu(place->dir, h == V2, cg);
        if (what & TRI_CGROUP_MEMORY && h != V1_CPU)
            read_memory(place->dir, h == V2, own, cg);
        own = false;
        if (!place->dir[place->top])
            return;
        slash = strrchr(place->dir + place->top, '/');
        if (!slash)
            return;
        *slash = '\0';
    }
}

void tri_cgroup_read(const char *root, unsigned what, struct tri_cgroup *cg)
{
    struct place place[HIERARCHIES];

    memset(cg, 0, sizeof *cg);
    cg->memory_headroom = UINT64_MAX;
    find_places(root, place);
    if (place[V1_CPU].found || place[V1_MEMORY].found)
        cg->version = 1;
    else if (place[V2].found)
        cg->version = 2;
    for (int h = 0; h < HIERARCHIES; h++) {
        if (place[h].found)
            read_levels(&place[h], (enum hierarchy)h, what, cg);
    }
}

uint64_t tri_memory_oom_kills(void)
{
    struct tri_cgroup cg;

    tri_cgroup_read("", TRI_CGROUP_OOM, &cg);
    return cg.oom_kills;
}
