/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * orphans.c - the children that dead workers leave behind.
 *
 * They come to the warden, which is their subreaper, when their parent is reaped.  The kernel lists
 * a process's children; those that are no workers are killed.  Wardens of nested pools are spared:
 * they end by themselves with their owner and must outlive other workers' deaths.  A warden is
 * known by its name, which it has from birth.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pool/pool.h"

static bool is_warden(pid_t pid)
{
    char path[64], comm[32];
    bool yes;
    FILE *f;

    snprintf(path, sizeof path, "/proc/%d/comm", (int)pid);
    f = fopen(path, "re");
    if (!f)
        return false;
    yes = fgets(comm, sizeof comm, f) && strncmp(comm, "trireme-warden", 14) == 0;
    fclose(f);
    return yes;
}

bool tri_orphans_kill(bool (*is_worker)(const void *ctx, pid_t pid), const void *ctx)
{
    char path[64], word[16];
    bool found = false;
    FILE *f;

    snprintf(path, sizeof path, "/proc/self/task/%d/children", (int)getpid());
    f = fopen(path, "re");
    if (!f)
        return false;
    while (fscanf(f, "%15s", word) == 1) {
        pid_t pid = (pid_t)strtol(word, NULL, 10);

        /* 0 and below would mean groups of processes */
        if (pid > 0 && !is_worker(ctx, pid) && !is_warden(pid)) {
            kill(pid, SIGKILL);
            found = true;
        }
    }
    fclose(f);
    return found;
}
