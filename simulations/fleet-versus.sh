#!/usr/bin/env bash
# The same fan-out through Rollcall and through NATS, Redis, etcd and mosquitto, in one
# run: fleet-versus.sh [AGENTS] [ROUNDS]. Brokers that are missing are installed from
# Debian's packages; where that fails, so does this.
# `fleet-versus.sh --test` runs the tests that need brokers instead.
set -euo pipefail
cd "$(dirname "$0")/.."

declare -A package=([nats-server]=nats-server [redis-server]=redis-server [etcd]=etcd-server [mosquitto]=mosquitto)
PATH=$PATH:/usr/sbin

missing=()
for program in "${!package[@]}"; do
    command -v "$program" >/dev/null || missing+=("$program")
done

# Processes of the missing programs, by the name that the kernel keeps (15 letters).
running() {
    for program in "${missing[@]}"; do
        for comm in /proc/[0-9]*/comm; do
            if [ "$(cat "$comm" 2>/dev/null)" = "${program:0:15}" ]; then
                basename "$(dirname "$comm")"
            fi
        done
    done | sort
}

if [ ${#missing[@]} -gt 0 ]; then
    packages=()
    for program in "${missing[@]}"; do packages+=("${package[$program]}"); done
    echo "installing ${packages[*]}" >&2
    before=$(running)
    install=(apt-get install -qy --no-install-recommends "${packages[@]}")
    if ! { "${install[@]}" || { apt-get update -q && "${install[@]}"; }; } >&2; then
        echo "not installed: run as root on Debian, or install ${packages[*]} by other means" >&2
        exit 1
    fi
    # Installing may start daemons, which would take from the measurement. Only these end.
    for pid in $(comm -13 <(echo "$before") <(running)); do
        service=$(ps -o unit= -p "$pid" 2>/dev/null || true)
        case $service in
        *.service) systemctl stop "$service" ;;
        *) kill "$pid" ;;
        esac
        while [ -d "/proc/$pid" ] && ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null; do sleep 0.1; done
        echo "stopped process $pid, which the installation had started" >&2
    done
fi

if [ "${1:-}" = --test ]; then
    exec cargo test -p rollcall-simulations --test versus -- --include-ignored
fi
cargo build --release --locked -p rollcall-simulations --bin rollcall-sim
exec "${CARGO_TARGET_DIR:-target}/release/rollcall-sim" fleet \
    --agents "${1:-10000}" --rounds "${2:-20}" --versus nats,redis,etcd,mosquitto
