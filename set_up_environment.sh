# Sourced by quickstart.sh and run_tests.sh: creates and activates a virtual environment with the packages of the named
# requirement files. VENV is its folder (default .venv); with VENV=none the current Python is used and nothing is
# installed. An environment that is up to date is left alone.
#
#     source set_up_environment.sh requirements.txt [FILE...]

VENV=${VENV:-.venv}
[ "$VENV" = none ] && return
if ! [ -x "$VENV/bin/python" ] || ! [ -f "$VENV/bin/activate" ]; then  # absent, interrupted, or its Python is gone
    _clear=
    if [ -f "$VENV/pyvenv.cfg" ]; then _clear=--clear; fi
    "${PYTHON:-python3}" -m venv $_clear "$VENV"
fi
source "$VENV/bin/activate"

_install() {  # quietly: what pip says is shown only if it fails
    if ! pip install --disable-pip-version-check "$@" >"$VENV/install.log" 2>&1; then
        cat "$VENV/install.log" >&2
        echo "pip install $* failed, see above" >&2
        return 1
    fi
}

_changed=()  # the files that differ from the copies which the environment keeps of what was installed
for _file in "$@" requirements-hear.txt; do
    cmp -s "$_file" "$VENV/installed-$_file" || _changed+=("$_file")
done
if [ ${#_changed[@]} -gt 0 ]; then
    echo "installing packages into $VENV (minutes, the first time)"
    _install "$(grep '^torch==' requirements.txt)"  # first: what needs torch then takes this one
    _install $(printf -- '-r %s ' "$@")
    # The metadata of the HEAR kit pins libraries of 2020; it runs on today's (see external_sources).
    _install --no-deps -r requirements-hear.txt
    for _file in "$@" requirements-hear.txt; do cp "$_file" "$VENV/installed-$_file"; done
fi
