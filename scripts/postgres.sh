#!/usr/bin/env bash
# bash scripts/postgres.sh start FOLDER | stop FOLDER: a PostgreSQL server on loopback for the tests of the shared ledger.
# 'start' prints its address. Where no server is installed and none can be, it prints nothing and says why on stderr;
# the tests then skip. The server never runs as root.
set -uo pipefail
verb=${1:?start or stop}
folder=${2:?a folder}

say() { echo "postgres: $*" >&2; }

find_programs() {
    local place
    for place in /usr/lib/postgresql/*/bin "$(pg_config --bindir 2>/dev/null || true)"; do
        if [ -x "$place/initdb" ] && [ -x "$place/pg_ctl" ]; then programs=$place; fi
    done
    [ -n "${programs:-}" ]
}

install_programs() {
    command -v apt-get >/dev/null || return 1
    local root=()
    if [ "$(id -u)" -ne 0 ]; then
        sudo -n true 2>/dev/null || return 1
        root=(sudo -n)
    fi
    export DEBIAN_FRONTEND=noninteractive
    "${root[@]}" timeout 300 apt-get install -y -qq postgresql >/dev/null 2>&1 && return
    "${root[@]}" timeout 120 apt-get update -qq >/dev/null 2>&1
    "${root[@]}" timeout 300 apt-get install -y -qq postgresql >/dev/null 2>&1
}

as_user() { # the command, by a user who is not root
    if [ "$(id -u)" -ne 0 ]; then
        "$@"
    else
        (cd / && setpriv --reuid="$user" --regid="$(id -g "$user")" --clear-groups "$@")
    fi
}

user=$(id -un)
if [ "$(id -u)" -eq 0 ]; then
    user=nobody
    id postgres >/dev/null 2>&1 && user=postgres
fi
find_programs || { [ "$verb" = start ] && install_programs && find_programs; } ||
    { say "no server is installed, and none can be: tests of the shared ledger skip"; exit 0; }
id postgres >/dev/null 2>&1 && [ "$(id -u)" -eq 0 ] && user=postgres

if [ "$verb" = stop ]; then
    [ -d "$folder/data" ] && as_user "$programs/pg_ctl" -D "$folder/data" -m immediate stop >/dev/null 2>&1
    exit 0
fi

mkdir -p "$folder" && chmod 755 "$folder" && mkdir "$folder/data" || exit 0
[ "$(id -u)" -eq 0 ] && chown "$user" "$folder" "$folder/data"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
settings="-p $port -c listen_addresses=127.0.0.1 -c max_connections=50 -k $folder"
if as_user "$programs/initdb" -D "$folder/data" -A trust -U dptrain -E UTF8 >"$folder.log" 2>&1 &&
    as_user "$programs/pg_ctl" -D "$folder/data" -o "$settings" -l "$folder/data/log" -w -t 60 start >>"$folder.log" 2>&1; then
    echo "postgresql+psycopg://dptrain@127.0.0.1:$port/postgres"
else
    say "the server did not start: $(tail -n 1 "$folder.log"); tests of the shared ledger skip"
fi
