#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# wheel_check.sh WHEEL - the wheel holds what it should and works where nothing else is.
#
# Contents: one extension, Python files, the command line; no header, library or .pc file.
# Then a clean environment, away from this tree, without any index: the wheel and, from a folder,
# its two dependencies; import, a first map, `trireme info`.
set -euo pipefail
cd "$(dirname "$0")/.."
wheel=$(realpath "$1")
venv=$PWD/$(tools/venv.sh name)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

"$venv/bin/python" - "$wheel" <<'P'
import re
import subprocess
import sys
import tempfile
import zipfile

allowed = [
    r"trireme/_core\.cpython-[^/]*\.so",
    r"trireme/([a-z_]+/)*\w+\.pyi?",
    r"trireme/py\.typed",
    r"trireme-[^/]+\.data/scripts/trireme",
    r"trireme-[^/]+\.dist-info/.+",
]
with zipfile.ZipFile(sys.argv[1]) as archive:
    names = [name for name in archive.namelist() if not name.endswith("/")]
    extra = [name for name in names if not any(re.fullmatch(rule, name) for rule in allowed)]
    lacking = [rule for rule in allowed if not any(re.fullmatch(rule, name) for name in names)]
    if extra or lacking:
        sys.exit(f"wheel_check: not expected: {extra}; missing: {lacking}")
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            if name.endswith(".so") or "/scripts/" in name:
                dynamic = subprocess.run(
                    ["readelf", "-d", archive.extract(name, folder)],
                    check=True, capture_output=True, text=True,
                ).stdout
                needed = re.findall(r"NEEDED.*\[(.+?)\]", dynamic)
                foreign = [
                    library for library in needed
                    if not re.match(r"(libc|libm|librt|libpthread|libdl|ld-linux.*)\.so", library)
                ]
                if foreign or "RUNPATH" in dynamic or "RPATH" in dynamic:
                    sys.exit(f"wheel_check: {name} needs {foreign or 'a run path'}")
print(f"wheel_check: {len(names)} files, nothing that does not belong")
P

"$venv/bin/python" -m pip --disable-pip-version-check download -q --no-deps --only-binary=:all: \
    -d "$tmp/wheelhouse" cloudpickle tqdm 2>"$tmp/log" ||
    { cat "$tmp/log" >&2; echo "wheel_check: no wheels of the dependencies" >&2; exit 1; }
"$venv/bin/python" -m venv "$tmp/env"
cd "$tmp"
PIP_FIND_LINKS='' "$tmp/env/bin/python" -m pip --isolated --disable-pip-version-check install -q \
    --no-index --no-deps "$wheel" "$tmp"/wheelhouse/*.whl
"$tmp/env/bin/python" -m pip --disable-pip-version-check check >/dev/null
"$tmp/env/bin/python" - <<'P'
import trireme as tri

with tri.Pool(2) as pool:
    assert pool.map(lambda x: x * x, range(1000)) == [x * x for x in range(1000)]
print("wheel_check: import and a first map work in a clean environment, version", tri.__version__)
P
"$tmp/env/bin/trireme" info >"$tmp/info"
[ -s "$tmp/info" ] || { echo "wheel_check: trireme info says nothing" >&2; exit 1; }
echo "wheel_check: trireme info works"
