"""The subcommands of a partner site's administrator."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from hanse.cli import Json, out, show

if TYPE_CHECKING:
    from hanse_client.site import Site

SiteFile = Annotated[Path, typer.Argument(metavar="SITE", help="The site's file, site.toml.")]
client_app = typer.Typer(help="The client of a partner site.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add these subcommands to ``hanse``."""
    app.add_typer(client_app, name="client")


@client_app.command("run")
def run(site_file: SiteFile = Path("site.toml"), as_json: Json = False) -> None:
    """Connect to the coordinator and serve its instructions, within this site's policy."""
    from hanse_client.serve import serve
    from hanse_client.site import load_site

    site = load_site(site_file)
    serve(site)
    show({"site": site.name, "ended": "stopped"}, as_json, lambda: None)  # the log says it


@client_app.command("check")
def check(
    site_file: SiteFile = Path("site.toml"),
    job_file: Annotated[
        Path | None, typer.Option("--job", help="A job to hold against data and policy.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Try everything before anything leaves: data, certificate, coordinator, device, budget."""
    from hanse.job import load_job

    from hanse_client.check import Finding, check_site
    from hanse_client.site import load_site

    findings: list[Finding] = []
    site = load_site(site_file)
    for finding in check_site(site, None if job_file is None else load_job(job_file)):
        findings.append(finding)
        if not as_json:
            mark = "[green]ok[/]  " if finding.ok else "[red]FAIL[/]"
            out.print(f"{mark} {finding.name}: ", end="")
            out.print(finding.message, markup=False, soft_wrap=True)
            if not finding.ok:
                out.print(f"       {finding.remedy}", markup=False, soft_wrap=True)
    result = {"site": site.name, "findings": [asdict(finding) for finding in findings]}
    show(result, as_json, lambda: None)
    failed = [finding.exit_code for finding in findings if not finding.ok]
    if failed:
        raise typer.Exit(failed[0])


@client_app.command("ledger")
def ledger(
    site_file: SiteFile = Path("site.toml"),
    verify: Annotated[
        bool, typer.Option("--verify", help="Hold each row against the audit trail, and recount.")
    ] = False,
    adopt: Annotated[
        str | None,
        typer.Option(
            metavar="ACCOUNT",
            help="Let this account go on with the data of site.toml, which has changed; `new` "
            "for people of whom no record was ever trained on here.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before `--adopt new`.")] = False,
    as_json: Json = False,
) -> None:
    """What was spent of the privacy budget, by account, and on what; whose data this is."""
    from hanse_client.books import ledger_result, ledger_view
    from hanse_client.site import load_site

    site = load_site(site_file)
    if adopt is not None:
        _adopt(site, adopt, yes=yes)
    result = ledger_result(site, verify=verify)
    show(result, as_json, lambda: out.print(ledger_view(result)))


def _adopt(site: Site, account: str, *, yes: bool) -> None:
    from hanse_client.books import adopt_data

    if account == "new" and not yes:
        typer.confirm(
            "A fresh account starts at nothing spent: what was spent on other data does not count "
            "for this. Is every person in it new, with no record in any data before?",
            abort=True,
            err=True,
        )
    if account != "new" and not account.isdecimal():
        raise typer.BadParameter(f"{account!r} is neither the number of an account nor `new`")
    adopt_data(site, None if account == "new" else int(account))


@client_app.command("audit")
def audit(
    site_file: SiteFile = Path("site.toml"),
    verify: Annotated[
        bool, typer.Option("--verify", help="Check that no line was changed, or is missing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """What was asked of this site, and what left it."""
    from hanse_client.books import audit_result, audit_view, counted
    from hanse_client.site import load_site

    result = audit_result(load_site(site_file), verify=verify)

    def render() -> None:
        lines, last = result["lines"], result["last"]
        out.print(audit_view(lines))
        if verify and lines:
            but = " but its last, which the next start of the client will tell"
            out.print(
                f"verified: {counted(len(lines), 'line')}; each follows from the one before it, "
                f"and they tell of every row of the ledger{but if result['untold'] else ''}, and "
                f"of each of {counted(result['held'], 'reply', 'replies')} in the outbox"
            )
            out.print(f"digest of the last line, to note elsewhere:\n{last}", soft_wrap=True)

    show(result, as_json, render)


@client_app.command("identity")
def identity(site_file: SiteFile = Path("site.toml"), as_json: Json = False) -> None:
    """Who this site is to the other sites of a secure round, for them to pin."""
    from hanse_client.secagg import certified, pin_of
    from hanse_client.site import load_site

    name, fingerprint = pin_of(certified(load_site(site_file)))

    def render() -> None:
        out.print("for the other sites, under policy.secure_aggregation.peers in their site.toml:")
        out.print(f'{name} = "{fingerprint}"', soft_wrap=True)

    show({"site": name, "key_fingerprint": fingerprint}, as_json, render)


@client_app.command("request")
def request(
    name: Annotated[str, typer.Argument(help="What this site is to be called.")],
    folder: Annotated[Path, typer.Option(help="Where the key and the request go.")] = Path(),
    as_json: Json = False,
) -> None:
    """Make this site's key here, and a signing request for the operator; the key stays."""
    from hanse_client.request import make_request

    made = make_request(name, folder)

    def render() -> None:
        out.print(f"key, which stays here: {made.key}", soft_wrap=True)
        out.print(f"send to the operator:  {made.request}", soft_wrap=True)
        out.print(f"fingerprint of the key, to compare: {made.key_fingerprint}", soft_wrap=True)

    show(asdict(made), as_json, render)


@client_app.command("renew")
def renew(
    site_file: SiteFile = Path("site.toml"),
    signed: Annotated[
        Path | None,
        typer.Option("--take", metavar="FILE", help="The certificate that the operator sent."),
    ] = None,
    keep_key: Annotated[
        bool, typer.Option("--keep-key", help="Ask for a certificate of the present key.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Ask for a new certificate before this one ends, and take it; the client runs on."""
    from hanse_client.renew import ask, take
    from hanse_client.site import load_site

    site = load_site(site_file)
    told = ask(site, keep_key=keep_key) if signed is None else take(site, signed)

    def render() -> None:
        for line in told.lines():
            out.print(line, markup=False, soft_wrap=True)

    show(asdict(told), as_json, render)
