#!/bin/sh
# Runs as root inside the machine: Podman under the user's own systemd as on an installed host, then the tests as that user.
# Which ones stands in /mnt/given/runs. What it leaves in /run/result goes out on the third disk as a tar.
set -u
src=/mnt/given/src
user=dc-compute
uid=$(id -u "$user")
sockets=/run/dc-compute/podman
result=/run/result
out=/run/dc-compute/result

finish() {
    journalctl -b --no-pager -o short-monotonic >"$result/journal.txt" 2>&1
    cp -r "$out/." "$result/" 2>/dev/null
    tar -C "$result" -cf /dev/vdc .
}
trap finish EXIT
mkdir -p "$result"

# Swap, so that holding it back means something.
fallocate -l 1G /swapfile && chmod 600 /swapfile && mkswap -q /swapfile && swapon /swapfile

# Folders as on an installed host, and the shipped unit: as it is, and once more for the other OCI runtime. A secret stands in
# the environment of both, which no guest may see.
systemd-tmpfiles --create "$src/systemd/tmpfiles.d/dc-compute.conf"
install -d -m 0700 -o "$user" -g "$user" "$out"
for oci in crun runc; do
    sed -e "s|/usr/bin/podman |DC_COMPUTE_PLANTED_SECRET=swordfish /usr/bin/podman --runtime $oci |" \
        -e "s|podman\.sock|$oci.sock|" "$src/systemd/dc-compute-podman.service" >"/etc/systemd/user/dc-compute-podman-$oci.service"
done
as_user() {
    setpriv --reuid "$uid" --regid "$uid" --init-groups -- env -i HOME=/var/lib/dc-compute XDG_RUNTIME_DIR="/run/user/$uid" \
        DBUS_SESSION_BUS_ADDRESS="unix:path=/run/user/$uid/bus" PATH=/usr/bin:/bin LANG=C.UTF-8 "$@"
}
for _ in $(seq 100); do
    [ ! -S "/run/user/$uid/bus" ] || break
    sleep 0.2
done
as_user systemctl --user daemon-reload

# tests NAME OCI ARGUMENT...: pytest as the user, in a unit of its own beside the containers, as the worker is.
run_tests() {
    name=$1 oci=$2
    shift 2
    as_user systemctl --user start "dc-compute-podman-$oci.service"
    for _ in $(seq 100); do
        [ ! -S "$sockets/$oci.sock" ] || break
        sleep 0.2
    done
    # Through a pipe: what they say is seen on the console as they say it.
    systemd-run --quiet --pipe --wait --collect --unit="tests-$name" -p User="$user" -p Delegate=yes \
        -p WorkingDirectory="$src" --setenv=HOME=/var/lib/dc-compute --setenv=XDG_RUNTIME_DIR="/run/user/$uid" \
        --setenv=LANG=C.UTF-8 --setenv=PATH=/usr/bin:/bin:/usr/sbin:/sbin --setenv=PYTHONDONTWRITEBYTECODE=1 \
        --setenv=PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 --setenv=HYPOTHESIS_PROFILE=ci \
        --setenv=DC_COMPUTE_TEST_PODMAN="$sockets/$oci.sock" \
        "$src/.venv/bin/python" -m pytest -p pytest_timeout -p xdist.plugin -p no:cacheprovider -v -rs --durations=12 \
        -o junit_family=xunit1 --junitxml="$out/$name.xml" "$@" 2>&1 | tee "$result/$name.txt"
}

read -r runs </mnt/given/runs
for run in $runs; do
    case $run in
        crun | runc) run_tests "$run" "$run" tests/host/test_cgroup_v2.py -k podman ;;
        bundle) run_tests bundle crun tests/host/test_cgroup_v2.py -k runc ;;
        contract) run_tests contract crun tests/ports/test_runtime_contract.py -k podman ;;
        selftest) run_tests selftest crun tests/host/test_selftest.py -k 'tries_at_its_start and podman' ;;
        order) run_tests order crun tests/chain/test_ceilings.py ;;
        cage) run_tests cage crun tests/host/test_cage.py ;;
    esac
done
