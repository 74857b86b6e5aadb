#!/bin/sh
# Puts every package, pinned by hash, into $VENV. Called by make, which sets VENV, UV_VERSION and perhaps PYTHON.
set -eu

python=""
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$(command -v "$candidate")
        break
    fi
done
if [ -z "$python" ]; then
    echo "error: no Python 3.11 or newer among ${PYTHON:-python3, python3.13, python3.12, python3.11}; install one, or name it: make PYTHON=/path/to/python3.12" >&2
    exit 1
fi

if command -v uv >/dev/null; then
    uv=$(command -v uv)
    test -x "$VENV/bin/python" || "$uv" venv --quiet --python "$python" "$VENV"
else
    uv=$VENV/bin/uv
    if ! test -x "$VENV/bin/python" && ! "$python" -m venv "$VENV"; then
        rm -rf "$VENV"
        echo "error: $python cannot make virtual environments; install its venv package (Debian: python3-venv), or uv" >&2
        exit 1
    fi
    test -x "$uv" || "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
fi

echo "installing into $VENV (about 7 GB with torch, once)"
export VIRTUAL_ENV="$PWD/$VENV"
"$uv" pip install --quiet --require-hashes -r requirements.lock
"$uv" pip install --quiet --no-deps -e .
# Compiles what a study imports. Else each of the first processes, some of them started together, would do it.
env -u PYTHONDONTWRITEBYTECODE "$VENV/bin/python" -c "import mlflow, sentence_transformers, clusterlora.engine.training, clusterlora.stages.compare"
