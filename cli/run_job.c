/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * run_job.c - one job of `trireme run`, from the word that names it to the end of its processes.
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
#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define GRACE_NS (500 * MS_NS)        /* for processes a script left behind */
#define KILL_AFTER_NS (2 * SECOND_NS) /* from SIGTERM to SIGKILL */

#define LIVE_BYTES ((size_t)1 << 20) /* backlog at which the live job has to wait */

/* ------------------------------------------------------------------ small things */

void tri_run_append(struct run *r, struct tri_queue *queue, int stream, const char *data,
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
    tri_run_append(r, queue, 2, text, (size_t)n + 1, false);
}

/* ------------------------------------------------------------------ what a word means */

static void refuse(struct run *r, struct job *job, int code, const char *why)
{
    job->code = code;
    say_to(r, &job->out, "trireme run: %s: %s", job->label, why);
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

static const char *no_python(char *why, size_t bytes)
{
    const char *chosen = getenv("TRIREME_PYTHON");

    if (!chosen || !*chosen)
        return "there is no python3 on PATH; set TRIREME_PYTHON";
    snprintf(why, bytes, "TRIREME_PYTHON is \"%s\", which is no program", chosen);
    return why;
}

/* Decide how a word is run; a word that cannot be run says why when its turn comes. */
static void resolve(struct run *r, struct job *job)
{
    const char *text = job->text, *name = text;
    char why[PATH_MAX + 64];
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
                refuse(r, job, TRI_EXIT_NOT_FOUND, no_python(why, sizeof why));
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
    const char *what = "";
    int why;

    setsid();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(TRI_EXIT_NOT_RUN);
    tri_guard_add(&r->guard, getpid());
    if (dup2(r->null, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0)
        _exit(TRI_EXIT_NOT_RUN);
    tri_run_signals_restore();
    sigprocmask(SIG_SETMASK, mask, NULL);
    execvp(job->argv[0], job->argv);
    why = errno;
    /* Said of a file that is there, it is meant of another. */
    if (why == ENOENT && strchr(job->argv[0], '/') && access(job->argv[0], F_OK) == 0)
        what = "the interpreter that its first line names is missing: ";
    dprintf(2, "trireme run: %s: %s%s\n", job->label, what, strerror(why));
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
    job->began = job->since = now_ns();
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

void tri_run_start_more(struct run *r)
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
        say_to(r, &r->notes, "[%d/%d] %s: %s, %.2f s", r->done, r->jobs, job->label,
               outcome(job, text, sizeof text), seconds(job->took_ns));
}

void tri_run_job_signal(const struct job *job, int sig)
{
    if (kill(-job->pid, sig) < 0 && errno == ESRCH && job->state == RUNNING)
        kill(job->pid, sig);
}

static void job_terminate(struct job *job, int64_t now)
{
    job->termed = 1;
    job->since = now;
    tri_run_job_signal(job, SIGTERM);
    tri_run_job_signal(job, SIGCONT); /* a stopped process would never see it */
}

static void job_kill(struct job *job, int64_t now)
{
    job->termed = 2;
    job->since = now;
    tri_run_job_signal(job, SIGKILL);
}

void tri_run_reap(struct run *r, int64_t now)
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
            job->took_ns = now - job->began;
            if (!job->termed)
                job->since = now;
            job->state = ENDED;
            break;
        }
    }
}

bool tri_run_may_read(struct run *r, const struct job *job)
{
    if (is_live(r, job))
        return job->out.bytes < LIVE_BYTES;
    return !tri_store_full(&r->store);
}

void tri_run_job_step(struct run *r, struct job *job, int64_t now)
{
    bool open = job->fd[0] >= 0 || job->fd[1] >= 0;

    if (job->state == ENDED) {
        bool left = kill(-job->pid, 0) == 0 || errno == EPERM;

        if (open && !tri_run_may_read(r, job) && job->termed == 0)
            job->since = now; /* it waits for us, not we for it */
        /* A pipe may be held by a process that has left the group: not ours to end or wait for. */
        if (!left && (!open || now - job->since >= GRACE_NS)) {
            job_done(r, job);
            return;
        }
        if (job->termed == 0 && now - job->since >= GRACE_NS) {
            say_to(r, &job->out, "trireme run: %s: ending processes that it left behind",
                   job->label);
            job_terminate(job, now);
        }
    }
    if (job->termed == 1 && (now - job->since >= KILL_AFTER_NS || r->hurry))
        job_kill(job, now);
    else if (job->termed == 2 && job->state == ENDED && now - job->since >= GRACE_NS)
        job_done(r, job); /* what SIGKILL does not end, nothing ends */
}

void tri_run_stop_all(struct run *r, int sig, int64_t now)
{
    r->stop = sig;
    r->progressed = now;
    for (int i = 0; i < r->n_active; i++)
        job_terminate(r->active[i], now);
}
