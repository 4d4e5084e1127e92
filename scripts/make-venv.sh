#!/bin/sh
# Makes the virtual environment named by $1 with the first interpreter that is new enough and able to; $2 names one to
# use instead of looking. An environment that works is left as it is.
set -eu

venv=$1
chosen=${2:-}

works() { "$@" >/dev/null 2>&1; }
new_enough() { works "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; }
describe() { "$1" -c 'import sys; print(sys.executable, "%d.%d.%d" % sys.version_info[:3])'; }

if new_enough "$venv/bin/python" && works "$venv/bin/python" -m pip --version; then
    exit 0
fi
rm -rf "$venv"

# Each name is tried by running it: a launcher on PATH may stand for a version that is not installed.
usable=
for python in ${chosen:-python3.13 python3.12 python3.11 python3.14 python3 python}; do
    new_enough "$python" || continue
    usable="$usable $python"
done
if [ -z "$usable" ]; then
    if [ -n "$chosen" ]; then
        echo "error: PYTHON=$chosen is not a Python 3.11 or newer that can be run." >&2
    else
        echo "error: no Python 3.11 or newer on PATH. Install one, or name one: make PYTHON=/path/to/python3.12 ..." >&2
    fi
    exit 1
fi

for python in $usable; do
    # Debian ships the venv module without ensurepip; a distribution package adds it.
    if works "$python" -c 'import ensurepip, venv'; then
        echo "making $venv with $(describe "$python")"
        "$python" -m venv "$venv"
        exit 0
    fi
done
for python in $usable; do
    if works "$python" -m virtualenv --version; then
        echo "making $venv with $(describe "$python") and virtualenv"
        "$python" -m virtualenv --quiet "$venv"
        exit 0
    fi
done
for python in $usable; do
    if works "$python" -c 'import venv' && works "$python" -m pip --version; then
        echo "making $venv with $(describe "$python") and its own pip"
        "$python" -m venv --without-pip "$venv"
        "$python" -m pip --python "$venv/bin/python" install --quiet --quiet pip
        exit 0
    fi
done

echo "error: found$usable, but none can make a virtual environment (the module ensurepip is missing)." >&2
echo "On Debian or Ubuntu: apt install python3-venv. Elsewhere: python3 -m pip install --user virtualenv." >&2
exit 1
