#!/usr/bin/env bash
# All checks: format, lint, types, tests, doctests. From a clean clone it needs Python 3.11 and
# git; run again, it installs nothing.
#
#   bash scripts/test.sh [pytest's arguments, such as tests/data -k splits]
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
install "[test]"
"$venv/bin/ruff" format --check --quiet .
"$venv/bin/ruff" check --quiet .
"$venv/bin/mypy"
exec "$venv/bin/python" -m pytest "$@"
