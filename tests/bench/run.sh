#!/usr/bin/env bash
# Rollcall's agent as an inference server beside what its users would otherwise run, in one
# go on loopback: run.sh [--seconds S] [--repetitions N] [--json FILE]. See README.md.
# wrk, h2load and nginx are installed from Debian's packages where they are missing, the Python
# peers from PyPI into target/bench-venv; where that fails, so does this.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin

declare -A package=([wrk]=wrk [h2load]=nghttp2-client [nginx]=nginx)
missing=()
for program in "${!package[@]}"; do
    command -v "$program" >/dev/null || missing+=("${package[$program]}")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "installing ${missing[*]}" >&2
    # Installing nginx must not start it: a daemon of the machine is not ours to end.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ] && [ -w /usr/sbin ]; then
        trap 'rm -f "$policy"' EXIT
        install -m 755 <(printf '#!/bin/sh\nexit 101\n') "$policy"
    fi
    get=(apt-get install -qy --no-install-recommends "${missing[@]}")
    if ! { "${get[@]}" || { apt-get update -q && "${get[@]}"; }; } >&2; then
        echo "run.sh: not installed: run as root on Debian, or install ${missing[*]} by other means" >&2
        exit 1
    fi
    [ -z "$(trap -p EXIT)" ] || rm -f "$policy"
    trap - EXIT
fi

target=${CARGO_TARGET_DIR:-target}
venv=${ROLLCALL_BENCH_VENV:-$target/bench-venv}
export PYTHONDONTWRITEBYTECODE=1
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --requirement tests/bench/requirements.txt

if [ -z "${ROLLCALL_BENCH_PROGRAMS:-}" ]; then
    cargo build --quiet --release --locked -p rollcall-coordinator -p rollcall-agent --bins
    ROLLCALL_BENCH_PROGRAMS=$target/release
fi
exec "$venv/bin/python" tests/bench/bench.py --programs "$ROLLCALL_BENCH_PROGRAMS" "$@"
