/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * exec.c - `trireme exec`: becomes `python -m trireme`, which runs a program with Trireme's doors.
 *
 * What can be said before a Python starts is said here.  Everything else, the options too, is
 * known to trireme/__main__.py, and only there.  That the Python has the package is asked by
 * running it once: after exec its own words would name a module that the user did not ask for.
 */
#include "cli.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define NO_PACKAGE 3

extern char **environ;

static void help(FILE *out)
{
    fputs("usage: trireme exec [--only DOOR] [--report] SCRIPT | -m MODULE | -c CODE [ARGS]\n"
          "\n"
          "Runs a Python program whose imports of multiprocessing, multiprocess and\n"
          "concurrent.futures, in its children too, get Trireme's pools and executors.\n"
          "\n"
          "  --only DOOR  futures, multiprocessing or multiprocess; may be given more than once\n"
          "  --report     at exit, print to stderr what ran where and what was left\n"
          "\n"
          "The Python is $TRIREME_PYTHON, else that of the virtual environment this program is\n"
          "in, else python3 on PATH.\n",
          out);
}

/* How many words at the start are options of ours with their values; -1 after a complaint. */
static int options(int argc, char **argv)
{
    int i = 1;

    while (i < argc) {
        if (!strcmp(argv[i], "--report") || !strncmp(argv[i], "--only=", 7)) {
            i++;
        } else if (!strcmp(argv[i], "--only")) {
            if (i + 1 >= argc) {
                tri_complain("exec", "--only needs the name of a door");
                return -1;
            }
            i += 2;
        } else {
            break;
        }
    }
    if (i < argc && argv[i][0] == '-' && argv[i][1] == '-') {
        tri_complain("exec", "no option \"%s\"; `trireme exec --help` lists them", argv[i]);
        return -1;
    }
    return i;
}

/* The exit code of PYTHON, asked whether it would find the package; negative: it did not run. */
static int ask_for_package(const char *python)
{
    char *argv[] = {(char *)python, "-c",
                    "import importlib.util, sys\n"
                    "sys.exit(0 if importlib.util.find_spec('trireme') else 3)",
                    NULL};
    posix_spawn_file_actions_t actions;
    int status, err;
    pid_t pid;

    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    err = posix_spawn(&pid, python, &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (err)
        return -err;
    while (waitpid(pid, &status, 0) < 0) {
        if (errno != EINTR)
            return -errno;
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int tri_cmd_exec(int argc, char **argv)
{
    const char *chosen = getenv("TRIREME_PYTHON");
    char python[PATH_MAX];
    char **line;
    int first, answer;

    if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
        help(stdout);
        return 0;
    }
    first = options(argc, argv);
    if (first < 0)
        return TRI_EXIT_USAGE;
    if (first == argc) {
        help(stderr);
        return TRI_EXIT_USAGE;
    }
    if (argv[first][0] != '-' && access(argv[first], F_OK) < 0) {
        tri_complain("exec", "cannot open \"%s\": %s", argv[first], strerror(errno));
        return TRI_EXIT_USAGE;
    }
    if (!tri_find_python(python, sizeof python)) {
        if (chosen && *chosen)
            tri_complain("exec", "TRIREME_PYTHON is \"%s\", which is no program", chosen);
        else
            tri_complain("exec", "there is no python3 on PATH; set TRIREME_PYTHON");
        return TRI_EXIT_NOT_FOUND;
    }
    answer = ask_for_package(python);
    if (answer == NO_PACKAGE) {
        tri_complain("exec", "%s has no package trireme: install it there or set TRIREME_PYTHON",
                     python);
        return TRI_EXIT_FAILED;
    }
    if (answer != 0) {
        tri_complain("exec", "%s does not run%s%s", python, answer < 0 ? ": " : "",
                     answer < 0 ? strerror(-answer) : "");
        return TRI_EXIT_NOT_RUN;
    }

    /* python -m trireme, the words after "exec", and the end. */
    line = calloc((size_t)argc + 3, sizeof *line);
    if (!line) {
        tri_complain("exec", "%s", strerror(ENOMEM));
        return TRI_EXIT_FAILED;
    }
    line[0] = python;
    line[1] = "-m";
    line[2] = "trireme";
    memcpy(line + 3, argv + 1, (size_t)(argc - 1) * sizeof *line);
    execv(python, line);
    tri_complain("exec", "%s: %s", python, strerror(errno));
    free(line);
    return TRI_EXIT_NOT_RUN;
}
