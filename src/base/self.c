/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * self.c - the process's own name, cached where a fork forgets it.
 *
 * The cache is a page that the kernel hands to a child as zeros (MADV_WIPEONFORK): so no fork, be
 * it a raw system call, leaves a child with its parent's name, and no handler is installed.  Where
 * the kernel refuses that, getpid() is asked each time.
 *
 * Several threads may fill the cache at once: all write the same.  name is stored last (release)
 * and pairs with the load (acquire) in cache(), so whoever sees it sees the rest.
 */
#include "base/self.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/atomic.h"
#include "base/clock.h"

#define SURE_NS 10000000

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

struct self {
    _Atomic uint64_t name; /* 0: not filled, or wiped by a fork */
    _Atomic uint64_t ns;
    _Atomic uint32_t cpus;
};

static struct self plain; /* where MADV_WIPEONFORK is refused */
static struct self *_Atomic place;

struct stat_line {
    char state;
    uint64_t threads, start;
};

/* What /proc says of a process.  false: nothing that could be read. */
static bool stat_of(const char *path, long *pid, struct stat_line *out)
{
    char buf[1024], *at, *end;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n;

    if (fd < 0)
        return false;
    do {
        n = read(fd, buf, sizeof buf - 1);
    } while (n < 0 && errno == EINTR);
    close(fd);
    if (n <= 0)
        return false;
    buf[n] = 0;
    *pid = strtol(buf, NULL, 10);
    at = strrchr(buf, ')'); /* the command's name may hold blanks and parentheses */
    if (!at || at[1] != ' ' || !at[2])
        return false;
    out->state = at[2];
    out->threads = out->start = 0;
    at += 3;
    for (int field = 4; field <= 22; field++) {
        uint64_t value = strtoull(at, &end, 10);

        if (end == at)
            return false;
        at = end;
        if (field == 20)
            out->threads = value;
        else if (field == 22)
            out->start = value;
    }
    return true;
}

static uint64_t name_of(uint64_t pid, uint64_t start)
{
    uint64_t low = start & UINT32_MAX;

    if (start && !low)
        low = 1; /* 0 would say "unknown" */
    return low << 32 | pid;
}

static void count_cpus(struct self *s)
{
    cpu_set_t cpus;
    int n = 1;

    if (sched_getaffinity(0, sizeof cpus, &cpus) == 0)
        n = CPU_COUNT(&cpus);
    else if (errno == EINVAL)
        n = 2; /* more CPUs than the set holds */
    tri_store_rlx(&s->cpus, (uint32_t)(n > 0 ? n : 1));
}

static void fill(struct self *s)
{
    struct stat_line line;
    struct stat ns;
    long pid = 0, me = (long)getpid();
    uint64_t start = 0, space = 0;

    /* A /proc of another namespace shows somebody else under our number. */
    if (stat_of("/proc/self/stat", &pid, &line) && pid == me) {
        start = line.start;
        if (stat("/proc/self/ns/pid", &ns) == 0)
            space = (uint64_t)ns.st_ino;
    }
    count_cpus(s);
    tri_store_rlx(&s->ns, space);
    tri_store_rel(&s->name, name_of((uint64_t)me & TRI_NAME_PID, start));
}

static struct self *find_place(void)
{
    long page = sysconf(_SC_PAGESIZE);
    struct self *s, *none = NULL;

    s = mmap(NULL, (size_t)page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (s == MAP_FAILED) {
        s = &plain;
    } else if (madvise(s, (size_t)page, MADV_WIPEONFORK) < 0) {
        munmap(s, (size_t)page);
        s = &plain;
    }
    if (!tri_cas_sc(&place, &none, s)) {
        if (s != &plain)
            munmap(s, (size_t)page);
        s = none;
    }
    return s;
}

/* Rarely, so not inlined: with its stack a look at the name would take longer than a lock. */
static __attribute__((noinline)) struct self *fill_cache(void)
{
    struct self *s = tri_load_acq(&place);
    uint64_t name;

    if (!s)
        s = find_place();
    name = tri_load_acq(&s->name);
    if (!name || (s == &plain && (name & TRI_NAME_PID) != (uint64_t)getpid()))
        fill(s);
    return s;
}

static inline struct self *cache(void)
{
    struct self *s = tri_load_acq(&place);

    return s && s != &plain && tri_load_acq(&s->name) ? s : fill_cache();
}

uint64_t tri_self_name(void)
{
    return tri_load_rlx(&cache()->name);
}

uint64_t tri_self_ns(void)
{
    return tri_load_rlx(&cache()->ns);
}

int tri_self_cpus(void)
{
    return (int)tri_load_rlx(&cache()->cpus);
}

void tri_self_cpus_again(void)
{
    count_cpus(cache());
}

/* Does a process of this number run?  false: no, or the kernel does not say.  A third of what
 * /proc takes, which also says since when. */
static bool runs(pid_t pid)
{
    struct pollfd p = {.fd = (int)syscall(SYS_pidfd_open, pid, 0), .events = POLLIN};
    bool still = p.fd >= 0 && poll(&p, 1, 0) == 0;

    if (p.fd >= 0)
        close(p.fd);
    return still;
}

bool tri_name_gone(uint64_t name)
{
    /* The name that this thread last found alive by all of it, and when.  Numbers go round: in so
     * short a time none comes back. */
    static _Thread_local uint64_t sure_of;
    static _Thread_local int64_t sure_at;
    uint64_t me = tri_self_name(), pid = name & TRI_NAME_PID;
    int64_t now = tri_now_ns();
    struct stat_line line;
    char path[32];
    long seen = 0;

    name &= TRI_NAME_MASK;
    if (!pid || name == me)
        return false;
    if (name == sure_of && now - sure_at < SURE_NS && runs((pid_t)pid))
        return false;
    if (kill((pid_t)pid, 0) < 0 && errno == ESRCH)
        return true;
    snprintf(path, sizeof path, "/proc/%lu/stat", (unsigned long)pid);
    if (!(me >> 32) || !stat_of(path, &seen, &line) || seen != (long)pid)
        return false;
    if (name >> 32 && name_of(pid, line.start) != name)
        return true; /* the number is another process's by now */
    sure_of = name;
    sure_at = now;
    /* A leader that has left its threads behind looks like a zombie, too. */
    return (line.state == 'Z' || line.state == 'X' || line.state == 'x') && line.threads <= 1;
}

uint64_t tri_sign(uint64_t ns)
{
    uint64_t name = tri_self_name();

    return ns && ns == tri_self_ns() ? name : name | TRI_NAME_FOREIGN;
}

bool tri_signer_gone(uint64_t ns, uint64_t word)
{
    return ns && ns == tri_self_ns() && !(word & TRI_NAME_FOREIGN) && tri_name_gone(word);
}
