/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * guard.h - a process that outlives this one by a moment, to end what it started.
 *
 * The kernel can kill a child when its parent dies, but not the child's own children.  The guard
 * holds one end of a pipe whose other end only this program has.  Every script writes its process
 * group into the pipe before it starts, and the program takes it back when the group is empty.
 * End of file means that the program is gone, however it went, and the guard kills the groups
 * that are left.  It sits in a session of its own, with no other descriptor open.
 */
#ifndef TRI_CLI_GUARD_H
#define TRI_CLI_GUARD_H

#include <sys/types.h>

struct tri_guard {
    pid_t pid;
    int fd; /* the program's end, closed on exec */
};

/* most: groups at one time.  @return 0 or -errno */
int tri_guard_start(struct tri_guard *guard, int most);

/* Called in the child, after it made its group; async-signal-safe. */
void tri_guard_add(const struct tri_guard *guard, pid_t group);
void tri_guard_remove(const struct tri_guard *guard, pid_t group);

/* Blocks until the guard is gone: a moment. */
void tri_guard_end(struct tri_guard *guard);

#endif
