/* SPDX-License-Identifier: BSD-3-Clause */
/* test_error.c - every code has one short, static sentence, and the two kinds never meet. */
#include "check.h"
#include "trireme.h"

#include <errno.h>
#include <limits.h>

static void own_codes_have_distinct_texts(void)
{
    for (int a = TRI_EPLATFORM; a <= TRI_ETIMEDOUT; a++) {
        CHECK(strcmp(tri_strerror(a), "unknown error") != 0);
        for (int b = TRI_EPLATFORM; b < a; b++)
            CHECK(strcmp(tri_strerror(a), tri_strerror(b)) != 0);
    }
}

static void system_codes_have_the_systems_text(void)
{
    CHECK(strcmp(tri_strerror(0), "success") == 0);
    CHECK(strcmp(tri_strerror(-ENOMEM), strerror(ENOMEM)) == 0);
    CHECK(strcmp(tri_strerror(-EAGAIN), strerror(EAGAIN)) == 0);
    CHECK(tri_strerror(-ENOMEM) == tri_strerror(-ENOMEM));
}

static void any_other_number_is_unknown(void)
{
    const int odd[] = {1, ENOMEM, INT_MAX, INT_MIN, -4095, -4096, -5000, TRI_EPLATFORM - 1};

    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++)
        CHECK(strcmp(tri_strerror(odd[i]), "unknown error") == 0);
    for (int err = -6000; err < 200; err++)
        CHECK(tri_strerror(err) && strlen(tri_strerror(err)) > 3);
}

static void version_is_the_headers(void)
{
    char text[32];

    snprintf(text, sizeof text, "%d.%d.%d", TRI_VERSION_MAJOR, TRI_VERSION_MINOR,
             TRI_VERSION_PATCH);
    CHECK(strcmp(tri_version(), text) == 0);
}

int main(void)
{
    RUN(own_codes_have_distinct_texts);
    RUN(system_codes_have_the_systems_text);
    RUN(any_other_number_is_unknown);
    RUN(version_is_the_headers);
    return 0;
}
