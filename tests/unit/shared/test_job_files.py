"""Any valid job says the same after it was written down and read again."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hanse.config import validate
from hanse.errors import JobError
from hanse.job import Job, load_job
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.settings import toml_of

positive = st.floats(min_value=1e-3, max_value=1e3)
counts = st.integers(1, 10_000)
options = st.recursive(
    st.one_of(st.integers(-(2**53), 2**53), st.booleans(), st.text(max_size=8), positive),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
privacies = st.one_of(
    st.just({"mechanism": "none"}),
    st.fixed_dictionaries({"noise_multiplier": positive, "clipping_norm": positive}),
    st.fixed_dictionaries({"target_epsilon": positive, "sampling_rate": st.just(0.25)}),
)
trainings = st.fixed_dictionaries(
    {"steps": counts, "batch_size": counts, "augment": st.booleans()},
    optional={"optimizer": st.fixed_dictionaries({"name": st.just("adam"), "lr": positive})},
)
jobs = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True),
        "rounds": counts,
        "seed": st.integers(0, 2**62),
        "task": st.fixed_dictionaries(
            {"name": st.text(max_size=10), "options": st.dictionaries(st.text(), options)}
        ),
        "training": trainings,
        "privacy": privacies,
    },
    optional={"strategy": st.fixed_dictionaries({"quorum": counts, "deadline": positive})},
)


@settings(deadline=None, max_examples=60)
@given(jobs)
def test_a_job_comes_back_from_its_file(table: dict[str, Any]) -> None:
    job = validate(table, Job, JobError, where="here")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.toml"
        path.write_text(toml_of(table), encoding="utf-8")
        back = load_job(path)
    assert back == job
    assert json.loads(back.instruction) == json.loads(job.instruction)


@settings(deadline=None, max_examples=60)
@given(jobs)
def test_a_site_reads_the_job_that_the_server_instructs(table: dict[str, Any]) -> None:
    job = validate(table, Job, JobError, where="here")
    read = validate(json.loads(job.instruction), Job, JobError, where="there")
    assert read.instruction == job.instruction
    assert (read.training, read.privacy, read.task) == (job.training, job.privacy, job.task)
