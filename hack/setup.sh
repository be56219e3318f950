#!/bin/sh
# Makes .venv with everything PocketGrid and its tests need, pinned and checked by hash; with the word `peers`,
# .venv-peers with what benchmarks compare with. Idempotent: what is already there is left alone. Needs Python 3.11 or
# newer with venv; as root on Debian it installs the latter itself.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
case ${1:-} in
    "") venv=.venv pins=constraints.txt ;;
    peers) venv=.venv-peers pins=constraints-peers.txt ;;
    *) echo "setup: unknown word $1; there is only: peers" >&2 && exit 2 ;;
esac

fail() {
    echo "setup: $1" >&2
    exit 1
}

command -v "$python" >/dev/null || fail "no $python on PATH; install Python 3.11 or newer, or name one: make PYTHON=..."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$($python --version) is too old; install Python 3.11 or newer, or name one: make PYTHON=..."

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "setup: installing python3-venv"
        apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
    else
        fail "$python cannot make virtual environments; run: sudo apt-get install python3-venv"
    fi
fi

stamp=$venv/.pocketgrid-$(cat "$pins" pyproject.toml | sha256sum | cut -c1-16)
[ -e "$stamp" ] && exit 0
echo "setup: making $venv (a minute or two the first time)"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r "$pins"
if [ "$venv" = .venv ]; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
fi
rm -f "$venv"/.pocketgrid-*
touch "$stamp"
