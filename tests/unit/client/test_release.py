"""What a policy lets out, and in which way."""

from __future__ import annotations

from pathlib import Path

import pytest
from hanse.config import validate
from hanse.errors import SiteFileError
from hanse.job import Job
from hanse.task import load_task
from hanse_client.policy import may_leave
from hanse_client.release import Kind, Release, kept_back, release_of
from hanse_client.site import Noise, Policy

COLUMNS = {"age": {"type": "number", "low": 0, "high": 100}}
CLASSES = load_task(
    "tabular", {"columns": COLUMNS, "target": {"column": "ill", "classes": ["no", "yes"]}}
)
NUMBERS = load_task(
    "tabular", {"columns": COLUMNS, "target": {"column": "days", "low": 0, "high": 30}}
)
JOB = Job.model_validate(
    {
        "name": "ward",
        "rounds": 10,
        "task": {"name": "tabular"},
        "training": {"steps": 1},
        "privacy": {"noise_multiplier": 1.0},
        "evaluation": {"every": 4},
    }
)


def release(*names: str, exact: tuple[str, ...] = (), judges: bool = True) -> Release:
    return release_of(Policy(release=names, release_exact=exact), JOB, CLASSES, judges=judges)


@pytest.mark.parametrize(
    ("released", "exact", "noised_leaves", "exact_leaves"),
    [
        ((), (), False, False),
        (("loss",), (), True, False),
        ((), ("loss",), False, True),
        (("*",), (), True, False),
        ((), ("*",), False, True),
        (("*",), ("loss",), False, True),
        (("loss",), ("*",), True, False),
        (("accuracy",), ("auc",), False, False),
    ],
)
def test_a_metric_leaves_in_one_way_or_not_at_all(
    released: tuple[str, ...], exact: tuple[str, ...], noised_leaves: bool, exact_leaves: bool
) -> None:
    policy = Policy(release=released, release_exact=exact)
    assert may_leave(policy, "loss", Kind.NOISED) == noised_leaves
    assert may_leave(policy, "loss", Kind.EXACT) == exact_leaves
    assert not may_leave(policy, "loss", Kind.PUBLIC)


@pytest.mark.parametrize("listed", [{"release": ("epsilon",)}, {"release_exact": ("epsilon",)}])
def test_what_is_no_function_of_records_leaves_by_either_list(
    listed: dict[str, tuple[str, ...]],
) -> None:
    assert may_leave(Policy(**listed), "epsilon", Kind.PUBLIC)
    assert not may_leave(Policy(**listed), "delta", Kind.PUBLIC)


def test_without_privacy_a_listed_metric_leaves_as_it_is() -> None:
    policy = Policy(release=("train_loss",))
    assert not may_leave(policy, "train_loss", Kind.EXACT)
    assert may_leave(policy, "train_loss", Kind.EXACT, protected=False)
    assert not may_leave(policy, "clipped_fraction", Kind.EXACT, protected=False)


def test_both_lists_cannot_name_the_same_metric() -> None:
    table = {"release": ["loss", "auc"], "release_exact": ["auc"]}
    with pytest.raises(SiteFileError, match=r"both list auc: name each metric in release, to"):
        validate(table, Policy, SiteFileError, where="policy")


@pytest.mark.parametrize("name", ["", "a b", "-loss", "x" * 65, "a\nb", "**", "é"])
def test_names_that_no_metric_has_are_refused(name: str) -> None:
    with pytest.raises(SiteFileError, match=r"policy: release\.0"):
        validate({"release": [name]}, Policy, SiteFileError, where="policy")


@pytest.mark.parametrize("key", ["evaluation", "training", "loss_bound"])
def test_noise_is_above_zero(key: str) -> None:
    with pytest.raises(SiteFileError, match=rf"noise\.{key} = 0: .*greater than 0"):
        validate({"noise": {key: 0}}, Policy, SiteFileError, where="policy")


def test_of_an_evaluation_only_what_can_be_noised_is_charged_for() -> None:
    assert release("loss", "accuracy", "epsilon").evaluation == ("loss", "accuracy")
    assert release("auc", "epsilon").evaluation_charge is None
    assert release(exact=("loss", "accuracy")).evaluation_charge is None
    assert release("*", exact=("accuracy",)).evaluation == ("loss",)
    assert release("loss", judges=False).evaluation_charge is None


def test_the_evaluations_of_a_whole_run_stand_beside_its_training() -> None:
    (beside,) = release("loss").beside
    assert (beside.steps, beside.sampling_rate) == (3, 1.0)  # rounds 4, 8 and 10
    assert beside.noise_multiplier == Noise().evaluation
    assert release("train_loss").beside == ()


def test_a_regression_has_a_mean_absolute_error_to_noise() -> None:
    found = release_of(Policy(release=("*",)), JOB, NUMBERS, judges=True)
    assert found.evaluation == ("loss", "mae")
    assert NUMBERS.record_metrics()["mae"].bound == 30


def test_training_without_privacy_noises_no_metric_of_it() -> None:
    plain = Job.model_validate(JOB.model_dump() | {"privacy": {"mechanism": "none"}})
    policy = Policy(release=("train_loss", "loss"))
    found = release_of(policy, plain, CLASSES, judges=True)
    assert (found.training, found.evaluation) == ((), ("loss",))


def test_the_administrator_can_be_told_what_never_leaves() -> None:
    policy = Policy(release=("auc", "loss", "epsilon", "train_loss", "acuracy", "*"))
    assert kept_back(policy, CLASSES) == ("auc", "acuracy")


def test_the_template_has_the_defaults_of_the_noise() -> None:
    import hanse_server.provisioning as provisioning

    template = Path(str(provisioning.__file__)).parent / "templates" / "site.toml"
    text = template.read_text()
    for name, value in Noise():
        assert f"# {name} = {value}" in text
