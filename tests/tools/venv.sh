#!/bin/sh
# Makes a virtual environment with one package and prints its python: venv.sh NAME VERSION [EXTRA]. The second run needs no
# network. Where there is no way to make it, it says so in one line and prints nothing; with CI set it fails.
set -eu

NAME=$1
VERSION=$2
EXTRA=${3:-}
CACHE=${INFERQ_TOOLS_CACHE:-$HOME/.cache/inferq}
PLACE=$CACHE/$NAME-$VERSION

give_up() {
    echo "$NAME: $1" >&2
    [ -z "${CI:-}" ] || exit 1
    exit 0
}

if [ -f "$PLACE/.complete" ]; then
    echo "$PLACE/bin/python"
    exit 0
fi

command -v python3 > /dev/null || give_up "python3 is missing: apt install python3 python3-venv"
mkdir -p "$CACHE"
# A virtual environment knows its own path, so it is made in its place, and one at a time.
exec 9> "$CACHE/$NAME.lock"
flock 9
if [ ! -f "$PLACE/.complete" ]; then
    rm -rf "$PLACE"
    # Without pip in it: Debian keeps that in a package of its own, and the system's pip can install into another python.
    python3 -m venv --without-pip "$PLACE" >&2 || give_up "python3 can't make a virtual environment"
    python3 -m pip --python "$PLACE/bin/python" install --quiet --disable-pip-version-check "$NAME$EXTRA==$VERSION" >&2 ||
        give_up "$NAME $VERSION can't be installed: is pip there, and a way to PyPI?"
    touch "$PLACE/.complete"
fi
echo "$PLACE/bin/python"
