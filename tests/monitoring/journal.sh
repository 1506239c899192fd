#!/bin/sh
# A systemd-journald of our own, in memory, for one COMMAND: root, or whoever may make user namespaces. Nothing of the host's
# journal is touched: /run is new in here, and goes with the namespace.
set -eu
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir -p /run/systemd/journal /run/log/journal
/lib/systemd/systemd-journald 2>/run/journald.log &
journald=$!
tries=0
until [ -S /run/systemd/journal/socket ]; do
    tries=$((tries + 1))
    if [ "$tries" -gt 200 ] || ! kill -0 "$journald" 2>/dev/null; then
        cat /run/journald.log >&2
        exit 3
    fi
    sleep 0.05
done
code=0
"$@" || code=$?
kill "$journald"
wait "$journald" || true
exit "$code"
