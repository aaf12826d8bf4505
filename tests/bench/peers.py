"""What people run instead: MLServer, a bare FastAPI app, and nginx before it as the canary
and the mirror. One worker each, the same model and the same JSON."""

import json
from pathlib import Path

from processes import free_port

HERE = Path(__file__).parent
PATH = "/v2/models/digits/infer"
# What libraries would otherwise start a thread a core for.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def fastapi(processes, python, name, model, version):
    """Starts the bare app; gives its address and process id."""
    port = free_port()
    pid = processes.start(
        name,
        [python, "-m", "uvicorn", "fastapi_app:app", "--app-dir", HERE]
        + ["--host", "127.0.0.1", "--port", port, "--workers", "1"]
        + ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"],
        BENCH_MODEL=str(model),
        BENCH_VERSION=version,
        **ONE_THREAD,
    )
    processes.until_ok(f"http://127.0.0.1:{port}/v2/health/ready")
    return f"127.0.0.1:{port}", pid


def mlserver(processes, python, model, folder):
    """Starts MLServer with the model in its own process; gives its address and process id."""
    folder.mkdir()
    port = free_port()
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": free_port(),
        "metrics_port": free_port(),
        "parallel_workers": 0,
        "debug": False,
    }
    served = {
        "name": "digits",
        "implementation": "mlserver_onnx.Onnx",
        "parameters": {"uri": str(model), "version": "1.0.0"},
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(served))
    pid = processes.start(
        "mlserver",
        [Path(python).with_name("mlserver"), "start", folder],
        PYTHONPATH=str(HERE),
        **ONE_THREAD,
    )
    processes.until_ok(f"http://127.0.0.1:{port}/v2/models/digits/ready")
    return f"127.0.0.1:{port}", pid


NGINX = """daemon off;
worker_processes 1;
user root;
pid {folder}/pid;
error_log {folder}/error.log error;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 1000000000;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
{upstreams}
    split_clients $request_id $chosen {{
{shares}
    }}
    server {{
        listen 127.0.0.1:{port};
{locations}
    }}
}}
"""

CHOSEN = """        location / {{ proxy_pass http://$chosen;{mirror} }}"""
MIRROR = """
        location = /mirror { internal; proxy_pass http://candidate$request_uri; }"""


class Nginx:
    """nginx before two servers. Its worker is one, as theirs."""

    def __init__(self, processes, folder, stable, candidate, percent=0, mirror=False):
        folder.mkdir()
        self.config = folder / "nginx.conf"
        self.folder = folder
        self.port = free_port()
        self.servers = {"stable": stable, "candidate": candidate}
        self.mirror = mirror
        self.write(percent)
        self.pid = processes.start(folder.name, ["nginx", *self.with_config()])
        self.address = f"127.0.0.1:{self.port}"
        processes.until_ok(f"http://{self.address}/v2/health/ready")

    def with_config(self):
        """How nginx is told which configuration is meant."""
        return ["-p", self.folder, "-c", self.config, "-e", self.folder / "error.log"]

    def write(self, percent):
        """Writes the configuration in which the candidate answers so many percent."""
        keep = "keepalive 64; keepalive_requests 1000000000;"
        upstreams = "".join(
            f"    upstream {name} {{ server {address}; {keep} }}\n"
            for name, address in self.servers.items()
        )
        shares = f"        {percent}% candidate;\n" if percent else ""
        locations = CHOSEN.format(mirror=" mirror /mirror;" if self.mirror else "")
        self.config.write_text(
            NGINX.format(
                folder=self.folder,
                port=self.port,
                upstreams=upstreams,
                shares=shares + "        * stable;",
                locations=locations + (MIRROR if self.mirror else ""),
            )
        )

    def reload_command(self):
        """What an operator types to roll back, once the file is changed."""
        return ["nginx", *(str(word) for word in self.with_config()), "-s", "reload"]
