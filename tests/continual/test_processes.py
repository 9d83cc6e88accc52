"""Several processes learn what one does, to the bit; one that is lost costs an epoch at most."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from canal.continual import fit, processes
from canal.continual.fit import CHECKPOINT, Hooks, groups_of, shared
from canal.continual.pretraining import pretrain
from canal.continual.processes import LostProcessError, Share, backend
from canal.continual.trainer import learn_stage
from canal.core.errors import ConfigError, TrainingError
from canal.model.storage import PRESETS, weights_digest
from canal.runtime.startup import PROCESSES, TORCHRUN, follows, processes_asked, own_code
from tests.continual.test_pretraining import SETTINGS as PRETRAINING
from tests.continual.test_pretraining import corpus
from tests.support.models import DEEP, make_backbone
from tests.support.tasks import SETTINGS, grown_task, second_task

FINE = SETTINGS.model_copy(update={"max_epochs": 3, "batch_size": 7})
"""Two groups a batch, of 4 and 3 cells: 32 + 20 cells leave a last batch of 3, whose groups are of 2 and 1."""


def weights(network):
    return weights_digest(network.state_dict())


def test_two_processes_pretrain_as_one_does(monkeypatch):
    one, history = pretrain(corpus(), DEEP, PRETRAINING, 0)
    told = []
    two, same = pretrain(corpus(), DEEP, PRETRAINING, 0, Hooks(told.append, processes=2))
    assert weights(two.network) == weights(one.network)
    assert same == history
    assert told == history["epochs"]


def test_two_processes_learn_a_stage_with_bank_and_teacher_as_one_does(tmp_path):
    one = learn_stage(second_task(), FINE)
    folders = {name: tmp_path / name for name in ("checkpoint_dir", "cache_dir")}
    told, threads = [], torch.get_num_threads()
    two = learn_stage(second_task(), FINE, Hooks(told.append, **folders, processes=2))
    assert weights(two.annotator.network) == weights(one.annotator.network)
    assert two.history == one.history
    assert told == one.history["epochs"]
    assert [path.name for path in folders["checkpoint_dir"].iterdir()] == [CHECKPOINT]
    assert torch.get_num_threads() == threads
