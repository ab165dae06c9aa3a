# Sourced by quickstart.sh and run_tests.sh: makes and activates a virtual environment with the packages that the named
# requirement files list. VENV chooses its folder (default .venv). An unchanged environment is left as it is. VENV=none uses the Python at hand and installs nothing.
#
#     source set_up_environment.sh requirements.txt [FILE...]

VENV=${VENV:-.venv}
[ "$VENV" = none ] && return
[ -x "$VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$VENV"
source "$VENV/bin/activate"

_changed=()  # the files of which the environment holds no copy, made when they were installed
for _file in "$@" requirements-hear.txt; do
    cmp -s "$_file" "$VENV/installed-$_file" || _changed+=("$_file")
done
if [ ${#_changed[@]} -gt 0 ]; then
    echo "installing packages into $VENV"
    _install() {  # without the installer's warnings, but with all it said if it fails
        local log; log=$(mktemp)
        pip install --quiet --disable-pip-version-check "$@" >"$log" 2>&1 || { cat "$log" >&2; rm "$log"; return 1; }
        rm "$log"
    }
    _install torch==2.13.0
    _install $(printf -- '-r %s ' "$@")
    # The metadata of the HEAR kit asks for libraries of 2020; it runs on today's (see external_sources).
    _install --no-deps -r requirements-hear.txt
    for _file in "$@" requirements-hear.txt; do cp "$_file" "$VENV/installed-$_file"; done
fi
