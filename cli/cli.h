/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * cli.h - what the commands of `trireme` share.
 *
 * One file per command.  A command prints its result to stdout and the reason of a failure, one
 * line, to stderr; it returns the program's exit code and never calls exit().
 */
#ifndef TRI_CLI_H
#define TRI_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    TRI_EXIT_FAILED = 1,    /* asked rightly, could not be done */
    TRI_EXIT_USAGE = 2,     /* asked wrongly */
    TRI_EXIT_NOT_RUN = 126, /* a script was found and could not be started */
    TRI_EXIT_NOT_FOUND = 127
};

/* One command; argv[0] is its name. */
int tri_cmd_exec(int argc, char **argv);
int tri_cmd_info(int argc, char **argv);
int tri_cmd_run(int argc, char **argv);

/* "trireme COMMAND: text\n" on stderr. */
void tri_complain(const char *command, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* ------------------------------------------------------------------ find.c */

bool tri_ends_with(const char *text, const char *end);

/* The full path of a program on PATH; false when it is not there. */
bool tri_find_program(const char *name, char *path, size_t bytes);

/*
 * The Python that scripts run with: $TRIREME_PYTHON, else the interpreter of the virtual
 * environment this program is installed in, else python3 on PATH.
 */
bool tri_find_python(char *path, size_t bytes);

/* What `PYTHON --version` says, "3.11.2"; false when it says nothing within 5 s. */
bool tri_python_version(const char *python, char *version, size_t bytes);

#endif
