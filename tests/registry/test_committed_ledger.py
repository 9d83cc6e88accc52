"""The ledger against every state of it that git has, and against the anchors that name its hash."""

import json
import re
import shutil
import subprocess

import pytest
from typer.testing import CliRunner

from canal.cli import app
from canal.core.errors import LedgerError, SigningError
from canal.registry.audit.committed_ledger import check_committed
from canal.registry.audit.ledger_entries import check_anchors
from canal.registry.audit.version_files import AuditLog
from canal.registry.ledger.git_history import GitFile
from canal.registry.ledger.ledger import Ledger
from canal.registry.ledger.signing import add_to_keyring, new_key
from tests.faults.forgeries import following
from tests.faults.rewrites import NAME, PERSON, REWRITES, commit, commit_each, documents, git, write
from tests.registry.test_rules import BOOK, draft
from tests.support.cells import make_document


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Make a project folder whose ledger was committed entry by entry."""
    root = tmp_path_factory.mktemp("past") / "project"
    root.mkdir()
    (root / "params.yaml").write_text(json.dumps(make_document()))
    (root / NAME).write_text("".join(entry.line for entry in BOOK))
    commit_each(root)
    return root


@pytest.fixture
def root(template, tmp_path, monkeypatch):
    for name, value in PERSON.items():
        monkeypatch.setenv(name, value)
    shutil.copytree(template, tmp_path / "project")
    return tmp_path / "project"


def looked(root, keyring=None):
    ledger, log = Ledger(root / NAME), AuditLog()
    content = ledger.path.read_bytes() if ledger.path.is_file() else b""
    check_committed(GitFile(ledger.path), content, log)
    check_anchors(GitFile(ledger.path), ledger.read()[0], keyring, log)
    return [str(one) for one in log.findings], [str(one) for one in log.notes]


def verify(root, *arguments):
    return CliRunner().invoke(app, ["ledger", "--verify", *arguments, "--root", str(root)])


def counted(root):
    log = AuditLog()
    check_committed(GitFile(root / NAME), (root / NAME).read_bytes(), log)
    return log.counts["commits that changed the ledger"]


def test_commits_of_the_ledger_are_those_that_changed_it(root):
    """All merges were counted: in a clone of canal's source a hundred, of a ledger of five entries."""
    before = counted(root)
    assert before == len(BOOK)
    git(root, "checkout", "-q", "-b", "side")
    (root / "notes.txt").write_text("x")
    git(root, "add", "notes.txt")
    git(root, "commit", "-qm", "Side")
    git(root, "checkout", "-q", "-")
    git(root, "merge", "-q", "--no-ff", "--no-edit", "side")
    assert counted(root) == before


# --- what was rewritten and committed


@pytest.mark.parametrize("rewrite", REWRITES, ids=lambda one: one.__name__)
def test_a_rewritten_past_is_named_by_commit_and_line(root, rewrite):
    assert looked(root) == ([], [])
    rewrite(root)
    findings, _ = looked(root)
    assert any(re.search(REWRITES[rewrite], one) for one in findings), findings
    assert len(findings) <= 2
    assert verify(root).exit_code == 1


def test_one_rewritten_commit_stays_found_below_honest_ones(root):
    found = documents(root)
    write(root, found[:3])
    wrong = commit(root)
    write(root, found)
    commit(root)
    findings, _ = looked(root)
    (said,) = findings
    before = git(root, "rev-parse", "HEAD~2")[:12]
    assert f"line 4: commit {wrong[:12]} rewrote it from line 4 on, which {before} had" in said
    assert said.endswith(f"git show {wrong[:12]} -- {NAME}")


# --- what was not


def test_branches_of_which_one_moved_something_join(root):
    git(root, "checkout", "--quiet", "-b", "code", "HEAD~3")
    (root / "code.py").write_text("x = 1\n")
    git(root, "add", "code.py")
    git(root, "commit", "--quiet", "-m", "code")
    git(root, "merge", "--quiet", "-m", "merge", "main")
    git(root, "checkout", "--quiet", "main")
    git(root, "merge", "--quiet", "--no-ff", "-m", "merge", "code")
    assert looked(root) == ([], [])


def test_of_two_branches_that_both_registered_the_one_that_is_gone_is_told(root):
    """As an older canal advised: keep your own side. Another version under a number that is kept is found."""
    before = documents(root)
    for number, noticed in ((3, True), (2, False)):
        git(root, "checkout", "--quiet", "--force", "-B", "side", "main~1")
        one = following(BOOK[:4], draft("register", number, {"candidate": number}, key="9" * 64))
        write(root, [*before[:4], one.document])
        commit(root)
        git(root, "checkout", "--quiet", "-B", "joined", "main")
        git(root, "merge", "--quiet", "-s", "ours", "-m", "merge", "side")
        findings, notes = looked(root)
        assert (len(findings), len(notes)) == ((0, 1) if noticed else (1, 0))
        assert "joined branches that both wrote into it from line 5 on" in (notes or findings)[0]


def test_a_ledger_that_was_removed_and_another_begun_is_told(root):
    """As where a project is cloned whose authors committed theirs by mistake."""
    git(root, "rm", "--quiet", NAME)
    git(root, "commit", "--quiet", "-m", "a run of mine")
    gone = git(root, "rev-parse", "HEAD")
    assert looked(root) == ([], [])
    write(root, [following([], draft("register", 1, {"candidate": 1}, key="e" * 64)).document])
    findings, notes = looked(root)
    assert findings == []
    assert notes[0].startswith(f"ledger: nothing to do: git's history has another {NAME}, of none of the")
    assert f"which commit {gone[:12]} removed (`git show " in notes[0]
    assert "is not committed to git" in notes[1]
    commit(root)
    assert looked(root) == ([], notes[:1])


def test_what_is_not_committed_yet_and_what_differs_from_the_last_commit(root):
    one = following(BOOK, draft("register", 3, {"candidate": 3}))
    with (root / NAME).open("a") as stream:
        stream.write(one.line)
    assert looked(root) == ([], [f"ledger: {NAME}: the last entry is not committed to git yet"])
    write(root, documents(root)[:3])
    assert looked(root)[0] == [f"ledger: {NAME}, line 4: the committed ledger (git show HEAD:{NAME}) differs"]


def test_a_shallow_clone_says_what_it_cannot_show(root, tmp_path):
    clone = tmp_path / "clone"
    git(root, "clone", "--quiet", "--depth", "2", root.as_uri(), str(clone))
    findings, notes = looked(clone)
    assert findings == []
    assert "the clone is shallow: what was committed before it begins cannot be compared" in notes[0]


def test_a_folder_without_git_and_one_that_git_will_not_read(root, tmp_path, monkeypatch):
    shutil.copyfile(root / NAME, tmp_path / NAME)
    assert looked(tmp_path)[1] == [f"ledger: {NAME} is not committed to git: git add {NAME}, then commit it"]
    damaged = next((root / ".git" / "objects").glob("??/*"))
    for path in (root / ".git" / "objects").glob("??/*"):
        path.chmod(0o644)
    blob = git(root, "rev-parse", f"HEAD~2:{NAME}")
    damaged = root / ".git" / "objects" / blob[:2] / blob[2:]
    damaged.write_bytes(damaged.read_bytes()[:20])
    findings, _ = looked(root)
    assert findings


# --- anchors


def test_an_anchor_names_the_last_hash_and_is_made_once(root):
    done = CliRunner().invoke(app, ["ledger", "anchor", "--by", "A. Person", "--json", "--root", str(root)])
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    tag = f"canal-ledger/5-{BOOK[-1].hash[:12]}"
    assert (made["tag"], made["hash"], made["signed"]) == (tag, BOOK[-1].hash, None)
    assert git(root, "cat-file", "-t", tag) == "tag"
    again = CliRunner().invoke(app, ["ledger", "anchor", "--by", "Ben", "--json", "--root", str(root)])
    assert json.loads(again.stdout) == made
    with (root / NAME).open("a") as stream:
        stream.write(following(BOOK, draft("register", 3, {"candidate": 3})).line)
    with pytest.raises(LedgerError, match="not committed as it is"):
        anchor(root)
    commit(root)
    anchor(root)
    document = json.loads(verify(root, "--json").stdout)
    assert (document["passed"], document["counts"]["anchors"], document["entries"]) == (True, 2, 6)


def anchor(root, *arguments):
    done = CliRunner().invoke(app, ["ledger", "anchor", *arguments, "--root", str(root)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_an_anchor_that_canal_signed_is_checked_by_the_keyring(root, tmp_path):
    from canal.registry.ledger.signing import read_keyring

    key, other, ring = tmp_path / "key.pem", tmp_path / "other.pem", tmp_path / "keyring.txt"
    for path, name in ((key, "A. Person"), (other, "Ben")):
        new_key(path, name)
    with pytest.raises(SigningError, match="the key is of 'Ben'"):
        anchor(root, "--by", "A. Person", "--sign", str(other))
    anchor(root, "--sign", str(key))
    tag = git(root, "tag")
    text = git(root, "for-each-ref", "--format=%(contents)", f"refs/tags/{tag}")
    from canal.registry.ledger.signing import open_key

    public = open_key(key).public
    add_to_keyring(ring, public.line, "anchor,promote")
    assert looked(root, read_keyring(ring)) == ([], [])
    ring.unlink()
    add_to_keyring(ring, public.line, "promote")
    (found,) = looked(root, read_keyring(ring))[0]
    assert "signed by 'A. Person', whose roles in the keyring (promote) do not allow anchor" in found
    ring.unlink()
    add_to_keyring(ring, open_key(other).public.line)
    assert "not in the keyring" in looked(root, read_keyring(ring))[1][0]
    add_to_keyring(ring, public.line)
    git(root, "tag", "-f", "-a", "-m", text.replace('"who":"A. Person"', '"who":"A. Nother"'), tag)
    (found,) = looked(root, read_keyring(ring))[0]
    assert "was not signed with the key of 'A. Person'" in found


def test_git_signs_where_a_key_is_configured(root, tmp_path):
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "ssh"], check=True
    ) if shutil.which("ssh-keygen") else pytest.skip("no ssh-keygen on this machine")
    public = (tmp_path / "ssh.pub").read_text().split()
    (tmp_path / "signers").write_text(f"person@localhost {public[0]} {public[1]}\n")
    for name, value in {
        "gpg.format": "ssh",
        "user.signingKey": str(tmp_path / "ssh"),
        "gpg.ssh.allowedSignersFile": str(tmp_path / "signers"),
    }.items():
        git(root, "config", name, value)
    assert json.loads(anchor(root, "--json").stdout)["signed"] == "git"
    assert looked(root) == ([], [])
    (tmp_path / "signers").write_text("")
    assert "git cannot verify the signature of the anchor" in looked(root)[1][0]
    git(root, "config", "user.signingKey", str(tmp_path / "none"))
    commit(root)
    git(root, "tag", "-d", git(root, "tag"))
    with pytest.raises(
        LedgerError, match=r"(?s)git could not make the tag.*--sign FILE; nothing was anchored"
    ):
        anchor(root)


@pytest.mark.parametrize(
    "message",
    ["", "canal ledger anchor, format 1", "canal ledger anchor, format 1: 5\n\n[]\n", "x\n\n{}\n"]
    + [
        "canal ledger anchor, format 1: 5\n\n" + json.dumps(document) + "\n"
        for document in (
            {"format": 2, "path": NAME, "entries": 5, "hash": "a", "who": "b"},
            {"format": 1, "path": NAME, "entries": "5", "hash": "a", "who": "b"},
            {"format": 1, "path": NAME, "entries": 5, "hash": "a", "who": "b", "more": 1},
            {"format": 1, "path": NAME, "entries": 5, "hash": "a", "who": "b", "signature": []},
        )
    ],
)
def test_a_tag_that_is_no_anchor_is_named(root, message):
    git(root, "tag", "-a", "--cleanup=verbatim", "-m", message or "x", "canal-ledger/5-x")
    (said,) = looked(root)[0]
    assert "the tag canal-ledger/5-x is no anchor as canal writes it: it names no hash" in said
    git(root, "tag", "-d", "canal-ledger/5-x")
    git(root, "tag", "canal-ledger/5-x")
    assert "is no anchor" in looked(root)[0][0]


def test_an_anchor_of_another_project_in_the_repository_is_told(root):
    anchor(root)
    (root / "below").mkdir()
    shutil.move(root / NAME, root / "below" / NAME)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "-m", "move")
    findings, notes = looked(root / "below")
    assert findings == []
    assert notes == [f"ledger: the anchor {git(root, 'tag')} is of another ledger ({NAME}): not compared"]


def test_a_ledger_that_does_not_hold_is_not_anchored(root):
    REWRITE, *_ = REWRITES
    REWRITE(root)
    with pytest.raises(
        LedgerError, match="nothing was anchored, because the ledger does not hold: .*rewrote"
    ):
        anchor(root)
    assert git(root, "tag") == ""
