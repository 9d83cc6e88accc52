"""The pictures of labelled cells are drawn whatever the types are, also where no cell is Unassigned."""

import numpy as np
import pandas as pd
import pictures


def row(types):
    random = np.random.default_rng(0)
    numbers = {name: random.random(len(types)) for name in ("canal_confidence", "canal_novelty")}
    return pictures.Row("version", pd.DataFrame({"canal_cell_type": types, **numbers}))


def test_a_row_a_version(tmp_path):
    places = np.random.default_rng(1).random((30, 2))
    some, more = row(["B", "T", "Unassigned"] * 10), row([f"type {i % 15}" for i in range(30)])
    pictures.draw(places, [some], tmp_path / "one.png")
    pictures.draw(places, [some, more], tmp_path / "two.png")
    assert (tmp_path / "two.png").stat().st_size > (tmp_path / "one.png").stat().st_size > 1000
