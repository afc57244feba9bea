#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# install_check.sh BUILD - what a user of the installed C library does, away from this tree.
#
# Installs BUILD into an empty folder, copies the C examples elsewhere, compiles them with nothing
# but pkg-config's answer, statically and dynamically, and runs one of each.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$PWD/$1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

meson install -C "$build" --no-rebuild --quiet --destdir "$tmp/root" >"$tmp/log" 2>&1 ||
    { cat "$tmp/log" >&2; exit 1; }
pc=$(find "$tmp/root" -name trireme.pc)
PKG_CONFIG_PATH=$(dirname "$pc")
PKG_CONFIG_SYSROOT_DIR=$tmp/root
export PKG_CONFIG_PATH PKG_CONFIG_SYSROOT_DIR
libdir=$(dirname "$PKG_CONFIG_PATH")

fail() { echo "install_check: $*" >&2; exit 1; }

cp -r examples/c "$tmp/examples"
# A program that needs nothing but the library, for a tree whose examples take long.
cat >"$tmp/examples/least.c" <<'C'
#include <string.h>
#include <trireme.h>
int main(void)
{
    return strcmp(tri_version(), TRIREME_VERSION_EXPECTED) != 0;
}
C
version=$(pkg-config --modversion trireme)
built=0
for file in "$tmp"/examples/*.c; do
    name=$(basename "$file" .c)
    flags=(-std=gnu11 -Wall -Wextra -Werror "-DTRIREME_VERSION_EXPECTED=\"$version\"")
    # Words of pkg-config's answer are meant to be split.
    # shellcheck disable=SC2046
    ${CC:-cc} "${flags[@]}" "$file" -o "$tmp/$name" $(pkg-config --cflags --libs trireme) -lm ||
        fail "$name does not compile with pkg-config's flags"
    built=$((built + 1))
done
LD_LIBRARY_PATH=$libdir "$tmp/least" || fail "the shared library does not answer its version"
# hwloc is opened at run time: who links with us need not even have its development files.
! grep -q hwloc "$pc" || fail "trireme.pc asks for hwloc"
# The archive for Trireme itself, and what its .pc says that one needs then.
read -ra private < <(sed -n 's/^Libs.private: //p' "$pc")
# shellcheck disable=SC2046
${CC:-cc} -std=gnu11 "-DTRIREME_VERSION_EXPECTED=\"$version\"" "$tmp/examples/least.c" \
    -o "$tmp/least-static" $(pkg-config --cflags trireme) "$libdir/libtrireme.a" "${private[@]}" ||
    fail "the static library does not link"
"$tmp/least-static" || fail "the static library does not answer its version"
"$(find "$tmp/root" -name trireme -type f -perm -u+x)" --version >/dev/null ||
    fail "the installed command line does not run"
echo "install_check: $built programs built outside the tree with pkg-config, libtrireme $version"
