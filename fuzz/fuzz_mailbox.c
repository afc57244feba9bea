/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * fuzz_mailbox.c - a mailbox whose other processes write what they like into it.
 *
 * The input is a program of small steps: put, get, await, count, done, join, watch, attach, drop,
 * and a hostile process's stores of any word anywhere: places, stamps, links, headers of messages,
 * bells, locks.  With RACES it also stores while a call is under way, at every kill point
 * (base/cp.h) and whenever the call sleeps: what was checked once may not be relied on twice.
 *
 *   - Nothing is read or written outside: the mapping stands alone in a large region without any
 *     access, and the callers' areas are as large as they say.
 *   - Every call ends, with one of the results that its header names, in the time it was given.
 *     The clock and the futex are this file's (the core is compiled against them): a sleep takes no
 *     time but moves the clock, and a sleep without an end is a fault.
 *   - Without a hostile process the mailbox is a queue, which is checked message by message, and so
 *     is its bell; a put is refused for want of room only when there is none.
 */
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cp.h"
#include "base/self.h"
#include "input.h"
#include "shm/mailbox_inside.h"
#include "trireme.h"

/* Under these names the core finds the clock and the futex: see meson.build. */
int fuzz_clock_gettime(clockid_t id, struct timespec *ts);
long fuzz_syscall(long number, ...);

#define CHUNK TRI_MAILBOX_CHUNK
#define MANY 300u                  /* chunks: enough to trim */
#define REGION (UINT64_C(1) << 38) /* chunk numbers and offsets reach no further */
#define PLACE (UINT64_C(1) << 36)  /* where in it the mapping is */
#define LONGEST (3 * CHUNK)
#define MESSAGES 64
#define MS 1000000ll
#define PATIENCE (400 * MS) /* for two locks, and for what a reader does after a message */

enum { HOSTILE = 1, RACES = 2, WATCHED = 4 };

static struct input in;
static struct tri_mailbox box[2]; /* two processes' */
static bool open_[2];
static uint8_t *region[2];
static uint8_t flags;
static bool inside;      /* a call is under way */
static int64_t now = MS; /* the clock */
static uint32_t stores;  /* of the hostile one, in this call */

/* What must be in it, where nobody is hostile. */
static struct {
    size_t len[MESSAGES];
    uint8_t kind[MESSAGES];
    uint32_t first, n, undone;
    uint64_t bytes; /* with their headers */
    uint32_t most;
} model;

/* ------------------------------------------------------------------ the hostile process */

static uint64_t any_place(const struct tri_mailbox *m)
{
    uint64_t chunk = byte(&in) % (m->nchunks + 1), off = number(&in) & 0x3fff;

    return chunk << 44 | off << 30 | (number(&in) & 0x3fffffff);
}

static uint64_t any_holder(void)
{
    switch (byte(&in) & 3) {
    case 0:
        return tri_self_name(); /* lives, and never gives it back */
    case 1:
        return UINT64_C(1) << 32 | 1; /* another process had this number */
    case 2:
        return 1 | TRI_NAME_FOREIGN;
    default:
        return number(&in);
    }
}

static void store_lock(tri_lock *l)
{
    uint8_t how = byte(&in);

    if (how & 1)
        tri_store_rlx(&l->word, any_holder());
    if (how & 2)
        l->ns = number(&in);
    if (how & 4)
        tri_store_rlx(&l->spins, (int32_t)number(&in));
}

static void store_bell(struct tri_mailbox_bell *b)
{
    uint64_t old = tri_load_rlx(&b->word);

    tri_store_rlx(&b->word, byte(&in) & 1 ? number(&in) : (uint32_t)old | number(&in) << 32);
}

static void store_something(struct tri_mailbox *m)
{
    struct tri_mailbox_ctl *ctl = m->ctl;
    uint32_t chunk;
    uint64_t at, value;

    switch (byte(&in) % 14) {
    case 0:
        tri_store_rlx(&ctl->head, any_place(m));
        break;
    case 1:
        tri_store_rlx(&ctl->tail, any_place(m));
        break;
    case 2:
        tri_store_rlx(&ctl->head, number(&in));
        break;
    case 3:
        tri_store_rlx(&ctl->tail, number(&in));
        break;
    case 4: /* most often near another chunk's */
        chunk = byte(&in) % m->nchunks;
        value = byte(&in) & 1
                    ? number(&in)
                    : tri_load_rlx(&m->chunk[byte(&in) % m->nchunks].stamp) + byte(&in) - 128;
        tri_store_rlx(&m->chunk[chunk].stamp, value);
        break;
    case 5:
        chunk = byte(&in) % m->nchunks;
        tri_store_rlx(&m->chunk[chunk].next, (uint32_t)number(&in));
        break;
    case 6: /* the header of the next message, or what is at its place */
        at = tri_load_rlx(&ctl->head);
        value = (uint64_t)byte(&in) << 48 | number(&in);
        at = (at >> 44) * CHUNK + (at >> 30 & 0x3fff) * 8;
        if (at + 8 <= (uint64_t)m->nchunks * CHUNK)
            memcpy(m->data + at, &value, 8);
        break;
    case 7:
        tri_store_rlx(&ctl->cursor, (uint32_t)number(&in));
        tri_store_rlx(&ctl->touched, (uint32_t)number(&in));
        tri_store_rlx(&ctl->top, (uint32_t)number(&in));
        break;
    case 8:
        tri_store_rlx(&ctl->trimmed_ns, number(&in));
        tri_store_rlx(&ctl->begun, number(&in));
        break;
    case 9:
        ctl->most = (uint32_t)number(&in);
        tri_store_rlx(&ctl->watched, byte(&in) & 1);
        break;
    case 10:
        tri_store_rlx(&ctl->done, (uint32_t)number(&in));
        break;
    case 11:
        store_bell((struct tri_mailbox_bell *[]){&ctl->filled, &ctl->emptied,
                                                 &ctl->joined}[byte(&in) % 3]);
        break;
    case 12:
        store_lock(byte(&in) & 1 ? &ctl->readers : &ctl->writers);
        break;
    default:
        at = number(&in) % m->seg.bytes & ~UINT64_C(7);
        value = number(&in);
        memcpy((uint8_t *)m->seg.base + at, &value, 8);
    }
}

/* A call has come to a point at which the hostile one may be quicker. */
static void maybe_store(void)
{
    if (!inside || (flags & (HOSTILE | RACES)) != (HOSTILE | RACES) || (byte(&in) & 7) != 7)
        return;
    stores++;
    store_something(&box[0]);
}

void tri_cp_hit(const char *name)
{
    (void)name;
    maybe_store();
}

int fuzz_clock_gettime(clockid_t id, struct timespec *ts)
{
    (void)id;
    now += 1000;
    *ts = (struct timespec){now / 1000000000, now % 1000000000};
    return 0;
}

long fuzz_syscall(long number_of_it, ...)
{
    const struct timespec *timeout;
    _Atomic uint32_t *word;
    uint32_t expected;
    va_list args;
    int op;

    va_start(args, number_of_it);
    if (number_of_it == SYS_pidfd_open) { /* who looks whether a lock's holder lives */
        pid_t pid = va_arg(args, pid_t);
        unsigned how = va_arg(args, unsigned);

        va_end(args);
        return syscall(SYS_pidfd_open, pid, how);
    }
    require(number_of_it == SYS_futex);
    word = va_arg(args, _Atomic uint32_t *);
    op = va_arg(args, int);
    expected = va_arg(args, uint32_t);
    timeout = va_arg(args, const struct timespec *);
    va_end(args);
    if (op == FUTEX_WAKE)
        return 0;
    require(op == FUTEX_WAIT && timeout);
    require(timeout->tv_sec == 0 && timeout->tv_nsec >= 0 && timeout->tv_nsec <= 100 * MS);
    if (tri_load_sc(word) != expected) {
        errno = EAGAIN;
        return -1;
    }
    now += timeout->tv_nsec;
    maybe_store();
    errno = ETIMEDOUT;
    return -1;
}

/* ------------------------------------------------------------------ mailboxes between guards */

static void guard(int i)
{
    void *p =
        mmap(region[i], REGION, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (region[i] ? MAP_FIXED : 0), -1, 0);

    require(p != MAP_FAILED);
    region[i] = p;
}

/* Move the mapping to where nothing is before it and nothing behind it. */
static void move(int i)
{
    struct tri_mailbox *m = &box[i];
    uint8_t *from = m->seg.base, *to = region[i] + PLACE;

    require(mremap(from, m->seg.bytes, m->seg.bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
    m->seg.base = to;
    m->ctl = (struct tri_mailbox_ctl *)to;
    m->chunk = (struct tri_mailbox_chunk *)(to + ((uint8_t *)m->chunk - from));
    m->data = to + (m->data - from);
    open_[i] = true;
}

static void drop(int i)
{
    if (!open_[i])
        return;
    tri_mailbox_drop(&box[i]);
    require(!box[i].seg.base && box[i].seg.fd < 0 && box[i].bell_fd < 0);
    open_[i] = false;
    guard(i);
}

static void attach(void)
{
    int err;

    drop(1);
    err = tri_mailbox_attach(&box[1], dup(box[0].seg.fd), dup(box[0].bell_fd));
    require(err == 0 || (flags & HOSTILE && err == TRI_ECORRUPT));
    if (!err)
        move(1);
}

/* A segment that is no mailbox, or one of a size that no mailbox has. */
static void attach_other(void)
{
    struct tri_segment s;
    struct tri_mailbox m;
    uint64_t bytes = number(&in) % (8 * CHUNK) + 8, magic = TRI_MAILBOX_MAGIC;
    int err;

    if (tri_segment_make(&s, bytes, true) != 0)
        return;
    if (byte(&in) & 1)
        memcpy(s.base, &magic, 8);
    err = tri_mailbox_attach(&m, dup(s.fd), -1);
    require(err == 0 || err == TRI_ECORRUPT);
    if (!err) {
        require(m.data + (uint64_t)m.nchunks * CHUNK <= (uint8_t *)m.seg.base + m.seg.bytes);
        tri_mailbox_drop(&m);
    }
    tri_segment_drop(&s);
}

/* ------------------------------------------------------------------ calls */

static struct tri_mailbox *either(void)
{
    return &box[open_[1] && byte(&in) & 1];
}

static int64_t began;

static int64_t begin(void)
{
    static const int64_t wait[] = {0, 0, 0, 1, 20 * MS, 150 * MS, 250 * MS, -1};
    int64_t ns = wait[byte(&in) & 7];

    began = now;
    stores = 0;
    inside = true;
    return ns > 0 ? now + ns : ns;
}

/* By its deadline a call has ended, or said that it wants to go on. */
static void end(int err, int64_t deadline)
{
    int64_t most = PATIENCE + (deadline > 0 ? deadline - began : 0);

    inside = false;
    require(now - began <= most + stores * PATIENCE);
    /* Every signal, and every slice of a longer sleep; none of either is in a call of no time. */
    require(err != -EINTR || deadline != 0);
}

static uint8_t pattern(size_t len, uint8_t kind)
{
    return (uint8_t)(len * 7 + kind);
}

static bool hostile(void)
{
    return flags & HOSTILE;
}

/* Chunks from the oldest message to the end of one more of that length. */
static uint64_t span(const struct tri_mailbox *m, size_t len)
{
    uint64_t off = (tri_load_rlx(&m->ctl->head) >> 30 & 0x3fff) * 8;

    off += model.bytes + 8 + len;
    return (off + CHUNK - 1) / CHUNK;
}

static void put(void)
{
    static uint8_t bytes[LONGEST];
    struct tri_mailbox *m = either();
    uint8_t how = byte(&in), kind = byte(&in);
    size_t len = number(&in) % (LONGEST + 1), cut = len ? (size_t)byte(&in) % len : 0;
    struct iovec v[3] = {{bytes, cut}, {NULL, 0}, {bytes + cut, len - cut}};
    bool try_only = how & 1, full = model.most && model.n >= model.most;
    uint64_t chunks = span(m, len);
    int64_t deadline;
    int err;

    if (!hostile() && model.n == MESSAGES)
        return;
    memset(bytes, pattern(len, kind), len);
    deadline = begin();
    err = tri_mailbox_put(m, v, 3, kind, deadline, try_only);
    end(err, try_only ? 0 : deadline);
    require(err == 0 || err == TRI_ETIMEDOUT || err == -EBUSY || err == -EINTR || err == -ENOSPC ||
            err == TRI_ECORRUPT);
    require(!try_only || err != TRI_ETIMEDOUT);
    if (hostile())
        return;
    if (full) {
        require(err == (try_only ? -EBUSY : TRI_ETIMEDOUT) || (err == -EINTR && !try_only));
        return;
    }
    if (err == -ENOSPC) {
        require(chunks > m->nchunks);
        return;
    }
    require(err == 0);
    model.len[(model.first + model.n) % MESSAGES] = len;
    model.kind[(model.first + model.n) % MESSAGES] = kind;
    model.n++;
    model.undone++;
    model.bytes += (8 + len + 7) & ~(size_t)7;
}

static void got(const struct tri_letter *l, const uint8_t *area, size_t cap)
{
    const uint8_t *p = l->big ? l->big : area;
    size_t len = model.len[model.first];
    uint8_t kind = model.kind[model.first], sum = 0;

    require(l->len <= (uint64_t)box[0].nchunks * CHUNK && (l->big || l->len <= cap));
    for (size_t i = 0; i < l->len; i++)
        sum |= (uint8_t)(p[i] ^ pattern(l->len, l->kind));
    if (hostile())
        return;
    require(model.n > 0 && l->len == len && l->kind == kind && sum == 0);
    model.first = (model.first + 1) % MESSAGES;
    model.n--;
    model.bytes -= (8 + len + 7) & ~(size_t)7;
}

static void get(void)
{
    struct tri_mailbox *m = either();
    uint8_t how = byte(&in);
    bool try_only = how & 1, large;
    size_t cap = how >> 1 & 3 ? how >> 3 : (size_t)(how >> 3) << 12;
    uint8_t *area = malloc(cap);
    struct tri_letter l = {NULL, 0, 0};
    int64_t deadline;
    int err;

    require(area || !cap);
    large = model.n && model.len[model.first] > cap;
    deadline = begin();
    err = tri_mailbox_get(m, area, cap, &l, deadline, try_only);
    end(err, try_only ? 0 : deadline);
    require(err == 0 || err == TRI_ETIMEDOUT || err == -EBUSY || err == -EINTR || err == -ENOMEM ||
            err == TRI_ECORRUPT);
    require(!try_only || err != TRI_ETIMEDOUT);
    if (err == 0)
        got(&l, area, cap);
    else if (!hostile() && model.n)
        require(try_only && large && err == -EBUSY);
    else if (!hostile())
        require(try_only ? err == -EBUSY : err == TRI_ETIMEDOUT || err == -EINTR);
    free(l.big);
    free(area);
}

static void await_or_join(bool join)
{
    struct tri_mailbox *m = either();
    int64_t deadline = begin();
    int err = join ? tri_mailbox_join(m, deadline) : tri_mailbox_await(m, deadline);

    end(err, deadline);
    require(err == 0 || err == TRI_ETIMEDOUT || err == -EINTR);
    require(hostile() || (err == 0) == (join ? model.undone == 0 : model.n > 0));
}

static void done(void)
{
    int err;

    begin();
    err = tri_mailbox_done(either());
    end(err, 0);
    require(err == 0 || err == -EINVAL);
    require(hostile() || (err == 0) == (model.undone > 0));
    model.undone -= err == 0 && model.undone;
}

static void watch(void)
{
    int err;

    begin();
    err = tri_mailbox_watch(either());
    end(err, -1);
    require(err == 0 || (hostile() && err == -EINTR));
    flags |= WATCHED;
}

/* Accounts that anybody may ask for at any time. */
static void accounts(void)
{
    struct pollfd p = {.fd = box[0].bell_fd, .events = POLLIN};
    uint32_t n = tri_mailbox_count(&box[0]);
    bool full = tri_mailbox_full(&box[0]);

    if (hostile())
        return;
    require(n == model.n && full == (model.most && model.n >= model.most));
    require(!(flags & WATCHED) || poll(&p, 1, 0) == (model.n > 0));
}

static void step(void)
{
    switch (byte(&in) % 16) {
    case 0:
    case 1:
    case 2:
    case 3:
        put();
        break;
    case 4:
    case 5:
    case 6:
        get();
        break;
    case 7:
    case 8:
    case 9:
    case 10:
        if (hostile())
            store_something(&box[0]);
        break;
    case 11:
        await_or_join(byte(&in) & 1);
        break;
    case 12:
        done();
        break;
    case 13:
        watch();
        break;
    case 14:
        if (byte(&in) & 1)
            attach();
        else
            drop(1);
        break;
    default:
        attach_other();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t chunks;

    in = (struct input){data, data + size};
    memset(&model, 0, sizeof model);
    flags = byte(&in) & (HOSTILE | RACES);
    model.most = byte(&in) % 8;
    chunks = byte(&in);
    if (!region[0]) {
        guard(0);
        guard(1);
    }
    now = MS;
    require(tri_mailbox_make_of(&box[0], model.most,
                                2 * 4096 + (uint64_t)(chunks == 255 ? MANY : 4u + chunks % 24) *
                                               (CHUNK + sizeof(struct tri_mailbox_chunk))) == 0);
    move(0);
    for (int steps = 0; in.p < in.end && steps < 200; steps++) {
        step();
        accounts();
    }
    drop(1);
    drop(0);
    return 0;
}
