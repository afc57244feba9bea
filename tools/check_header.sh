#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# check_header.sh STANDARD HEADER COMPILER... - the public header must compile alone, pedantically.
# Without _GNU_SOURCE: a user's program need not define it.
set -euo pipefail
standard=$1
header=$2
shift 2
case $standard in c++*) language=c++ ;; *) language=c ;; esac
printf '#include "%s"\nint main(void);\n' "$header" |
    "$@" -std="$standard" -Wall -Wextra -Werror -pedantic -Wundef -fsyntax-only -x "$language" -
