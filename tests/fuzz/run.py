"""Coverage-guided fuzzing of all targets: `make fuzz RUNS=1000000`, or `TARGET=jobs` for one.

With INPUT=build/fuzz/... the target runs that one input, and shows what it raises.
"""

from __future__ import annotations

import argparse
import json
import re
import secrets
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import worker  # first: it has the project's modules instrumented
from tests.fuzz.targets import SHARES, TARGETS
from tests.fuzz.watch import Finding

OUT = Path("build/fuzz")
_IN_MEMORY = Path("/dev/shm")  # noqa: S108 -- targets that write files write them there
_COVERAGE = re.compile(r"cov: (\d+) ft: \d+ corp: (\d+)/")
_HEADING = ("target", "inputs", "refused", "edges", "corpus", "seconds", "peak MiB", "findings")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one target.

    Attributes:
        edges: of the project's own code that were covered.
        corpus: inputs that each covered something new.
        peak: bytes of memory, of the whole process.
        died: how the process ended, if it was not of its own accord.
    """

    inputs: int = 0
    refused: int = 0
    edges: int = 0
    corpus: int = 0
    seconds: float = 0.0
    peak: int = 0
    findings: tuple[Finding, ...] = ()
    died: str = ""

    @property
    def bad(self) -> int:
        """How many findings there are."""
        return len(self.findings) + bool(self.died)


def shares(names: list[str], runs: int) -> dict[str, int]:
    """How many of ``runs`` inputs each target gets; together no fewer than that."""
    whole = sum(SHARES[name] for name in names)
    return {name: -int(-runs * SHARES[name] // whole) for name in names}


def fuzz(name: str, inputs: int, seed: int) -> Outcome:
    """Run one target in a process of its own."""
    result, log = OUT / f"{name}.json", OUT / f"{name}.log"
    result.unlink(missing_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=_folder()) as folder:
        code = worker.fuzz(name, inputs, seed, Path(folder), result.resolve())
    told = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {"findings": []}
    findings = tuple(
        Finding(**each | {"data": bytes.fromhex(each["data"])}) for each in told.pop("findings")
    )
    covered = _COVERAGE.findall(log.read_text(encoding="utf-8", errors="replace")) or [(0, 0)]
    return Outcome(
        **told,
        findings=findings,
        edges=int(covered[-1][0]),
        corpus=int(covered[-1][1]),
        seconds=time.monotonic() - started,
        died=f"ended with {code}, see {log}" if code else "",
    )


def _folder() -> Path | None:
    return _IN_MEMORY if _IN_MEMORY.is_dir() else None


def _row(name: str, outcome: Outcome) -> tuple[str, ...]:
    return (
        name,
        f"{outcome.inputs:,}",
        f"{outcome.refused:,}",
        f"{outcome.edges:,}",
        f"{outcome.corpus:,}",
        f"{outcome.seconds:.0f}",
        f"{outcome.peak >> 20:,}",
        str(outcome.bad),
    )


def _line(cells: tuple[str, ...]) -> str:
    first, *rest = cells
    return f"{first:<18}" + "".join(f"{cell:>10}" for cell in rest)


def _keep(name: str, outcome: Outcome) -> None:
    for finding in outcome.findings:
        path = OUT / f"{name}-{finding.name}"
        path.write_bytes(finding.data)
        print(f"  {finding.kind} at {finding.where}: {finding.text}\n    {path}", flush=True)
    if outcome.died:
        print(f"  {outcome.died}", flush=True)


def fuzz_all(names: list[str], runs: int, seed: int) -> int:
    """Run targets one after the other, print what came of them, and say how many findings."""
    OUT.mkdir(parents=True, exist_ok=True)
    print(f"{runs:,} inputs, seed {seed}\n{_line(_HEADING)}", flush=True)
    outcomes = []
    for name, inputs in shares(names, runs).items():
        outcome = fuzz(name, inputs, seed)
        print(_line(_row(name, outcome)), flush=True)
        _keep(name, outcome)
        outcomes.append(outcome)
    findings = sum(each.bad for each in outcomes)
    total = Outcome(
        inputs=sum(each.inputs for each in outcomes),
        refused=sum(each.refused for each in outcomes),
        edges=sum(each.edges for each in outcomes),
        corpus=sum(each.corpus for each in outcomes),
        seconds=sum(each.seconds for each in outcomes),
        peak=max(each.peak for each in outcomes),
    )
    print(_line((*_row("all", total)[:-1], str(findings))), flush=True)
    return findings


def replay(name: str, path: Path) -> None:
    """Run one input, and let out what it raises."""
    with (
        tempfile.TemporaryDirectory(dir=_folder()) as folder,
        closing(TARGETS[name](Path(folder))) as target,
    ):
        target.run(path.read_bytes())
    print("the input was taken")


def main() -> int:
    """Run the command line; 1 if there are findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--target", choices=TARGETS)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--input", type=Path, help="a file to run, of the target given")
    given = parser.parse_args()
    if given.input is not None:
        replay(given.target, given.input)
        return 0
    names = [given.target] if given.target else list(TARGETS)
    return 1 if fuzz_all(names, given.runs, given.seed) else 0


if __name__ == "__main__":
    sys.exit(main())
