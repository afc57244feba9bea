/* SPDX-License-Identifier: BSD-3-Clause */
/* cp.c - the counter behind CP(); empty in release builds.  See cp.h. */
#include "base/cp.h"

#ifdef TRI_CHECKPOINTS
#include <signal.h>
#include <string.h>
#include <unistd.h>

static long cp_left;

void tri_cp_arm(long n)
{
    cp_left = n;
}

void tri_cp_hit(const char *name)
{
    if (cp_left == 0 || --cp_left > 0)
        return;
    /* The test reads the name from the worker's stderr when it asked for it by descriptor 9. */
    if (write(9, name, strlen(name)) < 0 || write(9, "\n", 1) < 0) {
        /* nobody listens */
    }
    kill(getpid(), SIGKILL);
}
#else
typedef int tri_cp_empty; /* a translation unit holds at least one declaration */
#endif
