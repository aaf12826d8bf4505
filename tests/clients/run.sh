#!/usr/bin/env bash
# Stock clients of the Open Inference Protocol against a real coordinator and agent.
# Needs a Rust toolchain, Python 3.11 with venv, and PyPI for the first run.
set -euo pipefail
cd "$(dirname "$0")/../.."

venv=${ROLLCALL_CLIENTS_VENV:-target/clients-venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --requirement tests/clients/requirements.txt

cargo build --quiet --locked -p rollcall-tests --bin rollcall-fleet
coproc FLEET { exec cargo run --quiet --locked -p rollcall-tests --bin rollcall-fleet; }
# Bash forgets both when the fleet ends.
fleet=$FLEET_PID
to=${FLEET[1]}
stop() {
    exec {to}>&- || true
    wait "$fleet" || true
}
trap stop EXIT
if ! read -r -t 120 addresses <&"${FLEET[0]}"; then
    echo "run.sh: the fleet did not come up" >&2
    exit 1
fi
echo "the fleet answers: $addresses"

for check in tests/clients/check_*.py; do
    echo "== $check"
    "$venv/bin/python" "$check" "$addresses"
done
echo "all clients were answered as they expect"
