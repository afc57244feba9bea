#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# pytest.sh [PYTEST ARGUMENT...] - the Python tests with the venv's installed package.
#
# Also builds the package with its kill-points compiled in and names it TRIREME_CP_SITE: a test
# that kills workers at a chosen instruction runs a child with that folder as PYTHONPATH.
# Past TEST_SECONDS the run is aborted by SIGABRT, on which faulthandler prints every stack.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "${PYTHON:-python3}" != none ] || { echo "trireme: no Python, no Python tests" >&2; exit 0; }
venv=$(tools/venv.sh name)
TRIREME_CP_SITE=$(tools/site.sh cp -Dcheckpoints=true -Dtests=false)
TRIREME_CLI=$PWD/$venv/bin/trireme
export TRIREME_CP_SITE TRIREME_CLI
exec timeout -s ABRT -k 20 "${TEST_SECONDS:-1800}" "$venv/bin/python" -m pytest "$@"
