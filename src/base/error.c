/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * error.c - the text of every error code, and the version.
 *
 * Codes of the library lie below -4095, where no errno can be, so one int carries both kinds.
 * All text is static: a caller may keep the pointer and no thread can change it under another.
 * strerror() alone promises neither, which is why it is the last resort.
 */
#include "trireme.h"

#include <errno.h>
#include <string.h>

#define TRI_ERRNO_MAX 4095

#ifdef __GLIBC__
#if __GLIBC_PREREQ(2, 32)
#define TRI_HAVE_STRERRORDESC
#endif
#endif

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

const char *tri_version(void)
{
    return TEXT(TRI_VERSION_MAJOR) "." TEXT(TRI_VERSION_MINOR) "." TEXT(TRI_VERSION_PATCH);
}

/* One sentence for an errno that the system knows, NULL for any other number. */
static const char *system_text(int number)
{
#ifdef TRI_HAVE_STRERRORDESC
    return strerrordesc_np(number);
#else
    /* Static for the numbers that the C library knows, and it is asked for no others. */
    return number <= EHWPOISON ? strerror(number) : NULL;
#endif
}

const char *tri_strerror(int err)
{
    const char *text = NULL;

    switch (err) {
    case 0:
        return "success";
    case TRI_ETIMEDOUT:
        return "the time limit of the wait is over, and what it was for has not come";
    case TRI_EWORKERLOST:
        return "the worker died while it ran this task";
    case TRI_ETASKTIMEOUT:
        return "the task ran longer than its time limit and its worker was killed";
    case TRI_ECANCELLED:
        return "the task was cancelled before it started";
    case TRI_ECLOSED:
        return "the pool is closed";
    case TRI_EBROKEN:
        return "the pool is broken: its warden or too many of its workers died; open a new one";
    case TRI_EFORKED:
        return "the pool belongs to the process that opened it, not to this fork; open one here";
    case TRI_EFAILED:
        return "the task's function returned a code other than 0";
    case TRI_ECORRUPT:
        return "shared memory holds what no sound worker writes";
    case TRI_EPLATFORM:
        return "this system lacks, or forbids, a call that the library cannot do without";
    }
    if (err < 0 && err >= -TRI_ERRNO_MAX)
        text = system_text(-err);
    return text ? text : "unknown error";
}
