#!/usr/bin/env bash
# All checks: format, lint, types, tests, doctests. From a clean clone it needs Python 3.11 and
# git; run again, it installs nothing.
#
#   bash scripts/test.sh [pytest's arguments, such as tests/data -k splits]
#
# Without arguments all tests run, file by file in two processes.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
install "[test]"
# The tests of the report's page need a browser; without one they are skipped, and say so.
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! command -v chromium >/dev/null; then
  echo "installing chromium with apt-get, for the tests of the report's page" >&2
  { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y \
    --no-install-recommends chromium chromium-driver fonts-dejavu-core >/dev/null; } ||
    echo "chromium could not be installed" >&2
fi
"$venv/bin/ruff" format --check --quiet .
"$venv/bin/ruff" check --quiet .
"$venv/bin/mypy"
[ $# -gt 0 ] || set -- -n 2 --dist loadfile
exec "$venv/bin/python" -m pytest "$@"
