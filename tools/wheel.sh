#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# wheel.sh - a wheel in dist/ for PYTHON, then tools/wheel_check.sh on it.
#
# Without hwloc, so that the wheel needs nothing but the C library of the system; topology then
# comes from sysfs.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(tools/venv.sh name)
mkdir -p dist
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
PATH="$PWD/$venv/bin:$PATH" "$venv/bin/python" -m pip --disable-pip-version-check wheel -q \
    --no-build-isolation --no-deps --no-index --wheel-dir "$tmp" \
    --config-settings=build-dir="build-wheel${venv#.venv}" \
    --config-settings=setup-args=-Dhwloc=disabled .
wheel=$(basename "$tmp"/*.whl)
mv "$tmp/$wheel" "dist/$wheel"
tools/wheel_check.sh "dist/$wheel"
