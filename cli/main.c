/* SPDX-License-Identifier: BSD-3-Clause */
/* main.c - `trireme COMMAND`: finds the command and gives it the rest of the line. */
#include "cli.h"
#include "trireme.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *what;
} commands[] = {
    {"exec", tri_cmd_exec, "run a Python program unchanged, its pools and executors Trireme's"},
    {"info", tri_cmd_info, "cores, memory, limits, versions, what is optional and missing"},
    {"run", tri_cmd_run, "run scripts side by side, their output whole and in order"},
};

#define COMMANDS (sizeof commands / sizeof *commands)

void tri_complain(const char *command, const char *format, ...)
{
    char text[4096];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fprintf(stderr, "trireme%s%s: %s\n", *command ? " " : "", command, text);
}

static void help(FILE *out)
{
    fprintf(out, "usage: trireme COMMAND [ARGS]\n\n");
    for (size_t i = 0; i < COMMANDS; i++)
        fprintf(out, "  %-6s %s\n", commands[i].name, commands[i].what);
    fprintf(out,
            "\n`trireme COMMAND --help` says more.  `trireme --version` prints the version.\n");
}

/*
 * A program started with a closed stream would find its own files at that number.  Opened the
 * wrong way round, the number is taken and every use of it is the error it should be.
 */
static void fill_closed_streams(void)
{
    for (int fd = 0; fd <= 2; fd++) {
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF &&
            open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) != fd)
            _exit(TRI_EXIT_FAILED);
    }
}

static int dispatch(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";

    if (!*name) {
        help(stderr);
        return TRI_EXIT_USAGE;
    }
    if (!strcmp(name, "--help") || !strcmp(name, "-h") || !strcmp(name, "help")) {
        help(stdout);
        return 0;
    }
    if (!strcmp(name, "--version")) {
        printf("trireme %s\n", tri_version());
        return 0;
    }
    for (size_t i = 0; i < COMMANDS; i++) {
        if (!strcmp(name, commands[i].name))
            return commands[i].run(argc - 1, argv + 1);
    }
    tri_complain("", "no command \"%s\"; `trireme --help` lists them", name);
    return TRI_EXIT_USAGE;
}

int main(int argc, char **argv)
{
    int code;

    fill_closed_streams();
    code = dispatch(argc, argv);
    if ((ferror(stdout) || fflush(stdout) != 0) && errno != EPIPE) {
        tri_complain("", "cannot write the result: %s", strerror(errno));
        if (code == 0)
            code = TRI_EXIT_FAILED;
    }
    return code;
}
