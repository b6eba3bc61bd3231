"""The subcommands of the operator and the data scientist."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from hanse.cli import Json, out, show

if TYPE_CHECKING:
    from hanse.job import Job

JobFile = Annotated[Path, typer.Argument(metavar="JOB", help="The job, a TOML file.")]
WorkspaceFolder = Annotated[
    Path | None,
    typer.Option("--workspace", help="The run's folder; else runs/<name>."),
]
Federation = Annotated[
    Path, typer.Option("--federation", help="The folder that `hanse provision` made.")
]
server_app = typer.Typer(help="The aggregation server.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the operator's subcommands to ``hanse``."""
    app.add_typer(server_app, name="server")
    app.command("provision")(provision)
    app.command("report")(report)


def register_simulation(app: typer.Typer) -> None:
    """Add the subcommands that need the sites' packages too."""
    app.command("simulate")(simulate)
    app.command("demo")(demo)


@server_app.command("run")
def run(
    job_file: JobFile,
    federation: Federation = Path("federation"),
    workspace: WorkspaceFolder = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",  # noqa: S104
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port that sites connect to.")] = 9443,
    metrics_host: Annotated[str, typer.Option(help="Address of the metrics.")] = "127.0.0.1",
    metrics_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the metrics; 0 for none.")
    ] = 9463,
    as_json: Json = False,
) -> None:
    """Run a job's rounds with the sites that connect; goes on where it stopped."""
    from hanse.job import load_job

    from hanse_server.serve import Listening, serve

    job = load_job(job_file)
    folder = workspace or _default_workspace(job)
    listening = Listening(
        host=host, port=port, metrics_host=metrics_host, metrics_port=metrics_port
    )
    serve(job, federation, folder, listening)
    _show_outcome(job, folder, as_json)


@server_app.command("flower-app")
def flower_app(
    job_file: JobFile,
    folder: Annotated[Path, typer.Argument(help="The folder to make, for `flwr run`.")],
    workspace: Annotated[
        Path,
        typer.Option("--workspace", help="The run's folder, an absolute path at the SuperLink."),
    ],
    as_json: Json = False,
) -> None:
    """Write a Flower app that runs a job on a SuperLink, with the SuperNodes of its sites."""
    from hanse_server.superlink.folder import write_flower_app

    write_flower_app(job_file, folder, workspace)
    result = {"folder": str(folder), "workspace": str(workspace)}
    show(result, as_json, lambda: out.print(f"run it: flwr run {folder}", soft_wrap=True))


@server_app.command("status")
def status(
    workspace: Annotated[Path, typer.Option("--workspace", help="The run's folder.")],
    as_json: Json = False,
) -> None:
    """What the server does now, whom it waits for, since when and until when."""
    from dataclasses import asdict

    from hanse_server.status import read_status
    from hanse_server.views import status_view
    from hanse_server.workspace import in_use

    now, running = read_status(workspace), in_use(workspace)
    result = asdict(now) | {"running": running}
    show(result, as_json, lambda: out.print(status_view(now, running=running)))


@server_app.command("audit")
def audit(
    workspace: Annotated[Path, typer.Option("--workspace", help="The run's folder.")],
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Hold the trail against itself, history and models."),
    ] = False,
    against: Annotated[
        list[Path] | None,
        typer.Option(help="A site's audit.jsonl to hold it against too; may be repeated."),
    ] = None,
    site: Annotated[str | None, typer.Option(help="Show this site's lines alone.")] = None,
    server_round: Annotated[
        int | None, typer.Option("--round", min=1, help="Show this round's lines alone.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What was sent to the sites and accepted from them, and whether that holds together."""
    from hanse_server.audit.view import audit_result, audit_view

    result = audit_result(
        workspace,
        site=site,
        number=server_round,
        verify=verify or bool(against),
        against=against or [],
    )
    show(result, as_json, lambda: out.print(audit_view(result), soft_wrap=True))


def provision(
    sites: Annotated[
        list[str] | None, typer.Argument(help="Names of sites to make a kit for.")
    ] = None,
    federation: Federation = Path("federation"),
    host: Annotated[
        str, typer.Option(help="Name or address by which sites reach the server.")
    ] = "localhost",
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="The server's port, for the kits.")
    ] = 9443,
    sign: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=FILE: a signing request made at that site, to join or to renew; may be "
            "repeated."
        ),
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option(help="A site to shut out from now on; may be repeated.")
    ] = None,
    retire: Annotated[
        list[str] | None,
        typer.Option(help="A site to let in with its renewed certificate only; may be repeated."),
    ] = None,
    renew_server: Annotated[
        bool,
        typer.Option("--renew-server", help="A new certificate for the server, which runs on."),
    ] = False,
    list_them: Annotated[
        bool, typer.Option("--list", help="Only tell when each certificate ends.")
    ] = False,
    days: Annotated[
        int, typer.Option(min=1, help="How long the new certificates are valid.")
    ] = 365,
    as_json: Json = False,
) -> None:
    """Make the certificates of a federation and a kit for each site, or add to them."""
    if list_them:
        _list_certificates(federation, as_json)
        return
    from dataclasses import asdict

    from hanse_server.provisioning.federation import provision as make
    from hanse_server.provisioning.layout import Layout
    from hanse_server.register import no_federation, remove_site, retire_site
    from hanse_server.views import provisioned_view

    if (remove or retire) and not Layout(federation).register.exists():
        raise no_federation(federation)
    for name in remove or []:
        remove_site(Layout(federation).register, name)
    for name in retire or []:
        retire_site(Layout(federation).register, name)
    made = make(
        federation,
        host=host,
        port=port,
        sites=sites or [],
        requests=_requests(sign or []),
        days=days,
        renew_server=renew_server,
    )
    result = {
        "federation": str(federation),
        "server_expires": made.server_expires,
        "added": [asdict(site) for site in made.added],
        "renewed": [asdict(site) for site in made.renewed],
        "kept": made.kept,
        "removed": remove or [],
        "retired": retire or [],
    }
    show(result, as_json, lambda: out.print(provisioned_view(made, remove or [], retire or [])))


def _list_certificates(federation: Path, as_json: bool) -> None:
    from dataclasses import asdict

    from hanse_server.provisioning.layout import Layout
    from hanse_server.provisioning.renewal import endings
    from hanse_server.views import endings_view

    found = endings(Layout(federation))
    result = {"certificates": [asdict(each) for each in found]}
    show(result, as_json, lambda: out.print(endings_view(found)))


def simulate(
    job_file: JobFile,
    data: Annotated[Path | None, typer.Option(help="The pooled data set to part.")] = None,
    sites: Annotated[int | None, typer.Option(min=1, help="Number of sites.")] = None,
    partition: Annotated[
        str | None,
        typer.Option(help="iid, dirichlet:A, shards:K, column:NAME, or a folder of site files."),
    ] = None,
    holdout: Annotated[
        float | None,
        typer.Option(min=0.0, max=0.99, help="Fraction of each site's records to judge models by."),
    ] = None,
    central: Annotated[
        Path | None, typer.Option(help="Records to judge the global model by.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="auto, inline, vectorised, process, or ray.")
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; one a core if left out.")
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(help="A Ray cluster, host:port or auto; if left out, one is started here."),
    ] = None,
    ray_gpus: Annotated[
        float, typer.Option(min=0.0, help="GPUs of each worker on Ray; 0.5 lets two share one.")
    ] = 0.0,
    rounds: Annotated[int | None, typer.Option(min=1, help="In place of the job's.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="In place of the job's.")] = None,
    holdout_seed: Annotated[
        int | None, typer.Option(help="In place of the site files': another split.")
    ] = None,
    waive_privacy: Annotated[
        bool,
        typer.Option(
            "--waive-privacy", help="Train without privacy whatever the job and the sites say."
        ),
    ] = False,
    workspace: WorkspaceFolder = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what the workspace holds.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a job on this machine, with simulated sites and the same apps as on real ones."""
    from hanse.job import Privacy, load_job

    from hanse_server.simulate import SimulationRequest, run_simulation
    from hanse_server.simulation.cluster import RayCluster

    job = load_job(job_file)
    changed: dict[str, Any] = {}
    if rounds is not None:
        changed["rounds"] = rounds
    if seed is not None:
        changed["seed"] = seed
    if central is not None:
        changed["evaluation"] = job.evaluation.model_copy(update={"central": central.resolve()})
    if holdout is not None:
        changed["simulation"] = job.simulation.model_copy(update={"holdout": holdout})
    if waive_privacy:
        changed["privacy"] = Privacy(mechanism="none")
    job = job.model_copy(update=changed)
    folder = workspace or _default_workspace(job)
    request = SimulationRequest(
        data=data or job.simulation.data,
        sites=sites or job.simulation.sites,
        partition=partition or job.simulation.partition,
        engine=engine,
        workers=workers,
        ray=RayCluster(address=ray_address, gpus=ray_gpus),
        holdout_seed=holdout_seed,
        waived=waive_privacy,
        overwrite=overwrite,
        progress=not as_json,
    )
    run_simulation(job, request, folder)
    _show_outcome(job, folder, as_json)


def report(
    workspace: Annotated[Path, typer.Option("--workspace", help="The run's folder.")],
    output: Annotated[
        Path | None, typer.Option(help="Where to; report.html in the workspace if left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a run's report: curves, sites and the privacy statement, in one HTML file."""
    from hanse_server.report import write_report

    written = write_report(workspace, output or workspace / "report.html")
    show({"report": str(written)}, as_json, lambda: out.print(f"report: {written}"))


def demo(
    workspace: Annotated[
        Path, typer.Option("--workspace", help="Folder to work in; replaced if it is there.")
    ] = Path("hanse-demo"),
    as_json: Json = False,
) -> None:
    """Four hospitals and a server, as processes on this machine, train a model together."""
    from hanse_server.demo import run_demo

    result = run_demo(workspace, live=not as_json)
    show(result.as_dict(), as_json, lambda: out.print(result.view()))


def _default_workspace(job: Job) -> Path:
    return Path("runs") / job.name


def _requests(given: list[str]) -> dict[str, Path]:
    requests = {}
    for each in given:
        name, separator, path = each.partition("=")
        if not separator:
            raise typer.BadParameter(f"{each!r} is not NAME=FILE", param_hint="--sign")
        requests[name] = Path(path)
    return requests


def _show_outcome(job: Job, folder: Path, as_json: bool) -> None:
    from hanse_server.views import outcome_view, run_outcome

    outcome = run_outcome(job, folder)
    show(outcome, as_json, lambda: out.print(outcome_view(outcome)))
