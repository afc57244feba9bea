#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# site.sh NAME [MESON OPTION...] - a second build of everything, with other options.
#
# Configures build-NAME with the venv's interpreter, builds it and installs the Python package into
# build-NAME/site, so that PYTHONPATH=build-NAME/site puts it before the venv's.  Prints that path.
# Used for the kill-points (-Dcheckpoints=true) and for AddressSanitizer.
set -euo pipefail
cd "$(dirname "$0")/.."

. tools/quiet.sh
name=$1
shift
venv=$(tools/venv.sh name)
dir=$PWD/build-$name${venv#.venv}
site=$dir/site
# Debian 12's Meson asks Python for distutils, which 3.12 has no more: the venv's does not.
meson=$PWD/$venv/bin/meson
[ -x "$meson" ] || meson=meson
mkdir -p "$dir" build-state
log=$PWD/build-state/${dir##*/}.log
ini=$PWD/build-state/${dir##*/}.ini
# Another Meson cannot read this one's build folder.
printf "# Meson %s\n[binaries]\npython = '%s'\n" "$("$meson" --version)" \
    "$PWD/$venv/bin/python" >"$ini.new"
cmp -s "$ini.new" "$ini" || { mv "$ini.new" "$ini"; rm -rf "$dir"; }
rm -f "$ini.new"
if [ ! -e "$dir/build.ninja" ]; then
    quiet "$log" "$meson" setup "$dir" --native-file "$ini" -Dpython=enabled \
        --prefix "$dir/root" -Dpython.purelibdir="$site" -Dpython.platlibdir="$site" "$@"
fi
quiet "$log" "$meson" compile -C "$dir"
quiet "$log" "$meson" install -C "$dir" --no-rebuild
echo "$site"
