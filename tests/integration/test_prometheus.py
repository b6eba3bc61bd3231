"""What a real Prometheus makes of the endpoints, the configuration and the alerts."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hanse.metrics import endpoint, new_registry
from hanse_client.metrics import ClientMetrics
from hanse_server.metrics import ServerMetrics
from prometheus_client import generate_latest
from prometheus_client.metrics import MetricWrapperBase

from tests.integration.prometheus_server import (
    DEPLOYED,
    Prometheus,
    find,
    free_port,
    run_prometheus,
    wait_for,
)


def promtool(*arguments: str, given: str | None = None) -> str:
    done = subprocess.run(
        [find("promtool"), *arguments],
        cwd=DEPLOYED,
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_configuration_and_the_rules_are_valid() -> None:
    told = promtool("check", "config", "--lint=all", "--lint-fatal", "prometheus.yml")

    assert "1 rule files found" in told
    assert "21 rules found" in told


def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")


def test_promtool_finds_nothing_to_better_in_the_metrics() -> None:
    registry = new_registry()
    for metrics in (ServerMetrics(registry), ClientMetrics(registry)):
        for metric in vars(metrics).values():
            if isinstance(metric, MetricWrapperBase) and metric._labelnames:
                metric.labels(*["value" for _ in metric._labelnames])

    told = promtool("check", "metrics", given=generate_latest(registry).decode())

    assert told == ""


@pytest.fixture(scope="module")
def server() -> ServerMetrics:
    return ServerMetrics(new_registry())


@pytest.fixture(scope="module")
def client() -> ClientMetrics:
    return ClientMetrics(new_registry())


@pytest.fixture(scope="module")
def prometheus(
    server: ServerMetrics, client: ClientMetrics, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Prometheus, scraping a server and a client that have done something."""
    server.round.set(7)
    server.rounds.labels("completed").inc(6)
    server.connected.labels("north").set(1)
    server.connected.labels("south").set(0)
    server.replies.labels("north", "result").inc(6)
    server.round_seconds.observe(3.0)
    server.epsilon_spent.labels("north").set(2.95)
    server.epsilon_left.labels("north").set(0.05)
    client.connected.set(1)
    client.epsilon_spent.set(1.0)
    client.epsilon_left.set(2.0)
    ports = free_port(), free_port()
    with (
        endpoint(server.registry, "127.0.0.1", ports[0]),
        endpoint(client.registry, "127.0.0.1", ports[1]),
        run_prometheus(
            tmp_path_factory.mktemp("prometheus"),
            server=[f"127.0.0.1:{ports[0]}"],
            client=[f"127.0.0.1:{ports[1]}"],
        ) as running,
    ):
        running.await_targets(2)
        yield running


def test_each_end_is_scraped_under_its_own_job(prometheus: Prometheus) -> None:
    jobs = {sample.labels["job"] for sample in prometheus.query("up == 1")}

    assert jobs == {"hanse-server", "hanse-client"}


def test_what_was_set_is_what_is_stored(prometheus: Prometheus) -> None:
    assert prometheus.value("hanse_server_round") == 7
    assert prometheus.value('hanse_server_rounds_total{outcome="completed"}') == 6
    assert prometheus.value('hanse_server_rounds_total{outcome="missed_quorum"}') == 0
    assert prometheus.value('hanse_server_replies_total{site="north",outcome="result"}') == 6
    assert prometheus.value("hanse_client_epsilon_spent") == 1.0
    connected = {
        sample.labels["site"]: sample.value
        for sample in prometheus.query("hanse_server_site_connected")
    }
    assert connected == {"north": 1, "south": 0}


def test_a_histogram_can_be_asked_for_a_quantile(prometheus: Prometheus) -> None:
    median = prometheus.value("histogram_quantile(0.5, hanse_server_round_duration_seconds_bucket)")

    assert 2.0 < median <= 10.0, "the bucket that 3 s fall into"


def test_a_change_is_seen_at_the_next_scrape(prometheus: Prometheus, client: ClientMetrics) -> None:
    before = prometheus.value("hanse_client_sent_bytes_total")

    client.sent_bytes.inc(1000)

    wait_for(lambda: prometheus.value("hanse_client_sent_bytes_total") == before + 1000)


def test_alerts_are_raised_for_what_is_wrong_and_nothing_else(prometheus: Prometheus) -> None:
    wait_for(lambda: len(prometheus.alerts()) >= 3)

    assert prometheus.alerts() == {
        "HanseSiteBudgetNearlySpent": "firing",
        "HanseSiteDisconnected": "pending",
        "HanseNoRoundForLong": "pending",
    }


def test_the_processes_own_metrics_are_there(prometheus: Prometheus) -> None:
    assert prometheus.value('process_resident_memory_bytes{job="hanse-server"}') > 1e6


@pytest.mark.parametrize(
    ("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)]
)
def test_without_prometheus_a_test_is_skipped_but_fails_in_ci(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CI", ci)

    with pytest.raises(outcome, match="apt-get install prometheus"):
        find("prometheus")
