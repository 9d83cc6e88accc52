"""What a terminal is shown, whatever stands in names and whatever it can show."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from canal.app import shelf
from canal.core.errors import LONGEST, CanalError, DataError, did_you_mean, no_such_file, there_are, visible
from canal.io.arrays import listed

ROOT = Path(__file__).parents[1]
SPEAK = """
from canal.core.errors import tell
from canal.runtime.startup import begin
begin()
print("λ = 0.5")
tell("日 é")
"""


@pytest.mark.parametrize("hidden", ["\x1b", "\x07", "\r", "\x9b", "\u202e", "\x00", "\udc80"])
def test_what_would_steer_a_terminal_is_not_shown(hidden):
    assert visible(f"in{hidden}[31m.h5ad\n\tγδ T") == "in�[31m.h5ad\n\tγδ T"


@pytest.mark.parametrize(
    ("encoding", "out", "err"),
    [
        ("utf-8", "λ = 0.5", "日 é"),
        ("latin-1", "\\u03bb = 0.5", "\\u65e5 é"),
        ("ascii", "\\u03bb = 0.5", "\\u65e5 \\xe9"),
    ],
)
def test_what_an_encoding_lacks_is_spelt_out(encoding, out, err, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    run = subprocess.run([sys.executable, "-c", SPEAK], capture_output=True, check=True)
    assert (run.stdout.decode(encoding).strip(), run.stderr.decode(encoding).strip()) == (out, err)


def test_a_command_tells_of_a_path_without_its_escapes(tmp_path):
    call = [
        sys.executable,
        "-m",
        "canal.cli",
        "validate",
        "\x1b[31mred\x07.h5ad",
        "--root",
        str(tmp_path / "\x1b[2J"),
    ]
    run = subprocess.run(call, capture_output=True, text=True, encoding="utf-8", check=False)
    assert run.returncode == 1
    assert "\x1b" not in run.stdout + run.stderr
    assert "�[2J" in run.stderr


def test_lines_end_alike_on_every_system():
    """Digests are taken of sources, params and ledger as they lie in the working tree."""
    names = [
        "src/canal/cli/root.py",
        "pipelines/split.py",
        "params.yaml",
        "dvc.yaml",
        "dvc.lock",
        "ledger.jsonl",
    ]
    asked = subprocess.run(
        ["git", "check-attr", "eol", "--", *names], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert asked.stdout.splitlines() == [f"{name}: eol: lf" for name in names]
    assert not [path for path in (ROOT / "src").rglob("*.py") if b"\r\n" in path.read_bytes()]


def test_of_a_long_message_the_middle_is_left_out():
    said = str(DataError(f"cells.h5ad: expected counts, found {'x' * 50_000}: convert them"))
    assert len(said) <= LONGEST
    assert said.startswith("cells.h5ad: expected counts, found xxx")
    assert "characters more" in said
    assert said.endswith("xxx: convert them")
    assert str(CanalError("x" * LONGEST)) == "x" * LONGEST


@pytest.mark.parametrize(
    ("wanted", "names", "meant"),
    [
        ("lnug", ["lung", "tumour"], "; did you mean 'lung'?"),
        ("cell_typ", ["cell_type", "batch"], "; did you mean 'cell_type'?"),
        ("Champion", ["candidate", "champion"], "; did you mean 'champion'?"),
        ("x", ["lung", "tumour"], ""),
        ("lung", [], ""),
    ],
)
def test_a_refused_name_is_answered_with_the_one_that_is_close(wanted, names, meant):
    assert did_you_mean(wanted, names) == meant


def test_every_refusal_that_lists_the_names_there_are_suggests_the_close_one():
    """By `there_are`, which ends it, or `did_you_mean` near by: a new refusal of a name is not forgotten."""
    listing = re.compile(r"no (stage|source|version|model|stream|schema|role|rule|matrix|column|option)s? \{")
    names = ("there are {", "it has {", "there_are(", "{has}")
    ending = ("did_you_mean(", "there_are(")
    lacking, suggesting = [], 0
    for path in sorted((ROOT / "src" / "canal").rglob("*.py")):
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            near = "\n".join(lines[max(0, number - 4) : number + 5])
            if listing.search(line) and any(one in near for one in names):
                ends = any(one in near for one in ending)
                suggesting += ends
                lacking += [] if ends else [f"{path.name}:{number + 1}: {line.strip()}"]
    assert lacking == []
    assert suggesting > 25


def test_refusals_of_a_name_end_alike():
    assert there_are("bloud", ["blood", "lung"]) == "; there are blood, lung; did you mean 'blood'?"
    assert there_are("x", []) == "; there are none"
    assert there_are("cell", ["a b"], "it has", listed) == "; it has 'a b'"


def test_a_file_that_is_not_there_is_named_with_a_way_out(tmp_path):
    (tmp_path / "blood.zip").touch()
    near = no_such_file(tmp_path / "bloud.zip", "`canal export` writes one")
    assert near.endswith("bloud.zip: no such file; `canal export` writes one; did you mean 'blood.zip'?")
    other = no_such_file(tmp_path / "labb" / "deep" / "blood.zip")
    assert other.endswith(f"no such file, for there is no folder {tmp_path / 'labb'}")


def test_a_model_that_is_not_there_is_named_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("CANAL_MODELS", str(tmp_path / "shelf"))
    for refused in (shelf.show_model, shelf.add_model):
        with pytest.raises(CanalError, match=r"no such file; .*`canal export`"):
            refused(str(tmp_path / "nothing.zip"))
    with pytest.raises(CanalError, match=r"shelf, which holds none yet: `canal models add FILE\.zip`"):
        shelf.shelved("nothing")
