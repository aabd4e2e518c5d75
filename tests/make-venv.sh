#!/bin/sh
# Makes .venv with a Python of 3.11 or newer, or says what is missing.
set -eu
python=${1:-python3}
command -v "$python" >/dev/null || { echo "pacs-node needs Python 3.11 or newer; '$python' is not on the PATH. Debian: apt-get install python3 python3-venv" >&2; exit 2; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "pacs-node needs Python 3.11 or newer; '$python' is $("$python" -V). Name another: make PYTHON=python3.11 …" >&2
    exit 2
}
if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then # Debian splits ensurepip off
    if [ "$(id -u)" = 0 ]; then as_root=; else as_root="sudo -n"; fi
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >/dev/null 2>&1 || {
        echo "Python's venv module is missing. Debian: apt-get install python3-venv" >&2
        exit 2
    }
fi
exec "$python" -m venv .venv
