"""`canal share`: sums without cells, merged by another site; and what a file may not claim."""

import json
import shutil
import zipfile

import numpy as np
import pytest

from canal.app.auditing import audit_project
from canal.app.joining_lineages import Decision, Joining, Overlap, merge
from canal.app.sharing import OverlapKey, read_shared, share
from canal.core.digests import file_digest
from canal.core.errors import AuditError, CanalError, DataError, HistoryError, RegistryError, SumsError
from canal.core.files import read_json, write_json
from canal.memory.joining import all_sums
from canal.memory.stage_sums import StageSums
from canal.memory.sums import Sums
from canal.registry.transfer.bundle import SHARED, About, unpacked, write_bundle
from canal.registry.transfer.exchange import import_bundle
from tests.pipeline.conftest import copied
from tests.pipeline.test_merge import found, opened, sums_of
from tests.support.methods import learn_here, without_pictures
from tests.support.sites import learned_sites

pytestmark = pytest.mark.pipeline
ADA = Decision("A. Person", "three hospitals")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    without_pictures(monkeypatch)


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    return learned_sites(tmp_path_factory)


@pytest.fixture(scope="module")
def bundles(sites, tmp_path_factory):
    """What the second and the third site release: types of 10 cells and more."""
    folder = tmp_path_factory.mktemp("bundles")
    for name in ("second", "third"):
        opened(sites[name])
        sites[name].canal("share", "1", "-o", str(folder / f"{name}.canal"), "--min-cells", "10")
    return folder


def assert_other_release_is_noticed(site, counts, line, folder):
    """A release of fewer types of the second site's version has the same sums of the types that it has."""
    fewer = folder / "fewer.canal"
    least = int(min(counts)) + 1
    opened(site)
    site.canal("share", "1", "-o", str(fewer), "--min-cells", str(least))
    opened(line)
    with pytest.raises(SumsError, match="the sums of second of fewer.canal are in version 3 .* already"):
        merge(line.project(), Joining("3", str(fewer)), ADA)
    with pytest.raises(SumsError, match="all sums of fewer.canal are in version 3"):
        merge(line.project(), Joining("3", str(fewer), overlap=Overlap("once")), ADA)


def test_three_sites_have_what_one_that_learned_what_they_released_would_have(sites, bundles, tmp_path):
    released = {name: read_shared(bundles / f"{name}.canal").sums for name in ("second", "third")}
    line = copied(sites["first"], tmp_path / "project")
    opened(line)
    said = line.canal(
        *("merge", "1", str(bundles / "second.canal")), *("--by", "A. Person", "--why", "three hospitals")
    )
    assert "it equals joint learning on what the sites released" in said
    assert "common cells: not checked" in said
    twice = shutil.copyfile(bundles / "second.canal", tmp_path / "again.canal")
    made = merge(line.project(), Joining(str(bundles / "third.canal"), "2"), ADA)
    with pytest.raises(SumsError, match="the sums of second of again.canal are in version 3 .* already"):
        merge(line.project(), Joining("3", str(twice)), ADA)
    counts = released["second"].stages["second"].counts
    assert_other_release_is_noticed(sites["second"], counts, line, tmp_path)
    own, _ = sums_of(line.project(), 1)
    # The sums of one lineage that added up the cells of all released types, in yet another order.
    jointly = all_sums(released["third"]).plus(all_sums(own)).plus(all_sums(released["second"]))
    assert made.sums == jointly.digest
    sums, key = sums_of(line.project(), 3)
    assert all_sums(sums).digest == key["merged"]["sums"] == jointly.digest
    assert key["merged"]["equals"] == "joint learning on what the sites released"
    assert key["merged"]["overlap"]["checked"] == "not checked"
    assert key["merged"]["released"]["min_cells"] == 10
    assert set(sums.stages) == {"first", "second", "third"}
    assert found(line.project()) == []
    notes = [str(one) for one in audit_project(line.project()).notes if one.check == "merged"]
    assert any("came in a bundle" in one for one in notes)
    graph = line.canal("lineage", "3", "--dot")
    assert "shared sums of third" in graph
    assert "shared sums of second" in graph
    assert learn_here(line) == []
    again = share(line.project(), "3", tmp_path / "onward.canal", 10)
    assert again.left_out == ("second", "third")  # what others released is theirs to share
    line.canal("export", "3", "-o", str(tmp_path / "merged.zip"))
    other = opened(copied(sites["second"], tmp_path / "other"))
    import_bundle(other.store, tmp_path / "merged.zip")
    assert found(other) == []


def test_a_bundle_holds_sums_alone_and_no_type_of_few_cells(sites, tmp_path):
    project = opened(sites["third"])
    folder = project.store.artifacts(project.store.version("1"))
    own = StageSums.load(folder, ["third"])
    counts = dict(zip(own.stages["third"].types, own.stages["third"].counts.tolist(), strict=True))
    made = share(project, "1", tmp_path / "all.canal", 1)
    assert made.stages == {"third": counts}
    assert share(project, "1", tmp_path / "default.canal").min_cells == 20
    assert json.loads(json.dumps(made.to_json()))["withheld"] == {}
    with zipfile.ZipFile(tmp_path / "all.canal") as archive:
        names = set(archive.namelist())
        content = b"".join(archive.read(name) for name in names)
    assert names == {
        "manifest.json",
        "shared.json",
        "model/exact/basis/basis.json",
        "sums/missing.json",
        "sums/third.safetensors",
    }
    split = project.split("third")
    assert not any(one.encode() in content for one in (*split["cell_id"][:5], *split["cell_digest"][:5]))
    least = max(counts.values())
    few = share(project, "1", tmp_path / "few.canal", least)
    assert few.withheld["third"] == {name: n for name, n in counts.items() if n < least}
    assert read_shared(tmp_path / "few.canal").withheld == {"third": sorted(few.withheld["third"])}
    assert share(project, "1", tmp_path / "same.canal", 1).sha256 == made.sha256
    for asked, error, message in (
        (("1", tmp_path / "all.canal", 1), RegistryError, "exists already"),
        (("1", tmp_path / "no.canal", 10**6), HistoryError, "no type of version 1 has 1000000 summed cells"),
        (("1", tmp_path / "no.canal", 0), DataError, "must be 1 or more, found 0"),
    ):
        with pytest.raises(error, match=message):
            share(project, *asked)
    assert not (tmp_path / "no.canal").exists()
    with pytest.raises(AuditError, match="`canal share` wrote: `canal merge` reads it"):
        import_bundle(project.store, tmp_path / "all.canal")
    (tmp_path / "key").write_text("short")
    with pytest.raises(DataError, match="holds 5 bytes, too few for a secret"):
        OverlapKey.read(tmp_path / "key")


def test_any_tampered_byte_is_found(bundles, tmp_path):
    content = (bundles / "second.canal").read_bytes()
    path = tmp_path / "tampered.canal"
    random = np.random.default_rng(0)
    places = [*random.integers(0, len(content), 60).tolist(), 10, 12, len(content) - 1, len(content) - 40]
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x40]) + content[place + 1 :])
        with pytest.raises(CanalError):
            read_shared(path)
    for cut in (0, 1, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(CanalError):
            read_shared(path)
    path.write_bytes(content + b"x")
    with pytest.raises(CanalError):
        read_shared(path)


def negative(arrays):
    arrays["counts"][0] = -5


def too_large(arrays):
    arrays["totals"][0, 0] = arrays["counts"][0] * 63 + 1


def too_small_a_square(arrays):
    gene, size = int(arrays["totals"][0].argmax()), arrays["totals"].shape[1]
    place = gene * size - gene * (gene - 1) // 2
    arrays["products"][0, place] = arrays["totals"][0, gene] ** 2 // arrays["counts"][0] - 1


def negative_product(arrays):
    arrays["products"][0, 1] = -1


def going_together_too_well(arrays):
    arrays["products"][0, 1] = 10**7


def no_cells(arrays):
    arrays["counts"][0] = 0


def few(arrays):
    arrays["counts"][0] = 9


def huge(arrays):
    arrays["counts"][:] = 2**61


def fractions(arrays):
    arrays["totals"] = arrays["totals"].astype(np.float64) + 0.5


@pytest.mark.parametrize(
    "change",
    [
        negative,
        too_large,
        too_small_a_square,
        negative_product,
        going_together_too_well,
        no_cells,
        few,
        huge,
        fractions,
    ],
)
def test_sums_that_no_cells_can_have_are_refused_though_every_digest_fits(bundles, tmp_path, change):
    path = forged(bundles / "second.canal", tmp_path, change)
    with pytest.raises(SumsError):
        read_shared(path)
    assert read_shared(forged(bundles / "second.canal", tmp_path, lambda arrays: None)).min_cells == 10


def forged(bundle, tmp_path, change):
    """Write a bundle with changed sums, in which every digest was made to fit."""
    path = tmp_path / "forged.canal"
    with unpacked(bundle, SHARED) as (folder, manifest):
        sums = Sums.load(folder / "sums" / "second.safetensors")
        arrays = {name: getattr(sums, name).copy() for name in ("counts", "totals", "products")}
        change(arrays)
        bad = object.__new__(Sums)
        for name, value in {"basis": sums.basis, "types": sums.types, **arrays}.items():
            object.__setattr__(bad, name, value)
        bad.save(folder / "sums" / "second.safetensors")
        about = read_json(folder / "shared.json")
        about["stages"]["second"] = bad.digest
        write_json(folder / "shared.json", about)
        named = About(manifest.model, manifest.version, manifest.key, manifest.record)
        write_bundle(path, named, {name: folder / name for name in manifest.files}, SHARED)
    return path


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("basis", "0" * 64),
        ("labels", ["B"]),
        ("min_cells", 0),
        ("min_cells", 10**6),
        ("stages", {"second": "0" * 64}),
        ("stages", {"other": "0" * 64}),
        ("overlap", {"key": "k", "cells": {"second": {"B": ["x"]}}}),
        ("format", 2),
        ("withheld", {"second": "B"}),
        ("stages", {"../x": "0" * 64}),
        ("stages", {}),
    ],
)
def test_a_bundle_that_says_something_else_than_its_sums_is_refused(bundles, tmp_path, field, value):
    path = tmp_path / "forged.canal"
    with unpacked(bundles / "second.canal", SHARED) as (folder, manifest):
        write_json(folder / "shared.json", read_json(folder / "shared.json") | {field: value})
        named = About(manifest.model, manifest.version, manifest.key, manifest.record)
        write_bundle(path, named, {name: folder / name for name in manifest.files}, SHARED)
    with pytest.raises(CanalError):
        read_shared(path)


def test_a_bundle_is_left_as_it_was(bundles):
    before = file_digest(bundles / "second.canal")
    read_shared(bundles / "second.canal")
    assert file_digest(bundles / "second.canal") == before
