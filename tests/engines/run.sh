#!/bin/sh
# Runs the tests that need other people's engines: the onnxruntime library and an MLServer.
# Both come from PyPI into a folder of their own; nothing is skipped, and what cannot be
# had is a failure. Needs cargo, python3 (3.11) with venv, and PyPI within reach.
#
# usage: tests/engines/run.sh [FOLDER]    FOLDER is kept, and used again: target/engines
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
folder=${1:-$root/target/engines}
venv=$folder/venv

if ! cmp -s "$here/requirements.txt" "$venv/installed.txt"; then
    rm -rf "$venv"
    mkdir -p "$folder"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
    cp "$here/requirements.txt" "$venv/installed.txt"
fi
set -- "$venv"/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime.so.*
library=$1
[ -f "$library" ] || { echo "no libonnxruntime.so in $venv" >&2; exit 1; }

work=$(mktemp -d)
server=
stop() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    [ -z "$server" ] || wait "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap stop EXIT
trap 'exit 1' INT TERM

# Three free ports, in the hope that nobody takes them meanwhile: MLServer cannot bind port 0.
"$venv/bin/python" -c '
import socket
sockets = [socket.socket() for _ in range(3)]
for s in sockets: s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))' > "$work/ports"
read -r http grpc metrics < "$work/ports"
mkdir "$work/models"
# MLServer takes the folder that it is started with for its settings and its repository.
cat > "$work/models/settings.json" <<END
{"host": "127.0.0.1", "http_port": $http, "grpc_port": $grpc, "metrics_port": $metrics, "debug": false}
END
(cd "$work" && PYTHONPATH="$here" exec "$venv/bin/mlserver" start "$work/models") \
    > "$work/mlserver.log" 2>&1 &
server=$!
tries=0
until "$venv/bin/python" -c "
import urllib.request
urllib.request.urlopen('http://127.0.0.1:$http/v2/health/ready', timeout=2)" 2>/dev/null; do
    tries=$((tries + 1))
    if [ $tries -gt 120 ] || ! kill -0 "$server" 2>/dev/null; then
        cat "$work/mlserver.log" >&2
        echo "MLServer did not start" >&2
        exit 1
    fi
    sleep 0.5
done

cd "$root"
if ! ROLLCALL_ONNXRUNTIME="$library" \
    ROLLCALL_MLSERVER="http://127.0.0.1:$http" ROLLCALL_MLSERVER_MODELS="$work/models" \
    cargo test -p rollcall-agent --lib -- --ignored engine::; then
    tail -n 40 "$work/mlserver.log" >&2
    exit 1
fi
