import numpy as np
import pytest
import torch

from canal.config.sections import Backbone as Settings
from canal.continual.fit import Hooks
from canal.continual.pretraining import Corpus, mask_expressed, pretrain
from canal.core.errors import TrainingError
from canal.data.expression import tokenize
from canal.model.storage import weights_digest
from tests.support.models import DEEP, seeded
from tests.support.tasks import GENES, make_cells

SETTINGS = Settings(preset="tiny", max_epochs=3, batch_size=16, learning_rate=3e-3)


def corpus(**changes):
    fields = {
        "panel": GENES[2:],
        "train": make_cells({"B": 24, "T": 24}, "first", 1).expression[:, 2:],
        "held_out": make_cells({"B": 8, "T": 8}, "first", 2).expression[:, 2:],
        "vocabulary": GENES,
        "gene_embedding": np.random.default_rng(0).normal(size=(24, DEEP.dim)).astype(np.float32),
    }
    return Corpus(**(fields | changes))


def weights(backbone):
    return weights_digest(backbone.network.state_dict())


def test_expressed_genes_are_masked_and_no_others():
    tokens = torch.randint(0, 4, (200, 50), generator=seeded())
    masked = mask_expressed(tokens, 0.3, seeded(1))
    assert not masked[tokens == 0].any()
    assert masked[tokens > 0].float().mean().item() == pytest.approx(0.3, abs=0.02)


def test_tokens_that_are_masked_some_at_a_time_are_those_of_all_at_once(monkeypatch):
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 6, size=(50, 37), dtype=np.uint8))
    whole = (torch.rand(tokens.shape, generator=seeded(3)) < 0.3) & (tokens > 0)
    for cells in (1, 7, 50):
        monkeypatch.setattr("canal.continual.pretraining._MASKED_CELLS", cells)
        assert torch.equal(mask_expressed(tokens, 0.3, seeded(3)), whole)


def test_a_corpus_of_tokens_is_that_of_expression():
    given, tokens = corpus(), {name: tokenize(getattr(corpus(), name)) for name in ("train", "held_out")}
    first, second = (pretrain(one, DEEP, SETTINGS, 0)[0] for one in (given, corpus(**tokens)))
    assert weights(first) == weights(second)


def test_masked_genes_are_predicted_ever_better():
    _, history = pretrain(corpus(), DEEP, SETTINGS.model_copy(update={"max_epochs": 8}), 0)
    losses = [record["held_out_loss"] for record in history["epochs"]]
    assert losses[-1] < 0.9 * losses[0]
    assert history["best_epoch"] == 1 + int(np.argmin(losses))


def test_the_backbone_keeps_its_vocabulary_and_its_gene_embedding():
    given = corpus()
    backbone, _ = pretrain(given, DEEP, SETTINGS, 0)
    assert backbone.vocabulary == GENES
    assert np.array_equal(backbone.network.pos_emb.weight[:-1].numpy(), given.gene_embedding)
    assert not backbone.network.pos_emb.weight[-1].any()
    assert not any(value.requires_grad for value in backbone.network.parameters())


def test_no_epochs_give_an_untrained_backbone():
    none = SETTINGS.model_copy(update={"max_epochs": 0})
    backbone, history = pretrain(corpus(), DEEP, none, 0)
    assert (history["epochs"], history["best_epoch"]) == ([], 0)
    assert weights(backbone) != weights(pretrain(corpus(), DEEP, SETTINGS, 0)[0])


def test_the_same_seed_gives_the_same_weights():
    first, again = (weights(pretrain(corpus(), DEEP, SETTINGS, 0)[0]) for _ in range(2))
    assert first == again
    assert first != weights(pretrain(corpus(), DEEP, SETTINGS, 1)[0])


def test_an_interrupted_pretraining_ends_with_the_same_weights(tmp_path):
    def interrupt(record):
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(corpus(), DEEP, SETTINGS, 0, Hooks(interrupt, tmp_path))
    resumed, history = pretrain(corpus(), DEEP, SETTINGS, 0, Hooks(checkpoint_dir=tmp_path))
    straight, expected = pretrain(corpus(), DEEP, SETTINGS, 0)
    assert weights(resumed) == weights(straight)
    assert history == expected


def test_the_best_epoch_is_kept_and_patience_ends_it():
    hasty = SETTINGS.model_copy(update={"learning_rate": 0.3, "max_epochs": 30, "patience": 2})
    _, history = pretrain(corpus(), DEEP, hasty, 0)
    assert history["stopped"] == "patience"
    assert len(history["epochs"]) == history["best_epoch"] + 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": np.zeros((0, 22), dtype=np.float32)}, "train cells of 22 panel genes"),
        ({"held_out": np.zeros((3, 24), dtype=np.float32)}, "held_out cells of 22 panel genes"),
        ({"vocabulary": GENES[:-1]}, "row for each of the 23"),
        ({"vocabulary": (*GENES[:-1], "OTHER")}, "1 panel genes are not in the vocabulary"),
    ],
)
def test_a_corpus_that_does_not_fit_is_refused(change, message):
    with pytest.raises(TrainingError, match=message):
        corpus(**change)


def test_an_embedding_of_another_width_is_refused():
    with pytest.raises(TrainingError, match="8 columns, the backbone's dim is 16"):
        pretrain(corpus(gene_embedding=np.zeros((24, 8), dtype=np.float32)), DEEP, SETTINGS, 0)
