#!/bin/sh
# Installs dc-compute on a storage host, or (--deps) what a clone needs for `make demo`, `make test` and `make check`.
# Read it from the bottom: `main` calls one function per step. Every step looks first and acts only where something is
# missing, so a second run is quick and changes nothing.
set -eu
umask 022
PATH=$PATH:/usr/sbin:/sbin # where Debian keeps useradd and newuidmap's friends; an ordinary user's PATH lacks it
export PATH

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
readonly here

# The host's places. The text of --help and the steps of --uninstall name the same ones.
readonly service_user=dc-compute
readonly settings_dir=/etc/dc-compute
readonly state_dir=/var/lib/dc-compute
readonly command_link=/usr/local/bin/dc-compute
readonly enabled_units='dc-compute-api.socket dc-compute-api.service dc-compute-worker.service dc-compute-drain.service'
readonly units="$enabled_units dc-compute.target dc-compute.slice dc.slice"
prefix=/opt/dc-compute

# The developer's places.
readonly dev_user=dc-compute-dev
readonly dev_home=/var/lib/dc-compute-dev
readonly dev_mount=/opt/dc-compute-dev/src # where .ci/rootless shows the clone to that user

# Eight maps of 65536 ids for each user: a container's ids never contain the agent's own.
readonly subid_count=524288

is_dry=no
has_acted=no

usage() {
    cat <<'USAGE'
usage: install.sh [--dry-run] [--prefix DIR]                        install dc-compute on this host, or renew it (root)
       install.sh --uninstall [--purge] [--dry-run] [--prefix DIR]  take it away again (root)
       install.sh --deps [--dry-run]                                what `make demo`, `make test`, `make check` need
       install.sh --deps-host [--dry-run]                           what the tests in a machine of its own need besides

  --prefix DIR   the program's folder; /opt/dc-compute unless given
  --dry-run      say what would be done and do nothing
  --uninstall    remove program, units and command; keep settings, data and user
  --purge        with --uninstall: also settings, keys, ledger and user
  --help         this text

A host install touches these and nothing else:
  Debian packages        python3 python3-venv podman runc crun conmon uidmap dbus-user-session ca-certificates
  user dc-compute        a system user without a shell, and its lines in /etc/subuid and /etc/subgid; lingering
  /opt/dc-compute        the program (or --prefix DIR), owned by root
  /usr/local/bin/dc-compute                  a link to the command
  /etc/dc-compute        settings, root:dc-compute 0750
  /var/lib/dc-compute    keys, ledger, queues, images, dc-compute 0700
  /etc/systemd/system/dc-compute*            services, their sockets, a target, a slice, and drop-ins for them
  /etc/systemd/system/dc.slice
  /etc/systemd/user/dc-compute-podman.service
  /etc/sysusers.d/dc-compute.conf, /etc/tmpfiles.d/dc-compute.conf

--deps touches: Debian packages (as root), .venv in the clone, and as root the user dc-compute-dev with its home
/var/lib/dc-compute-dev, its lines in /etc/subuid and /etc/subgid, and the empty folder /opt/dc-compute-dev/src
(and .ci/rootless the empty folder /run/dc-compute-dev). Of Debian's package prometheus only promtool is taken, into .venv:
nothing of it is installed or started.
--deps-host touches: the Debian packages qemu-system-x86, mmdebstrap, e2fsprogs, systemd-container (as root). The tests that
use them keep a disk of about 700 MB in /var/cache/dc-compute-dev/vm and 2 GB in /var/cache/dc-compute-dev/systems.
USAGE
}

# ---------------------------------------------------------------------------------------------------- small words

say() { printf '%s\n' "install.sh: $*"; }
die() {
    printf '%s\n' "install.sh: $*" >&2
    exit 1
}

# run COMMAND...: do it, or under --dry-run only say it.
run() {
    has_acted=yes
    if [ "$is_dry" = yes ]; then
        printf '  would run: %s\n' "$*"
    else
        "$@"
    fi
}

is_root() { [ "$(id -u)" -eq 0 ]; }
has() { command -v "$1" >/dev/null 2>&1; }
has_user() { getent passwd "$1" >/dev/null; }

# as_stranger COMMAND...: run it as somebody who owns nothing, to learn what an unprivileged user may execute.
as_stranger() {
    if is_root; then
        (cd / && setpriv --reuid 65534 --regid 65534 --clear-groups -- "$@")
    else
        "$@"
    fi
}

# ---------------------------------------------------------------------------------------------------- packages

# find_python: the first Python 3.11 or newer, with venv and pip, that an unprivileged user can execute. System
# interpreters first: a pyenv under /root, foremost in root's PATH, is closed to everybody else.
find_python() {
    for candidate in /usr/bin/python3 /usr/local/bin/python3 /usr/bin/python3.1? "$(command -v python3 || true)"; do
        [ -x "$candidate" ] || continue
        if as_stranger "$candidate" -I -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
            2>/dev/null; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    return 1
}

# missing_packages THING:PACKAGE...: the Debian packages of the programs (or files, by full path) that are not here.
missing_packages() {
    find_python >/dev/null || printf '%s ' python3 python3-venv
    for pair in "$@"; do
        thing=${pair%%:*}
        case $thing in
            /*) [ -e "$thing" ] ;;
            *) has "$thing" ;;
        esac || printf '%s ' "${pair##*:}"
    done
}

# need_packages THING:PACKAGE...: install what is missing when root on Debian or Ubuntu, else say what to do.
need_packages() {
    missing=$(missing_packages "$@")
    [ -n "$missing" ] || return 0
    # shellcheck disable=SC2086  # a list of words
    set -- $missing
    if ! has apt-get; then
        say "missing here (Debian's names): $*"
        say "this script installs packages on Debian and Ubuntu only; install them by hand and run it again"
    elif ! is_root; then
        say "missing here: $*"
        say "run as root: apt-get update && apt-get install --no-install-recommends $*"
    else
        say "installing Debian packages: $*"
        run apt-get -q update || say "not every package list could be renewed; going on with those that are here"
        run env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "$@"
    fi
}

need_python() {
    if python=$(find_python); then
        return 0
    fi
    [ "$is_dry" = yes ] || die "no Python 3.11 or newer with venv that an unprivileged user can execute was found"
    python=/usr/bin/python3
}

# ---------------------------------------------------------------------------------------------------- users

# free_subid_start FILE...: the first id above every range in these files, 100000 at least.
free_subid_start() {
    cat -- "$@" 2>/dev/null |
        awk -F: 'BEGIN { start = 100000 } NF == 3 && $2 + $3 > start { start = $2 + $3 } END { printf "%.0f\n", start }'
}

# subid_total NAME FILE: how many ids the file gives to this user.
subid_total() {
    cat -- "$2" 2>/dev/null | awk -F: -v name="$1" '$1 == name { total += $3 } END { printf "%.0f\n", total }'
}

# need_user NAME HOME: a system user without a shell, and a range of subordinate ids that overlaps nobody's.
need_user() {
    if ! has_user "$1"; then
        say "making the system user $1, home $2"
        run useradd --system --user-group --no-create-home --home-dir "$2" --shell /usr/sbin/nologin "$1"
    fi
    case $(stat -c %U:%a "$2" 2>/dev/null) in
        "$1:700" | "$1:711") ;; # 711: rootless Podman lets its containers' ids pass to the images below it
        *) run install -d -m 0700 -o "$1" -g "$1" "$2" ;;
    esac
    if [ "$(subid_total "$1" /etc/subuid)" -ge "$subid_count" ] &&
        [ "$(subid_total "$1" /etc/subgid)" -ge "$subid_count" ]; then
        return 0
    fi
    start=$(free_subid_start /etc/subuid /etc/subgid)
    end=$((start + subid_count - 1))
    [ "$end" -lt 4294967294 ] || die "no $subid_count subordinate ids are free above the ranges in /etc/subuid"
    say "giving $1 the subordinate ids $start-$end"
    run usermod --add-subuids "$start-$end" --add-subgids "$start-$end" "$1"
}

# ---------------------------------------------------------------------------------------------------- a clone (--deps)

# venv_stamp: what .venv was made from; a change of any part makes it anew.
venv_stamp() {
    printf '%s %s\n' "$python" "$(readlink -f "$python")"
    cd "$here" && sha256sum pyproject.toml requirements-dev.lock .ci/build.lock
}

need_venv() {
    venv=$here/.venv
    [ "$(venv_stamp)" != "$(cat "$venv/.made-from" 2>/dev/null)" ] || return 0
    say "making $venv with $python from requirements-dev.lock"
    if [ "$is_dry" = yes ]; then
        run "$python" -m venv "$venv"
        run "$venv/bin/uv" pip sync requirements-dev.lock
        return 0
    fi
    has_acted=yes
    if [ "$(sed -n 's/^home = //p' "$venv/pyvenv.cfg" 2>/dev/null)" != "$(dirname "$python")" ] ||
        ! [ -x "$venv/bin/uv" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
        [ ! -e "$venv" ] || [ -f "$venv/pyvenv.cfg" ] || die "$venv is no virtual environment: move it away"
        rm -rf "$venv"
        new_venv "$venv"
        # Scripts that find their interpreter beside themselves: the unprivileged user sees this folder elsewhere.
        echo 'relocatable = true' >>"$venv/pyvenv.cfg"
    fi
    rm -f "$venv/.made-from"
    sync_venv "$venv/bin/uv" "$venv" "$here/requirements-dev.lock"
    "$venv/bin/uv" pip install --quiet --system-certs --python "$venv/bin/python" --no-deps --no-build-isolation -e "$here"
    # The same for the clone: relative to site-packages, not the place where it lies today.
    for pth in "$venv"/lib/python3*/site-packages/*dc_compute.pth; do
        echo '../../../..' >"$pth"
    done
    chmod -R u+rwX,go+rX "$venv"
    venv_stamp >"$venv/.made-from"
}

# new_venv DIR: an empty environment that has the locked uv.
new_venv() {
    "$python" -m venv "$1"
    "$1/bin/python" -m pip install -qq --disable-pip-version-check --require-hashes --no-deps \
        -r "$here/.ci/build.lock"
}

# sync_venv UV DIR LOCK: exactly the locked packages in DIR, each checked against its hash.
sync_venv() {
    UV_LINK_MODE=copy "$1" pip sync --quiet --system-certs --require-hashes --compile-bytecode --python "$2/bin/python" "$3"
}

# need_promtool: what checks the metrics and the alerts in `make test`. Only this program is taken out of Debian's package:
# installing that would start a server on a developer's machine. Tests that want it say so when it is not here.
need_promtool() {
    if has promtool || [ -x "$here/.venv/bin/promtool" ] || ! has apt-get; then
        return 0
    fi
    say "taking promtool out of Debian's package prometheus: .venv/bin/promtool"
    if [ "$is_dry" = yes ]; then
        run apt-get download prometheus
        return 0
    fi
    has_acted=yes
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    chmod 0755 "$work" # apt fetches as a user of its own
    if (cd "$work" && { apt-get -qq download prometheus || { apt-get -qq update && apt-get -qq download prometheus; }; } &&
        dpkg-deb --fsys-tarfile prometheus_*.deb | tar -xf - ./usr/bin/promtool) >"$work/log" 2>&1; then
        install -m 0755 "$work/usr/bin/promtool" "$here/.venv/bin/promtool.new"
        mv "$here/.venv/bin/promtool.new" "$here/.venv/bin/promtool"
    else
        say "promtool could not be had; the tests that want it are left out: $(tail -n 1 "$work/log")"
    fi
    rm -rf "$work"
    trap - EXIT
}

# What rootless containers need. Without policy.json Podman loads no image, and its package does not always bring it;
# crun or runc: which of them works depends on the host's cgroups.
readonly container_needs='podman:podman runc:runc crun:crun conmon:conmon newuidmap:uidmap
    /etc/containers/policy.json:golang-github-containers-common'
readonly common_needs='setpriv:util-linux useradd:passwd
    /etc/ssl/certs/ca-certificates.crt:ca-certificates'

install_deps() {
    exec 9<"$here/requirements-dev.lock"
    flock 9 # two `make` in one clone: the second waits
    # shellcheck disable=SC2086  # a list of words
    need_packages $container_needs $common_needs unshare:util-linux mount:mount make:make strace:strace chromium:chromium \
        /usr/share/fonts/truetype/dejavu/DejaVuSans.ttf:fonts-dejavu-core
    need_python
    need_venv
    need_promtool
    if is_root; then
        need_user "$dev_user" "$dev_home"
        [ -d "$dev_mount" ] || run install -d -m 0755 "$dev_mount"
    elif ! grep -qs "^$(id -un):" /etc/subuid; then
        say "you have no subordinate ids; for rootless containers run as root:" \
            "usermod --add-subuids START-END --add-subgids START-END $(id -un)"
    fi
    if [ "$is_dry" = yes ]; then
        say "dry run: nothing was done"
    elif [ "$has_acted" = yes ]; then
        say "done: make demo, make test and make check have what they need"
    fi
}

# What tests/host/vm needs: it makes a Debian machine with cgroup v2 and boots it in QEMU.
install_deps_host() {
    need_packages qemu-system-x86_64:qemu-system-x86 mmdebstrap:mmdebstrap mke2fs:e2fsprogs \
        systemd-nspawn:systemd-container
    [ "$has_acted" = no ] || [ "$is_dry" = yes ] || say "done: tests/host/vm has what it needs"
}

# ---------------------------------------------------------------------------------------------------- a host

need_root() { [ "$is_dry" = yes ] || is_root || die "a host install needs root (try --dry-run, or --deps in a clone)"; }
is_systemd_booted() { [ -d /run/systemd/system ]; }

# program_stamp: what the program was made from.
program_stamp() {
    venv_stamp
    cd "$here" && find agent requirements.lock -type f ! -path '*/__pycache__/*' -exec sha256sum {} + | LC_ALL=C sort
}

# The program: a virtual environment that only root can change, from requirements.lock and this source. Downloads go
# through a folder that is removed again.
install_program() {
    [ "$(program_stamp)" != "$(cat "$prefix/.made-from" 2>/dev/null)" ] || return 0
    say "putting the program into $prefix with $python from requirements.lock"
    if [ "$is_dry" = yes ]; then
        run "$python" -m venv "$prefix"
        run uv pip sync --require-hashes requirements.lock
        run uv pip install --no-deps dc_compute.whl
    else
        [ ! -e "$prefix" ] || [ -f "$prefix/pyvenv.cfg" ] || [ -z "$(ls -A "$prefix")" ] ||
            die "$prefix holds something else: move it away or give another --prefix"
        has_acted=yes
        work=$(mktemp -d)
        trap 'rm -rf "$work"' EXIT
        export UV_CACHE_DIR="$work/cache" PIP_NO_CACHE_DIR=1
        new_venv "$work/tools"
        "$python" -m venv --without-pip "$prefix"
        rm -f "$prefix/.made-from"
        sync_venv "$work/tools/bin/uv" "$prefix" "$here/requirements.lock"
        (cd "$here" && "$work/tools/bin/uv" build --quiet --wheel --no-build-isolation \
            --python "$work/tools/bin/python" --out-dir "$work")
        "$work/tools/bin/uv" pip install --quiet --system-certs --python "$prefix/bin/python" --no-deps --compile-bytecode \
            "$work"/dc_compute-*.whl
        program_stamp >"$prefix/.made-from"
        rm -rf "$work"
        trap - EXIT
    fi
    run ln -sfn "$prefix/bin/dc-compute" "$command_link"
}

install_folders() {
    run install -d -m 0750 -o root -g "$service_user" "$settings_dir"
    run install -d -m 0755 "$prefix/share/dc-compute/seccomp"
    for profile in "$here"/seccomp/*.json; do
        [ ! -e "$profile" ] || run install -m 0644 "$profile" "$prefix/share/dc-compute/seccomp/"
    done
}

# install_unit FILE DIR: copy it with the program's real folder in it.
install_unit() {
    say "writing $2/$(basename "$1")"
    run install -D -m 0644 "$1" "$2/$(basename "$1")"
    [ "$prefix" = /opt/dc-compute ] || run sed -i "s|/opt/dc-compute|$prefix|g" "$2/$(basename "$1")"
}

install_units() {
    for unit in $units; do
        install_unit "$here/systemd/$unit" /etc/systemd/system
    done
    # Podman runs in the systemd of this user: the worker begins after it and ends before it, at a boot and at a shutdown.
    user_manager=user@$(id -u "$service_user" 2>/dev/null || echo UID).service
    for unit in dc-compute-worker.service dc-compute-drain.service; do
        install_text "$(printf '[Unit]\nWants=%s\nAfter=%s' "$user_manager" "$user_manager")" \
            "/etc/systemd/system/$unit.d/10-user-manager.conf"
    done
    for unit in dc-compute-api.service dc-compute-worker.service; do
        if [ "$(systemd_version)" -lt 255 ]; then
            run install -D -m 0644 "$here/systemd/systemd-before-255.conf" "/etc/systemd/system/$unit.d/10-before-255.conf"
        else
            run rm -f "/etc/systemd/system/$unit.d/10-before-255.conf"
        fi
    done
    install_unit "$here/systemd/dc-compute-podman.service" /etc/systemd/user
    install_unit "$here/systemd/sysusers.d/dc-compute.conf" /etc/sysusers.d
    install_unit "$here/systemd/tmpfiles.d/dc-compute.conf" /etc/tmpfiles.d
    wants=$state_dir/.config/systemd/user/default.target.wants
    run as_service_user mkdir -p "$wants"
    run as_service_user ln -sfn /etc/systemd/user/dc-compute-podman.service "$wants/dc-compute-podman.service"
    run as_service_user mkdir -p "$state_dir/.config/systemd/user/user.slice.d"
    run install -m 0644 "$here/systemd/jobs-slice.conf" "$state_dir/.config/systemd/user/user.slice.d/50-dc-compute.conf"
}

# systemd_version: its number; that of the oldest one that is known to do where there is none to ask.
systemd_version() {
    version=$(systemctl --version 2>/dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
    printf '%s\n' "${version:-252}"
}

# install_text TEXT FILE: a small file of ours.
install_text() {
    say "writing $2"
    run mkdir -p "$(dirname "$2")"
    [ "$is_dry" = yes ] || printf '%s\n' "$1" >"$2"
}

as_service_user() {
    setpriv --reuid "$service_user" --regid "$service_user" --init-groups -- \
        env -i HOME="$state_dir" PATH=/usr/bin:/bin LANG=C.UTF-8 "$@"
}

start_services() {
    if ! is_systemd_booted; then
        say "systemd is not running here: the units are installed, not started"
        return 0
    fi
    run systemd-tmpfiles --create /etc/tmpfiles.d/dc-compute.conf
    run loginctl enable-linger "$service_user"
    run systemctl daemon-reload
    # shellcheck disable=SC2086  # a list of words
    run systemctl enable --quiet dc-compute.target $enabled_units
    # The sockets stay open while the services restart, unless the API of an older version holds the port itself.
    systemctl is-active --quiet dc-compute-api.socket || run systemctl stop dc-compute-api.service
    run systemctl try-restart dc-compute-api.service dc-compute-worker.service
    run systemctl start dc-compute.target
}

install_host() {
    need_root
    # shellcheck disable=SC2086  # a list of words
    need_packages $container_needs $common_needs /usr/lib/systemd/user/dbus.socket:dbus-user-session
    need_python
    need_user "$service_user" "$state_dir"
    install_program
    install_folders
    install_units
    init_agent
    start_services
    say "state: $(state_of dc-compute-api.service) (api), $(state_of dc-compute-worker.service) (worker)"
    say "next: add your orchestrators and peers to the roster and say what may run here:"
    say "      dc-compute peers --help, $settings_dir; an empty policy runs nothing"
}

state_of() { if is_systemd_booted; then systemctl is-active "$1" || true; else echo "installed, not started"; fi; }

init_agent() {
    say "making settings and keys (dc-compute init)"
    # As root: the settings are root's, for the group to read; what lies in the state folder becomes the service's.
    run env -i HOME="$state_dir" PATH=/usr/bin:/bin LANG=C.UTF-8 "$prefix/bin/dc-compute" --home "$settings_dir" init \
        --certificate "$(uname -n)" --certificate localhost
}

uninstall_host() {
    need_root
    say "removing dc-compute from this host"
    if is_systemd_booted; then
        # shellcheck disable=SC2086  # a list of words
        run systemctl disable --now dc-compute.target $enabled_units || true
        ! has_user "$service_user" || run loginctl disable-linger "$service_user" || true
    fi
    for unit in $units; do
        run rm -rf "/etc/systemd/system/$unit" "/etc/systemd/system/$unit.d"
    done
    run rm -f /etc/systemd/user/dc-compute-podman.service \
        /etc/sysusers.d/dc-compute.conf /etc/tmpfiles.d/dc-compute.conf "$command_link"
    [ ! -d /etc/sysusers.d ] || run rmdir --ignore-fail-on-non-empty /etc/sysusers.d # Debian has none by itself
    ! is_systemd_booted || run systemctl daemon-reload
    if [ ! -e "$prefix" ]; then
        say "$prefix is not there"
    elif [ -f "$prefix/pyvenv.cfg" ]; then
        run rm -rf "$prefix"
    else
        die "$prefix is not what this script made: left as it is"
    fi
    if [ "$is_purge" = yes ]; then
        run rm -rf "$settings_dir" "$state_dir" /run/dc-compute
        ! has_user "$service_user" || run userdel "$service_user" # takes its subordinate ids along
    else
        say "kept: $settings_dir, $state_dir and the user $service_user (--purge removes them)"
    fi
    say "Debian packages were left as they are"
}

# ---------------------------------------------------------------------------------------------------- main

main() {
    action=install
    is_purge=no
    while [ $# -gt 0 ]; do
        case $1 in
            --deps) action=deps ;;
            --deps-host) action=deps_host ;;
            --uninstall) action=uninstall ;;
            --purge) is_purge=yes ;;
            --dry-run) is_dry=yes ;;
            --prefix)
                [ $# -ge 2 ] || die "--prefix wants a folder"
                prefix=$2
                shift
                ;;
            --prefix=*) prefix=${1#--prefix=} ;;
            -h | --help)
                usage
                exit 0
                ;;
            *)
                usage >&2
                exit 2
                ;;
        esac
        shift
    done
    case $prefix in
        '' | / | *[!A-Za-z0-9._/+-]* | [!/]* | */..*) die "--prefix wants an absolute path of plain characters" ;;
    esac
    [ "$is_purge" = no ] || [ "$action" = uninstall ] || die "--purge goes with --uninstall"
    case $action in
        deps) install_deps ;;
        deps_host) install_deps_host ;;
        install) install_host ;;
        uninstall) uninstall_host ;;
    esac
}

main "$@"
