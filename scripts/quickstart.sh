#!/usr/bin/env bash
# From nothing to an instruct model: installs, tunes SmolLM2-135M on product reviews, and ends
# with a table of the base and the tuned model's scores, and a report of the run as a web page.
# Run again, it shows the table at once.
#
#   bash scripts/quickstart.sh [--config.train.num_epochs=2.0 ...]
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
install "[report]"
exec "$venv/bin/ift" train --config=quickstart --workdir="${IFT_JAX_WORKDIR:-runs/quickstart}" "$@"
