"""The report of a run, read as its readers' browsers would."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import matplotlib as mpl
import pytest
from hanse.errors import WorkspaceError
from hanse.job import (
    Evaluation,
    Job,
    Optimizer,
    TaskChoice,
    Training,
)
from hanse_server.history import SiteRound
from hanse_server.report import formats, write_report
from hanse_server.report.settings import as_toml
from hanse_server.statement import model_statement
from hanse_server.status import Status, StatusFile

from tests.reports import STARTED, Page, Run, job, record, result, three_rounds


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


# --- what it says ---------------------------------------------------------------------------


def test_tells_a_completed_run(run: Run) -> None:
    run.write(job(), three_rounds())
    page = run.report()
    assert "Completed 3 rounds" in page.text
    assert "Started 2026-03-01 21:20 UTC, last round ended 2026-03-01 21:23 UTC" in page.text
    assert "Accuracy 82.0 % on the sites’ held-out records, round 3" in page.text
    assert "Rounds with a result 3 of 3" in page.text
    assert "Received from sites 3.0 MB sent to sites: 1.5 MB" in page.text
    assert "Time in rounds 6.0 s 2.0 s in the median" in page.text


def test_tells_what_each_site_did(run: Run) -> None:
    run.write(job(), three_rounds())
    sites = run.report().table("What each site did")
    cleveland, hungary = sites.row("cleveland"), sites.row("hungary")
    assert cleveland["Rounds with a result"] == "3 of 3"
    assert cleveland["Without, by reason"] == "none"
    assert cleveland["Noise multiplier"] == "11.2"
    assert cleveland["Last update (L2 norm)"] == "0.7"
    assert hungary["Rounds with a result"] == "2 of 3"
    assert hungary["Without, by reason"] == "1 × missing last in round 2: no reply by the deadline"
    assert hungary["Epsilon left"] == "–"


def test_compares_models_with_the_best_first(run: Run) -> None:
    run.write(job(), three_rounds())
    rows = [
        {"model": "hungary alone", "accuracy": 0.741, "epsilon": None},
        {
            "model": "federated, private",
            "accuracy": 0.818,
            "auc": 0.8886,
            "loss": 0.41,
            "epsilon": 2.9961,
        },
    ]
    (run.folder / "comparison.json").write_text(json.dumps({"rows": rows, "note": "One split."}))
    page = run.report()
    models = page.table("Models on the same held-out records")
    assert [row[0] for row in models.rows] == ["federated, private", "hungary alone"]
    assert models.row("federated, private")["Accuracy"] == "81.8 %"
    assert models.row("federated, private")["AUC"] == "0.889"
    assert models.row("federated, private")["Epsilon"] == "3.00"
    assert models.row("federated, private")["Loss"] == "0.410"
    assert models.row("hungary alone")["AUC"] == "–"
    assert models.row("hungary alone")["Epsilon"] == "no privacy"
    assert "One split." in page.text


def test_settings_read_back_as_the_same_job(run: Run) -> None:
    asked = job(
        training=Training(epochs=2, optimizer=Optimizer(name="adam", lr=1e-5)),
        evaluation=Evaluation(central=Path('/data/a "b" [c].csv')),
        task=TaskChoice(
            name="tabular",
            options={
                "columns": {"blood pressure": {"type": "number", "low": 80, "missing_values": [0]}},
                "target": {"column": "Größe"},
            },
        ),
    )
    settings = as_toml(json.loads(asked.model_dump_json()))
    assert Job.model_validate(tomllib.loads(settings)) == asked
    assert "[strategy]\nname" in settings
    assert "{ }" not in settings.replace("  ", " ")
    run.write(asked)
    assert " ".join(settings.split()) in run.report().text


def test_names_the_kept_models_and_versions(run: Run) -> None:
    records = three_rounds()
    run.write(job(), records)
    statement = model_statement(job(), records[1], {})
    (run.folder / "models" / "best.json").write_text(json.dumps(statement))
    page = run.report()
    assert "Best model models/best.safetensors, after round 2" in page.text
    assert job().digest in page.text


def test_who_is_at_work_still_counts_once_it_is_known_how_that_ended(run: Run) -> None:
    working = SiteRound(outcome="working", seconds=1.0)
    late = SiteRound(outcome="missing", seconds=9.0, reason="3 rounds behind")
    records = [record(1, {"a": result(), "b": working})]
    records += [record(2, {"a": result(), "b": late})]
    run.write(job(rounds=2), records)
    row = run.report().table("What each site did").row("b")
    assert row["Rounds with a result"] == "0 of 1"
    assert row["Without, by reason"] == "1 × missing last in round 2: 3 rounds behind"


# --- runs that did not go well --------------------------------------------------------------


def test_reports_a_run_without_a_round(run: Run) -> None:
    run.write(job(rounds=40))
    page = run.report()
    assert "No round of 40 finished" in page.text
    assert "No site was asked for anything yet." in page.text
    assert "No site began anything in this run" in page.text
    assert not page.all("figure")


def test_reports_a_run_that_every_site_refused(run: Run) -> None:
    refusal = SiteRound(
        outcome="policy", seconds=0.1, reason="policy: noise_multiplier = 3 is below 4"
    )
    missed = [
        record(number, {"a": refusal, "b": refusal}, outcome="missed_quorum")
        for number in (1, 2, 3)
    ]
    run.write(job(rounds=40), missed)
    page = run.report()
    assert "Stopped at round 3 of 40" in page.text
    assert "3 rounds in a row had fewer than 2 results" in page.text
    why = page.table("What each site did").row("a")["Without, by reason"]
    assert why == "3 × policy last in round 3: noise_multiplier = 3 is below 4"
    assert "no record has shaped a model" in page.text


def test_a_run_that_missed_its_last_rounds_is_not_completed(run: Run) -> None:
    missing = SiteRound(outcome="missing", seconds=60.0)
    missed = [record(number, {"a": missing}, outcome="missed_quorum") for number in (1, 2, 3)]
    run.write(job(rounds=3), missed)
    page = run.report()
    assert "Completed" not in page.text
    assert "Stopped at round 3 of 3" in page.text


def test_a_completed_run_tells_of_rounds_that_missed_the_quorum(run: Run) -> None:
    records = three_rounds()
    records[1] = record(2, records[1].sites, outcome="missed_quorum")
    run.write(job(), records)
    page = run.report()
    assert "Completed 3 rounds 1 round missed the quorum." in page.text
    assert "Rounds with a result 2 of 3" in page.text


def test_a_run_under_way_says_where_it_was_last_seen(run: Run) -> None:
    run.write(job(rounds=10), three_rounds())
    status = Status(phase="training", round=4, rounds=10, waiting_for="replies of 2 sites")
    with StatusFile(run.folder) as file:
        file.show(status)
    text = run.report().text
    assert "Stopped at round 3 of 10" in text
    assert "last seen training in round 4, waiting for replies of 2 sites" in text
    assert "it may be under way still" in text


def test_numbers_that_are_not_finite_do_not_spoil_the_curves(run: Run) -> None:
    records = [
        record(1, {"a": result()}, federated={"loss": float("nan"), "accuracy": 0.5}),
        record(2, {"a": result()}, federated={"loss": 0.4, "accuracy": float("inf")}),
    ]
    run.write(job(rounds=2), records)
    descriptions = [
        attrs["aria-label"] for attrs in run.report().all("div") if attrs.get("role") == "img"
    ]
    assert "Loss over the rounds. sites’ held-out records: 0.400 in round 2, 0.400 in round 2." in (
        descriptions
    )


# --- curves ---------------------------------------------------------------------------------


def figures(page: Page) -> dict[str, str]:
    """Title -> source of each figure."""
    parts = page.source.split("<figure>")[1:]
    return {part.split("<strong>")[1].split("</strong>")[0]: part for part in parts}


def test_draws_only_what_there_is(run: Run) -> None:
    run.write(job(rounds=1), [record(1, {"a": result()}, central={"loss": 0.5})])
    found = figures(run.report())
    assert list(found) == ["Loss", "Sites with a result", "Size of the updates", "Time of a round"]
    assert "server’s records" in found["Loss"]
    assert "held-out" not in found["Loss"]


def test_tells_what_encodings_spared_and_changed(run: Run) -> None:
    travelled = {"encoding": "int4", "bytes": 135_000, "plain_bytes": 1_000_000}
    sites = {"a": result({"encoding_error": 0.125}, **travelled)}
    run.write(job(rounds=1), [record(1, sites)])
    page = run.report()
    received = (
        "Received from sites 1.0 MB updates as int4, 13.5 % of 1.0 MB; sent to sites: 500.0 kB"
    )
    assert received in page.text
    changed = Page(figures(page)["What encoding changed"].partition("</figure>")[0])
    assert "a 0.125" in changed.text


def test_draws_epsilon_by_site_under_the_budget(run: Run) -> None:
    run.write(job(), three_rounds())
    epsilon = Page(figures(run.report())["Epsilon"].partition("</figure>")[0])
    assert "cleveland 3.00 hungary 1.50 budget 3.00" in epsilon.text
    assert epsilon.source.count("stroke-dasharray") == 1
    colours = {f"var(--series-{index})" for index in (0, 1)}
    assert all(colour in epsilon.source for colour in colours)


def test_many_sites_are_shown_as_a_spread(run: Run) -> None:
    sites = {f"site-{i:02}": result({"epsilon": 1 + i / 10}) for i in range(11)}
    run.write(job(rounds=1), [record(1, sites)])
    page = run.report()
    epsilon = Page(figures(page)["Epsilon"].partition("</figure>")[0]).text
    assert "highest site 2.00 median site 1.50 lowest site 1.00" in epsilon
    assert "site-03" not in epsilon
    assert len(page.table("What each site did").rows) == 11


def test_metrics_without_end_do_not_swamp_the_page(run: Run) -> None:
    metrics = {f"metric_{i}": 0.5 for i in range(30)} | {"auc": 0.9}
    run.write(job(rounds=1), [record(1, {"a": result()}, federated=metrics)])
    page = run.report()
    found = list(figures(page))
    assert found[:2] == ["AUC", "Metric 0"]
    assert sum(title.startswith("Metric") for title in found) == 7
    assert "23 more metrics are in history.jsonl" in page.text


# --- the file itself ------------------------------------------------------------------------


def test_opens_offline(run: Run) -> None:
    run.write(job(), three_rounds())
    page = run.report()
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            target = attrs.get(name)
            assert target is None or target.removeprefix("#") in ids
    assert not {"script", "link", "img", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert "://" not in page.source
    assert "@import" not in page.source
    policy = [attrs["content"] for attrs in page.all("meta") if "http-equiv" in attrs]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_is_the_same_each_time_whatever_the_users_style(run: Run) -> None:
    run.write(job(), three_rounds())
    first = run.report().source
    with mpl.rc_context({"grid.linestyle": ":", "axes.grid": False, "svg.fonttype": "path"}):
        assert run.report().source == first
    assert "<text" in first


def test_escapes_what_comes_from_sites(run: Run) -> None:
    odd = '"><script>alert(1)</script>$x^$患者'
    sites = {
        odd: result({"epsilon": 1.0, f"metric {odd}": 0.5}),
        "late": SiteRound(outcome="<b>", seconds=1.0, reason=f"<b>: {odd}"),
    }
    run.write(job(rounds=1), [record(1, sites, federated={odd: 0.5})])
    comparison = {"rows": [{"model": odd, "accuracy": 0.5}], "note": odd}
    (run.folder / "comparison.json").write_text(json.dumps(comparison))
    page = run.report()
    assert not page.all("script")
    assert not page.all("b")
    assert page.table("Models").rows[0][0] == odd
    why = page.table("What each site did").row("late")["Without, by reason"]
    assert why == f"1 × <b> last in round 1: {odd}"
    assert page.table("What each site did").row(odd)["Epsilon spent"] == "1.00"
    labels = " ".join(attrs.get("aria-label") or "" for _, attrs in page.tags)
    assert odd in labels


def test_can_be_read_without_seeing_it(run: Run) -> None:
    run.write(job(), three_rounds())
    page = run.report()
    assert page.all("html") == [{"lang": "en"}]
    drawings = [attrs for attrs in page.all("div") if attrs.get("role") == "img"]
    assert len(drawings) == len(page.all("svg")) == len(page.all("figure")) > 0
    assert all(attrs["aria-label"] for attrs in drawings)
    assert all(table.caption for table in page.tables)
    assert all("scope" in attrs for attrs in page.all("th"))
    assert len(page.all("h1")) == 1


def test_a_folder_that_is_no_workspace(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"it has no run\.json"):
        write_report(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("history.jsonl", '{"round": 1}\n'),
        ("history.jsonl", "[1]\n"),
        ("comparison.json", '{"rows": [{"name": "x"}]}'),
        ("models/last.json", "{"),
        ("run.json", '{"hanse": "0.0.9"}'),
        ("status.json", "{}"),
    ],
)
def test_a_damaged_workspace(run: Run, file: str, text: str) -> None:
    run.write(job(), three_rounds())
    (run.folder / file).write_text(text)
    with pytest.raises(WorkspaceError, match="cannot be read") as caught:
        run.report()
    assert "version that ran it" in caught.value.remedy


def test_makes_the_folder_that_it_is_asked_to_write_to(run: Run, tmp_path: Path) -> None:
    run.write(job())
    output = tmp_path / "reports" / "heart.html"
    assert write_report(run.folder, output) == output
    assert output.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_an_output_that_cannot_be_written(run: Run) -> None:
    run.write(job())
    (run.folder / "taken").write_text("a file")
    with pytest.raises(WorkspaceError, match="cannot be written") as caught:
        write_report(run.folder, run.folder / "taken" / "report.html")
    assert "--output" in caught.value.remedy


# --- numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (formats.number(0.5), "0.500"),
        (formats.number(4.0), "4"),
        (formats.number(0.000012345), "1.23\u00a0×\u00a010⁻⁵"),
        (formats.number(123456.7), "1.23\u00a0×\u00a010⁵"),
        (formats.number(float("nan")), "–"),
        (formats.number(None), "–"),
        (formats.short(1e-5), "10⁻⁵"),
        (formats.metric("accuracy", 0.8184), "81.8\u00a0%"),
        (formats.metric("r2", 0.8184), "0.818"),
        (formats.epsilon_spent(2.9901), "3.00"),
        (formats.epsilon_spent(3.0), "3.00"),
        (formats.epsilon_spent(0.00012), "0.0002"),
        (formats.epsilon_spent(float("inf")), "unbounded"),
        (formats.epsilon_left(0.0199), "0.01"),
        (formats.epsilon_left(0.0), "0.00"),
        (formats.size(999), "999\u00a0bytes"),
        (formats.size(61_440), "61.4\u00a0kB"),
        (formats.size(2.5e15), "2.5\u00a0PB"),
        (formats.duration(0.0123), "12\u00a0ms"),
        (formats.duration(12.34), "12.3\u00a0s"),
        (formats.duration(133.4), "2\u00a0min 13\u00a0s"),
        (formats.duration(2 * 3600 + 299), "2\u00a0h 04\u00a0min"),
        (formats.moment(STARTED), "2026-03-01 21:20 UTC"),
        (formats.plural(1, "site"), "1\u00a0site"),
        (formats.plural(3, "site"), "3\u00a0sites"),
    ],
)
def test_numbers_for_people(written: str, expected: str) -> None:
    assert written == expected
