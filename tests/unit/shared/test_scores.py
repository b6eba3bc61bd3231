"""Metrics against scikit-learn, and where they cannot be computed."""

from __future__ import annotations

import pytest
import torch
from hanse.tasks.scores import area_under_curve, classification, regression
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

SCORED = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40)


@given(SCORED.filter(lambda pairs: len({positive for _, positive in pairs}) == 2))
def test_area_under_curve_counts_ties_one_half(pairs: list[tuple[int, bool]]) -> None:
    scores = torch.tensor([float(score) for score, _ in pairs])
    positive = torch.tensor([positive for _, positive in pairs])
    expected = roc_auc_score(positive.numpy(), scores.numpy())
    assert area_under_curve(scores, positive) == pytest.approx(expected)


def test_two_classes_give_accuracy_and_area() -> None:
    outputs = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.5]])
    assert classification(outputs, torch.tensor([0, 1, 1])) == {
        "accuracy": pytest.approx(2 / 3),
        "auc": pytest.approx(1.0),
    }


def test_what_cannot_be_computed_is_left_out() -> None:
    outputs = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert set(classification(outputs, torch.tensor([0, 0]))) == {"accuracy"}
    assert set(classification(torch.eye(3), torch.arange(3))) == {"accuracy"}
    assert classification(torch.empty(0, 2), torch.empty(0, dtype=torch.int64)) == {}
    same = torch.ones(3, 1)
    assert set(regression(same * 2, same)) == {"mae", "rmse"}
    assert regression(torch.empty(0, 1), torch.empty(0, 1)) == {}
