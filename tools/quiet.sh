# SPDX-License-Identifier: BSD-3-Clause
#
# Sourced: quiet LOG COMMAND... runs silently; on failure it prints what went wrong, which in
# ninja's output is what follows the first FAILED.
quiet() {
    local log=$1
    shift
    "$@" >"$log" 2>&1 </dev/null && return 0
    if grep -q '^FAILED: ' "$log"; then
        sed -n -e '/^FAILED: /,$p' "$log" | grep -v '^\[' >&2
    else
        tail -n 30 "$log" >&2
    fi
    return 1
}
