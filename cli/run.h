/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * run.h - what the files of `trireme run` share: run.c, run_job.c and run_loop.c.
 *
 * There is one struct run and one thread that touches it; the signal handler has its own words.
 */
#ifndef TRI_CLI_RUN_H
#define TRI_CLI_RUN_H

#include "guard.h"
#include "store.h"

#include <limits.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#define MS_NS ((int64_t)1000000)
#define SECOND_NS (1000 * MS_NS)

#define READ_BYTES 65536 /* of read_buf */
#define NO_PID 0

enum state { WAITING, RUNNING, ENDED, DONE };

struct job {
    const char *text;  /* as the user wrote it */
    const char *label; /* for people: on one line */
    char **argv;       /* allocated, with strings of others; NULL: cannot be run */
    char *owned;       /* the one string of argv that had to be made */
    enum state state;
    pid_t pid; /* leader, session and group */
    int fd[2]; /* reading ends of its stdout and stderr; -1: at the end */
    int code;  /* 0..255, 128 + signal */
    int signal;
    bool started;
    int termed;      /* 0: not asked to end, 1: SIGTERM sent, 2: SIGKILL sent */
    int64_t began;   /* when its leader was started */
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

static inline int64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * SECOND_NS + t.tv_nsec;
}

static inline double seconds(int64_t ns)
{
    return (double)ns / (double)SECOND_NS;
}

/* Is it this job's output that is being written? */
static inline bool is_live(const struct run *r, const struct job *job)
{
    return r->turn < r->jobs && job == &r->job[r->turn];
}

/* ------------------------------------------------------------------ run_job.c */

/* Put output of a job, or a line about it, into a queue; output lost is noted in write_error. */
void tri_run_append(struct run *r, struct tri_queue *queue, int stream, const char *data,
                    size_t bytes, bool spill);

/* Start jobs while there is room for one more. */
void tri_run_start_more(struct run *r);

/* Take every child that has ended. */
void tri_run_reap(struct run *r, int64_t now);

/* Is there room for more output of this job? */
bool tri_run_may_read(struct run *r, const struct job *job);

/* Bring one job forward as far as time and its processes allow. */
void tri_run_job_step(struct run *r, struct job *job, int64_t now);

/* Signal a job's whole group; a group that the child has not made yet is the child alone. */
void tri_run_job_signal(const struct job *job, int sig);

/* Start no more jobs, and ask those that run to end. */
void tri_run_stop_all(struct run *r, int sig, int64_t now);

/* ------------------------------------------------------------------ run_loop.c */

/* @return 0, or -errno with nothing changed */
int tri_run_signals_begin(void);

/* In a child, before it becomes the script: handlers are as this program found them. */
void tri_run_signals_restore(void);

/* Run every job to its end, or to the end of their group when a signal stops the run. */
void tri_run_loop(struct run *r);

#endif
