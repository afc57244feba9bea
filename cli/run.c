/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * run.c - `trireme run`: scripts side by side, their output as if one had followed the other.
 *
 * Here is the command: its options, what it sets up, the summary and the exit code.  run_job.c has
 * the life of one script, run_loop.c the loop that they all run in.
 */
#include "run.h"
#include "cli.h"
#include "trireme.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define MANY 100000                    /* scripts at once: nobody means more */
#define QUEUE_BYTES ((size_t)64 << 20) /* all waiting output in memory; the rest is on disk */

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
            fprintf(stderr, "  %4d %7.2f s  %s", job->code, seconds(job->took_ns), job->label);
        else if (job->state == DONE)
            fprintf(stderr, "  %4d         -  %s", job->code, job->label);
        else
            fprintf(stderr, "     -         -  %s", job->label);
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
        err = r->active && r->poll && r->read_buf ? tri_run_signals_begin() : -ENOMEM;
    if (!err)
        err = tri_guard_start(&r->guard, r->limit);
    if (err) {
        tri_complain("run", "cannot start: %s", strerror(-err));
        code = TRI_EXIT_FAILED;
        goto free_all;
    }
    prctl(PR_SET_CHILD_SUBREAPER, 1);

    tri_run_loop(r);

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

/* A positive number, at most MANY; 0 for anything else. */
static int count_of(const char *text)
{
    int n = 0;

    for (; *text >= '0' && *text <= '9'; text++)
        n = n < MANY ? n * 10 + (*text - '0') : n;
    return *text ? 0 : n;
}

/* A word with line ends in it would tear the summary apart.  Without memory it stays as it is. */
static const char *label_of(const char *word)
{
    char *label = NULL;

    for (const char *c = word; *c && !label; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            label = strdup(word);
    }
    for (char *c = label; c && *c; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = ' ';
    }
    return label ? label : word;
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
            r.job[r.jobs++] =
                (struct job){.text = word, .label = label_of(word), .pid = NO_PID, .fd = {-1, -1}};
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
    for (i = 0; i < r.jobs; i++) {
        if (r.job[i].label != r.job[i].text)
            free((char *)r.job[i].label);
    }
    free(r.job);
    return code;
}
