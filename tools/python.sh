# SPDX-License-Identifier: BSD-3-Clause
#
# Sourced: PYTHON becomes an interpreter that runs.  pyenv puts a python3.12 on PATH that refuses to
# run unless that version is switched on; the one behind it is then taken from pyenv's folder.
PYTHON=${PYTHON:-python3}
if [[ $PYTHON =~ ^python3\.[0-9]+t?$ ]] && ! "$PYTHON" -ISc '' 2>/dev/null; then
    for candidate in "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.*/bin/"$PYTHON"; do
        [ ! -x "$candidate" ] || PYTHON=$candidate
    done
fi
