#!/bin/sh
# Pins everything the extras need, with hashes of every file, for every Python from 3.11 on.
# No index is written into the result: whoever installs uses the index their machine is set up with.
set -eu
cd "$(dirname "$0")/.."
uv=${UV:-.venv/bin/uv}
"$uv" pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
    --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header \
    --no-emit-package pocketgrid --quiet --output-file constraints.txt "$@"
if grep -nE '://|^--' constraints.txt; then
    echo "constraints.txt names a place to install from; that is this machine's business" >&2
    exit 1
fi
