"""What the demo comes to, for people and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from hanse_server.demo.comparison import Row


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """The outcome of a demo.

    Attributes:
        outcome: of the run, as `hanse server run --json` prints it.
        private: the federation's model.
        baselines: the federation without privacy, the pooled records, each hospital alone.
        ledgers: what each hospital's own ledger says.
        metrics: where each process showed its metrics.
        seconds: of the whole demo.
    """

    outcome: dict[str, Any]
    private: Row
    baselines: list[Row]
    ledgers: dict[str, dict[str, Any]]
    report: Path
    metrics: dict[str, str]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The result as `hanse demo --json` prints it."""
        without_privacy, pooled, *alone = self.baselines
        return {
            "rounds": self.outcome["rounds"],
            "sites": self.ledgers,
            "accuracy": self.private.accuracy,
            "accuracy_without_privacy": without_privacy.accuracy,
            "accuracy_alone": {row.model.removesuffix(" alone"): row.accuracy for row in alone},
            "accuracy_pooled": pooled.accuracy,
            "auc": self.private.auc,
            "auc_without_privacy": without_privacy.auc,
            "auc_alone": {row.model.removesuffix(" alone"): row.auc for row in alone},
            "auc_pooled": pooled.auc,
            "bytes_up": self.outcome["bytes_up"],
            "bytes_down": self.outcome["bytes_down"],
            "seconds": round(self.seconds, 1),
            "seconds_of_rounds": self.outcome["seconds"],
            "report": str(self.report),
            "metrics": self.metrics,
            "workspace": self.outcome["workspace"],
            "rows": [asdict(row) for row in (self.private, *self.baselines)],
        }

    def view(self) -> RenderableType:
        """The result for people."""
        models = Table(
            "model",
            "accuracy",
            "AUC",
            "privacy",
            title="judged on held-out patients of all hospitals",
        )
        for row in (self.private, *self.baselines):
            private = row.epsilon is not None
            models.add_row(
                row.model,
                f"{row.accuracy:.1%}",
                f"{row.auc:.3f}",
                f"epsilon {row.epsilon:.2f}" if private else "none",
                style="bold green" if private else "",
            )
        spent = Table(
            "hospital", "epsilon", "delta", "rounds", title="privacy spent, by its own ledger"
        )
        for name, ledger in self.ledgers.items():
            spent.add_row(
                name, f"{ledger['epsilon']:.3f}", f"{ledger['delta']:g}", str(ledger["rounds"])
            )
        foot = Text(
            f"{decimal(self.outcome['bytes_up'])} went up, "
            f"{decimal(self.outcome['bytes_down'])} down, in {self.seconds:.0f} s\n"
            f"report: {self.report.resolve().as_uri()}\n"
            f"logs, models, ledgers: {self.report.parent}/\n"
            f"metrics, while it ran: {self.metrics['server']}, and of each hospital (--json)"
        )
        return Group(models, spent, foot)
