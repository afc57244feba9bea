#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# aarch64.sh DIR [COMMAND...] - run a command on the checkout's last commit on an emulated aarch64.
#
# A whole machine in QEMU: Debian 12's kernel for arm64 and a root in memory with gcc, Meson, Python
# 3.11 and the packages that the tests use.  So system calls, pages, processes and signals are a
# real kernel's.  What it cannot show is memory order: QEMU on x86-64 is as strict as x86-64.
#
# Without COMMAND: the C library is built and its tests are run, then the Python package and those
# of its tests that do without network and a virtual environment.  CPUS (2) and MEMORY (6G) choose
# another machine, MINUTES (60) how long it may take.  It is some 20 times slower than the host.
#
# DIR is made by the first call (a minute or two, 1.5 GB, root and Debian's mirror are needed) and
# used again by the next.  COMMAND runs in /src; what it leaves in /host is in DIR/host afterwards.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$(realpath -m "${1:?aarch64.sh DIR [COMMAND...]}")
shift

packages=python3,python3-dev,gcc,libc6-dev,make,meson,ninja-build,pkg-config,libhwloc-dev
packages+=,libhwloc15,procps,kmod,git,python3-numpy,python3-tqdm
packages+=,python3-psutil,linux-image-arm64

make_root() {
    local mirror deb root=$dir/root modules version
    apt-get install -y -qq --no-install-recommends qemu-system-arm debootstrap cpio kmod >/dev/null
    rm -rf "$dir"
    mkdir -p "$dir/kernel" "$dir/host"
    mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
        grep -m 1 -oE 'https?://[^ ]*/debian/?( |$)' || true)
    # Its second stage would need the machine that is being made; unpacking is enough.
    debootstrap --foreign --arch=arm64 --variant=minbase --include="$packages" bookworm "$root" \
        "$mirror" >"$dir/debootstrap.log" 2>&1 || { tail -n 3 "$dir/debootstrap.log" >&2; exit 1; }
    for deb in "$root"/var/cache/apt/archives/*.deb; do
        case $deb in
        *linux-image-*) dpkg-deb -x "$deb" "$dir/kernel" ;;
        *) dpkg-deb -x "$deb" "$root" ;;
        esac
    done
    rm -rf "$root"/var/cache/apt/archives "$root"/var/lib/apt/lists/*
    rm -rf "$root"/usr/share/{doc,man,locale}
    # Debian 12's are too old; both are Python alone, so this machine's pip can bring them.
    python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore \
        --python-version 3.11 --only-binary=:all: \
        --target "$root/usr/local/lib/python3.11/dist-packages" \
        pytest cloudpickle 2>"$dir/pip.log" ||
        { tail -n 3 "$dir/pip.log" >&2; exit 1; }
    for deb in bin sbin lib; do # unpacking has made folders of what should be links
        [ -L "$root/$deb" ] && continue
        cp -a "$root/$deb/." "$root/usr/$deb/"
        rm -rf "${root:?}/$deb"
        ln -s "usr/$deb" "$root/$deb"
    done
    # What the packages' scripts would have done.
    cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd"
    cp "$root/usr/share/base-passwd/group.master" "$root/etc/group"
    for deb in blas lapack; do
        ln -sf "$deb/lib$deb.so.3" "$root/usr/lib/aarch64-linux-gnu/lib$deb.so.3"
    done
    ln -sf mawk "$root/usr/bin/awk"
    ln -sf gcc "$root/usr/bin/cc"
    version=$(basename "$dir"/kernel/lib/modules/*)
    modules=lib/modules/$version
    (cd "$dir/kernel" && find "$modules" -name '9p*.ko*' -o -name 'netfs.ko*' -o \
        -name 'fscache.ko*' -o -name 'virtio_pci*.ko*' -o -name 'modules.builtin*' -o \
        -name modules.order | cpio -pdm --quiet "$root/usr")
    /sbin/depmod -b "$root" "$version"
    mkdir -p "$root/src" "$root/host"
    cat >"$root/init" <<'INIT'
#!/bin/bash
export PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin HOME=/root LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
mount -t cgroup2 cgroup /sys/fs/cgroup 2>/dev/null
chmod 1777 /tmp
ln -sf /proc/self/fd /dev/fd
ip link set lo up 2>/dev/null
modprobe virtio_pci
modprobe 9p
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 host /host
tar xf /host/src.tar -C /src
cd /src
setsid bash /host/job >/host/log 2>&1 </dev/null
echo $? >/host/status
sync
echo o >/proc/sysrq-trigger
sleep 60
INIT
    chmod +x "$root/init"
    (cd "$root" && find . -xdev | cpio -o -H newc --quiet) >"$dir/root.cpio"
    rm -rf "$root"
    touch "$dir/.ready"
}

[ -e "$dir/.ready" ] || make_root
git archive HEAD >"$dir/host/src.tar"
rm -f "$dir/host/status" "$dir/host/log"
if [ $# -gt 0 ]; then
    printf '%q ' "$@" >"$dir/host/job"
else
    cat >"$dir/host/job" <<'JOB'
set -e
export TRI_TEST_SECONDS=900 PYTHONPATH=/site
meson setup build -Dpython=disabled >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }
meson compile -C build >/tmp/log 2>&1 || { tail -n 40 /tmp/log; exit 1; }
for test in build/tests/test_*; do
    [ -x "$test" ] && [ -f "$test" ] || continue
    if "$test" >/tmp/log 2>&1; then
        echo "${test##*/}: ok"
    else
        cat /tmp/log
        failed="${failed:-} $test"
    fi
done
meson setup build-py -Dtests=false -Dpython.purelibdir=/site -Dpython.platlibdir=/site \
    >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }
meson compile -C build-py >/tmp/log 2>&1 || { tail -n 40 /tmp/log; exit 1; }
meson install -C build-py >/tmp/log 2>&1
cd tests/py
python3 -m pytest -q -p no:cacheprovider test_values.py test_codec.py test_maps.py \
    test_maps_options.py test_futures.py test_deaths.py test_share.py test_arrays_in_tasks.py \
    test_facade_sync.py test_facade_queues.py || failed="${failed:-} pytest"
[ -z "${failed:-}" ] || { echo "FAILED:$failed"; exit 1; }
JOB
fi
timeout -k 5 $((${MINUTES:-60} * 60)) qemu-system-aarch64 -M virt,gic-version=3 \
    -cpu max,pauth-impdef=on -accel tcg,thread=multi -smp "${CPUS:-2}" -m "${MEMORY:-6G}" \
    -kernel "$dir"/kernel/boot/vmlinuz-* -initrd "$dir/root.cpio" \
    -append "console=ttyAMA0 rdinit=/init quiet panic=-1" -nographic -no-reboot -nic none \
    -virtfs "local,path=$dir/host,mount_tag=host,security_model=none" >"$dir/console" 2>&1 \
    </dev/null || true
cat "$dir/host/log"
exit "$(cat "$dir/host/status" 2>/dev/null || echo 1)"
