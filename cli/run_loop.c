/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * run_loop.c - the loop of `trireme run`: signals, the live line, and bytes from jobs to streams.
 *
 * One thread, one poll().  At most `limit` jobs run.  What they write is read as it comes into
 * queues (store.h); only the queue of the job whose turn it is, the first that is not yet
 * finished and printed, is written out.  So the first job streams live, the others wait in the
 * queue, and each stream of each job comes out whole.
 *
 * Nothing in the loop blocks.  A reader slower than the scripts stops the live job, as a pipe
 * would, and the others once their queues fill memory and disk.  The job whose turn it is can
 * always be read, so there is always progress.
 */
#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define FLUSH_NS (2 * SECOND_NS)   /* without progress, once interrupted */
#define GROUP_POLL_NS (20 * MS_NS) /* emptiness of a group makes no event */
#define LINE_NS (100 * MS_NS)      /* between two states of the live line */

#define ATOMIC_BYTES 4096 /* a pipe that is ready takes so much and never blocks */

/* ------------------------------------------------------------------ signals */

static const int caught[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGCHLD, SIGTSTP};
static const int ignored[] = {SIGPIPE, SIGXFSZ}; /* both are errors of write() here */

#define N_CAUGHT (sizeof caught / sizeof *caught)
#define N_IGNORED (sizeof ignored / sizeof *ignored)

static volatile sig_atomic_t stop_signal, stop_count, suspend;
static int wake_fd[2] = {-1, -1};
static struct sigaction before[N_CAUGHT + N_IGNORED];

static void on_signal(int sig)
{
    int saved = errno;

    if (sig == SIGTSTP) {
        suspend = 1;
    } else if (sig != SIGCHLD) {
        if (!stop_signal)
            stop_signal = sig;
        stop_count++;
    }
    if (write(wake_fd[1], "", 1) < 0) {
        /* The pipe is full of wake-ups already. */
    }
    errno = saved;
}

int tri_run_signals_begin(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_NOCLDSTOP};

    if (pipe2(wake_fd, O_CLOEXEC | O_NONBLOCK) < 0)
        return -errno;
    sigfillset(&action.sa_mask);
    for (size_t i = 0; i < N_CAUGHT; i++) {
        sigaction(caught[i], NULL, &before[i]);
        /* What was ignored stays so, as for a job that a shell put in the background. */
        if (before[i].sa_handler != SIG_IGN || caught[i] == SIGCHLD)
            sigaction(caught[i], &action, NULL);
    }
    action.sa_handler = SIG_IGN;
    for (size_t i = 0; i < N_IGNORED; i++)
        sigaction(ignored[i], &action, &before[N_CAUGHT + i]);
    return 0;
}

void tri_run_signals_restore(void)
{
    for (size_t i = 0; i < N_CAUGHT; i++)
        sigaction(caught[i], &before[i], NULL);
    for (size_t i = 0; i < N_IGNORED; i++)
        sigaction(ignored[i], &before[N_CAUGHT + i], NULL);
}

/* ------------------------------------------------------------------ the live line */

static void line_hide(struct run *r)
{
    static const char erase[] = "\r\033[K";

    if (r->line_shown && write(2, erase, sizeof erase - 1) < 0)
        r->progress = false;
    r->line_shown = false;
}

static void line_show(struct run *r, int64_t now)
{
    char text[512];
    struct winsize size;
    int width = 79, n;

    if (!r->progress || !r->tty[2] || r->mid_line || now - r->line_at < LINE_NS)
        return;
    if (ioctl(2, TIOCGWINSZ, &size) == 0 && size.ws_col > 1)
        width = size.ws_col - 1;
    if (width > (int)sizeof text - 8)
        width = (int)sizeof text - 8;
    n = snprintf(text, (size_t)width, "[%d/%d] %.1f s", r->done, r->jobs, seconds(now - r->began));
    for (int i = 0; i < r->n_active && n < width; i++)
        n += snprintf(text + n, (size_t)(width - n), " %s", r->active[i]->label);
    line_hide(r);
    r->line_shown = write(2, text, strlen(text)) > 0;
    r->line_at = now;
}

/* ------------------------------------------------------------------ moving bytes */

static void job_read(struct run *r, struct job *job, int which)
{
    ssize_t n;

    if (!tri_run_may_read(r, job))
        return;
    n = read(job->fd[which], r->read_buf, READ_BYTES);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        close(job->fd[which]);
        job->fd[which] = -1;
        return;
    }
    tri_run_append(r, &job->out, which + 1, r->read_buf, (size_t)n, !is_live(r, job));
}

/* The queue to write from now; NULL when there is nothing to write. */
static struct tri_queue *queue_out(struct run *r)
{
    if (r->notes.bytes)
        return &r->notes;
    if (r->turn < r->jobs && r->job[r->turn].out.bytes)
        return &r->job[r->turn].out;
    return NULL;
}

/* Pass the turn on over jobs that are finished and printed. */
static void advance(struct run *r)
{
    while (r->turn < r->jobs && !r->job[r->turn].out.bytes &&
           (r->job[r->turn].state == DONE || (r->stop && r->turn >= r->next)))
        r->turn++;
}

/* Write one piece of one queue to a stream that poll() said is ready. */
static void write_piece(struct run *r, struct tri_queue *queue, int64_t now)
{
    const char *data;
    int stream;
    size_t bytes;
    ssize_t n;

    data = tri_queue_peek(&r->store, queue, r->read_buf,
                          r->regular[tri_queue_stream(queue)] ? READ_BYTES : ATOMIC_BYTES, &stream,
                          &bytes);
    if (!data) {
        r->write_error = EIO;
        tri_queue_clear(&r->store, queue);
        return;
    }
    if (r->tty[stream] || r->tty[2])
        line_hide(r);
    n = write(stream, data, bytes);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n < 0) {
        int err = errno;

        tri_queue_drop(&r->store, queue, bytes);
        if (stream != 1) /* a reason that cannot be given is no reason to stop */
            return;
        if (!r->write_error)
            r->write_error = err;
        return;
    }
    if (r->tty[stream] && n > 0)
        r->mid_line = data[n - 1] != '\n';
    tri_queue_drop(&r->store, queue, (size_t)n);
    r->progressed = now;
}

/* Write while it neither blocks nor keeps the readers waiting for long. */
static void write_some(struct run *r, int64_t now)
{
    for (size_t i = 0; i < READ_BYTES / ATOMIC_BYTES; i++) {
        struct tri_queue *queue = queue_out(r);
        struct pollfd ready = {.events = POLLOUT};

        if (!queue)
            return;
        ready.fd = tri_queue_stream(queue);
        if (poll(&ready, 1, 0) <= 0)
            return;
        write_piece(r, queue, now);
        advance(r);
    }
}

/* ------------------------------------------------------------------ the loop */

static void wait_for_events(struct run *r, int64_t now)
{
    struct tri_queue *queue = queue_out(r);
    int64_t timeout = -1;
    int n = 0;

    r->poll[n++] = (struct pollfd){.fd = wake_fd[0], .events = POLLIN};
    r->poll[n++] = (struct pollfd){.fd = queue ? tri_queue_stream(queue) : -1, .events = POLLOUT};
    for (int i = 0; i < r->n_active; i++) {
        struct job *job = r->active[i];
        bool want = tri_run_may_read(r, job);

        for (int k = 0; k < 2; k++)
            r->poll[n++] = (struct pollfd){.fd = want ? job->fd[k] : -1, .events = POLLIN};
        if (job->state == ENDED || job->termed)
            timeout = GROUP_POLL_NS;
    }
    if (r->progress && r->tty[2] && timeout < 0)
        timeout = LINE_NS;
    if (r->stop && timeout < 0)
        timeout = FLUSH_NS / 10;
    line_show(r, now);
    if (poll(r->poll, (nfds_t)n, timeout < 0 ? -1 : (int)(timeout / MS_NS)) < 0) {
        for (int i = 0; i < n; i++)
            r->poll[i].revents = 0;
    }
}

/* Ctrl-Z: the jobs stop with us and go on with us. */
static void suspend_all(struct run *r)
{
    suspend = 0;
    line_hide(r);
    for (int i = 0; i < r->n_active; i++)
        tri_run_job_signal(r->active[i], SIGSTOP);
    raise(SIGSTOP);
    for (int i = 0; i < r->n_active; i++)
        tri_run_job_signal(r->active[i], SIGCONT);
}

static void handle_signals(struct run *r, int64_t now)
{
    char drain[64];

    while (read(wake_fd[0], drain, sizeof drain) > 0)
        continue;
    if (stop_signal && !r->stop)
        tri_run_stop_all(r, stop_signal, now);
    if (stop_count > 1)
        r->hurry = true;
    if (suspend && !r->stop)
        suspend_all(r);
}

static bool finished(const struct run *r, int64_t now)
{
    if (r->n_active > 0 || (!r->stop && r->next < r->jobs))
        return false;
    if (r->stop && (r->hurry || r->write_error || now - r->progressed > FLUSH_NS))
        return true;
    return r->turn == r->jobs && !r->notes.bytes;
}

void tri_run_loop(struct run *r)
{
    int64_t now = now_ns();

    r->began = r->progressed = now;
    for (;;) {
        tri_run_start_more(r);
        advance(r);
        if (finished(r, now))
            break;
        wait_for_events(r, now);
        now = now_ns();
        handle_signals(r, now);
        /*
         * A job's end is looked for before its pipes are read, and tri_run_job_step() is last:
         * what the job wrote has been read when its pipes are found at their end.
         */
        tri_run_reap(r, now);
        for (int i = 0; i < r->n_active; i++) {
            for (int k = 0; k < 2; k++) {
                const struct pollfd *p = &r->poll[2 + 2 * i + k];

                if (p->fd >= 0 && p->fd == r->active[i]->fd[k] && p->revents)
                    job_read(r, r->active[i], k);
            }
        }
        write_some(r, now);
        if (r->write_error && !r->stop)
            tri_run_stop_all(r, r->write_error == EPIPE ? SIGPIPE : SIGTERM, now);
        for (int i = r->n_active - 1; i >= 0; i--)
            tri_run_job_step(r, r->active[i], now);
    }
    line_hide(r);
}
