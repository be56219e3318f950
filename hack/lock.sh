#!/bin/sh
# Pins everything the extras need, with hashes of every file, for every Python from 3.11 on.
# No index is written into the result: whoever installs uses the index their machine is set up with.
set -eu
cd "$(dirname "$0")/.."
uv=${UV:-.venv/bin/uv}
pin() {
    output=$1
    shift
    "$uv" pip compile pyproject.toml --universal --python-version 3.11 \
        --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header \
        --no-emit-package pocketgrid --quiet --output-file "$output" "$@"
    if grep -nE '://|^--' "$output"; then
        echo "$output names a place to install from; that is this machine's business" >&2
        exit 1
    fi
}
pin constraints.txt --extra agent --extra operator --extra dev "$@"
# Peers live in an environment of their own, so that what they need holds nothing of ours back.
pin constraints-peers.txt --extra peers "$@"
