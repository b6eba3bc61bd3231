"""The report of a run, read as its readers' browsers would."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from hanse.aggregation import SecureAggregation, StrategyChoice
from hanse.errors import WorkspaceError
from hanse.job import (
    Evaluation,
    Job,
    Optimizer,
    Privacy,
    TaskChoice,
    Training,
)
from hanse_server.report import formats, write_report
from hanse_server.report.settings import as_toml
from hanse_server.statement import model_statement
from hanse_server.status import Status, StatusFile
from hanse_server.workspace import RoundRecord, SiteRound, Terms, Workspace

PRIVATE = Privacy(target_epsilon=3.0, clipping_norm=2.0, sampling_rate=1.0)
NO_PRIVACY = Privacy(mechanism="none")
STARTED = 1_772_400_000.0  # 2026-03-01 21:20 UTC
VOID = {"meta", "br", "use"}


def job(*, rounds: int = 3, privacy: Privacy = PRIVATE, **more: Any) -> Job:
    given: dict[str, Any] = {
        "name": "heart",
        "rounds": rounds,
        "task": TaskChoice(name="tabular", options={"model": {"kind": "linear"}}),
        "training": Training(steps=1),
        "privacy": privacy,
        "strategy": StrategyChoice(quorum=2),
    }
    return Job(**given | more)


def stated(epsilon: float, **more: float) -> dict[str, float]:
    return {"epsilon": epsilon, "epsilon_left": 3.0 - epsilon, "delta": 1e-5} | more


def result(metrics: dict[str, float] | None = None, **more: Any) -> SiteRound:
    given: dict[str, Any] = {"outcome": "result", "seconds": 0.5, "weight": 1.0, "update_norm": 0.7}
    return SiteRound(metrics=metrics or {}, **given | more)


def record(number: int, sites: dict[str, SiteRound], **more: Any) -> RoundRecord:
    given: dict[str, Any] = {
        "outcome": "completed",
        "started_at": STARTED + 60 * number,
        "seconds": 2.0,
        "train": {},
        "federated": {},
        "central": {},
        "bytes_up": 1_000_000,
        "bytes_down": 500_000,
    }
    return RoundRecord(round=number, sites=sites, **given | more)


@dataclass
class Table:
    caption: str = ""
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)

    def row(self, first: str) -> dict[str, str]:
        cells = next(cells for cells in self.rows if cells[0] == first)
        return dict(zip(self.header, cells, strict=True))


class Page(HTMLParser):
    """A report, taken apart: its tags, its tables, and the text that a reader sees."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[Table] = []
        self.words: list[str] = []
        self.inside: list[tuple[str, dict[str, str | None]]] = []
        self.feed(source)
        self.close()
        assert not self.inside, f"never closed: {self.inside}"
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append(Table())
        elif tag == "tr" and self.in_(["tbody"]):
            self.tables[-1].rows.append([])
        elif tag in ("td", "th") and self.in_(["tbody"]):
            self.tables[-1].rows[-1].append("")
        elif tag in ("td", "th") and self.in_(["thead"]):
            self.tables[-1].header.append("")
        if tag not in VOID:
            self.inside.append((tag, dict(attrs)))
        self.words.append(" ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.inside.pop()[0] == tag
        self.words.append(" ")

    def handle_data(self, data: str) -> None:
        if self.in_(["style"]):
            return
        self.words.append(data)
        if self.in_(["caption"]):
            self.tables[-1].caption += data
        elif self.in_(["tbody", "td"]) or self.in_(["tbody", "th"]):
            cells = self.tables[-1].rows[-1]
            cells[-1] = " ".join(f"{cells[-1]} {data}".split())
        elif self.in_(["thead", "td"]) or self.in_(["thead", "th"]):
            header = self.tables[-1].header
            header[-1] = " ".join(f"{header[-1]} {data}".split())

    def in_(self, tags: Iterable[str]) -> bool:
        open_tags = [tag for tag, _ in self.inside]
        return all(tag in open_tags for tag in tags)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    def with_class(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for _, attrs in self.tags if name in (attrs.get("class") or "").split()]

    def table(self, caption: str) -> Table:
        return next(table for table in self.tables if table.caption.startswith(caption))


@dataclass
class Run:
    """A workspace to be filled, and its report."""

    folder: Path

    def write(self, of: Job, records: Iterable[RoundRecord] = ()) -> None:
        workspace = Workspace(self.folder, of)
        for each in records:
            workspace.append(each)
        run_file = self.folder / "run.json"
        run = json.loads(run_file.read_text()) | {"started_at": STARTED}
        run_file.write_text(json.dumps(run))

    def report(self) -> Page:
        written = write_report(self.folder, self.folder / "report.html")
        assert written == self.folder / "report.html"
        return Page(written.read_text(encoding="utf-8"))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def three_rounds(**of_cleveland: float) -> list[RoundRecord]:
    """A run in which cleveland does all, and hungary is late once."""
    return [
        record(
            number,
            {
                "cleveland": result(
                    stated(number - 0.0019, noise_multiplier=11.237, train_loss=0.7, **of_cleveland)
                ),
                "hungary": result({"epsilon": 0.5 * number})
                if number != 2
                else SiteRound(outcome="missing", seconds=120.0),
            },
            federated={"accuracy": 0.7 + number / 25, "auc": 0.85, "loss": 0.6 - number / 10},
        )
        for number in (1, 2, 3)
    ]


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


def test_privacy_is_never_rounded_in_its_own_favour(run: Run) -> None:
    run.write(job(), three_rounds())
    page = run.report()
    cleveland = page.table("What each site did").row("cleveland")
    assert cleveland["Epsilon spent"] == "3.00"  # 2.9981
    assert cleveland["Epsilon left"] == "0.0019"
    assert "epsilon at most 3.00" in page.text


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


# --- privacy --------------------------------------------------------------------------------


def test_private_run_states_its_guarantee(run: Run) -> None:
    told = stated(2.5, noise_multiplier=4.0)
    run.write(job(rounds=1), [record(1, {name: result(told) for name in ("a", "b")})])
    page = run.report()
    # One Gaussian mechanism of noise multiplier 4 costs 0.9263 at delta 1e-5.
    assert (
        "In this run each record of every site is protected by differential privacy with epsilon "
        "at most 0.93 (delta 10⁻⁵)" in page.text
    )
    assert "a factor of 2.6," in page.text  # e to the 0.9263 is 2.525
    assert (
        "Over all that was ever done with the same data it is at most 2.50, by the ledger of "
        "every site." in page.text
    )
    assert "Epsilon of this run, highest at a site 0.93" in page.text
    assert "over all runs 2.50, by sites’ own ledgers" in page.text
    assert "Clipping norm 2 (L2)" in page.text
    assert "add-or-remove adjacency" in page.text
    assert "epsilon 3 over all rounds, delta 10⁻⁵, sampling rate 1" in page.text
    assert "No privacy" not in page.text
    assert not page.with_class("bad")


def test_what_a_site_keeps_to_itself_is_not_released(run: Run) -> None:
    run.write(job(), three_rounds())
    page = run.report()
    assert page.table("Everything ever done").row("hungary") == {
        "Site": "hungary",
        "Epsilon": "1.50",
        "Left of its budget": "not released",
        "Delta": "not released",
        "Stated in round": "3",
    }
    assert page.table("Computed here").row("hungary") == {
        "Site": "hungary",
        "Epsilon": "3.00",
        "Delta": "10⁻⁵",
        "Found by": "the job’s target",
        "Noise multiplier": "not known",
        "Sampling rate": "1",
        "Steps of a round": "1",
        "Rounds charged": "3 of 3",  # the one without a reply, too: it may have trained
        "Evaluations charged": "none",
    }


def test_claims_nothing_for_a_site_that_stopped_telling(run: Run) -> None:
    records = [
        record(1, {"a": result(stated(0.5)), "b": result(stated(0.4))}),
        record(2, {"a": result(), "b": result(stated(0.8))}),
    ]
    run.write(job(rounds=2), records)
    page = run.report()
    assert "it is at most 0.80, by the ledger of 1 of 2 sites" in page.text
    assert page.table("Everything ever done").row("a") == {
        "Site": "a",
        "Epsilon": "0.50",
        "Left of its budget": "2.50",
        "Delta": "10⁻⁵",
        "Stated in round": "1 it took part after that",
    }


UNSAID = Privacy(noise_multiplier=2.0)
"""Leaves the sampling rate to sites: who does not know it knows no epsilon."""


def test_what_a_run_cost_is_not_known_where_no_setting_was_released(run: Run) -> None:
    run.write(job(rounds=1, privacy=UNSAID), [record(1, {"a": result(), "b": result()})])
    page = run.report()
    assert "What this run cost is not known here" in page.text
    assert "highest at a site – not known" in page.text
    assert page.table("Computed here").row("a")["Epsilon"] == "not known"
    assert "protected by differential privacy" not in page.text


def test_a_site_of_which_it_is_not_known_is_told_apart(run: Run) -> None:
    sites = {"a": result({"sampling_rate": 0.5}), "b": result()}
    run.write(job(rounds=1, privacy=UNSAID), [record(1, sites)])
    page = run.report()
    assert "In this run each record of 1 site below is protected" in page.text
    assert "Of 1 further site it is not known." in page.text
    assert "No site released what all runs together cost its data." in page.text


def test_a_site_that_refused_is_not_counted_and_one_that_is_silent_is(run: Run) -> None:
    told = stated(1.0, noise_multiplier=4.0)
    refused = SiteRound(outcome="budget", seconds=0.1, reason="budget")
    silent = SiteRound(outcome="missing", seconds=9.0)
    late = [refused, silent, SiteRound(outcome="diverged", seconds=0.1)]
    records = [record(1, {"a": result(told), "b": result(told)})]
    records += [
        record(number, {"a": result(told), "b": other}) for number, other in enumerate(late, 2)
    ]
    run.write(job(rounds=4), records)
    rows = run.report().table("Computed here")
    assert rows.row("a")["Rounds charged"] == "4 of 4"
    assert rows.row("b")["Rounds charged"] == "3 of 4"
    assert rows.row("a")["Found by"] == "closed form"


def test_noised_evaluations_are_part_of_the_run(run: Run) -> None:
    told = stated(1.0, noise_multiplier=4.0)
    terms = Terms(count="declared", noised=("loss",), noise_multiplier=5.0)
    records = [
        record(
            number,
            {"a": result(told), "b": result(told)},
            judged={"a": result({"loss": 0.5} | told, terms=terms), "b": result()},
            federated={"loss": 0.5},
        )
        for number in (1, 2)
    ]
    run.write(job(rounds=2), records)
    page = run.report()
    assert "on the sites’ held-out records, with noise, round 2" in page.text
    rows = page.table("Computed here")
    assert rows.row("a")["Evaluations charged"] == "2 at noise 5"
    assert rows.row("b")["Evaluations charged"] == "none"
    assert float(rows.row("a")["Epsilon"]) > float(rows.row("b")["Epsilon"])
    outside = page.text.partition("What else left the sites")[2]
    assert (
        "loss of held-out records left with noise, within epsilon (noise multiplier 5), at 1"
        in (outside)
    )


def test_names_what_left_outside_epsilon(run: Run) -> None:
    run.write(job(), three_rounds(update_norm=0.7, sampling_rate=1.0))
    page = run.report()
    outside = page.text.partition("What else left the sites")[2].partition("Settings of the")[0]
    assert (
        "train_loss of training records left in a way that is not known: take it to be outside "
        "epsilon, at 1 site" in outside
    )
    # The server has the update, and with it the norm; the sampling rate is the job's own.
    assert "update_norm" not in outside
    assert "sampling_rate" not in outside


def test_what_left_exactly_stands_first_and_a_public_count_is_told(run: Run) -> None:
    exact = Terms(count="public", exact=("auc",), noised=("loss",), noise_multiplier=50.0)
    judged = {name: result({"auc": 0.9, "loss": 0.4}, terms=exact) for name in ("a", "b")}
    sites = {name: result(terms=Terms(count="public")) for name in ("a", "b")}
    run.write(job(rounds=1), [record(1, sites, judged=judged)])
    page = run.report()
    released = page.text.partition("What else left the sites")[2].partition("Settings of the")[0]
    assert "num-examples is the number of records, which 2 sites make public" in released
    assert "auc of held-out records left as it is, outside epsilon, at 2 sites" in released
    assert released.index("auc of") < released.index("loss of")
    assert "It does not cover metrics that 2 sites released besides." in page.text
    assert len(page.with_class("exact")) == 2


def test_a_sampling_rate_that_tells_the_number_of_records_is_a_release(run: Run) -> None:
    privacy = Privacy(noise_multiplier=2.0)
    run.write(job(privacy=privacy), three_rounds(sampling_rate=0.064))
    page = run.report()
    assert "sampling_rate tells the number of training records, at 1 site" in page.text
    assert "noise multiplier 2, delta 10⁻⁵" in page.text


def test_no_privacy_stands_in_red_at_the_top_and_in_the_statement(run: Run) -> None:
    sites = {"a": result(), "b": result()}
    run.write(job(rounds=1, privacy=NO_PRIVACY), [record(1, sites, federated={"accuracy": 0.8})])
    page = run.report()
    head, _, rest = page.text.partition("Over the rounds")
    statement = rest.partition("Privacy statement")[2].partition("Settings of the job")[0]
    for place in (head, statement):
        assert "No privacy This model was trained without differential privacy." in place
    assert "protected by" not in page.text
    classes = [attrs.get("class") for attrs in page.with_class("bad")]
    assert classes.count("banner bad") == 2
    assert "Epsilon spent" not in page.table("What each site did").header


@pytest.mark.parametrize(
    ("privacy", "told"),
    [(PRIVATE, "every epsilon here holds without it"), (NO_PRIVACY, "no differential privacy")],
)
def test_says_what_secure_aggregation_hid(run: Run, privacy: Privacy, told: str) -> None:
    summed = job(rounds=1, privacy=privacy, secure_aggregation=SecureAggregation(enabled=True))
    run.write(summed, [record(1, {"a": result(update_norm=None)})])
    page = run.report()
    assert "Secure aggregation Of the updates of a round the server learnt no more" in page.text
    assert told in page.text
    assert "Nothing but masked updates" in page.text
    assert page.table("What each site did").row("a")["Last update (L2 norm)"] == "–"


def test_says_nothing_of_secure_aggregation_where_there_is_none(run: Run) -> None:
    run.write(job(rounds=1), [record(1, {"a": result()})])
    assert "ecure aggregation" not in run.report().text.partition("Settings of the job")[0]


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
