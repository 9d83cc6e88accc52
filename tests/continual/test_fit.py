import pytest
import torch

from canal.continual.fit import Fit, Hooks
from canal.core.errors import TrainingError


def fit_of(scores, hooks=None, fingerprint="x"):
    """Return a fit of one number whose value after epoch k is about -k, with the scores as its epochs."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    fit = Fit({"a": parameter}, lambda r: (r["score"], r["tie"]), hooks or Hooks(), fingerprint)
    for score, tie in scores:
        parameter.grad = torch.ones(1)
        fit.step(float(parameter.detach()), 1.0)
        fit.end_epoch({"epoch": len(fit.epochs) + 1, "score": score, "tie": tie})
    return fit


def test_the_best_epoch_is_kept():
    fit = fit_of([(0.5, 0), (0.7, 0), (0.6, 0)])
    assert fit.best_epoch == 2
    assert fit.parameters["a"].item() == pytest.approx(-3, abs=1e-3)
    fit.take_best()
    assert fit.parameters["a"].item() == pytest.approx(-2, abs=1e-3)


def test_a_tie_goes_to_the_second_measure_and_then_to_the_first_epoch():
    assert fit_of([(0.5, 1), (0.5, 2), (0.5, 2)]).best_epoch == 2


def test_patience_counts_from_the_last_rise_of_the_score_alone():
    fit = fit_of([(0.5, 1), (0.6, 1), (0.6, 2), (0.6, 3)])
    assert fit.best_epoch == 4
    assert fit.epochs_without_better == 2
    assert fit.stopped(patience=2, max_epochs=100) == "patience"
    assert fit.stopped(patience=3, max_epochs=100) == ""
    assert fit.stopped(patience=3, max_epochs=4) == "max_epochs"


def test_nothing_is_due_before_the_first_epoch():
    fit = fit_of([])
    assert (fit.best_epoch, fit.stopped(1, 5), fit.stopped(1, 0)) == (0, "", "max_epochs")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_training(value):
    fit = fit_of([(0.5, 0)])
    with pytest.raises(TrainingError, match="epoch 2: lower the learning rate"):
        fit.step(value, 1.0)


def test_a_resumed_fit_goes_on_where_it_was(tmp_path):
    told = []
    scores = [(0.5, 0), (0.7, 0), (0.6, 0), (0.8, 0)]
    fit_of(scores[:2], Hooks(checkpoint_dir=tmp_path))
    resumed = fit_of(scores[2:], Hooks(on_epoch=told.append, checkpoint_dir=tmp_path))
    straight = fit_of(scores)
    assert resumed.epochs == straight.epochs == told
    assert torch.equal(resumed.parameters["a"], straight.parameters["a"])


def test_another_fit_does_not_resume(tmp_path):
    fit_of([(0.5, 0)], Hooks(checkpoint_dir=tmp_path))
    assert fit_of([], Hooks(checkpoint_dir=tmp_path), fingerprint="y").epochs == []
