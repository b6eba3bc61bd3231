"""NVFlare as it is deployed: provisioned, with mutual TLS, a server and a client for each site.

All its processes are real and on loopback, over its gRPC, with the project file that `nvflare poc
prepare` writes and NVFlare's defaults otherwise. The job is its FedAvg controller, which adds up
numpy arrays as they come, and an executor that gives the arrays back. A round is timed in the
controller, from its start to the new model; between two rounds it writes the model to a file.

The first argument: ``defaults``, or ``short`` for short waits where the job can set them: of a
client between two tasks (2 s by default), and of the controller between two looks (0.5 s).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from tests.benchmarks.federations.case import Case, Measured, asked
from tests.benchmarks.federations.ports import free_ports
from tests.benchmarks.federations.processes import measured, running
from tests.benchmarks.federations.watch import Watch

APP = Path(__file__).parent / "nvflare_app"
BIN = Path(sys.executable).parent
ADMIN = "admin@example.org"
SCHEME = "grpc"
SHORT_SECONDS = 0.05
LONGEST_SECONDS = 3000.0


def provision(case: Case, folder: Path, surroundings: dict[str, str]) -> Path:
    """Certificates and startup kits; the folder that holds them."""
    server, admin = free_ports(2)
    participants: list[dict[str, Any]] = [
        {
            "name": "server",
            "type": "server",
            "org": "example",
            "default_host": "localhost",
            "fed_learn_port": server,
            "admin_port": admin,
        },
        {"name": ADMIN, "type": "admin", "org": "example", "role": "project_admin"},
        *({"name": name, "type": "client", "org": "example"} for name in case.site_names),
    ]
    builders = [
        {
            "path": "nvflare.lighter.impl.workspace.WorkspaceBuilder",
            "args": {"template_file": ["master_template.yml"]},
        },
        {
            "path": "nvflare.lighter.impl.static_file.StaticFileBuilder",
            "args": {"config_folder": "config", "scheme": SCHEME},
        },
        {"path": "nvflare.lighter.impl.cert.CertBuilder"},
        {"path": "nvflare.lighter.impl.signature.SignatureBuilder"},
    ]
    project = {
        "api_version": 3,
        "name": "echo",
        "participants": participants,
        "builders": builders,
    }
    file = folder / "project.yml"
    file.write_text(json.dumps(project))  # which is YAML too
    command = [str(BIN / "nvflare"), "provision", "-p", str(file), "-w", str(folder)]
    subprocess.run(command, env=surroundings, check=True, stdout=sys.stderr)
    return folder / "echo" / "prod_00"


def write_job(case: Case, waits: str, folder: Path, told: Path) -> Path:
    """The job's folder, as an administrator submits it."""
    job = folder / "job"
    shutil.copytree(APP, job / "app" / "custom")
    controller: dict[str, Any] = {
        "num_clients": case.sites,
        "num_rounds": case.rounds + 1,
        "shapes": case.shapes,
        "told": str(told),
    }
    server: dict[str, Any] = {
        "format_version": 2,
        "workflows": [{"id": "controller", "path": "echo.Timed", "args": controller}],
        "components": [],
    }
    if waits == "short":
        controller["task_check_period"] = SHORT_SECONDS
        server["server"] = {"task_request_interval": SHORT_SECONDS}
    executor = {"path": "echo.Echo", "args": {}}
    client = {
        "format_version": 2,
        "executors": [{"tasks": ["train"], "executor": executor}],
        "components": [],
    }
    meta = {"name": "echo", "min_clients": case.sites, "deploy_map": {"app": ["@ALL"]}}
    (job / "app" / "config").mkdir()
    (job / "app" / "config" / "config_fed_server.json").write_text(json.dumps(server))
    (job / "app" / "config" / "config_fed_client.json").write_text(json.dumps(client))
    (job / "meta.json").write_text(json.dumps(meta))
    return job


def measure(case: Case, waits: str, folder: Path, log: IO[str]) -> Measured:
    """Run the case."""
    surroundings = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
    }
    kits = provision(case, folder, surroundings)
    told = folder / "told.json"
    job = write_job(case, waits, folder, told)
    with ExitStack() as stack:

        def start(name: str) -> subprocess.Popen[str]:
            script = str(kits / name / "startup" / "sub_start.sh")
            return stack.enter_context(running(["bash", script, "--once"], surroundings, log))

        server = start("server")
        watch = stack.enter_context(Watch(server.pid))
        for name in case.site_names:
            start(name)
        _submit(job, kits / ADMIN, case.sites)
        deadline = time.monotonic() + LONGEST_SECONDS
        while not told.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the server has ended, or the rounds do not")
            time.sleep(0.2)
        return measured(json.loads(told.read_text()), watch)


def _submit(job: Path, kit: Path, sites: int) -> None:
    """Give the job to the server, once all sites are there."""
    from nvflare.fuel.flare_api.flare_api import new_secure_session

    session = new_secure_session(ADMIN, str(kit), timeout=120.0)
    try:
        deadline = time.monotonic() + 120.0
        while len(session.get_connected_client_list()) < sites:
            if time.monotonic() > deadline:
                raise RuntimeError("the sites do not come")
            time.sleep(0.5)
        session.submit_job(str(job))
    finally:
        session.close()


def main() -> None:
    """Run the case of the command line."""
    waits, *arguments = sys.argv[1:]
    case = asked(arguments)
    with tempfile.TemporaryDirectory() as folder:
        measure(case, waits, Path(folder), sys.stderr).tell()


if __name__ == "__main__":
    main()
