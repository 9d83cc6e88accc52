"""`make gpu-check` where no GPU is, and what it compares, tried on the CPU."""

import json

import gpu


def test_without_a_gpu_it_says_so_and_fails(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main([]) == 1
    assert "torch sees no GPU here, so nothing was checked" in capsys.readouterr().err


def test_the_cpu_is_like_itself(capsys):
    shape = ["--preset", "tiny", "--genes", "20", "--cells", "24", "--threads", "1"]
    assert gpu.main([*shape, "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"]
    assert found["float32_apart"] == found["stage_weights_apart_float32"] == 0
    assert found["stage_weights_apart_of_two_processes"] == 0
    assert 0 < found["bfloat16_apart"] < 0.1
    assert all(value > 0 for name, value in found.items() if "second" in name)


def test_a_gpu_that_answers_otherwise_does_not_pass(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "answers", lambda *_: {"float32_apart": 2e-4})
    monkeypatch.setattr(gpu, "epochs", lambda _: {})
    assert gpu.main(["--preset", "tiny", "--genes", "20", "--device", "cpu"]) == 1
    assert "0.0002" in capsys.readouterr().out
