"""Load by wrk: what came of it, and what CPU it cost the servers."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from processes import Failed, cpu_s, run

LUA = Path(__file__).with_name("infer.lua")


@dataclass(frozen=True)
class Body:
    """A request's body. `json_bytes`: how much of it is JSON, when tensors follow."""

    file: Path
    json_bytes: int | None = None


def bodies(smoke, folder):
    """The same request as JSON and with binary tensors, out of a bundle's smoke cases."""
    tensor = json.loads(smoke.read_text())["cases"][0]["inputs"][0]
    values = [float(value) for value in tensor["data"]]
    raw = struct.pack(f"<{len(values)}f", *values)
    head = {key: tensor[key] for key in ("name", "shape", "datatype")}
    as_json = folder / "request.json"
    as_json.write_text(json.dumps({"inputs": [head | {"data": values}]}))
    head["parameters"] = {"binary_data_size": len(raw)}
    text = json.dumps({"inputs": [head], "parameters": {"binary_data_output": True}}).encode()
    as_binary = folder / "request.bin"
    as_binary.write_bytes(text + raw)
    return Body(as_json), Body(as_binary, len(text))


def wrk(url, body, connections, seconds, pids, pause_ms=None):
    """One run: requests a second, latencies, and CPU of `pids` a request."""
    environment = {"BENCH_BODY": str(body.file)}
    if body.json_bytes is not None:
        environment["BENCH_JSON_BYTES"] = str(body.json_bytes)
    if pause_ms is not None:
        environment["BENCH_PAUSE_MS"] = str(pause_ms)
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--timeout",
        "10s",
        "-s",
        LUA,
        url,
    ]
    before = cpu_s(pids)
    printed = run(command, **environment)
    cpu = cpu_s(pids) - before
    lines = [line for line in printed.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise Failed(f"wrk said nothing of use about {url}:\n{printed}")
    result = json.loads(lines[0].removeprefix("RESULT "))
    if result["bad_status"] or result["socket_errors"] or not result["requests"]:
        raise Failed(f"{url} did not answer every request: {result}")
    return {
        "requests_a_second": result["requests"] / result["seconds"],
        "p50_ms": result["p50_ms"],
        "p99_ms": result["p99_ms"],
        "cpu_us": cpu / result["requests"] * 1e6,
    }
