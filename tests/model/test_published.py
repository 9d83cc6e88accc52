"""The whole way of a checkpoint: another process reads it, this one gets a backbone or one clear message."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from canal.core.errors import ModelError
from canal.model.published import read_published, require_gene_vectors
from tests.model.test_published_reader import Code
from tests.support.cells import gene_names
from tests.support.models import TINY, make_backbone
from tests.support.published import published_state, read_here, save_checkpoint

GENES = gene_names(12)


def test_a_checkpoint_becomes_a_backbone(tmp_path, monkeypatch):
    read_here(monkeypatch)
    state = published_state(TINY, n_genes=12)
    backbone = read_published(save_checkpoint(tmp_path / "x.pth", state), GENES)
    assert (backbone.config, backbone.vocabulary) == (TINY, tuple(GENES))
    assert torch.equal(backbone.network.pos_emb.weight, state["pos_emb.emb.weight"].float())
    assert not any(value.requires_grad for value in backbone.network.parameters())


def test_a_refusal_of_the_other_process_is_raised_and_no_code_runs(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)  # a torch.py in the working directory is not taken for torch
    path = save_checkpoint(tmp_path / "x.pth", {}, losses=Code(tmp_path / "trap"))
    with pytest.raises(ModelError, match=r"x\.pth cannot be imported: its pickle names 1 function"):
        read_published(path, GENES)
    assert not (tmp_path / "trap").exists()


def test_a_missing_file_is_refused():
    with pytest.raises(ModelError, match=r"nowhere\.pth: no such file"):
        read_published(Path("nowhere.pth"), GENES)


def another_reader(folder, monkeypatch, script):
    """Have a shell script stand in for the process that reads."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    return save_checkpoint(folder / "x.pth", {})


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -9 $$", r"died with exit code -9 \(it wrote no message\)"),
        ("echo 'MemoryError: no' >&2; exit 1", r"exit code 1 \(MemoryError: no\)"),
        ("exit 0", r"died with exit code 0"),
    ],
)
def test_a_reader_that_dies_is_one_plain_message(tmp_path, monkeypatch, script, message):
    path = another_reader(tmp_path, monkeypatch, script)
    with pytest.raises(ModelError, match=message):
        read_published(path, GENES)


def test_a_reader_that_hangs_is_ended(tmp_path, monkeypatch):
    path = another_reader(tmp_path, monkeypatch, "exec sleep 60")
    with pytest.raises(ModelError, match=r"more than 0\.1 s"):
        read_published(path, GENES, limit=0.1)


@pytest.mark.parametrize("n_genes", [11, 13])
def test_another_number_of_genes_is_refused(tmp_path, monkeypatch, n_genes):
    read_here(monkeypatch)
    path = save_checkpoint(tmp_path / "x.pth", published_state(TINY, n_genes=12))
    with pytest.raises(ModelError, match=rf"13 positions, 12 genes .* list has {n_genes} genes"):
        read_published(path, gene_names(n_genes))


def test_gene_vectors_prove_the_order(tmp_path):
    backbone = make_backbone(n_genes=12)
    vectors = backbone.network.pos_emb.weight[:-1].double().numpy()
    require_gene_vectors(backbone, vectors + 5e-7, tmp_path / "v.npy")
    exchanged = vectors.copy()
    exchanged[[3, 7]] = exchanged[[7, 3]]
    names = ", ".join(backbone.vocabulary[i] for i in (3, 7))
    with pytest.raises(ModelError, match=rf"vectors of 2 of 12 genes .* such as {names} \(largest"):
        require_gene_vectors(backbone, exchanged, tmp_path / "v.npy")
    with pytest.raises(ModelError, match=r"expected gene vectors \(12, 16\), found \(13, 16\)"):
        require_gene_vectors(backbone, np.vstack([vectors, vectors[:1]]), tmp_path / "v.npy")
    vectors[5, 1] = np.nan
    with pytest.raises(ModelError, match="vectors of 1 of 12 genes"):
        require_gene_vectors(backbone, vectors, tmp_path / "v.npy")
