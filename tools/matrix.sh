#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# matrix.sh - the Python tests with every Python >= 3.11 of this machine, as a table.
#
# Looks for python3.X on PATH, then in pyenv's folder; of two with the same version the first
# counts.  The C tests do not depend on the interpreter, so they run once.
set -euo pipefail
cd "$(dirname "$0")/.."

declare -A seen=()
found=()
consider() {
    local version
    version=$("$1" -ISc 'import sys
print("%d.%d%s" % (*sys.version_info[:2], "t" if "t" in getattr(sys, "abiflags", "") else "")
      if sys.version_info >= (3, 11) else "")' 2>/dev/null) || return 0
    [ -n "$version" ] && [ -z "${seen[$version]:-}" ] || return 0
    seen[$version]=$1
    found+=("$version")
}
consider python3
for minor in 11 12 13 14 15 16 17 18 19; do
    for name in "python3.$minor" "python3.${minor}t"; do
        command -v "$name" >/dev/null && consider "$name"
    done
done
for python in "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/*/bin/python3; do
    [ ! -x "$python" ] || consider "$python"
done
[ ${#found[@]} -gt 0 ] || { echo "matrix: no Python >= 3.11 here" >&2; exit 1; }

mkdir -p build-matrix
status=0
rows=()
row() { rows+=("$(printf '%-8s %-8s %7s  %s' "$@")"); }
c_result=passed
make --no-print-directory test-c >build-matrix/c.log 2>&1 || { c_result=FAILED; status=1; }
while read -r version; do
    python=${seen[$version]}
    started=$SECONDS
    log=build-matrix/$version.log
    echo "matrix: Python $version ($python)" >&2
    if ! make --no-print-directory venv PYTHON="$python" >"$log" 2>&1; then
        row "$version" FAILED "$((SECONDS - started)) s" "see $log"
        status=1
        continue
    fi
    result=passed
    make --no-print-directory test-py PYTHON="$python" >>"$log" 2>&1 </dev/null || result=FAILED
    [ "$result" = passed ] || status=1
    summary=$(grep -E '^=+ .*(passed|failed|error|skipped).* =+$' "$log" | tail -n 1 | tr -d '=')
    row "$version" "$result" "$((SECONDS - started)) s" "${summary# }"
done < <(printf '%s\n' "${found[@]}" | sort -V)

printf '%-8s %-8s %7s  %s\n' Python tests time pytest
printf '%s\n' "${rows[@]}"
printf '%-8s %-8s\n' 'C' "$c_result"
exit "$status"
