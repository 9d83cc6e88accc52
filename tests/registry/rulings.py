"""Rulings of a version that passes every rule, and what an entry says of it, as canal writes them."""

from dataclasses import replace

from canal.registry.promotion.policy import Ruling

PASSED = (
    Ruling("gate", "passed", "passed for these bytes", True),
    Ruling("audit", "0 findings", "none", True),
    Ruling("clean", "cc53841c6ba6", "a clean commit", True),
    Ruling("accuracy", "0.910", ">= 0.700", True, "new stage first, n = 100"),
    Ruling("retention", "no champion yet", "does not apply", True, "nothing to keep: the first promotion"),
    Ruling("h_score", "0.410", ">= 0.100", True, "types left out"),
    Ruling("ece", "0.080", "<= 0.250", True, "[0.040, 0.120], n = 100"),
)

OVERRIDDEN = tuple(
    replace(one, value="not asked", passed=False, overridden=True)
    if one.rule in ("clean", "accuracy", "h_score", "ece")
    else one
    for one in PASSED
)
"""For versions of which other values are measured: what passed is compared with that."""


def promoted(to, before=None, rulings=PASSED):
    """Return the details of a promotion's entry."""
    overrides = [ruling.rule for ruling in rulings if ruling.overridden]
    return {"from": before, "to": to, "rulings": [one.to_json() for one in rulings], "overrides": overrides}
