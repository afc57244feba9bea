/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * run.c - `trireme run`: scripts side by side, their output as if one had followed the other.
 *
 * One thread, one poll().  At most `limit` jobs run.  What they write is read as it comes into
 * queues (store.h); only the queue of the job whose turn it is, the first that is not yet
 * finished and printed, is written out.  So the first job streams live, the others wait in the
 * queue, and each stream of each job comes out whole.
 *
 * Nothing in the loop blocks.  A reader slower than the scripts stops the live job, as a pipe
 * would, and the others once their queues fill memory and disk.  The job whose turn it is can
 * always be read, so there is always progress.
 *
 * A job goes WAITING -> RUNNING -> ENDED -> DONE.  It is ENDED when its leader has been reaped,
 * and DONE when its process group is empty and its pipes are at their end.  A job that leaves
 * processes behind has GRACE_NS for them to end; then they get SIGTERM, and SIGKILL after
 * KILL_AFTER_NS.  The order is the same when the user interrupts, so nothing is left in the end.
 * This program is the subreaper of what it starts, so that orphans are reaped here too and an
 * empty group is seen as empty; the guard ends everything should this program be killed.
 *
 * A job is a session of its own: Ctrl-C at the terminal reaches this program alone, and a script
 * that asks the terminal for a password fails instead of being stopped for ever.
 */
#include "cli.h"
#include "guard.h"
#include "store.h"
#include "trireme.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MS_NS ((int64_t)1000000)
#define SECOND_NS (1000 * MS_NS)

#define GRACE_NS (500 * MS_NS)        /* for processes a script left behind */
#define KILL_AFTER_NS (2 * SECOND_NS) /* from SIGTERM to SIGKILL */
#define FLUSH_NS (2 * SECOND_NS)      /* without progress, once interrupted */
#define GROUP_POLL_NS (20 * MS_NS)    /* emptiness of a group makes no event */
#define LINE_NS (100 * MS_NS)         /* between two states of the live line */

#define READ_BYTES 65536
#define QUEUE_BYTES ((size_t)64 << 20) /* all waiting output in memory; the rest is on disk */
#define LIVE_BYTES ((size_t)1 << 20)   /* backlog at which the live job has to wait */
#define ATOMIC_BYTES 4096              /* a pipe that is ready takes so much and never blocks */
#define NO_PID 0

enum state { WAITING, RUNNING, ENDED, DONE };

struct job {
    const char *text; /* as the user wrote it */
    char **argv;      /* allocated, with strings of others; NULL: cannot be run */
    char *owned;      /* the one string of argv that had to be made */
    enum state state;
    pid_t pid; /* leader, session and group */
    int fd[2]; /* reading ends of its stdout and stderr; -1: at the end */
    int code;  /* 0..255, 128 + signal */
    int signal;
    bool started;
    int termed;      /* 0: not asked to end, 1: SIGTERM sent, 2: SIGKILL sent */
    int64_t since;   /* when the state changed, or when it was asked to end */
    int64_t took_ns; /* from start to the end of its leader */
    struct tri_queue out;
};

struct run {
    struct job *job;
    int jobs;
    char **args; /* for every script */
    int n_args;
    int limit;
    bool progress, quiet;

    int next;            /* first job that has not started */
    int turn;            /* the job whose output is written out */
    struct job **active; /* RUNNING and ENDED */
    int n_active;
    int done;
    bool hold; /* the system refused one more process: wait until one has ended */

    struct tri_store store;
    struct tri_queue notes; /* lines about jobs, for stderr, before all other output */
    struct tri_guard guard;
    struct pollfd *poll;
    char python[PATH_MAX];
    char *read_buf;
    int null; /* the stdin of every job, opened once: a child may find no room for it */

    int stop;        /* the signal that ends the run, 0: none */
    bool hurry;      /* a second one came */
    int write_error; /* errno of a stdout that failed */
    int64_t began, progressed;

    bool tty[3];     /* is this stream a terminal? */
    bool regular[3]; /* or a file, which takes any amount */
    bool mid_line;   /* the terminal's last line has not ended */
    bool line_shown; /* the live line is on the terminal */
    int64_t line_at; /* when it was drawn */
};

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

static int signals_begin(void)
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

static void signals_restore(void)
{
    for (size_t i = 0; i < N_CAUGHT; i++)
        sigaction(caught[i], &before[i], NULL);
    for (size_t i = 0; i < N_IGNORED; i++)
        sigaction(ignored[i], &before[N_CAUGHT + i], NULL);
}

/* ------------------------------------------------------------------ small things */

static int64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * SECOND_NS + t.tv_nsec;
}

static double seconds(int64_t ns)
{
    return (double)ns / (double)SECOND_NS;
}

/* Is it this job's output that is being written? */
static bool is_live(const struct run *r, const struct job *job)
{
    return r->turn < r->jobs && job == &r->job[r->turn];
}

static void append(struct run *r, struct tri_queue *queue, int stream, const char *data,
                   size_t bytes, bool spill)
{
    if (tri_queue_add(&r->store, queue, stream, data, bytes, spill) == 0)
        return;
    /* Output would be lost from here on; a run that loses output must not look like a good one. */
    if (!r->write_error)
        r->write_error = ENOMEM;
}

static void say_to(struct run *r, struct tri_queue *queue, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* A line of ours among the output of a job, or in the notes. */
static void say_to(struct run *r, struct tri_queue *queue, const char *format, ...)
{
    char text[PATH_MAX + 256];
    va_list args;
    int n;

    va_start(args, format);
    n = vsnprintf(text, sizeof text - 1, format, args);
    va_end(args);
    if (n < 0)
        return;
    if ((size_t)n > sizeof text - 2)
        n = sizeof text - 2;
    text[n] = '\n';
    append(r, queue, 2, text, (size_t)n + 1, false);
}

/* ------------------------------------------------------------------ what a word means */

static void refuse(struct run *r, struct job *job, int code, const char *why)
{
    job->code = code;
    say_to(r, &job->out, "trireme run: %s: %s", job->text, why);
}

/* argv of a job: up to three words, then the ARGS of all. */
static void set_argv(struct run *r, struct job *job, const char *a, const char *b, const char *c)
{
    int n = 0;

    job->argv = calloc((size_t)r->n_args + 5, sizeof *job->argv);
    if (!job->argv) {
        refuse(r, job, TRI_EXIT_NOT_RUN, strerror(ENOMEM));
        return;
    }
    job->argv[n++] = (char *)a;
    if (b)
        job->argv[n++] = (char *)b;
    if (c)
        job->argv[n++] = (char *)c;
    if (c && r->n_args)
        job->argv[n++] = (char *)"sh"; /* $0 of sh -c */
    for (int i = 0; i < r->n_args; i++)
        job->argv[n++] = r->args[i];
}

/* Decide how a word is run; a word that cannot be run says why when its turn comes. */
static void resolve(struct run *r, struct job *job)
{
    const char *text = job->text, *name = text;
    struct stat st;

    if (stat(text, &st) == 0) {
        if (S_ISDIR(st.st_mode)) {
            refuse(r, job, TRI_EXIT_NOT_RUN, "is a directory");
            return;
        }
        if (!strchr(text, '/')) { /* neither an option nor a name on PATH */
            job->owned = malloc(strlen(text) + 3);
            if (!job->owned) {
                refuse(r, job, TRI_EXIT_NOT_RUN, strerror(ENOMEM));
                return;
            }
            strcpy(job->owned, "./");
            strcat(job->owned, text);
            name = job->owned;
        }
        if (tri_ends_with(text, ".py")) {
            if (!r->python[0] && !tri_find_python(r->python, sizeof r->python)) {
                r->python[0] = '\0';
                refuse(r, job, TRI_EXIT_NOT_FOUND, "no Python found; set TRIREME_PYTHON");
                return;
            }
            /* A plain name stays plain, as in `python3 a.py`, so that argv[0] is the same. */
            set_argv(r, job, r->python, text[0] == '-' ? name : text, NULL);
        } else if (tri_ends_with(text, ".sh")) {
            set_argv(r, job, "/bin/sh", text[0] == '-' ? name : text, NULL);
        } else if (access(text, X_OK) == 0) {
            set_argv(r, job, name, NULL, NULL);
        } else {
            refuse(r, job, TRI_EXIT_NOT_RUN, "not executable, and neither .py nor .sh");
        }
    } else if (strpbrk(text, " \t\n")) {
        if (r->n_args) {
            job->owned = malloc(strlen(text) + 6);
            if (!job->owned) {
                refuse(r, job, TRI_EXIT_NOT_RUN, strerror(ENOMEM));
                return;
            }
            strcpy(job->owned, text);
            strcat(job->owned, " \"$@\"");
            name = job->owned;
        }
        set_argv(r, job, "/bin/sh", "-c", name);
    } else if (strchr(text, '/') || tri_ends_with(text, ".py") || tri_ends_with(text, ".sh")) {
        refuse(r, job, TRI_EXIT_NOT_FOUND, strerror(errno));
    } else {
        char path[PATH_MAX];

        if (tri_find_program(text, path, sizeof path))
            set_argv(r, job, text, NULL, NULL);
        else
            refuse(r, job, TRI_EXIT_NOT_FOUND, "no such script, and no such command on PATH");
    }
}

/* ------------------------------------------------------------------ starting */

_Noreturn static void child(const struct run *r, const struct job *job, int out, int err,
                            pid_t parent, const sigset_t *mask)
{
    int why;

    setsid();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(TRI_EXIT_NOT_RUN);
    tri_guard_add(&r->guard, getpid());
    if (dup2(r->null, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0)
        _exit(TRI_EXIT_NOT_RUN);
    signals_restore();
    sigprocmask(SIG_SETMASK, mask, NULL);
    execvp(job->argv[0], job->argv);
    why = errno;
    dprintf(2, "trireme run: %s: %s\n", job->text, strerror(why));
    _exit(why == ENOENT ? TRI_EXIT_NOT_FOUND : TRI_EXIT_NOT_RUN);
}

/* @return 0, or -errno with nothing left open */
static int job_start(struct run *r, struct job *job)
{
    int out[2], err[2], failed;
    sigset_t all, mask;
    pid_t parent = getpid(), pid;

    if (pipe2(out, O_CLOEXEC) < 0)
        return -errno;
    if (pipe2(err, O_CLOEXEC) < 0) {
        failed = -errno;
        goto close_out;
    }
    /* Until the child has its own handlers back, a signal must not run ours in it. */
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &mask);
    pid = fork();
    if (pid == 0)
        child(r, job, out[1], err[1], parent, &mask);
    failed = pid < 0 ? -errno : 0;
    sigprocmask(SIG_SETMASK, &mask, NULL);
    if (failed)
        goto close_err;

    close(out[1]);
    close(err[1]);
    job->fd[0] = out[0];
    job->fd[1] = err[0];
    for (int i = 0; i < 2; i++)
        fcntl(job->fd[i], F_SETFL, O_NONBLOCK);
    job->pid = pid;
    job->started = true;
    job->state = RUNNING;
    job->since = now_ns();
    r->active[r->n_active++] = job;
    return 0;

close_err:
    close(err[0]);
    close(err[1]);
close_out:
    close(out[0]);
    close(out[1]);
    return failed;
}

static void job_done(struct run *r, struct job *job);

static void start_more(struct run *r)
{
    while (!r->stop && !r->hold && r->next < r->jobs && r->n_active < r->limit) {
        struct job *job = &r->job[r->next];
        int err;

        resolve(r, job);
        if (!job->argv) {
            r->next++;
            job_done(r, job);
            continue;
        }
        err = job_start(r, job);
        if (err && r->n_active > 0) { /* there will be room when one of them has ended */
            free(job->argv);
            free(job->owned);
            job->argv = NULL;
            job->owned = NULL;
            r->hold = true;
            return;
        }
        r->next++;
        if (err) {
            refuse(r, job, TRI_EXIT_NOT_RUN, strerror(-err));
            job_done(r, job);
        }
    }
}

/* ------------------------------------------------------------------ ending */

static const char *outcome(const struct job *job, char *text, size_t bytes)
{
    if (job->signal)
        snprintf(text, bytes, "killed by signal %d, %s", job->signal, strsignal(job->signal));
    else
        snprintf(text, bytes, "exit %d", job->code);
    return text;
}

static void job_done(struct run *r, struct job *job)
{
    char text[128];

    for (int i = 0; i < 2; i++) {
        if (job->fd[i] >= 0)
            close(job->fd[i]);
        job->fd[i] = -1;
    }
    if (job->pid != NO_PID)
        tri_guard_remove(&r->guard, job->pid);
    job->state = DONE;
    r->hold = false;
    r->done++;
    for (int i = 0; i < r->n_active; i++) {
        if (r->active[i] == job) {
            r->active[i] = r->active[--r->n_active];
            break;
        }
    }
    if (r->progress && !r->tty[2])
        say_to(r, &r->notes, "[%d/%d] %s: %s, %.2f s", r->done, r->jobs, job->text,
               outcome(job, text, sizeof text), seconds(job->took_ns));
}

/* Signal a job's whole group; a group that the child has not made yet is the child alone. */
static void job_signal(const struct job *job, int sig)
{
    if (kill(-job->pid, sig) < 0 && errno == ESRCH && job->state == RUNNING)
        kill(job->pid, sig);
}

static void job_terminate(struct job *job, int64_t now)
{
    job->termed = 1;
    job->since = now;
    job_signal(job, SIGTERM);
    job_signal(job, SIGCONT); /* a stopped process would never see it */
}

static void job_kill(struct job *job, int64_t now)
{
    job->termed = 2;
    job->since = now;
    job_signal(job, SIGKILL);
}

static void reap(struct run *r, int64_t now)
{
    int status;
    pid_t pid;

    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        if (pid == r->guard.pid)
            r->guard.pid = 0;
        for (int i = 0; i < r->n_active; i++) {
            struct job *job = r->active[i];

            if (job->pid != pid || job->state != RUNNING)
                continue;
            job->signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
            job->code = job->signal ? 128 + job->signal : WEXITSTATUS(status);
            job->took_ns = now - job->since;
            if (!job->termed)
                job->since = now;
            job->state = ENDED;
            break;
        }
    }
}

static bool may_read(struct run *r, const struct job *job)
{
    if (is_live(r, job))
        return job->out.bytes < LIVE_BYTES;
    return !tri_store_full(&r->store);
}

/* Bring one job forward as far as time and its processes allow. */
static void job_step(struct run *r, struct job *job, int64_t now)
{
    bool open = job->fd[0] >= 0 || job->fd[1] >= 0;

    if (job->state == ENDED) {
        bool left = kill(-job->pid, 0) == 0 || errno == EPERM;

        if (open && !may_read(r, job) && job->termed == 0)
            job->since = now; /* it waits for us, not we for it */
        /* A pipe may be held by a process that has left the group: not ours to end or wait for. */
        if (!left && (!open || now - job->since >= GRACE_NS)) {
            job_done(r, job);
            return;
        }
        if (job->termed == 0 && now - job->since >= GRACE_NS) {
            say_to(r, &job->out, "trireme run: %s: ending processes that it left behind",
                   job->text);
            job_terminate(job, now);
        }
    }
    if (job->termed == 1 && (now - job->since >= KILL_AFTER_NS || r->hurry))
        job_kill(job, now);
    else if (job->termed == 2 && job->state == ENDED && now - job->since >= GRACE_NS)
        job_done(r, job); /* what SIGKILL does not end, nothing ends */
}

static void stop_all(struct run *r, int sig, int64_t now)
{
    r->stop = sig;
    r->progressed = now;
    for (int i = 0; i < r->n_active; i++)
        job_terminate(r->active[i], now);
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
        n += snprintf(text + n, (size_t)(width - n), " %s", r->active[i]->text);
    line_hide(r);
    r->line_shown = write(2, text, strlen(text)) > 0;
    r->line_at = now;
}

/* ------------------------------------------------------------------ moving bytes */

static void job_read(struct run *r, struct job *job, int which)
{
    ssize_t n;

    if (!may_read(r, job))
        return;
    n = read(job->fd[which], r->read_buf, READ_BYTES);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        close(job->fd[which]);
        job->fd[which] = -1;
        return;
    }
    append(r, &job->out, which + 1, r->read_buf, (size_t)n, !is_live(r, job));
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
        bool want = may_read(r, job);

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
        job_signal(r->active[i], SIGSTOP);
    raise(SIGSTOP);
    for (int i = 0; i < r->n_active; i++)
        job_signal(r->active[i], SIGCONT);
}

static void handle_signals(struct run *r, int64_t now)
{
    char drain[64];

    while (read(wake_fd[0], drain, sizeof drain) > 0)
        continue;
    if (stop_signal && !r->stop)
        stop_all(r, stop_signal, now);
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

static void loop(struct run *r)
{
    int64_t now = now_ns();

    r->began = r->progressed = now;
    for (;;) {
        start_more(r);
        advance(r);
        if (finished(r, now))
            break;
        wait_for_events(r, now);
        now = now_ns();
        handle_signals(r, now);
        /*
         * A job's end is looked for before its pipes are read, and job_step() is last: what the
         * job wrote has been read when its pipes are found at their end.
         */
        reap(r, now);
        for (int i = 0; i < r->n_active; i++) {
            for (int k = 0; k < 2; k++) {
                const struct pollfd *p = &r->poll[2 + 2 * i + k];

                if (p->fd >= 0 && p->fd == r->active[i]->fd[k] && p->revents)
                    job_read(r, r->active[i], k);
            }
        }
        write_some(r, now);
        if (r->write_error && !r->stop)
            stop_all(r, r->write_error == EPIPE ? SIGPIPE : SIGTERM, now);
        for (int i = r->n_active - 1; i >= 0; i--)
            job_step(r, r->active[i], now);
    }
    line_hide(r);
}

/* ------------------------------------------------------------------ the end */

static int worst(const struct run *r)
{
    int code = 0;

    for (int i = 0; i < r->jobs; i++) {
        if (r->job[i].code > code)
            code = r->job[i].code;
    }
    return code;
}

static void summary(const struct run *r)
{
    int64_t wall = now_ns() - r->began, sum = 0;
    int failed = 0, unstarted = 0;

    for (int i = 0; i < r->jobs; i++) {
        const struct job *job = &r->job[i];

        sum += job->took_ns;
        if (job->state == DONE)
            failed += job->code != 0;
        else
            unstarted++;
    }
    fprintf(stderr, "trireme run: %d script%s in %.2f s", r->jobs, r->jobs == 1 ? "" : "s",
            seconds(wall));
    if (failed)
        fprintf(stderr, ", %d failed", failed);
    if (unstarted)
        fprintf(stderr, ", %d not started", unstarted);
    fprintf(stderr, "; their times add up to %.2f s: speed-up %.2f\n", seconds(sum),
            wall > 0 ? (double)sum / (double)wall : 1.0);
    fprintf(stderr, "  exit      time  script\n");
    for (int i = 0; i < r->jobs; i++) {
        const struct job *job = &r->job[i];

        if (job->started)
            fprintf(stderr, "  %4d %7.2f s  %s", job->code, seconds(job->took_ns), job->text);
        else if (job->state == DONE)
            fprintf(stderr, "  %4d         -  %s", job->code, job->text);
        else
            fprintf(stderr, "     -         -  %s", job->text);
        if (job->signal)
            fprintf(stderr, " (%s)", strsignal(job->signal));
        fputc('\n', stderr);
    }
}

static int run_jobs(struct run *r)
{
    struct stat st;
    int err, code;

    if (r->limit > r->jobs)
        r->limit = r->jobs;
    tri_store_init(&r->store, QUEUE_BYTES);
    for (int fd = 1; fd <= 2; fd++) {
        r->tty[fd] = isatty(fd);
        r->regular[fd] = fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
    }
    r->active = calloc((size_t)r->limit, sizeof *r->active);
    r->poll = calloc((size_t)r->limit * 2 + 2, sizeof *r->poll);
    r->read_buf = malloc(READ_BYTES);
    r->null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (r->null < 0)
        err = -errno;
    else
        err = r->active && r->poll && r->read_buf ? signals_begin() : -ENOMEM;
    if (!err)
        err = tri_guard_start(&r->guard, r->limit);
    if (err) {
        tri_complain("run", "cannot start: %s", strerror(-err));
        code = TRI_EXIT_FAILED;
        goto free_all;
    }
    prctl(PR_SET_CHILD_SUBREAPER, 1);

    loop(r);

    tri_guard_end(&r->guard);
    if (!r->quiet)
        summary(r);
    code = worst(r);
    if (r->write_error && r->write_error != EPIPE) {
        tri_complain("run", "cannot write the scripts' output: %s", strerror(r->write_error));
        code = TRI_EXIT_FAILED;
    } else if (r->stop) {
        code = 128 + r->stop;
    }
free_all:
    for (int i = 0; i < r->jobs; i++) {
        tri_queue_clear(&r->store, &r->job[i].out);
        free(r->job[i].argv);
        free(r->job[i].owned);
    }
    tri_queue_clear(&r->store, &r->notes);
    tri_store_end(&r->store);
    if (r->null >= 0)
        close(r->null);
    free(r->active);
    free(r->poll);
    free(r->read_buf);
    return code;
}

/* ------------------------------------------------------------------ the command line */

#define USAGE "usage: trireme run [-j N] [-q] [--progress] [--] SCRIPT... [-- ARGS]"

static void help(void)
{
    printf(USAGE
           "\n\n"
           "Runs scripts side by side.  The output of each comes out whole and in the order\n"
           "given; the first one not yet finished is shown live.\n\n"
           "  -j, --jobs N   at most N at once (default: the CPUs that may be used, %d here)\n"
           "  --progress     show on stderr what has ended and what runs\n"
           "  -q, --quiet    no summary at the end\n"
           "  -- ARGS        arguments that every script gets\n\n"
           "SCRIPT is a .py file (run by $TRIREME_PYTHON, else the Python of this virtual\n"
           "environment, else python3), a .sh file (run by sh), an executable file, a command\n"
           "on PATH, or a line with spaces (run by sh -c, ARGS at its end).  Their stdin is\n"
           "empty.  Python keeps back what it prints to a pipe; PYTHONUNBUFFERED=1 shows it\n"
           "at once.\n\n"
           "Exit code: the highest of the scripts' codes; 128 + N for one that signal N\n"
           "killed, 127 for one that was not found, 126 for one that cannot be run; 128 + N\n"
           "when signal N (Ctrl-C: 130) stopped the run, which ends every script: SIGTERM,\n"
           "and SIGKILL 2 s later or at the second Ctrl-C.\n",
           tri_cpu_count(0));
}

/* A positive number, 0 for anything else. */
static int count_of(const char *text)
{
    int n = 0;

    for (; *text >= '0' && *text <= '9' && n < 100000; text++)
        n = n * 10 + (*text - '0');
    return *text ? 0 : n;
}

static int usage_error(const char *what, const char *word)
{
    tri_complain("run", "%s%s; " USAGE, what, word);
    return TRI_EXIT_USAGE;
}

int tri_cmd_run(int argc, char **argv)
{
    struct run r = {.limit = 0};
    bool options = true;
    int code, i;

    r.job = calloc((size_t)argc, sizeof *r.job);
    if (!r.job) {
        tri_complain("run", "cannot start: %s", strerror(ENOMEM));
        return TRI_EXIT_FAILED;
    }
    code = TRI_EXIT_USAGE;
    for (i = 1; i < argc; i++) {
        const char *word = argv[i], *count = NULL;

        if (!strcmp(word, "--")) {
            if (!options || r.jobs > 0)
                break;
            options = false;
            continue;
        }
        if (!options || word[0] != '-' || !word[1]) {
            if (!*word) {
                usage_error("an empty SCRIPT", word);
                goto free_job;
            }
            r.job[r.jobs++] = (struct job){.text = word, .pid = NO_PID, .fd = {-1, -1}};
        } else if (!strcmp(word, "-h") || !strcmp(word, "--help")) {
            help();
            code = 0;
            goto free_job;
        } else if (!strcmp(word, "-q") || !strcmp(word, "--quiet")) {
            r.quiet = true;
        } else if (!strcmp(word, "--progress")) {
            r.progress = true;
        } else if (!strcmp(word, "-j") || !strcmp(word, "--jobs")) {
            count = i + 1 < argc ? argv[++i] : "";
        } else if (!strncmp(word, "-j", 2)) {
            count = word + 2;
        } else if (!strncmp(word, "--jobs=", 7)) {
            count = word + 7;
        } else {
            usage_error("unknown option ", word);
            goto free_job;
        }
        if (count && (r.limit = count_of(count)) == 0) {
            usage_error("-j wants a positive number, not ", *count ? count : "nothing");
            goto free_job;
        }
    }
    if (r.jobs == 0) {
        usage_error("no SCRIPT", "");
        goto free_job;
    }
    if (i < argc) {
        r.args = argv + i + 1;
        r.n_args = argc - i - 1;
    }
    if (r.limit == 0)
        r.limit = tri_cpu_count(0);
    code = run_jobs(&r);
free_job:
    free(r.job);
    return code;
}
