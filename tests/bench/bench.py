"""The order of things: start all servers, load them in turn, print the tables.

Every figure is the median of some short runs. The runs of all servers are interleaved, so
that what else the machine does hits all alike.
"""

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import sys
import tempfile
import urllib.request
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import tables
from fleet import Fleet, bundle_with
from load import Body, bodies, wrk
from peers import PATH, Nginx, fastapi, mlserver
from processes import Failed, Processes, run
from protocols import h2load, protocols
from rollback import roll_back

HERE = Path(__file__).parent
BUNDLE = HERE.parent / "models/digits/1.0.0"
SLOW_MS = 50
SHARE_PERCENT = 10
CONNECTIONS = (1, 8, 32)
# At 8 connections and this pause about 1,000 requests a second: most of both ends is idle.
PAUSE_MS = 8
# The one version header of each kind of server.
ROLLCALL_VERSION = b"x-rollcall-version"
APP_VERSION = b"x-version"


@dataclass(frozen=True)
class Server:
    """Something under load. `pids`: whose CPU counts, all that a request goes through.
    `against`: the row of Rollcall that does the same. `sheds`: it is an agent with a shadow."""

    name: str
    address: str
    pids: tuple
    body: Body
    model: str = "digits"
    against: str | None = None
    sheds: bool = False

    @property
    def url(self):
        return f"http://{self.address}/v2/models/{self.model}/infer"

    def copies(self):
        """How many copies of requests the shadow answered, and how many were shed."""
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        found = []
        for name in ("compared", "shed"):
            series = rf'^rollcall_agent_shadow_{name}_total{{model="{self.model}",.*}} (\d+)'
            found.append(sum(int(count) for count in re.findall(series, text, re.MULTILINE)))
        return found


@dataclass
class Bench:
    """What the scenarios share."""

    processes: Processes
    fleet: Fleet
    node: tuple  # address and process id of the agent with one thread
    app: tuple  # the same of the bare app
    folder: Path
    python: str
    options: argparse.Namespace
    as_json: Body
    as_binary: Body


def medians(runs):
    """Of each figure by itself."""
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def measure(bench, servers, connections, pause_ms=None):
    """The medians of each server's runs, by name, and the part of copies that shadows ran."""
    runs = {server.name: [] for server in servers}
    copies_before = {server.name: server.copies() for server in servers if server.sheds}
    for repetition in range(-1, bench.options.repetitions):
        for server in servers:
            # The first round only warms up.
            seconds = bench.options.seconds if repetition >= 0 else 1
            bench.processes.until_quiet(server.pids)
            result = wrk(server.url, server.body, connections, seconds, server.pids, pause_ms)
            bench.processes.check()
            if repetition >= 0:
                runs[server.name].append(result)
    figures = {name: medians(results) for name, results in runs.items()}
    for server in servers:
        if server.sheds:
            bench.processes.until_quiet(server.pids)
            counts = zip(server.copies(), copies_before[server.name], strict=True)
            compared, shed = (after - before for after, before in counts)
            if compared == 0:
                raise Failed(f"{server.name}: the shadow answered none of the copies")
            figures[server.name]["copies_run"] = compared / (compared + shed)
    return figures


def set_up(processes, folder, options):
    """The servers that every scenario has."""
    tables.say("starting Rollcall and the bare app")
    fleet = Fleet(processes, options.programs, folder)
    node = fleet.add_agent("one-thread", stable_threads=1, candidate_threads=1)
    app = fastapi(processes, sys.executable, "app", BUNDLE / "model.onnx", "1.0.0")
    as_json, as_binary = bodies(BUNDLE / "smoke.json", folder)
    fleet.make_stable(BUNDLE, "digits")
    processes.until_ok(f"http://{node[0]}/v2/models/digits/ready")
    return Bench(processes, fleet, node, app, folder, sys.executable, options, as_json, as_binary)


def takes_binary(address):
    """Whether a server says that it takes binary tensors."""
    with urllib.request.urlopen(f"http://{address}/v2", timeout=5) as answer:
        return "binary_tensor_data" in json.load(answer)["extensions"]


def until_answered_by(bench, url, header, version):
    """Waits until a version answers at least one of many requests."""
    body = bench.as_json.file.read_bytes()
    headers = {"Content-Type": "application/json"}

    def answered():
        for _ in range(50):
            request = urllib.request.Request(url, body, headers)
            with urllib.request.urlopen(request, timeout=10) as answer:
                if answer.headers[header.decode()] == version:
                    return True
        return False

    bench.processes.until(f"{version} answers at {url}", answered)


def serving(bench):
    """Requests a second, latencies and CPU of every server."""
    tables.say("starting the others")
    fleet, processes, folder = bench.fleet, bench.processes, bench.folder
    default = fleet.add_agent("as-installed")
    processes.until_ok(f"http://{default[0]}/v2/models/digits/ready")
    for model in ("digits-canary", "digits-shadow"):
        fleet.make_stable(BUNDLE, model)
        fleet.push(BUNDLE, model, "2.0.0")
    fleet.canary("digits-canary", "2.0.0", SHARE_PERCENT)
    fleet.shadow("digits-shadow", "2.0.0")
    second = fastapi(processes, bench.python, "app-2", BUNDLE / "model.onnx", "2.0.0")
    both = (bench.app[0], second[0])
    split = Nginx(processes, folder / "nginx-split", *both, percent=SHARE_PERCENT)
    mirror = Nginx(processes, folder / "nginx-mirror", *both, mirror=True)
    ml = mlserver(processes, bench.python, BUNDLE / "model.onnx", folder / "mlserver")

    def rollcall(name, node=bench.node, body=bench.as_json, model="digits"):
        sheds = model == "digits-shadow"
        return Server(f"Rollcall, {name}", node[0], (node[1],), body, model, sheds=sheds)

    def peer(name, address, pids, against):
        return Server(name, address, pids, bench.as_json, against=f"Rollcall, {against}")

    apps = (bench.app[1], second[1])
    servers = [
        rollcall("one thread"),
        rollcall("as installed", node=default),
        rollcall("10 % canary", model="digits-canary"),
        rollcall("100 % shadow", model="digits-shadow"),
        peer("FastAPI + orjson, bare", bench.app[0], (bench.app[1],), "one thread"),
        peer("MLServer, in process", ml[0], (ml[1],), "one thread"),
        peer("nginx, 10 % split, to FastAPI", split.address, (split.pid, *apps), "10 % canary"),
        peer(
            "nginx, 100 % mirror, to FastAPI", mirror.address, (mirror.pid, *apps), "100 % shadow"
        ),
    ]
    if takes_binary(bench.node[0]):
        servers.insert(1, rollcall("one thread, binary", body=bench.as_binary))
    canary = next(server for server in servers if server.model == "digits-canary")
    until_answered_by(bench, canary.url, ROLLCALL_VERSION, "2.0.0")
    until_answered_by(bench, f"http://{split.address}{PATH}", APP_VERSION, "2.0.0")
    rows = []
    for connections in CONNECTIONS:
        tables.say(f"serving, {connections} connections")
        for name, figures in measure(bench, servers, connections).items():
            against = next(server.against for server in servers if server.name == name)
            row = {"server": name, "connections": connections, "against": against}
            rows.append(row | figures)
    return rows


def protocol_rows(bench):
    """The same agent over JSON, binary tensors and gRPC."""
    pids = (bench.node[1],)
    asked = protocols(bench)
    rows = []
    for connections in CONNECTIONS:
        tables.say(f"protocols, {connections} connections")
        runs = {name: [] for name in asked}
        for repetition in range(-1, bench.options.repetitions):
            for name, (url, options) in asked.items():
                seconds = bench.options.seconds if repetition >= 0 else 1
                bench.processes.until_quiet(pids)
                result = h2load(url, options, connections, seconds, pids, bench.folder)
                if repetition >= 0:
                    runs[name].append(result)
        for name, results in runs.items():
            rows.append({"protocol": name, "connections": connections} | medians(results))
    return rows


def shadows(bench):
    """What a shadow of all requests adds to live latencies."""
    tables.say(f"making a model that takes {SLOW_MS} ms")
    fleet, processes, folder = bench.fleet, bench.processes, bench.folder
    slow = folder / "slow.onnx"
    make = [bench.python, HERE / "slow_model.py", BUNDLE / "model.onnx", slow, SLOW_MS]
    slow_ms = float(run(make))
    slow_bundle = bundle_with(slow, BUNDLE, folder / "slow")
    for model, bundle in (("shadow-fast", BUNDLE), ("shadow-slow", slow_bundle)):
        fleet.make_stable(BUNDLE, model)
        fleet.push(bundle, model, "2.0.0")
        fleet.shadow(model, "2.0.0")
    fast_app = fastapi(processes, bench.python, "app-shadow", BUNDLE / "model.onnx", "2.0.0")
    slow_app = fastapi(processes, bench.python, "app-slow", slow, "2.0.0")
    address, pid = bench.node
    servers = [Server("Rollcall/none", address, (pid,), bench.as_json)]
    for kind in ("fast", "slow"):
        model = f"shadow-{kind}"
        servers.append(
            Server(f"Rollcall/{kind}", address, (pid,), bench.as_json, model, sheds=True)
        )
    for kind, app in (("none", fast_app), ("fast", fast_app), ("slow", slow_app)):
        nginx = Nginx(
            processes, folder / f"nginx-{kind}", bench.app[0], app[0], mirror=kind != "none"
        )
        pids = (nginx.pid, bench.app[1], app[1])
        servers.append(Server(f"nginx mirror/{kind}", nginx.address, pids, bench.as_json))
    rows = []
    for load, pause_ms in (("paced", PAUSE_MS), ("full", None)):
        tables.say(f"shadows, {load} load")
        for name, figures in measure(bench, servers, 8, pause_ms).items():
            server, kind = name.split("/")
            rows.append({"server": server, "shadow": kind, "load": load} | figures)
    return {"slow_ms": slow_ms, "rows": rows}


def rollbacks(bench):
    """What clients see of a version after it was taken back under load."""
    rows = []
    fleet, body = bench.fleet, bench.as_json.file.read_bytes()
    fleet.make_stable(BUNDLE, "rollback")
    candidate = fastapi(bench.processes, bench.python, "app-canary", BUNDLE / "model.onnx", "2.0.0")
    nginx = Nginx(bench.processes, bench.folder / "nginx-rollback", bench.app[0], candidate[0])
    for repetition in range(bench.options.repetitions):
        tables.say(f"rollback {repetition + 1} of {bench.options.repetitions}")
        version = f"{repetition + 2}.0.0"
        fleet.push(BUNDLE, "rollback", version)
        fleet.canary("rollback", version, SHARE_PERCENT)
        path = "/v2/models/rollback/infer"
        until_answered_by(bench, f"http://{bench.node[0]}{path}", ROLLCALL_VERSION, version)
        command = fleet.operator("rollback", "rollback", "--reason", "benchmark", "-o", "json")
        seen = roll_back(
            (bench.node[0], path, body, ROLLCALL_VERSION),
            version,
            8,
            command,
            fleet.environment,
        )
        rows.append(rollback_row("Rollcall", seen, receipt_of(json.loads(seen["printed"]))))

        nginx.write(SHARE_PERCENT)
        run(nginx.reload_command())
        until_answered_by(bench, f"http://{nginx.address}{PATH}", APP_VERSION, "2.0.0")
        nginx.write(0)
        seen = roll_back(
            (nginx.address, PATH, body, APP_VERSION), "2.0.0", 8, nginx.reload_command(), {}
        )
        rows.append(rollback_row("nginx -s reload", seen, None))
    return rows


def receipt_of(rollback):
    """When the node under load said that it had swapped, in wall time."""
    decided = datetime.fromisoformat(rollback["decided_at"]).timestamp()
    node = next(node for node in rollback["nodes"] if node["node"] == "one-thread")
    if node["state"] != "receipt":
        raise Failed(f"the node gave no receipt: {node}")
    return decided + node["after_ms"] / 1e3


def rollback_row(server, seen, receipt):
    """What counts of one rollback. nginx gives no receipt: it never says when it has swapped."""
    if seen["share_before"] == 0:
        raise Failed(f"{server}: the candidate answered nobody before it was rolled back")
    begun = seen.pop("begun")
    row = {"server": server} | seen
    row["receipt_ms"] = receipt and (receipt - seen["typed"]) * 1e3
    row["begun_after_receipt"] = receipt and sum(1 for time in begun if time > receipt)
    row["begun_after_return"] = sum(1 for time in begun if time > seen["returned"])
    for key in ("printed", "typed", "returned"):
        row.pop(key)
    return row


SCENARIOS = {
    "serving": serving,
    "protocols": protocol_rows,
    "shadows": shadows,
    "rollbacks": rollbacks,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--programs", type=Path, required=True, help="folder of rollcall and rollcall-agent"
    )
    parser.add_argument("--seconds", type=int, default=5, help="length of one run (default 5)")
    parser.add_argument("--repetitions", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("--only", choices=tuple(SCENARIOS), help="one scenario")
    parser.add_argument("--json", type=Path, help="write all figures here too")
    options = parser.parse_args()
    if options.seconds < 1 or options.repetitions < 1:
        parser.error("--seconds and --repetitions must be at least 1")
    # Both, and also where a shell that started us in the background had one ignored.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.default_int_handler)
    found = {"load_before": os.getloadavg()[0], "cores": os.cpu_count()}
    folder = Path(tempfile.mkdtemp(prefix="rollcall-bench-"))
    try:
        with Processes(folder) as processes:
            bench = set_up(processes, folder, options)
            found["body_bytes"] = bench.as_json.file.stat().st_size
            for name, scenario in SCENARIOS.items():
                if options.only in (None, name):
                    found[name] = scenario(bench)
    except KeyboardInterrupt:
        shutil.rmtree(folder)
        sys.exit("bench.py: interrupted; everything that it started has ended")
    except Failed as error:
        sys.exit(f"bench.py: {error}\nThe logs are in {folder}")
    found["targets"] = tables.targets(found)
    print(tables.markdown(found, options))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    shutil.rmtree(folder)
    if any(target["promise"] and not target["met"] for target in found["targets"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
