"""The agent's three protocols beside each other, asked by one client that speaks all of them."""

import json
import re
import struct
import urllib.request

from processes import Failed, cpu_s, run

GRPC_METHOD = "inference.GRPCInferenceService/ModelInfer"


def protocols(bench):
    """URL and options of h2load for each protocol, by name. The request is the same."""
    address, _ = bench.node
    with urllib.request.urlopen(f"http://{address}/rollcall/v1/status", timeout=5) as answer:
        grpc = json.load(answer)["grpc"]
    url = f"http://{address}/v2/models/digits/infer"
    message = bench.folder / "request.grpc"
    message.write_bytes(grpc_message("digits", bench.as_json.file))
    length = f"inference-header-content-length: {bench.as_binary.json_bytes}"
    return {
        "JSON": (url, ["--h1", "-d", bench.as_json.file, "-H", "content-type: application/json"]),
        "binary": (url, ["--h1", "-d", bench.as_binary.file, "-H", length]),
        "gRPC": (
            f"http://{grpc}/{GRPC_METHOD}",
            ["-d", message, "-H", "content-type: application/grpc", "-H", "te: trailers"],
        ),
    }


def grpc_message(model, request):
    """A ModelInferRequest with one raw tensor, behind the head that gRPC gives a message. By
    hand, since it takes a dozen lines and a compiler for the definition does not."""
    tensor = json.loads(request.read_text())["inputs"][0]
    shape = b"".join(varint(size) for size in tensor["shape"])
    described = field(1, tensor["name"].encode()) + field(2, tensor["datatype"].encode())
    raw = struct.pack(f"<{len(tensor['data'])}f", *tensor["data"])
    message = field(1, model.encode()) + field(5, described + field(3, shape)) + field(7, raw)
    return b"\0" + struct.pack(">I", len(message)) + message


def varint(number):
    """Seven bits a byte, the lowest first."""
    head = []
    while number > 127:
        head.append(number & 127 | 128)
        number >>= 7
    return bytes([*head, number])


def field(number, payload):
    """A length-delimited field of a message."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def h2load(url, options, connections, seconds, pids, folder):
    """One run, one request at a time on each connection: as load.wrk."""
    log = folder / "h2load.log"
    log.unlink(missing_ok=True)
    before = cpu_s(pids)
    command = ["h2load", "-D", seconds, "-c", connections, "-m", 1, "-t", 1]
    printed = run([*command, "--log-file", log, *options, url])
    cpu = cpu_s(pids) - before
    counts = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", printed)
    good, *bad = (int(count) for count in counts.groups()) if counts else (0,)
    if not good or any(bad):
        raise Failed(f"{url} did not answer every request:\n{printed}")
    # When it began, its status, and how many microseconds it took.
    took = sorted(int(line.split()[2]) for line in log.read_text().splitlines())
    return {
        "requests_a_second": good / seconds,
        "p50_ms": took[len(took) // 2] / 1e3,
        "p99_ms": took[len(took) * 99 // 100] / 1e3,
        "cpu_us": cpu / good * 1e6,
    }
