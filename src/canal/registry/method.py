"""By what method a version answers, as its files say it."""

from pathlib import Path
from typing import Any

from canal.core.files import read_json
from canal.registry.key import Key

Document = dict[str, Any]


def method_view(folder: Path, key: Key) -> Document:
    """Return by what method a version answers: its parts, their weight, and the sums that it keeps.

    ``lacking`` names the types of which no cell was added up: only the network knows them.

    Parameters
    ----------
    folder
        Artifacts of a version, or ``models/<stage>``.
    key
        Its key.json.
    """
    from canal.memory.answer import CONFIG
    from canal.model.load import method_of, types_without_sums

    model = folder / "model"
    found: Document = {"name": method_of(model)}
    if found["name"] == "published":
        return found
    exact = read_json(model / "exact" / CONFIG)
    sums = key.get("sums", {})
    parts = list(exact["novelty"]["parts"]) if exact["novelty"] else []
    found["lacking"] = list(types_without_sums(model))
    found |= {"sums": sums, "basis": key.get("basis"), "backfilled": key.get("backfilled")}
    found["novelty"] = parts
    if found["name"] == "combined":
        combination = read_json(model / "combination.json")
        found["network_weight"] = combination["weight"]
        if combination["weight"] or found["lacking"]:
            found["novelty"] = list(combination["novelty"]["parts"]) if combination["novelty"] else []
    return found
