/* SPDX-License-Identifier: BSD-3-Clause */
/* find.c - where programs are, Python above all. */
#include "cli.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define VERSION_WAIT_MS 5000

extern char **environ;

bool tri_ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);

    return n >= m && strcmp(text + n - m, end) == 0;
}

static bool is_program(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISREG(st.st_mode) && access(path, X_OK) == 0;
}

bool tri_find_program(const char *name, char *path, size_t bytes)
{
    const char *dir = getenv("PATH");

    if (!dir)
        dir = "/usr/local/bin:/usr/bin:/bin";
    for (;;) {
        size_t n = strcspn(dir, ":");
        int length = n ? snprintf(path, bytes, "%.*s/%s", (int)n, dir, name)
                       : snprintf(path, bytes, "./%s", name);

        if (length > 0 && (size_t)length < bytes && is_program(path))
            return true;
        if (!dir[n])
            return false;
        dir += n + 1;
    }
}

/* The python3 beside this program, when both are in a virtual environment. */
static bool beside_in_venv(char *path, size_t bytes)
{
    char self[PATH_MAX], mark[PATH_MAX + 16];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    int length;
    char *slash;

    if (n <= 0)
        return false;
    self[n] = '\0';
    slash = strrchr(self, '/');
    if (!slash)
        return false;
    *slash = '\0';
    snprintf(mark, sizeof mark, "%s/../pyvenv.cfg", self);
    length = snprintf(path, bytes, "%s/python3", self);
    return length > 0 && (size_t)length < bytes && access(mark, F_OK) == 0 && is_program(path);
}

bool tri_find_python(char *path, size_t bytes)
{
    const char *chosen = getenv("TRIREME_PYTHON");

    if (chosen && *chosen) {
        if (!strchr(chosen, '/'))
            return tri_find_program(chosen, path, bytes);
        snprintf(path, bytes, "%s", chosen);
        return strlen(chosen) < bytes && is_program(path);
    }
    return beside_in_venv(path, bytes) || tri_find_program("python3", path, bytes);
}

bool tri_python_version(const char *python, char *version, size_t bytes)
{
    char *argv[] = {(char *)python, "--version", NULL}, text[128];
    posix_spawn_file_actions_t actions;
    struct pollfd ready = {.events = POLLIN};
    size_t have = 0;
    int fd[2], err;
    pid_t pid;

    if (pipe2(fd, O_CLOEXEC) < 0)
        return false;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, fd[1], 1);
    posix_spawn_file_actions_adddup2(&actions, fd[1], 2);
    err = posix_spawn(&pid, python, &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(fd[1]);
    if (!err) {
        ready.fd = fd[0];
        while (have < sizeof text - 1 && poll(&ready, 1, VERSION_WAIT_MS) > 0) {
            ssize_t n = read(fd[0], text + have, sizeof text - 1 - have);

            if (n <= 0)
                break;
            have += (size_t)n;
        }
        kill(pid, SIGKILL); /* it has answered, or never will */
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
            continue;
    }
    close(fd[0]);
    text[have] = '\0';
    if (strncmp(text, "Python ", 7) != 0)
        return false;
    snprintf(version, bytes, "%.*s", (int)strcspn(text + 7, "\r\n"), text + 7);
    return true;
}
