"""A Rollcall fleet on loopback: the shipping programs, set up with the commands that an
operator would type."""

import json
import shutil
from pathlib import Path

from processes import Failed, free_port, run

# Nothing that a benchmark does is to be judged: the shadow of 50 ms must stay.
POLICY = """[policy]
error_rate_max = 1.0
latency_multiplier_max = 1e6
agreement_min = 0.0
check_every = "1s"
"""


class Fleet:
    """A coordinator and its agents."""

    def __init__(self, processes, programs, folder):
        self.processes = processes
        self.rollcall = programs / "rollcall"
        self.agent = programs / "rollcall-agent"
        self.folder = folder
        self.quic = f"127.0.0.1:{free_port()}"
        self.nodes = []
        coordinator = folder / "coordinator"
        made = json.loads(
            run(
                [self.rollcall, "init", "--fleet", "bench", "--dir", coordinator]
                + ["--quic", self.quic, "--https", f"127.0.0.1:{free_port()}", "-o", "json"]
            )
        )
        processes.start("coordinator", [self.rollcall, "serve", "--config", made["config"]])
        login = ["login", made["url"], "--token", made["token"], "--ca", made["ca"]]
        processes.until("the coordinator answers", lambda: self.succeeds(login))

    def operator(self, *words):
        """The command line of an operator's command."""
        return [str(self.rollcall), *(str(word) for word in words)]

    @property
    def environment(self):
        """What the operator's commands need to know."""
        return {"ROLLCALL_CONFIG_DIR": str(self.folder / "operator")}

    def ask(self, *words):
        """Runs an operator's command and reads its answer."""
        return json.loads(run(self.operator(*words, "-o", "json"), **self.environment))

    def succeeds(self, words):
        """Whether an operator's command succeeds."""
        try:
            run(self.operator(*words), **self.environment)
        except Failed:
            return False
        return True

    def add_agent(self, name, **serving):
        """Enrols and starts an agent; gives its address and process id."""
        token = self.ask("token", "create", "--kind", "agent", "--name", name)["token"]
        http = f"127.0.0.1:{free_port()}"
        folder = self.folder / name
        run(
            [self.agent, "enroll", "--coordinator", self.quic, "--token", token]
            + ["--node", name, "--http", http, "--grpc", "127.0.0.1:0", "--dir", folder]
        )
        config = folder / "agent.toml"
        lines = [f"{key} = {value}" for key, value in serving.items()]
        text = config.read_text()
        if "\n[serving]\n" not in text:
            raise Failed(f"`enroll` wrote another configuration: {text}")
        config.write_text(text.replace("\n[serving]\n", "\n".join(["", "[serving]", *lines, ""])))
        pid = self.processes.start(name, [self.agent, "run", "--config", config])
        self.nodes.append(name)

        def connected():
            nodes = self.ask("agent", "list")
            return any(node["connected"] and node["node"] == name for node in nodes)

        self.processes.until(f"{name} is connected", connected)
        return http, pid

    def push(self, bundle, model, version):
        """Registers a version."""
        self.ask("version", "push", bundle, "--model", model, "--version", version)

    def start(self, model, candidate, strategy, stages):
        """Starts a rollout and gives its id."""
        plan = self.folder / "plan.toml"
        head = f'model = "{model}"\ncandidate = "{candidate}"\nstrategy = "{strategy}"\n'
        plan.write_text(head + POLICY + "".join(f"[[stage]]\n{stage}\n" for stage in stages))
        return self.ask("rollout", "start", plan)["id"]

    def until(self, rollout, **wanted):
        """Waits until a rollout is as wanted."""

        def holds():
            now = self.ask("rollout", "show", rollout)
            if now["state"] == "withdrawn" != wanted.get("state"):
                raise Failed(f"{rollout} was withdrawn: {json.dumps(now, indent=1)}")
            return all(now.get(key) == value for key, value in wanted.items())

        self.processes.until(f"{rollout} is {wanted}", holds)

    def make_stable(self, bundle, model, version="1.0.0"):
        """Pushes a version and makes it stable on every node."""
        self.push(bundle, model, version)
        stage = 'name = "full"\nmode = "full"\nwatch = "100ms"'
        self.until(self.start(model, version, "direct", [stage]), state="promoted")

    def shadow(self, model, version):
        """Gives a version copies of all requests, until the end."""
        stage = 'name = "shadow"\nmode = "shadow"\nshare_percent = 100\nhold = "10h"'
        self.until(
            self.start(model, version, "shadow", [stage]), stage_name="shadow", state="running"
        )

    def canary(self, model, version, percent):
        """Lets a version answer a share of the requests, until somebody ends that."""
        rollout = self.start(
            model,
            version,
            "canary",
            [
                'name = "shadow"\nmode = "shadow"\nhold = "10h"',
                'name = "canary"\nmode = "canary"\nby = "request"\nhold = "10h"\n'
                f"share_percent = {percent}",
                'name = "full"\nmode = "full"',
            ],
        )
        self.until(rollout, stage_name="shadow", state="running")
        self.ask("rollout", "advance", rollout)
        self.until(rollout, stage_name="canary", state="running")


def bundle_with(model_file, bundle, folder):
    """A copy of a bundle around another model file."""
    shutil.copytree(bundle, folder)
    shutil.copyfile(model_file, Path(folder) / "model.onnx")
    return folder
