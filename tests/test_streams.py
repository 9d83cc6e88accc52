"""`canal init --stream`: the published experiments over files that the user has, small ones here."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from canal.app.planning import plan
from canal.app.project import Project
from canal.app.streams import StreamOptions, find_stream, stream_names
from canal.cli import app
from canal.config.yaml_file import load_config
from canal.core.digests import file_digest
from tests.support.cells import make_adata, write_adata
from tests.support.warm import REPOSITORY, environment

TYPES = {"alpha": 30, "beta": 30, "delta": 30}
PANCREAS = ("muraro", "enge", "baron")
TISSUES = ("lung", "mammary", "limb-muscle", "spleen")


@pytest.fixture(autouse=True)
def person(monkeypatch):
    """Give git a name to commit by, and no settings of a user."""
    for name, value in environment(REPOSITORY).items():
        if name.startswith("GIT_"):
            monkeypatch.setenv(name, value)


def write(folder, names, label="cell_type", rename=str, types=None):
    """Write a small file of each name, laid out as `canal init --stream` expects it, or otherwise."""
    for seed, name in enumerate(names):
        adata = make_adata(types or TYPES, n_genes=700, seed=seed)
        adata.var_names = [rename(gene) for gene in adata.var_names]
        adata.obs = adata.obs.rename(columns={"cell_type": label})
        write_adata(adata, folder / f"{name}.h5ad")
    return folder


def init(tmp_path, *words, expect=0):
    said = ("init", tmp_path / "lineage", *words)
    done = CliRunner().invoke(app, [str(word) for word in said])
    assert done.exit_code == expect, f"{said}: {done.exit_code} {done.exception!r}\n{done.output}"
    if expect:
        assert not (tmp_path / "lineage").exists()
    return f"{done.output}{done.exception or ''}"


def test_the_pancreas_is_learned_in_the_published_order_with_the_published_settings(tmp_path):
    data = write(tmp_path / "data", (*PANCREAS, "segerstolpe"))
    said = init(tmp_path, "--stream", "published-pancreas", "--data", data, "--values", "counts")
    for name in PANCREAS:
        digest = file_digest(data / f"{name}.h5ad")
        assert f"{name}: {data / name}.h5ad, sha256 {digest} (computed: no expected one is known" in said
    assert f"segerstolpe is never learned; once a version serves: canal annotate {data}" in said
    assert "published: accuracy 0.9605" in said
    config = load_config(tmp_path / "lineage" / "params.yaml")
    assert tuple(config.stages) == PANCREAS == tuple(config.sources)
    assert config.ancestors("baron") == ["muraro", "enge"]
    learning = config.continual
    assert (learning.method, learning.distillation, learning.bank_size) == ("published", 0.1, 1000)
    assert (learning.max_epochs, learning.patience, learning.batch_size) == (100, 10, 14)
    assert (learning.learning_rate, learning.label_smoothing) == (2e-4, 0.1)
    assert (learning.max_validation_cells, config.bank.capacity, config.tuned) == (None, 1000, [])
    assert (config.backbone.preset, config.panel.size, config.panel.rule) == ("scbert", 1000, "dispersion")
    assert (config.novelty.holdouts, config.novelty.temperature) == (("alpha",), 0.8)
    assert (config.split.train, config.split.validation, config.gate.species) == (0.64, 0.16, "human")
    planned = plan(Project.open(tmp_path / "lineage"))
    assert [(one.stage, one.fate) for one in planned.stages] == [
        ("backbone", "learn"),
        *((name, "learn") for name in PANCREAS),
    ]
    assert not planned.refused


def test_other_columns_labels_and_digests_are_declared(tmp_path):
    data = write(tmp_path / "data", ("muraro", "baron"), label="celltype")
    write(data, ("enge",), label="type", types={"Alpha cell": 30, "beta": 30, "junk": 30})
    (data / "enge.h5ad").rename(data / "e.h5ad")
    labels = tmp_path / "map.csv"
    labels.write_text("Alpha cell,alpha\njunk,\n")
    sources = tmp_path / "sources.yaml"
    digest = file_digest(data / "e.h5ad")
    sources.write_text(f"enge: {{path: e.h5ad, label: type, min_genes: 100, sha256: {digest}}}\n")
    words = ("--stream", "published-pancreas", "--data", data, "--values", "counts", "--label", "celltype")
    more = ("--map", labels, "--sources", sources, "--method", "combined", "--batch", "batch")
    said = init(tmp_path, *words, *more)
    assert f"sha256 {digest} (as expected)" in said
    config = load_config(tmp_path / "lineage" / "params.yaml")
    assert config.continual.method == "combined"
    assert [one.label for one in config.sources.values()] == ["celltype", "type", "celltype"]
    assert config.sources["enge"].label_map == {"Alpha cell": "alpha", "beta": "beta", "junk": None}
    assert (config.sources["enge"].min_genes, config.sources["muraro"].batch) == (100, "batch")


def test_the_tissues_are_a_mouses(tmp_path):
    data = write(tmp_path / "data", TISSUES, rename=str.capitalize)
    options = StreamOptions(data, declared={"values": "counts"})
    for of in ("10x", "smartseq2"):
        found = find_stream(f"published-tissues-{of}", options, tmp_path)
        assert [one.stage for one in found.sources] == list(TISSUES)
        assert (found.species, found.held_out) == ("mouse", ())
    words = ("--stream", "published-tissues-10x", "--data", data, "--values", "counts")
    init(tmp_path, *words, "--order", "lung,spleen")
    config = load_config(tmp_path / "lineage" / "params.yaml")
    assert (config.gate.species, config.novelty.holdouts) == ("mouse", None)
    write(data, ("spleen",))  # a human's symbols
    said = init(tmp_path / "other", *words, "--order", "spleen", expect=1)
    assert "no project was made: spleen (" in said
    assert "symbols_mouse" in said


def test_the_immune_stream_learns_the_files_that_are_named(tmp_path):
    data = write(tmp_path / "data", ("blood", "marrow"))
    words = ("--stream", "published-immune", "--data", data, "--values", "counts")
    assert "--order FIRST,SECOND" in init(tmp_path, *words, expect=1)
    init(tmp_path, *words, "--order", "marrow, blood")
    assert tuple(load_config(tmp_path / "lineage" / "params.yaml").stages) == ("marrow", "blood")


def test_missing_files_are_named_with_what_they_have_to_hold(tmp_path):
    data = write(tmp_path / "data", ("muraro",))
    words = ("--stream", "published-pancreas", "--data", data, "--values", "counts", "--label", "ct")
    said = init(tmp_path, *words, expect=1)
    assert "2 of the 3 files of published-pancreas are missing" in said
    assert "gene symbols as names of var" in said
    assert "obs['ct']" in said
    assert f"{data / 'muraro.h5ad'} (found): 1,598 training cells published" in said
    assert f"{data / 'enge.h5ad'} (missing): 1,782 training cells published" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--stream", "published-lung"),
            f"no stream 'published-lung'; there are {', '.join(stream_names())}",
        ),
        (("--stream", "published-pancreas", "--held-out", "omega"), "no file has omega"),
        (("--stream", "published-pancreas", "--order", "muraro,En ge"), "'En ge' is no name of a stage"),
        (("--stream", "published-pancreas", "--demo"), "--demo and --stream NAME ask for different projects"),
        (("--data", "x", "--order", "a,b"), "--values: of which file?"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_made(tmp_path, words, message):
    data = write(tmp_path / "data", PANCREAS[:1]) if "--held-out" not in words else None
    if data is None:
        data = write(tmp_path / "data", PANCREAS)
    more = () if "--data" in words else ("--data", data)
    assert message in init(tmp_path, *words, *more, "--values", "counts", expect=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("segers: {label: x}\n", "'segers' is no data set of the stream; there are muraro, enge, baron"),
        ("enge: {labels: x}\n", "enge: unknown key 'labels'; expected some of batch, "),
        ("enge: label\n", "enge: no mapping"),
        ("- enge\n", "expected a mapping of names, found list"),
        (f"enge: {{sha256: '{'0' * 64}'}}\n", "expected sha256 " + "0" * 64),
    ],
)
def test_a_declaration_that_does_not_fit_is_named(tmp_path, text, message):
    data, sources = write(tmp_path / "data", PANCREAS), tmp_path / "sources.yaml"
    sources.write_text(text)
    words = ("--stream", "published-pancreas", "--data", data, "--values", "counts", "--sources", sources)
    assert message in init(tmp_path, *words, expect=1)


def test_values_that_are_not_said_are_asked_for(tmp_path):
    said = init(tmp_path, "--stream", "published-pancreas", expect=1)
    assert "--values, the units of the files of published-pancreas, is missing" in said
    said = init(tmp_path, "--data", "x", expect=1)
    assert "--data: of which stream? --stream NAME names it" in said
