"""The numbers that MLflow's runs show, from a version's documents: what is logged, what an audit expects."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

LONGEST = 6000
"""How many characters MLflow keeps of a parameter."""

TRIAL_MEASURES = ("accuracy", "retention", "harmonic_mean", "value")
"""What the run of a trial shows of it."""


def measures(evaluation: Mapping[str, Any]) -> dict[str, float | None]:
    """Return what the run that measured a stage shows of metrics/evaluation.json."""
    found = {f"accuracy.{name}": value for name, value in evaluation["row"].items()}
    found |= {name: evaluation.get(name) for name in ("average_accuracy", "forgetting", "backward_transfer")}
    found |= {name: evaluation["novelty"].get(name) for name in ("h_score", "auroc")}
    if evaluation["calibration"]:
        before = evaluation["calibration"]["uncalibrated"]
        found |= {"ece": evaluation["calibration"]["ece"], "ece_uncalibrated": before["ece"]}
    return found


def epoch_numbers(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number of an epoch's record with its dotted name."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from epoch_numbers(value, f"{path}{name}.")
        elif isinstance(value, int | float):
            yield f"{path}{name}", float(value)


def flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every parameter with its dotted name."""
    for name, value in values.items():
        here = f"{path}.{name}" if path else name
        if isinstance(value, Mapping):
            yield from flat(value, here)
        else:
            yield here, value


def param_texts(value: Any) -> tuple[str, ...]:
    """Return a parameter as MLflow may keep it: what is a list in JSON may be a tuple in canal's settings."""
    kinds = (list, tuple) if isinstance(value, list) else (lambda one: one,)
    return tuple(str(kind(value))[:LONGEST] for kind in kinds)


def same(there: float | None, value: float) -> bool:
    """Whether MLflow shows a number as it was logged."""
    if there is None:
        return False
    return math.isclose(there, value, rel_tol=1e-12) or (math.isnan(there) and math.isnan(value))
