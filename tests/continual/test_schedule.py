import math

import pytest

from canal.config.sections import Continual
from canal.continual.trainer import learning_rate

PUBLISHED = Continual()
FLOOR, PEAK = 1e-6, 2e-4


def test_published_settings():
    assert (PUBLISHED.learning_rate, PUBLISHED.min_learning_rate) == (PEAK, FLOOR)
    assert (PUBLISHED.warmup_epochs, PUBLISHED.cycle_epochs) == (5, 15)


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (1, FLOOR),
        (2, FLOOR + (PEAK - FLOOR) / 5),
        (5, FLOOR + (PEAK - FLOOR) * 4 / 5),
        (6, PEAK),
        (11, (PEAK + FLOOR) / 2),  # half of the ten cosine epochs
        (15, FLOOR + (PEAK - FLOOR) * (1 + math.cos(0.9 * math.pi)) / 2),
        (16, FLOOR),  # second cycle: 5 of warm-up and 20 of cosine, peak 0.9
        (17, FLOOR + (0.9 * PEAK - FLOOR) / 5),
        (21, 0.9 * PEAK),
        (31, (0.9 * PEAK + FLOOR) / 2),
        (40, FLOOR + (0.9 * PEAK - FLOOR) * (1 + math.cos(0.95 * math.pi)) / 2),
        (41, FLOOR),  # third: 5 and 40, peak 0.81
        (46, 0.81 * PEAK),
        (66, (0.81 * PEAK + FLOOR) / 2),
        (86, FLOOR),
    ],
)
def test_by_hand(epoch, expected):
    assert learning_rate(epoch, PUBLISHED) == pytest.approx(expected, rel=1e-9)


def test_no_warm_up_starts_at_the_peak():
    settings = Continual(warmup_epochs=0, cycle_epochs=4, cycle_growth=1)
    assert learning_rate(1, settings) == PEAK
    assert learning_rate(3, settings) == pytest.approx((PEAK + FLOOR) / 2)
    assert learning_rate(5, settings) == pytest.approx(0.9 * PEAK)


def test_a_cycle_shorter_than_its_warm_up_still_ends():
    settings = Continual(warmup_epochs=5, cycle_epochs=2)
    rates = [learning_rate(epoch, settings) for epoch in range(1, 50)]
    assert max(rates) == pytest.approx(PEAK)
    assert min(rates) >= FLOOR


def test_never_below_the_floor_nor_above_the_peak():
    rates = [learning_rate(epoch, PUBLISHED) for epoch in range(1, 500)]
    assert all(FLOOR <= rate <= PEAK for rate in rates)
