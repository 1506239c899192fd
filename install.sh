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
readonly default_prefix=/opt/dc-compute
readonly lingering=/var/lib/systemd/linger/$service_user
readonly cage_state=/run/dc-compute/work/selftest.json # written by each worker when it has tried the cage
readonly ledger_backup=$state_dir/upgrade/ledger-before-upgrade.backup
prefix=$default_prefix

# The developer's places.
readonly dev_user=dc-compute-dev
readonly dev_home=/var/lib/dc-compute-dev
readonly dev_mount=/opt/dc-compute-dev/src # where .ci/rootless shows the clone to that user

# Eight maps of 65536 ids for each user: a container's ids never contain the agent's own.
readonly subid_count=524288

# How long a new version has until it answers as the old one did, and for how long it then must stay that way.
readonly ready_timeout_s=120 settle_s=5 cage_timeout_s=30
readonly start_limit=3 # a service that systemd started this often anew will not come up

readonly os_release=/etc/os-release

is_dry=no
has_acted=no
wheelhouse= # --offline: the only place that packages may come from

usage() {
    cat <<'USAGE'
usage: install.sh [--dry-run] [--prefix DIR] [--offline WHEELHOUSE]            install dc-compute on this host (root)
       install.sh --upgrade [--dry-run] [--prefix DIR] [--offline WHEELHOUSE]  put this version in the place of another
       install.sh --uninstall [--purge] [--dry-run] [--prefix DIR]             take it away again (root)
       install.sh --deps [--dry-run]        what `make demo`, `make test`, `make check` need
       install.sh --deps-host [--dry-run]   what the tests in a machine of its own need besides

  --prefix DIR   the program's folder; the one in use, else /opt/dc-compute
  --offline DIR  take packages of Python from this folder only (`make wheelhouse` fills one), and touch no network;
                 what is missing of the distribution's packages is named and must be there before
  --upgrade      as without it, but refused where nothing is installed. The new version is made beside the old one, the
                 ledger is backed up, then services are restarted. Where they do not become ready as they were
                 before, the old version is put back, with its ledger if the new one changed its schema; exit code 1
  --dry-run      say what would be done and do nothing
  --uninstall    remove program, units and command; keep settings, data and user
  --purge        with --uninstall: also settings, keys, ledger, images and user
  --help         this text

A host install touches these and nothing else:
  packages               Debian, Ubuntu (apt-get): python3 python3-venv podman runc crun conmon uidmap dbus-user-session
                         golang-github-containers-common ca-certificates; RHEL and its like (dnf): python3.11 podman
                         crun conmon shadow-utils util-linux containers-common dbus-common
  user dc-compute        a system user without a shell, and its lines in /etc/subuid and /etc/subgid; lingering
  /opt/dc-compute        the program (or --prefix DIR), owned by root: versions/VERSION-HASH, the links current and previous
  /usr/local/bin/dc-compute                  a link to the command
  /etc/dc-compute        settings, root:dc-compute 0750
  /var/lib/dc-compute    keys, ledger, queues, images, dc-compute 0700; upgrade/ holds the ledger of before the last upgrade
  /run/dc-compute        sockets and workspaces of running tasks, in memory
  /etc/systemd/system/dc-compute*            units and their drop-ins, enabled
  /etc/systemd/system/dc.slice               above dc-compute.slice, where the version has one
  /etc/systemd/user/dc-compute*              Podman for dc-compute, in the user's own systemd
  /etc/sysusers.d/dc-compute.conf
  /etc/tmpfiles.d/dc-compute.conf
  /usr/local/share/bash-completion/completions/dc-compute
  /usr/local/share/zsh/site-functions/_dc-compute
  /usr/share/fish/vendor_completions.d/dc-compute.fish
  /usr/local/share/man/man1/dc-compute.1

--deps touches: Debian packages (as root), .venv in the clone, and as root the user dc-compute-dev with its home
/var/lib/dc-compute-dev, its lines in /etc/subuid and /etc/subgid, and the empty folder /opt/dc-compute-dev/src
(and .ci/rootless the empty folder /run/dc-compute-dev). Of Debian's package prometheus only promtool is taken, into .venv:
nothing of it is installed or started.
--deps-host touches: the Debian packages qemu-system-x86, mmdebstrap, e2fsprogs, systemd-container (as root). The tests that
use them keep a disk of about 700 MB in /var/cache/dc-compute-dev/vm, 500 MB in /var/cache/dc-compute-dev/scratch and 2 GB in
/var/cache/dc-compute-dev/systems.
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

# package_manager: apt, dnf, or nothing that this script knows.
package_manager() {
    if has apt-get; then
        echo apt
    elif has dnf; then
        echo dnf
    fi
}

# os_name: the distribution's own words for itself; os_field NAME: one value of its os-release.
os_field() { sed -n "s/^$1=//p" "$os_release" 2>/dev/null | tr -d '"' | head -n 1; }
os_name() {
    name=$(os_field PRETTY_NAME)
    printf '%s\n' "${name:-this system}"
}

# missing_packages THING:DEBIAN:RHEL...: the packages of the programs (or files, by full path) that are not here, by the
# names of this host's family. `-`: that family has none, or has it always.
missing_packages() {
    find_python >/dev/null || python_packages
    for need in "$@"; do
        thing=${need%%:*}
        names=${need#*:}
        case $thing in
            /*) [ ! -e "$thing" ] || continue ;;
            *) ! has "$thing" || continue ;;
        esac
        if [ "$(package_manager)" = dnf ]; then name=${names#*:}; else name=${names%%:*}; fi
        [ "$name" = - ] || printf '%s ' "$name"
    done
}

# python_packages: those of the first Python from 3.11 on that the distribution offers; its usual names where it cannot
# be asked (before its lists were fetched).
python_packages() {
    case $(package_manager) in
        dnf)
            # python3 is 3.6 in RHEL 8, 3.9 in RHEL 9, 3.12 in RHEL 10; Fedora's is newer than 3.11
            case $(os_field PLATFORM_ID) in
                platform:el8 | platform:el9) printf 'python3.11 ' ;;
                *) printf 'python3 ' ;;
            esac
            ;;
        apt)
            minor=$(apt-cache policy python3 2>/dev/null | sed -n 's/^ *Candidate: 3\.\([0-9]*\).*/\1/p')
            if [ "${minor:-11}" -ge 11 ]; then
                printf 'python3 python3-venv '
                return 0
            fi
            for version in 3.13 3.12 3.11; do
                if [ -n "$(apt-cache show "python$version-venv" 2>/dev/null)" ]; then
                    printf '%s ' "python$version" "python$version-venv"
                    return 0
                fi
            done
            ;;
        *) printf 'python3 python3-venv ' ;;
    esac
}

# need_packages THING:DEBIAN:RHEL...: install what is missing when root on a known family, else say what to do.
need_packages() {
    missing=$(missing_packages "$@")
    [ -n "$missing" ] || return 0
    manager=$(package_manager)
    if [ -n "$wheelhouse" ]; then
        say "missing here: $missing"
        [ "$is_dry" = yes ] || die "--offline fetches no packages: install them from your own mirror and run it again"
    elif [ -z "$manager" ]; then
        say "missing here (Debian's names): $missing"
        say "this script installs packages with apt-get or dnf; $(os_name) has neither: install them and run it again"
    elif ! is_root; then
        say "missing here: $missing"
        if [ "$manager" = apt ]; then
            say "run as root: apt-get update && apt-get install --no-install-recommends $missing"
        else
            say "run as root: dnf install --setopt=install_weak_deps=False $missing"
        fi
    elif [ "$manager" = apt ]; then
        run apt-get -q update || say "not every package list could be renewed; going on with those that are here"
        missing=$(missing_packages "$@") # which Python there is stands in the lists
        say "installing packages: $missing"
        # shellcheck disable=SC2086  # a list of words
        run env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $missing
    else
        say "installing packages: $missing"
        # shellcheck disable=SC2086  # a list of words
        run dnf -q -y install --setopt=install_weak_deps=False $missing
    fi
}

need_python() {
    if python=$(find_python); then
        return 0
    fi
    if [ "$is_dry" = yes ]; then
        python=/usr/bin/python3
        return 0
    fi
    say "no Python 3.11 or newer, with venv, that an unprivileged user can execute was found in /usr/bin or /usr/local/bin"
    case $(package_manager) in
        apt) say "on $(os_name): Ubuntu 22.04 has python3.11 and python3.11-venv in universe; Debian has them from 12 on" ;;
        dnf) say "on $(os_name): RHEL and its like have python3.11 from 8.8 and 9.2 on (dnf install python3.11)" ;;
    esac
    die "install one beside the system's own, which stays as it is, and run this again"
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
        "$1:700" | "$1:711") ;; # Podman lets its containers' users through to its storage: 0711
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

# new_venv DIR: an empty environment that has the locked uv and hatchling.
new_venv() {
    "$python" -m venv "$1"
    "$1/bin/python" -m pip install -qq --disable-pip-version-check --require-hashes --no-deps \
        ${wheelhouse:+--no-index --find-links "$wheelhouse"} -r "$here/.ci/build.lock"
}

# sync_venv UV DIR LOCK: exactly the locked packages in DIR, each checked against its hash.
sync_venv() {
    UV_LINK_MODE=copy "$1" pip sync --quiet --system-certs --require-hashes --compile-bytecode --python "$2/bin/python" \
        ${wheelhouse:+--no-config --offline --no-index --find-links "$wheelhouse"} "$3"
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
readonly container_needs='podman:podman:podman runc:runc:- crun:crun:crun conmon:conmon:conmon
    newuidmap:uidmap:shadow-utils /etc/containers/policy.json:golang-github-containers-common:containers-common'
readonly common_needs='setpriv:util-linux:util-linux useradd:passwd:shadow-utils
    /etc/ssl/certs/ca-certificates.crt:ca-certificates:-'

install_deps() {
    exec 9<"$here/requirements-dev.lock"
    flock 9 # two `make` in one clone: the second waits
    # shellcheck disable=SC2086  # a list of words
    need_packages $container_needs $common_needs unshare:util-linux:util-linux mount:mount:util-linux make:make:make \
        strace:strace:strace chromium:chromium:chromium \
        /usr/share/fonts/truetype/dejavu/DejaVuSans.ttf:fonts-dejavu-core:-
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
    need_packages qemu-system-x86_64:qemu-system-x86:- mmdebstrap:mmdebstrap:- mke2fs:e2fsprogs:- \
        systemd-nspawn:systemd-container:-
    [ "$has_acted" = no ] || [ "$is_dry" = yes ] || say "done: tests/host/vm has what it needs"
}

# ---------------------------------------------------------------------------------------------------- a host

# PREFIX/versions/VERSION-HASH   a virtual environment with everything that belongs to it: the program, seccomp profiles, and
#                                below share/dc-compute/host the files that go elsewhere, each under its whole path
# PREFIX/current, PREFIX/previous   links; units and the command name `current`, so one rename switches all of them
# PREFIX/made-folders, made-files   folders outside that were not there before, which --uninstall removes when they are empty,
#                                and files that the making of the user left, which --purge removes
# A running process keeps its own version: its interpreter names the folder in versions, not the link.
# The layout of before 0.2: PREFIX is the environment itself. It is a version like the others, called by the name PREFIX.

need_root() { [ "$is_dry" = yes ] || is_root || die "a host install needs root (try --dry-run, or --deps in a clone)"; }
is_systemd_booted() { [ -d /run/systemd/system ]; }

# One installer at a time. The lock is on a folder that every host has, so that it leaves nothing behind.
take_turn() {
    [ "$is_dry" = no ] || return 0
    exec 9</etc
    flock -n 9 || die "another install.sh is at work on this host"
}

use_wheelhouse() {
    wheelhouse=$(CDPATH='' cd -- "$1" 2>/dev/null && pwd) || die "--offline wants a folder of wheels: there is no $1"
    for wheel in "$wheelhouse"/*.whl; do
        [ -e "$wheel" ] || die "--offline wants a folder of wheels: $wheelhouse has none (\`make wheelhouse\` fills one)"
        break
    done
    # What the caller's surroundings say of indexes, mirrors and other folders does not count.
    export PIP_CONFIG_FILE=/dev/null PIP_NO_INDEX=1
    unset PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS UV_INDEX UV_DEFAULT_INDEX UV_INDEX_URL UV_EXTRA_INDEX_URL UV_FIND_LINKS UV_CONFIG_FILE
}

# choose_prefix: the folder that is in use, unless one was named; two installs on one host would share units and ledger.
choose_prefix() {
    target=$(readlink "$command_link" 2>/dev/null) || return 0
    used=${target%/bin/dc-compute}
    used=${used%/current}
    [ -n "$used" ] && [ -d "$used" ] && [ "$used" != "$prefix" ] || return 0
    [ "$has_prefix" = no ] || die "dc-compute is installed in $used already: --uninstall it first, which keeps settings and data"
    say "dc-compute is installed in $used"
    prefix=$used
}

# ------------------------------------------------------------------ a version

# program_stamp: what a version is made from.
program_stamp() {
    printf '%s %s\n' "$python" "$("$python" -I -c 'import sys; print(*sys.version_info[:2], sep=".")' 2>/dev/null)"
    printf '%s %s %s\n' "$prefix" "$(user_manager)" "$(if [ "$(systemd_version)" -lt 255 ]; then echo before-255; fi)"
    cd "$here" && find agent systemd seccomp install.sh pyproject.toml requirements.lock .ci/build.lock -type f \
        ! -path '*/__pycache__/*' -exec sha256sum {} + 2>/dev/null | LC_ALL=C sort
}

# version_name: 0.1.0-1a2b3c4d5e6f, of this source on this host.
version_name() { printf '%s-%.12s\n' "$(version_number)" "$(program_stamp | sha256sum)"; }
version_number() { sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$here/agent/__init__.py"; }

is_flat() { [ -f "$prefix/pyvenv.cfg" ]; }

# current_version: the folder of the version in force; nothing when none is.
current_version() {
    if [ -L "$prefix/current" ]; then
        readlink -f "$prefix/current"
    elif is_flat; then
        printf '%s\n' "$prefix"
    fi
}

# name_of VERSION: how it is called in messages.
name_of() { if [ "$1" = "$prefix" ]; then echo "that of before"; else basename "$1"; fi; }

# build_version DIR: everything of a version, in its place. Nothing points there before it is whole: `.made-from` comes last.
build_version() {
    [ ! -f "$1/.made-from" ] || return 0
    say "making $1 with $python from ${wheelhouse:-requirements.lock}"
    if [ "$is_dry" = yes ]; then
        run "$python" -m venv "$1"
        run uv pip sync --require-hashes ${wheelhouse:+--offline --no-index --find-links "$wheelhouse"} requirements.lock
        run uv pip install --no-deps dc_compute.whl
        return 0
    fi
    has_acted=yes
    unfinished=$1
    rm -rf "$1"
    work=$(mktemp -d)
    export UV_CACHE_DIR="$work/cache" PIP_NO_CACHE_DIR=1
    new_venv "$work/tools"
    "$python" -m venv --without-pip "$1"
    sync_venv "$work/tools/bin/uv" "$1" "$here/requirements.lock"
    (cd "$here" && "$work/tools/bin/python" -B -m hatchling build -t wheel -d "$work" >"$work/log" 2>&1) ||
        die "the program's own wheel could not be built: $(cat "$work/log")"
    "$work/tools/bin/uv" pip install --quiet --no-config --offline --no-index --python "$1/bin/python" --no-deps \
        --compile-bytecode "$work"/dc_compute-*.whl
    rm -rf "$work" "$1/.lock" # uv's lock is everybody's to write
    work=
    install -d -m 0755 "$1/share/dc-compute/seccomp"
    install -m 0644 "$here"/seccomp/*.json "$1/share/dc-compute/seccomp/"
    build_host_files "$1"
    [ "$("$1/bin/dc-compute" --version)" = "dc-compute $(version_number)" ] || die "$1/bin/dc-compute does not run"
    program_stamp >"$1/.made-from"
    unfinished=
}

# ------------------------------------------------------------------ its files elsewhere

# host_files: SOURCE TARGET, a line each, of the files in systemd/ and where they go.
host_files() {
    (
        cd "$here/systemd"
        for file in *.service *.socket *.target *.slice *.timer *.path; do
            case $file in
                '*.'*) ;;
                dc-compute-podman.service) echo "$file /etc/systemd/user/$file" ;;
                *) echo "$file /etc/systemd/system/$file" ;;
            esac
        done
        for file in sysusers.d/*.conf tmpfiles.d/*.conf; do
            [ ! -f "$file" ] || echo "$file /etc/$file"
        done
        for file in *.service.d/*.conf *.socket.d/*.conf *.target.d/*.conf *.slice.d/*.conf; do
            [ ! -f "$file" ] || echo "$file /etc/systemd/system/$file"
        done
        for file in user/*.* user/*.d/*.conf; do
            [ ! -f "$file" ] || echo "$file /etc/systemd/$file"
        done
        if [ -f systemd-before-255.conf ] && [ "$(systemd_version)" -lt 255 ]; then
            for service in api worker; do
                echo "systemd-before-255.conf /etc/systemd/system/dc-compute-$service.service.d/10-before-255.conf"
            done
        fi
        # For the systemd of the service user alone: in its home.
        [ ! -f jobs-slice.conf ] || echo "jobs-slice.conf $state_dir/.config/systemd/user/user.slice.d/50-dc-compute.conf"
        [ ! -f jobs-scope.conf ] || echo "jobs-scope.conf $state_dir/.config/systemd/user/scope.d/50-dc-compute.conf"
    )
}

# user_manager: the unit of the service user's own systemd, where Podman runs.
user_manager() { printf 'user@%s.service\n' "$(id -u "$service_user" 2>/dev/null || echo UID)"; }

# waits_for_podman: the units that begin after Podman's and end before it, at a boot and at a shutdown. The number of the user is
# this host's: no file in the source can name it.
waits_for_podman() {
    for unit in dc-compute-worker.service dc-compute-drain.service; do
        [ ! -f "$here/systemd/$unit" ] || printf '%s\n' "/etc/systemd/system/$unit.d/10-user-manager.conf"
    done
}

# systemd_version: its number; that of the oldest one that is known to do where there is none to ask.
systemd_version() {
    number=$(systemctl --version 2>/dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
    printf '%s\n' "${number:-252}"
}

# made_files: what the program writes itself, by the place where it goes.
readonly bash_completion=/usr/local/share/bash-completion/completions/dc-compute
readonly zsh_completion=/usr/local/share/zsh/site-functions/_dc-compute
readonly fish_completion=/usr/share/fish/vendor_completions.d/dc-compute.fish # fish reads no other folder for all users
readonly man_page=/usr/local/share/man/man1/dc-compute.1

# build_host_files VERSION: all of them, below share/dc-compute/host of the version.
build_host_files() {
    tree=$1/share/dc-compute/host
    host_files | while read -r source target; do
        # A unit in the source names the default folder, with or without `current`.
        sed -e "s|$default_prefix/current/bin/|$default_prefix/bin/|g" -e "s|$default_prefix/bin/|$prefix/current/bin/|g" \
            "$here/systemd/$source" | into "$tree$target"
    done
    for target in $(waits_for_podman); do
        printf '[Unit]\nWants=%s\nAfter=%s\n' "$(user_manager)" "$(user_manager)" | into "$tree$target"
    done
    completion_of "$1" bash | into "$tree$bash_completion"
    completion_of "$1" zsh | into "$tree$zsh_completion"
    completion_of "$1" fish | into "$tree$fish_completion"
    # zsh loads the file at the first <Tab> and wants an answer to that one already.
    # shellcheck disable=SC2016  # for zsh to expand
    echo '[[ $zsh_eval_context[-1] != loadautofunc ]] || _dc_compute_completion "$@"' >>"$tree$zsh_completion"
    if [ -f "$here/agent/devkit/manpage.py" ]; then
        mkdir -p "$tree$(dirname "$man_page")"
        "$1/bin/python" -I -m agent.devkit.manpage --out "$tree$man_page"
    fi
}

# into FILE: standard input, in a folder that is made where it is missing.
into() {
    mkdir -p "$(dirname "$1")"
    cat >"$1"
}

# completion_of VERSION SHELL: what the program writes for that shell, without the empty line before it.
completion_of() { env "_DC_COMPUTE_COMPLETE=source_$2" "$1/bin/dc-compute" | sed '/./,$!d'; }

# files_of VERSION: the whole paths of its files elsewhere.
files_of() {
    [ ! -d "$1/share/dc-compute/host" ] || (cd "$1/share/dc-compute/host" && find . -type f | sed 's|^\.||' | LC_ALL=C sort)
}

# units_of VERSION SUFFIX: the names of its units of the system with that suffix.
units_of() { files_of "$1" | sed -n "s|^/etc/systemd/system/\([^/]*\.$2\)\$|\1|p"; }

# keep_flat_files: the layout of before knows its files elsewhere by name only; a copy makes it a version that can come back.
keep_flat_files() {
    [ ! -d "$prefix/share/dc-compute/host" ] || return 0
    for file in /etc/systemd/system/dc-compute-api.service /etc/systemd/system/dc-compute-worker.service \
        /etc/systemd/system/dc-compute.target /etc/systemd/user/dc-compute-podman.service \
        /etc/sysusers.d/dc-compute.conf /etc/tmpfiles.d/dc-compute.conf; do
        [ ! -f "$file" ] || install -D -m 0644 "$file" "$prefix/share/dc-compute/host$file"
    done
}

# make_folder DIR: with its parents; what was not there is written down.
make_folder() {
    [ ! -d "$1" ] || return 0
    make_folder "$(dirname "$1")"
    mkdir -m 0755 "$1"
    printf '%s\n' "$1" >>"$prefix/made-folders"
}

# place_files VERSION [OTHER]: put its files where they go, and take away those that only the other has.
place_files() {
    changed=' '
    for file in $(files_of "$1"); do
        ! cmp -s "$1/share/dc-compute/host$file" "$file" || continue
        case $file in
            "$state_dir"/*) # in a folder that is not root's, nothing is written as root
                as_service_user mkdir -p "$(dirname "$file")"
                # shellcheck disable=SC2016  # for the inner shell
                as_service_user sh -c 'cat >"$1.part" && mv -f "$1.part" "$1"' sh "$file" <"$1/share/dc-compute/host$file"
                ;;
            *)
                make_folder "$(dirname "$file")"
                cat "$1/share/dc-compute/host$file" >"$file.part"
                chmod 0644 "$file.part"
                mv -f "$file.part" "$file"
                ;;
        esac
        changed="$changed$file "
        say "wrote $file"
    done
    if [ -n "${2:-}" ]; then
        for file in $(files_of "$2"); do
            [ ! -e "$1/share/dc-compute/host$file" ] || continue
            remove_file "$file"
            remove_empty "$(dirname "$file")"
            changed="$changed$file "
            say "removed $file"
        done
    fi
    [ "$changed" = ' ' ] || has_acted=yes
}

# remove_file FILE: by whom its folder belongs to.
remove_file() {
    case $1 in
        "$state_dir"/*) ! has_user "$service_user" || as_service_user rm -f "$1" ;;
        /etc/systemd/system/*.d/*) rm -f "$1" ;;
        /etc/systemd/system/*)
            systemctl -q disable --now "$(basename "$1")" >/dev/null 2>&1 || true # no link to what is gone
            rm -f "$1"
            ;;
        *) rm -f "$1" ;;
    esac
}

# remove_empty DIR: it and its parents, as far as this script made them and nothing lies there.
remove_empty() {
    folder=$1
    while grep -qxsF "$folder" "$prefix/made-folders" && rmdir "$folder" 2>/dev/null; do
        folder=$(dirname "$folder")
    done
}

# note_backups: which of shadow's own copies (/etc/subuid- …) are not there yet. keep_backups: write those down that came
# with the user, so that --purge takes them along with it.
note_backups() {
    absent=
    for file in /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- /etc/subuid- /etc/subgid-; do
        [ -e "$file" ] || absent="$absent $file"
    done
}
keep_backups() {
    for file in $absent; do
        ! [ -e "$file" ] || grep -qxsF "$file" "$prefix/made-files" || printf '%s\n' "$file" >>"$prefix/made-files"
    done
}

# point LINK TARGET: a link appears or changes in one step.
point() {
    [ "$(readlink "$1" 2>/dev/null)" != "$2" ] || return 0
    has_acted=yes
    ln -sfn "$2" "$1.new"
    mv -fT "$1.new" "$1"
}

# point_at VERSION: make it the current one.
point_at() {
    if [ "$1" = "$prefix" ]; then
        point "$command_link" "$prefix/bin/dc-compute"
        rm -f "$prefix/current"
    else
        point "$prefix/current" "versions/$(basename "$1")"
        point "$command_link" "$prefix/current/bin/dc-compute"
    fi
}

# ------------------------------------------------------------------ services

as_service_user() {
    setpriv --reuid "$service_user" --regid "$service_user" --init-groups -- \
        env -i HOME="$state_dir" PATH=/usr/bin:/bin LANG=C.UTF-8 "$@" 9<&-
}

# user_systemctl WORD...: of the service user's own systemd.
user_systemctl() { as_service_user env "XDG_RUNTIME_DIR=/run/user/$(id -u "$service_user")" systemctl --user "$@"; }

# link_user_units VERSION: enable what its user units say, in the home of the service user.
link_user_units() {
    for file in $(files_of "$1"); do
        case $file in
            /etc/systemd/user/*.d/*) ;;
            /etc/systemd/user/*)
                wanting=$(sed -n 's/^WantedBy=//p' "$file")
                [ -n "$wanting" ] || continue
                link=$state_dir/.config/systemd/user/$wanting.wants/$(basename "$file")
                [ "$(readlink "$link" 2>/dev/null)" != "$file" ] || continue
                has_acted=yes
                as_service_user mkdir -p "$(dirname "$link")"
                as_service_user ln -sfn "$file" "$link"
                ;;
        esac
    done
}

# enabled_of VERSION: its units of the system that say where they belong.
enabled_of() {
    for file in $(files_of "$1"); do
        case $file in
            /etc/systemd/system/*.d/*) ;;
            /etc/systemd/system/*) ! grep -q '^\[Install\]' "$1/share/dc-compute/host$file" || basename "$file" ;;
        esac
    done
}

is_service_active() { systemctl -q is-active "$1"; }
are_services_active() { is_service_active dc-compute-api.service && is_service_active dc-compute-worker.service; }

# start_services VERSION is_podman_new: what its files say, in force. False when a service does not come up.
start_services() {
    run systemd-tmpfiles --create /etc/tmpfiles.d/dc-compute.conf
    [ -e "$lingering" ] || run loginctl enable-linger "$service_user"
    run systemctl daemon-reload
    # shellcheck disable=SC2046  # a list of words
    run systemctl -q enable $(enabled_of "$1")
    run systemctl start "user@$(id -u "$service_user").service"
    run user_systemctl daemon-reload
    if [ "$2" = yes ]; then
        run user_systemctl restart dc-compute-podman.service # containers outlive it
    else
        run user_systemctl start dc-compute-podman.service
    fi
    for socket in $(units_of "$1" socket); do
        # One that listens as it should stays open, and nobody is refused. Another one does not come up, or up anew, while a
        # service of before holds its address.
        case $changed in
            *"/$socket"*) ;;
            *) ! is_service_active "$socket" || continue ;;
        esac
        run systemctl stop dc-compute-api.service dc-compute-worker.service
        run systemctl restart "$socket"
    done
    run systemctl start dc-compute.target && run systemctl restart dc-compute-api.service dc-compute-worker.service
}

# stop_services VERSION: both, at once; containers go on. Sockets too: a connection would start a service again.
stop_services() {
    # shellcheck disable=SC2046  # a list of words
    systemctl stop $(units_of "$1" socket) dc-compute-api.service dc-compute-worker.service 2>/dev/null || true
}

# ask_agent VERSION: the names of the checks that keep it from taking orders, in one line; false when it does not answer.
ask_agent() {
    "$1/bin/dc-compute" --home "$settings_dir" status --json 2>/dev/null </dev/null | "$1/bin/python" -I -c '
import json, sys
print(*sorted(check["name"] for check in json.load(sys.stdin)["ready"]["checks"] if not check["is_ok"]))' 2>/dev/null
}

# ended_service: the service that systemd started again and again since we did.
ended_service() {
    for service in dc-compute-api.service dc-compute-worker.service; do
        if [ "$(systemctl show -p NRestarts --value "$service")" -ge "$start_limit" ]; then
            printf '%s\n' "$service"
            return 0
        fi
    done
    return 1
}

service_pids() { systemctl show -p MainPID --value dc-compute-api.service dc-compute-worker.service | tr -s '\n' ' '; }

# wait_ready VERSION ACCEPTED: both services up, the same processes for a while, and nothing keeps orders out but what
# did before (ACCEPTED: names of checks, or `any`). Otherwise false, and `wrong` says why.
wait_ready() {
    wrong="no answer on the operator's socket"
    began=$(date +%s)
    good=0
    pids=
    while [ $(($(date +%s) - began)) -lt "$ready_timeout_s" ]; do
        now_pids=$(service_pids)
        if ended=$(ended_service); then
            wrong="$ended was started $start_limit times and ended each time"
            return 1
        elif ! are_services_active; then
            wrong="dc-compute-api.service is $(state_of dc-compute-api.service), dc-compute-worker.service is $(state_of dc-compute-worker.service)"
            good=0
        elif ! seen=$(ask_agent "$1"); then
            wrong="the API does not answer on the operator's socket"
            good=0
        elif [ -n "$(not_in "$2" "$seen")" ]; then
            wrong="/ready says that it is not: $(not_in "$2" "$seen")"
            good=0
        elif [ "$now_pids" != "$pids" ]; then
            wrong="its processes do not stay up"
            good=0
        else
            good=$((good + 1))
            [ "$good" -le "$settle_s" ] || return 0
        fi
        pids=$now_pids
        sleep 1
    done
    return 1
}

# not_in ACCEPTED SEEN: the words of the second list that the first one lacks.
not_in() {
    [ "$1" != any ] || return 0
    for word in $2; do
        case " $1 " in
            *" $word "*) ;;
            *) printf '%s ' "$word" ;;
        esac
    done
}

# ledger_facts VERSION WORD: the ledger's path, or its schema's revision (nothing without a ledger), by the settings in force.
ledger_facts() {
    as_service_user "$1/bin/python" -I -c '
import sqlite3, sys
from pathlib import Path
from agent.config import load_settings
ledger = load_settings(Path(sys.argv[1]), {}).paths.ledger
if ledger.exists():
    if sys.argv[2] == "path":
        print(ledger)
    else:
        with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as opened:
            print(*opened.execute("SELECT version_num FROM alembic_version").fetchone())
' "$settings_dir" "$2"
}

# ------------------------------------------------------------------ from one version to another

# switch_version NEW OLD: the ledger backed up, everything of the new one in place, services restarted and ready; or the old
# one back as it was, and the end of this script.
switch_version() {
    to=$1 from=$2
    had_services=no
    accepted=any
    has_backup=no
    cage_before=$(stat -c %y "$cage_state" 2>/dev/null || true)
    if is_systemd_booted && are_services_active; then
        had_services=yes
        accepted=$(ask_agent "$from") || accepted=any
    fi
    [ "$from" != "$prefix" ] || keep_flat_files
    back_up_ledger
    say "switching from $(name_of "$from") to $(name_of "$to")"
    is_switching=yes
    place_files "$to" "$from"
    point_at "$to"
    link_user_units "$to"
    init_agent
    if is_systemd_booted; then
        start_services "$to" "$(is_podman_unit_new "$to" "$from")" || true
        wait_ready "$to" "$accepted" || exit 1 # `finish` goes back
        wait_for_cage "$accepted" || exit 1
    fi
    is_switching=no
    if [ "$from" = "$prefix" ]; then rm -f "$prefix/previous"; else point "$prefix/previous" "versions/$(basename "$from")"; fi
}

is_podman_unit_new() {
    for file in $(files_of "$1"); do
        case $file in
            /etc/systemd/user/*) cmp -s "$1/share/dc-compute/host$file" "$2/share/dc-compute/host$file" || { echo yes && return; } ;;
        esac
    done
    echo no
}

back_up_ledger() {
    schema=$(ledger_facts "$from" revision) || die "the settings or the ledger cannot be read: nothing was changed"
    if [ -z "$schema" ]; then
        say "there is no ledger yet to back up"
        return 0
    fi
    as_service_user mkdir -p -m 0700 "$(dirname "$ledger_backup")"
    as_service_user "$from/bin/dc-compute" --home "$settings_dir" backup "$ledger_backup" --force ||
        die "the ledger could not be backed up: nothing was changed"
    has_backup=yes
}

# wait_for_cage ACCEPTED: the new worker's self-test, where it comes to it soon: it may have to wait for a place behind jobs.
wait_for_cage() {
    [ -n "$cage_before" ] || return 0
    began=$(date +%s)
    while [ $(($(date +%s) - began)) -lt "$cage_timeout_s" ]; do
        if [ "$(stat -c %y "$cage_state" 2>/dev/null)" != "$cage_before" ]; then
            wait_ready "$to" "$1"
            return
        fi
        sleep 1
    done
    say "the new worker's self-test did not end within $cage_timeout_s s: it may wait behind a job; \`dc-compute status\` tells"
}

# roll_back: everything as it was before `switch_version`. It says what was wrong, and goes on whatever fails.
roll_back() {
    set +e
    say "the new version did not become ready: $wrong" >&2
    if is_systemd_booted; then
        has journalctl && journalctl -q --no-pager -n 20 -o cat -u dc-compute-api.service -u dc-compute-worker.service >&2
        stop_services "$to"
    fi
    place_files "$from" "$to"
    point_at "$from"
    if [ "$has_backup" = yes ] && [ "$(ledger_facts "$from" revision)" != "$schema" ]; then
        say "the new version changed the ledger's schema: putting the ledger of before back"
        "$from/bin/dc-compute" --home "$settings_dir" restore "$ledger_backup" ||
            say "the ledger could not be put back: \`dc-compute restore $ledger_backup\` with the services stopped" >&2
    fi
    if is_systemd_booted; then
        if [ "$had_services" = yes ]; then
            start_services "$from" "$(is_podman_unit_new "$from" "$to")"
            wait_ready "$from" "$accepted" || say "the old version is not ready either: $wrong" >&2
        else
            systemctl daemon-reload
        fi
    fi
    say "$(name_of "$from") is in force again; $(name_of "$to") stays in $to for you to look at" >&2
}

# finish: whatever ends this script, nothing half made stays.
finish() {
    code=$?
    trap - EXIT
    trap '' INT TERM HUP # going back is not interrupted
    if [ "$is_switching" = yes ]; then
        is_switching=no
        roll_back
        [ "$code" -ne 0 ] || code=1
    fi
    [ -z "$unfinished" ] || rm -rf "$unfinished"
    [ -z "$work" ] || rm -rf "$work"
    exit "$code"
}

# prune: every version but the current and the previous one; the layout of before once it is not the previous one any more.
prune() {
    for version in "$prefix"/versions/*; do
        [ -d "$version" ] || continue
        [ "$version" != "$(readlink -f "$prefix/current")" ] || continue
        [ "$version" != "$(readlink -f "$prefix/previous" || true)" ] || continue
        say "removing $version"
        rm -rf "$version"
    done
    if is_flat && [ -L "$prefix/previous" ]; then
        say "removing the layout of before from $prefix"
        for name in bin lib lib64 include share pyvenv.cfg .made-from .lock CACHEDIR.TAG .gitignore; do
            rm -rf "${prefix:?}/$name"
        done
    fi
}

# ------------------------------------------------------------------ the whole

install_host() {
    need_root
    take_turn
    choose_prefix
    old=$(current_version)
    [ "$action" = install ] || [ -n "$old" ] || [ "$is_dry" = yes ] ||
        die "nothing is installed in $prefix: run it without --upgrade"
    [ -n "$old" ] || [ ! -e "$prefix" ] || [ -d "$prefix/versions" ] || [ -z "$(ls -A "$prefix")" ] ||
        die "$prefix holds something else: move it away or give another --prefix"
    is_switching=no unfinished='' work='' wrong="a step failed" changed=' '
    trap finish EXIT
    trap 'wrong="it was interrupted"; exit 130' INT
    trap 'wrong="it was interrupted"; exit 143' TERM HUP
    # shellcheck disable=SC2086  # a list of words
    need_packages $container_needs $common_needs /usr/lib/systemd/user/dbus.socket:dbus-user-session:dbus-common
    need_python
    note_backups
    need_user "$service_user" "$state_dir"
    if [ "$is_dry" = no ]; then
        install -d -m 0755 "$prefix" "$prefix/versions"
        keep_backups # now: a step that fails later must not forget them
    fi
    new=$prefix/versions/$(version_name)
    build_version "$new"
    if [ "$is_dry" = yes ]; then
        say_plan
        return 0
    fi
    [ "$(stat -c %U:%G:%a "$settings_dir" 2>/dev/null)" = "root:$service_user:750" ] ||
        run install -d -m 0750 -o root -g "$service_user" "$settings_dir"
    ! has restorecon || restorecon -RF "$prefix" "$settings_dir" "$state_dir" # SELinux: labels by the policy's own table
    if [ -n "$old" ] && [ "$old" != "$new" ]; then
        switch_version "$new" "$old"
    else
        put_in_place "$new"
    fi
    prune
    tell_state
}

# put_in_place VERSION: the first one, or the current one once more; what is as it should be is left alone.
put_in_place() {
    place_files "$1"
    point_at "$1"
    link_user_units "$1"
    init_agent
    if ! is_systemd_booted; then
        say "systemd is not running here: the units are installed, not started. Run install.sh again where it does"
    elif [ "$has_acted" = yes ] || ! are_services_active; then
        start_services "$1" no || true
        wait_ready "$1" any || die "installed, but not at work: $wrong. See journalctl -u dc-compute-api -u dc-compute-worker"
    fi
}

say_plan() {
    run install -d -m 0750 -o root -g "$service_user" "$settings_dir"
    host_files | while read -r source target; do
        run install -m 0644 "systemd/$source" "$target"
    done
    for target in $(waits_for_podman) "$bash_completion" "$zsh_completion" "$fish_completion"; do
        run install -m 0644 "$(basename "$target")" "$target"
    done
    [ ! -f "$here/agent/devkit/manpage.py" ] || run install -m 0644 dc-compute.1 "$man_page"
    if [ -n "$old" ] && [ "$old" != "$new" ]; then
        run dc-compute backup "$ledger_backup" --force
    fi
    run ln -sfn "versions/$(basename "$new")" "$prefix/current"
    run ln -sfn "$prefix/current/bin/dc-compute" "$command_link"
    init_agent
    run loginctl enable-linger "$service_user"
    run systemctl restart dc-compute.target
    run dc-compute doctor
    say "dry run: nothing was done"
}

init_agent() {
    # As root: the settings are root's, for the group to read; what lies in the state folder becomes the service's.
    set -- env -i HOME="$state_dir" PATH=/usr/bin:/bin LANG=C.UTF-8 "$prefix/current/bin/dc-compute" --home "$settings_dir" \
        init --certificate "$(uname -n)" --certificate localhost
    if [ "$is_dry" = yes ]; then
        run "$@"
        return 0
    fi
    told=$("$@") || die "dc-compute init failed"
    case $told in
        *"made  "*)
            has_acted=yes
            printf '%s\n' "$told"
            ;;
    esac
}

state_of() { if is_systemd_booted; then systemctl is-active "$1" || true; else echo "installed, not started"; fi; }

tell_state() {
    say "what dc-compute doctor finds, as the user $service_user:"
    if is_systemd_booted; then
        set -- env "XDG_RUNTIME_DIR=/run/user/$(id -u "$service_user")"
    else
        set -- env
    fi
    as_service_user "$@" "$prefix/current/bin/dc-compute" --home "$settings_dir" doctor --quick ||
        say "the doctor found something to mend: see the lines that fail"
    if [ "$has_acted" = yes ]; then
        say "done: $(name_of "$new") is in force"
    else
        say "nothing was to be done: $(name_of "$new") is in force"
    fi
    say "state: $(state_of dc-compute-api.service) (api), $(state_of dc-compute-worker.service) (worker)"
    say "next: add your orchestrators and peers to the roster and say what may run here:"
    say "      dc-compute peers --help, $settings_dir; an empty policy runs nothing"
}

# ------------------------------------------------------------------ away again

uninstall_host() {
    need_root
    take_turn
    choose_prefix
    say "removing dc-compute from this host"
    old=$(current_version)
    [ -n "$old" ] || [ ! -e "$prefix" ] || [ -d "$prefix/versions" ] || die "$prefix is not what this script made: left as it is"
    [ "$old" != "$prefix" ] || [ "$is_dry" = yes ] || keep_flat_files
    [ -n "$old" ] || say "$prefix is not there"
    ! is_systemd_booted || end_services
    for file in "$command_link" $(installed_files); do
        run remove_file "$file"
    done
    if [ -f "$prefix/made-folders" ]; then
        LC_ALL=C sort -r "$prefix/made-folders" | while read -r folder; do
            [ ! -d "$folder" ] || run rmdir --ignore-fail-on-non-empty "$folder"
        done
    fi
    for file in "$state_dir"/.config/systemd/user/*.wants/dc-compute-*.service; do
        [ ! -L "$file" ] || run remove_file "$file"
    done
    ! is_systemd_booted || run systemctl daemon-reload
    made_files=$(cat "$prefix/made-files" 2>/dev/null || true)
    [ ! -e "$prefix" ] || run rm -rf "$prefix"
    run rm -rf /run/dc-compute || say "what is mounted below /run/dc-compute is empty now" # what killed jobs left in memory
    if [ "$is_purge" = yes ]; then
        purge
    else
        say "kept: $settings_dir, $state_dir and the user $service_user (--purge removes them)"
    fi
    say "packages were left as they are"
}

# installed_files: its files elsewhere; by their names where the program's folder, which knows them, is gone.
installed_files() {
    if [ -n "$old" ]; then
        files_of "$old"
        return 0
    fi
    for file in /etc/systemd/system/dc-compute* /etc/systemd/system/dc.slice /etc/systemd/user/dc-compute* \
        /etc/sysusers.d/dc-compute.conf /etc/tmpfiles.d/dc-compute.conf "$bash_completion" "$zsh_completion" "$fish_completion" "$man_page"; do
        [ ! -f "$file" ] || printf '%s\n' "$file"
    done
}

# end_services: nothing of it runs any more, jobs and their containers included, and nothing starts at the next boot.
end_services() {
    units=$(enabled_of "$old")
    # shellcheck disable=SC2086  # a list of words
    run systemctl -q disable --now ${units:-dc-compute.target dc-compute-api.service dc-compute-worker.service} || true
    [ "$is_dry" = yes ] || stop_services "$old"
    has_user "$service_user" || return 0
    run loginctl disable-linger "$service_user" || true
    run systemctl stop "user@$(id -u "$service_user").service" || true
    run end_processes
}

# end_processes: what is left of the service user's, and of its subordinate ids, which only its containers have. Podman's own
# processes are in no unit that would take them along.
end_processes() {
    tries=50
    while left=$(service_processes) && [ -n "$left" ] && [ "$tries" -gt 0 ]; do
        tries=$((tries - 1))
        # shellcheck disable=SC2086  # a list of words
        kill -KILL $left 2>/dev/null || true
        sleep 0.2
    done
}

# service_processes: their numbers.
service_processes() {
    ranges=$(sed -n "s/^$service_user:\([0-9]*\):\([0-9]*\)\$/\1 \2/p" /etc/subuid 2>/dev/null || true)
    cat /proc/[0-9]*/status 2>/dev/null | awk -v own="$(id -u "$service_user")" -v ranges="$ranges" '
        BEGIN { count = split(ranges, part, /[ \n]+/) }
        $1 == "Pid:" { pid = $2 }
        $1 == "Uid:" {
            is_ours = $2 == own
            for (i = 1; i + 1 <= count; i += 2) if ($2 >= part[i] && $2 < part[i] + part[i + 1]) is_ours = 1
            if (is_ours) printf "%s ", pid
        }'
}

purge() {
    run rm -rf "$settings_dir" "$state_dir" || say "what is mounted there is empty now"
    run rm -rf /etc/systemd/system/dc-compute*.d /etc/systemd/user/dc-compute*.d # the operator's drop-ins
    has_user "$service_user" || return 0
    uid=$(id -u "$service_user")
    # What Podman keeps outside the user's home, by the number of the user.
    run rm -rf "/run/user/$uid/containers" "/run/user/$uid/libpod" "/tmp/containers-user-$uid" "/tmp/podman-run-$uid" \
        "/tmp/storage-run-$uid" "/var/tmp/containers-user-$uid" "/dev/shm/libpod_rootless_lock_$uid" "$lingering"
    # Podman 5 leaves an empty folder where it put an image's root that its containers' users could not reach.
    run find /var/tmp -mindepth 1 -maxdepth 1 -type d -user "$service_user" -name "intermediate-mountpoint-$uid.*" \
        -exec rmdir {} +
    run userdel "$service_user" # takes its subordinate ids along
    # shellcheck disable=SC2086  # a list of words
    [ -z "$made_files" ] || run rm -f $made_files
}

# ---------------------------------------------------------------------------------------------------- main

main() {
    action=install
    is_purge=no
    has_prefix=no
    while [ $# -gt 0 ]; do
        case $1 in
            --upgrade) action=upgrade ;;
            --deps) action=deps ;;
            --deps-host) action=deps_host ;;
            --uninstall) action=uninstall ;;
            --purge) is_purge=yes ;;
            --dry-run) is_dry=yes ;;
            --prefix)
                [ $# -ge 2 ] || die "--prefix wants a folder"
                prefix=$2
                has_prefix=yes
                shift
                ;;
            --prefix=*)
                prefix=${1#--prefix=}
                has_prefix=yes
                ;;
            --offline)
                [ $# -ge 2 ] || die "--offline wants a folder of wheels"
                use_wheelhouse "$2"
                shift
                ;;
            --offline=*) use_wheelhouse "${1#--offline=}" ;;
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
        install | upgrade) ;;
        *) [ -z "$wheelhouse" ] || die "--offline goes with a host install" ;;
    esac
    case $action in
        deps) install_deps ;;
        deps_host) install_deps_host ;;
        install | upgrade) install_host ;;
        uninstall) uninstall_host ;;
    esac
}

main "$@"
