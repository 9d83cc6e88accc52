"""What a step keeps while it trains, and what it leaves."""

from types import SimpleNamespace

import pytest

from canal.layout import Layout
from canal.step import watch
from tests.make import make_config


@pytest.fixture
def project(tmp_path):
    return SimpleNamespace(layout=Layout(tmp_path), config=make_config(cache={"max_gb": 2.5}))


def test_features_outlive_a_stage_and_its_checkpoints_do_not(project):
    with watch(project, SimpleNamespace(), "first", max_epochs=3) as hooks:
        for folder in (hooks.checkpoint_dir, hooks.cache_dir):
            folder.mkdir(parents=True)
            (folder / "file").write_text("x")
        assert (hooks.cache.max_bytes, hooks.cache.dtype) == (2_500_000_000, "float32")
    assert not hooks.checkpoint_dir.exists()
    assert (project.layout.features / "file").exists()


def test_a_step_that_fails_keeps_both_and_notices_are_shown(project, capsys):
    with (
        pytest.raises(RuntimeError, match="killed"),
        watch(project, SimpleNamespace(), "first", max_epochs=3) as hooks,
    ):
        hooks.checkpoint_dir.mkdir(parents=True)
        hooks.on_notice("the features of 2 of 9 cells are kept")
        raise RuntimeError("killed")
    assert hooks.checkpoint_dir.exists()
    assert "first: the features of 2 of 9 cells are kept" in capsys.readouterr().err
