"""Whether names that mean other cells are told: the sign that `canal merge` goes by, on the embedded stream.

    python benchmarks/meanings.py [--data FOLDER]

Each division of the stream's stages into two lineages is tried: with the names as they are, with the names of
two types of one side exchanged, and with one type of one side under the name of another that is not there.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import stream
from exact_streams import EMBEDDED, Stream

from canal.memory.joining import MOST_RATIO, meanings, with_names
from canal.memory.levels import Basis
from canal.memory.stage_sums import StageSums
from canal.memory.sums import add_up


def main() -> None:
    """Print how many names are refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=stream.REPOSITORY / ".canal" / "exact")
    downloads = stream.REPOSITORY / ".canal" / "downloads"
    drawn = Stream(EMBEDDED, None, parser.parse_args().data, downloads).drawn(0)
    basis = Basis(drawn.genes, {})
    sums = StageSums(basis)
    for name, stage in drawn.stages.items():
        sums = sums.plus(
            name, add_up(basis, [(stage.train.expression, stage.train.cell_types)]), stage.missing
        )
    ratios, tried = [], dict[str, list[bool]]()
    for own, other in _divisions(sums):
        for one in meanings(own, other).values():
            ratios.append(one.ratio)
            tried.setdefault("the same types of two studies", []).append(one.differs)
        for kind, names in _wrong_names(own, other):
            renamed = with_names(other, names)
            found = meanings(own, renamed)
            hit = any(found[one].differs for one in names.values() if one in found)
            tried.setdefault(kind, []).append(hit)
    for kind, refused in tried.items():
        print(f"{kind:60} {sum(refused):4d} of {len(refused):4d} refused")
    print(
        f"largest ratio between the same types of two studies: {max(ratios):.2f}, the bound is {MOST_RATIO}"
    )


def _divisions(sums: StageSums) -> Iterator[tuple[StageSums, StageSums]]:
    """Yield each stage beside each other one, and each division of all stages, both ways."""
    names = list(sums.stages)
    pairs = [((one,), (two,)) for one, two in itertools.permutations(names, 2)]
    for size in range(1, len(names)):
        chosen = itertools.combinations(names, size)
        pairs += [(some, tuple(name for name in names if name not in some)) for some in chosen]
    for own, other in pairs:
        yield _of(sums, own), _of(sums, other)


def _of(sums: StageSums, stages: Sequence[str]) -> StageSums:
    return StageSums(
        sums.basis,
        {name: sums.stages[name] for name in stages},
        {name: sums.missing[name] for name in stages},
    )


def _wrong_names(own: StageSums, other: StageSums) -> Iterator[tuple[str, dict[str, str]]]:
    for one, two in itertools.combinations(other.types, 2):
        known = (one in own.types) + (two in own.types)
        if known:
            which = "both" if known == 2 else "one"
            yield f"two names exchanged, of which the other lineage has {which}", {one: two, two: one}
    for one in other.types:
        for two in own.types:
            if two not in other.types:
                whose = "has under its own name" if one in own.types else "has not at all"
                yield f"a type renamed that the other lineage {whose}", {one: two}


if __name__ == "__main__":
    main()
