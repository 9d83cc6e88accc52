"""Two real clones that both promoted: git merge, `canal ledger merge`, and what an audit finds."""

import errno
import io
import json
import os
import re
import shutil
import subprocess
import zipfile
from contextlib import contextmanager

import pytest
from rich.console import Console
from typer.testing import CliRunner

from canal.cli import app
from canal.core.errors import LedgerError, SigningError
from canal.core.files import read_json, write_json
from canal.registry.audit.committed_ledger import check_committed
from canal.registry.audit.version_files import AuditLog
from canal.registry.ledger.git_history import GitFile, make_anchor
from canal.registry.ledger.joined import ledger_bytes, ledger_records, origin
from canal.registry.ledger.ledger import Entry, Ledger, ledger_aliases
from canal.registry.ledger.signing import add_to_keyring, new_key, open_key
from canal.registry.promotion import promotion
from canal.registry.promotion.moves import moving
from canal.registry.transfer.exchange import export_bundle, import_bundle
from canal.registry.versions.rebuild import RebuildOptions, rebuild
from canal.report.registry_tables import ledger_table
from tests.faults.forgeries import rechained
from tests.faults.rewrites import NAME, PERSON, documents, git, write
from tests.support.cells import make_document
from tests.support.registered import (
    EMPTY,
    OVERRIDDEN,
    audited,
    keep_empty,
    lost,
    make_models,
    no_figures,
    open_store,
    register,
)

STORE = ("mlflow.db", "mlartifacts", "models", "metrics", ".canal")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Make a project with two versions registered, whose ledger is committed."""
    root = tmp_path_factory.mktemp("labs") / "project"
    make_models(root)
    (root / "params.yaml").write_text(json.dumps(make_document()))
    (root / ".gitignore").write_text("".join(f"/{name}\n" for name in (*STORE, EMPTY, "ledger.pending.json")))
    store = open_store(root)
    keep_empty(store)
    for stage in ("backbone", "first"):
        register(store, stage)
    shutil.copytree(root, root.parent / "early")
    register(open_store(root), "second")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    for one in (root, root.parent / "early"):
        git(one, "init", "--quiet", "--initial-branch", "main")
        git(one, "add", "--all")
        git(one, "commit", "--quiet", "-m", "what was registered")
    return root


@pytest.fixture
def labs(template, tmp_path, monkeypatch):
    """Return two clones, each with a store: here version 2 was promoted, there version 1, both committed."""
    for name, value in PERSON.items():
        monkeypatch.setenv(name, value)
    here, there = cloned(template, tmp_path)
    promoted(here, "2", "Ada", "knows more types")
    promoted(there, "1", "Ben", "steadier")
    git(here, "fetch", "--quiet", "there")
    return here, there


def cloned(project, place):
    """Return two clones of a project, each with a copy of its store."""
    here, there = place / "here", place / "there"
    for root in (here, there):
        git(place, "clone", "--quiet", str(project), str(root))
        for name in STORE:
            if (project / name).is_dir():
                shutil.copytree(project / name, root / name)
            elif (project / name).exists():
                shutil.copyfile(project / name, root / name)
    git(here, "remote", "add", "there", str(there))
    git(there, "remote", "add", "here", str(here))
    return here, there


def promoted(root, number, by, why):
    store = open_store(root)
    with moving(store) as ledger:
        promotion.promote(store, ledger, store.version(number), OVERRIDDEN, promotion.Decision(by, why))
    committed(root, f"promote {number}")


def retired(root, number):
    store = open_store(root)
    with moving(store) as ledger:
        promotion.retire(store, ledger, store.version(number), promotion.Decision("Ben", "withdrawn"))
    committed(root, f"retire {number}")


def committed(root, message):
    git(root, "add", NAME)
    git(root, "commit", "--quiet", "-m", message)


def conflicting(root, other="there/main"):
    """Git merges, and cannot."""
    done = subprocess.run(["git", "merge", other], cwd=root, capture_output=True, check=False)
    assert done.returncode == 1, done
    assert b"CONFLICT" in done.stdout


BY = ("--by", "A. Person", "--why", "both labs promoted")


def merge(root, *arguments):
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    done = CliRunner().invoke(app, ["ledger", "merge", *arguments, "--root", str(root)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def entries(root):
    return Ledger(root / NAME).entries()


def findings(root):
    """What the audit of the whole project says of ledger, git, rules and aliases."""
    report = audited(open_store(root))
    about = {"git", "ledger", "rules", "aliases", "anchor", "signature"}
    return [str(one) for one in report.findings if one.check in about]


def looked(root):
    log = AuditLog()
    check_committed(GitFile(root / NAME), (root / NAME).read_bytes(), log)
    return [str(one) for one in log.findings], [str(one) for one in log.notes]


def aliases(root):
    return {alias: one.number for one in open_store(root).versions() for alias in one.aliases}


def both_joined(here):
    conflicting(here)
    merge(here, *BY)
    git(here, "commit", "--quiet", "-m", "merge")


# --- merged


def test_two_clones_that_both_promoted_are_merged_and_audited(labs):
    here, there = labs
    ours, theirs = entries(here), entries(there)
    conflicting(here)
    with pytest.raises(LedgerError, match="two sides of an unsettled merge: `canal ledger merge` joins them"):
        entries(here)
    done = merge(here, *BY)
    assert "1 entries of the other ledger appended anew, and a merge entry" in done.output
    assert git(here, "ls-files", "--unmerged") == ""
    git(here, "commit", "--quiet", "-m", "merge")
    after = entries(here)
    assert after[: len(ours)] == ours
    assert [origin(one) for one in after[len(ours) : -1]] == theirs[len(ours) - 1 :]
    assert aliases(here) == ledger_aliases(after, "canal-annotator") == {"champion": 2, "candidate": 2}
    assert findings(here) == []
    assert looked(here) == ([], [])
    promoted(here, "1", "A. Person", "steadier indeed")
    assert findings(here) == []


def test_the_other_clone_follows_and_its_aliases_with_it(labs):
    here, there = labs
    both_joined(here)
    git(there, "pull", "--quiet", "--ff-only", "here", "main")
    assert any("champion points to version 1 in MLflow" in one for one in findings(there))
    done = merge(there, "HEAD")
    assert "champion moved to 2 in the store, as the ledger says" in done.output
    assert (aliases(there), findings(there)) == (aliases(here), [])
    assert git(there, "status", "--porcelain") == ""


def test_the_other_clone_that_went_on_is_merged_once_more(labs):
    here, there = labs
    both_joined(here)
    retired(there, "2")
    git(there, "fetch", "--quiet", "here")
    conflicting(there, "here/main")
    merge(there, *BY)
    git(there, "commit", "--quiet", "-m", "merge")
    assert (looked(there), findings(there)) == (([], []), [])
    origins = [origin(one).hash for one in entries(there)]
    assert len(set(origins)) == len(origins) == 3 + 2 + 1 + 1 + 1
    git(here, "pull", "--quiet", "--ff-only", "there", "main")
    assert looked(here) == ([], [])
    assert merge(here, "there/main", "--json").exit_code == 0


def test_a_dry_run_and_a_refusal_change_nothing(labs):
    here, there = labs
    before = (here / NAME).read_bytes(), aliases(here)
    said = json.loads(merge(here, "there/main", "--dry-run", "--json").stdout)
    assert (said["outcome"], said["dry_run"], said["base"]) == ("merged", True, 3)
    assert [one["kind"] for one in said["new"]] == ["promote", "merge"]
    with pytest.raises(LedgerError, match=r"say who merges \(--by\), and why \(--why\)"):
        merge(here, "there/main")
    with pytest.raises(LedgerError, match="neither a file nor a revision whose ledger.jsonl git has"):
        merge(here, "nowhere", *BY)
    with pytest.raises(LedgerError, match="no unsettled merge of the ledger: name the other one"):
        merge(here, *BY)
    assert ((here / NAME).read_bytes(), aliases(here)) == before
    conflicting(here)
    git(there, "checkout", "--quiet", "-b", "later")
    promoted(there, "2", "Ben", "after all")
    unsettled = (here / NAME).read_bytes()
    with pytest.raises(LedgerError, match="git merges with another ledger than that of"):
        merge(here, str(there), *BY)
    merge(here, "--dry-run")
    assert (here / NAME).read_bytes() == unsettled
    assert git(here, "ls-files", "--unmerged") != ""


def test_a_file_is_merged_too_and_stands_once_git_has_the_other_branch(labs):
    here, there = labs
    merge(here, str(there / NAME), *BY)
    committed(here, "merged from a file")
    (found,), _ = looked(here)
    assert "no commit up to HEAD has that" in found
    git(here, "merge", "--quiet", "-s", "ours", "-m", "merge", "there/main")
    assert (looked(here), findings(here)) == (([], []), [])
    assert "nothing to append" in merge(here, "there/main").output


def test_what_was_merged_before_it_was_committed_there_is_found_in_a_later_commit(labs):
    here, there = labs
    store = open_store(there)
    with moving(store) as ledger:
        promotion.promote(store, ledger, store.version("2"), OVERRIDDEN, promotion.Decision("Ben", "no"))
    merge(here, str(there), *BY)
    committed(here, "merged from a file")
    promoted(there, "1", "Ben", "yes")
    git(here, "fetch", "--quiet", "there")
    both_joined(here)
    assert (looked(here), findings(here)) == (([], []), [])
    assert len(entries(here)) == 3 + 1 + 2 + 1 + 1 + 1


def test_a_merge_that_git_leaves_whole_is_settled_too(labs):
    """With `ledger.jsonl -merge` in .gitattributes, git leaves this branch's file instead of marks."""
    here, _ = labs
    (here / ".git" / "info" / "attributes").write_text(f"{NAME} -merge\n")
    before = entries(here)
    conflicting(here)
    assert entries(here) == before
    merge(here, "MERGE_HEAD", *BY)
    git(here, "commit", "--quiet", "-m", "merge")
    assert looked(here) == ([], [])


def test_a_merge_committed_the_wrong_way_is_made_good(labs):
    here, _ = labs
    git(here, "merge", "--quiet", "-s", "ours", "-m", "merge", "there/main")
    (found,), _ = looked(here)
    assert "dropped what" in found
    dropped = git(here, "rev-parse", "there/main")
    assert f"`canal ledger merge {dropped[:12]}` appends it" in found
    merge(here, dropped[:12], *BY)
    committed(here, "appended")
    found, notes = looked(here)
    assert found == []
    assert "a later merge entry holds it" in notes[0]


def test_a_branch_whose_ledger_the_other_holds_takes_that_one(labs):
    """The other merged it from a file; git knows nothing of that, and cannot merge the two."""
    here, there = labs
    merge(here, str(there), *BY)
    committed(here, "merged from a file")
    git(there, "fetch", "--quiet", "here")
    conflicting(there, "here/main")
    assert "the other ledger holds this one: taken as it is" in merge(there).output
    assert entries(there) == entries(here)
    assert looked(there) == (
        [], [f"ledger: {NAME}: the merge that holds HEAD's entries is not committed yet"]
    )  # fmt: skip
    git(there, "commit", "--quiet", "-m", "merge")
    assert (looked(there), findings(there)) == (([], []), [])


def test_one_model_learned_in_both_is_one_version_and_exported_with_its_own_record(labs, tmp_path):
    here, there = labs
    whole = documents(there)
    whole[2]["record"] = "9" * 64
    write(there, whole)
    merge(here, str(there), *BY)
    store = open_store(here)
    assert ledger_records(entries(here))["canal-annotator", 2].document["record"] == store.version("2").record
    export_bundle(store, "2", tmp_path / "two.zip")
    with zipfile.ZipFile(tmp_path / "two.zip") as bundle:
        lines = [json.loads(line) for line in bundle.read("ledger.jsonl").splitlines()]
    assert [one["version"] for one in lines if one["kind"] == "register"] == [1, 1, 2]
    assert not any("merged" in one["details"] for one in lines if one["kind"] == "register")


def test_a_rebase_is_refused(labs):
    here, _ = labs
    done = subprocess.run(["git", "rebase", "there/main"], cwd=here, capture_output=True, check=False)
    assert done.returncode
    with pytest.raises(LedgerError, match="not by git merge: rebase and cherry-pick leave commits behind"):
        merge(here, *BY)


def test_a_file_that_is_neither_side_is_refused_and_one_that_went_on_is_kept(labs):
    here, _ = labs
    conflicting(here)
    (here / NAME).write_bytes(b"".join(ledger_bytes(entries_of(here, 3)).splitlines(keepends=True)[:3]))
    with pytest.raises(LedgerError, match="neither this branch's ledger nor the other's"):
        merge(here, *BY)
    git(here, "checkout", "--ours", NAME)
    store = open_store(here)
    with moving(store) as ledger:
        promotion.promote(store, ledger, store.version("1"), OVERRIDDEN, promotion.Decision("Ada", "now"))
    number = len(entries(here))
    merge(here, *BY)
    assert len(entries(here)) == number + 2
    git(here, "commit", "--quiet", "-m", "merge")
    assert looked(here) == ([], [])


def entries_of(root, number):
    return Ledger(root / NAME).read()[0][:number]


# --- refused


def test_what_the_other_retired_is_retired_here_but_never_the_champion(labs):
    here, there = labs
    retired(there, "2")
    git(here, "fetch", "--quiet", "there")
    conflicting(here)
    with pytest.raises(LedgerError, match="version 2 serves here, and the other ledger retired it"):
        merge(here, *BY)
    git(here, "merge", "--abort")
    promoted(here, "1", "Ada", "2 is withdrawn")
    both_joined(here)
    assert aliases(here) == {"champion": 1, "candidate": 1}
    assert open_store(here).version("2").retired
    assert (findings(here), looked(here)) == ([], ([], []))


def test_a_version_that_the_other_registered_is_brought_first(template, tmp_path, monkeypatch):
    for name, value in PERSON.items():
        monkeypatch.setenv(name, value)
    here, there = cloned(template.parent / "early", tmp_path)
    register(open_store(there), "second")
    promoted(there, "2", "Ben", "knows more types")
    promoted(here, "1", "Ada", "the first")
    git(here, "fetch", "--quiet", "there")
    before = (here / NAME).read_bytes()
    with pytest.raises(LedgerError, match=r"canal-annotator 2 \(second, .* does not hold it.*canal export 2"):
        merge(here, "there/main", *BY)
    assert (here / NAME).read_bytes() == before
    export_bundle(open_store(there), "2", tmp_path / "other.zip")
    assert import_bundle(open_store(here), tmp_path / "other.zip").version.number == 2
    committed(here, "import 2")
    both_joined(here)
    assert aliases(here) == {"champion": 1, "candidate": 2}
    assert (findings(here), looked(here)) == ([], ([], []))


@pytest.mark.chaos
def test_two_versions_under_one_number_are_told_apart_on_the_way_that_the_refusal_says(
    template, tmp_path, monkeypatch
):
    for name, value in (PERSON | {"GIT_EDITOR": "true"}).items():
        monkeypatch.setenv(name, value)
    here, there = cloned(template.parent / "early", tmp_path)
    path = there / "models" / "second" / "key.json"
    write_json(path, read_json(path) | {"code": "7" * 64})
    for root in (here, there):
        register(open_store(root), "second")
        promoted(root, "2", "Ada", "knows more types")
    git(here, "fetch", "--quiet", "there")
    conflicting(here)
    with pytest.raises(LedgerError, match="canal-annotator 2 is another version in each ledger.*export 2 -o"):
        merge(here, *BY)
    git(here, "merge", "--abort")
    export_bundle(open_store(there), "2", tmp_path / "other.zip")
    assert import_bundle(open_store(here), tmp_path / "other.zip").version.number == 3
    committed(here, "import")
    promoted(here, "3", "A. Person", "as there")
    git(there, "fetch", "--quiet", "here")
    done = subprocess.run(["git", "rebase", "here/main"], cwd=there, capture_output=True, check=False)
    assert done.returncode
    git(there, "checkout", "--ours", NAME)
    git(there, "add", NAME)
    git(there, "rebase", "--skip")
    assert entries(there) == entries(here)
    anew = tmp_path / "anew"  # this process has the old database open
    shutil.copytree(there, anew, ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts", ".canal"))
    layouts = [open_store(root).layout for root in (anew, here)]
    rebuild(open_store(anew), RebuildOptions("A. Person", "as here", layouts), no_figures)
    assert aliases(anew) == aliases(here) == {"champion": 3, "previous": 2, "candidate": 3}
    assert (findings(here), looked(here)) == ([], ([], []))
    assert findings(anew) == []


def test_a_number_of_two_versions_and_a_version_that_the_store_lacks_are_refused(labs):
    here, there = labs
    whole = documents(there)
    added = {**whole[2], "version": 3, "key": "9" * 64, "record": "8" * 64, "aliases": {"candidate": 3}}
    write(there, [*whole, added])
    committed(there, "third")
    before = (here / NAME).read_bytes()
    with pytest.raises(
        LedgerError, match=r"canal-annotator 3 .* does not hold it\. Bring it: .*canal export 3"
    ):
        merge(here, str(there), *BY)
    clash = {**added, "version": 2, "aliases": {"candidate": 2}}
    write(there, [*whole[:2], clash, *whole[3:]])
    with pytest.raises(LedgerError, match="canal-annotator 2 is another version in each ledger"):
        merge(here, str(there), *BY)
    write(there, [{**whole[0], "who": "Somebody"}, *whole[1:], {**whole[3], "why": ""}])
    with pytest.raises(LedgerError, match="that canal does not write"):
        merge(here, str(there), *BY)
    assert (here / NAME).read_bytes() == before


def test_where_a_keyring_is_named_a_merge_is_signed_by_whom_it_allows(labs, tmp_path):
    here, there = labs
    ring, keys = here / "keyring.txt", {}
    for name, roles in (("A. Person", "merge"), ("Ben", "promote")):
        keys[name] = tmp_path / f"{name}.pem"
        new_key(keys[name], name)
        add_to_keyring(ring, open_key(keys[name]).public.line, roles)
    (here / "params.yaml").write_text(json.dumps(make_document(registry={"keyring": "keyring.txt"})))
    signed = documents(there)
    signed[-1]["why"] = "signed"
    made = rechained(signed)
    sign = open_key(keys["Ben"]).signer("Ben")
    made[-1] = Entry(made[-1].document | {"signature": dict(sign(made[-1].hash))})
    (there / NAME).write_bytes(ledger_bytes(made))
    before = (here / NAME).read_bytes()
    assert "would be appended anew" in merge(here, str(there), "--dry-run").output
    with pytest.raises(SigningError, match="sign with --sign FILE, a key with the role merge"):
        merge(here, str(there), *BY)
    with pytest.raises(SigningError, match="do not allow merge"):
        merge(here, str(there), "--by", "Ben", "--why", "both", "--sign", str(keys["Ben"]))
    assert (here / NAME).read_bytes() == before
    merge(here, str(there), *BY, "--sign", str(keys["A. Person"]))
    assert "signature" in entries(here)[-1].document
    assert [one for one in findings(here) if "sign" in one] == []


def test_a_shared_store_has_one_ledger(labs, monkeypatch):
    here, _ = labs
    monkeypatch.setattr("canal.registry.store.connection.Connection.remote", property(lambda self: True))
    with pytest.raises(LedgerError, match="two ledgers of it never part. `canal ledger --catch-up` brings"):
        merge(here, "there/main", *BY)


# --- killed


class Killed(BaseException):
    """As SIGKILL would."""


STEPS = {
    "the file": "canal.registry.promotion.merging.new_file",
    "an alias": "canal.registry.store.store.Store.point",
    "a tag": "canal.registry.store.store.Store.tag",
    "git": "canal.registry.ledger.git_history.GitFile.mark_resolved",
}


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_leaves_the_old_ledger_or_the_new_one_and_the_same_command_goes_on(labs, monkeypatch, step):
    """The other retired version 2, which is previous and candidate here."""
    here, there = labs
    retired(there, "2")
    git(here, "fetch", "--quiet", "there")
    promoted(here, "1", "Ada", "steadier")
    conflicting(here)
    unsettled = (here / NAME).read_bytes()

    def killed(*arguments, **named):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(STEPS[step], killed)
        with pytest.raises(Killed):
            merge(here, *BY)
    if step == "the file":
        assert (here / NAME).read_bytes() == unsettled
    else:
        assert len(entries(here)) == 3 + 2 + 2 + 1
    merge(here, *BY)
    git(here, "commit", "--quiet", "-m", "merge")
    assert (findings(here), looked(here)) == ([], ([], []))
    assert (open_store(here).version("2").retired, aliases(here)) == (True, {"champion": 1, "candidate": 1})
    assert len(entries(here)) == 3 + 2 + 2 + 1


# --- forged


def forged(here, change):
    """Change the merged ledger before it is committed as the merge; its chain holds."""
    conflicting(here)
    merge(here, *BY)
    whole = documents(here)
    change(whole)
    write(here, whole)
    git(here, "add", NAME)
    git(here, "commit", "--quiet", "-m", "merge")


def dropped(whole):
    del whole[-2]


def dropped_with_the_merge(whole):
    del whole[-2:]


def reworded(whole):
    whole[-2]["why"] = "for fun"


def another_head(whole):
    whole[-1]["details"]["theirs"]["hash"] = "f" * 64


def ours_reworded(whole):
    whole[3]["why"] = "for fun"


def champion_moved(whole):
    whole[-1]["aliases"] |= {"champion": 1, "previous": 2}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dropped, "which no merge entry explains"),
        (dropped_with_the_merge, "which no merge entry explains"),
        (reworded, "which no merge entry explains"),
        (another_head, "which no merge entry explains"),
        (ours_reworded, "rewrote it from line 4 on|which no merge entry explains"),
        (champion_moved, "aliases stay where this ledger had them"),
    ],
)
def test_a_merge_that_was_forged_is_found(labs, change, named):
    here, _ = labs
    forged(here, change)
    found = findings(here)
    assert any(re.search(named, one) for one in found), found


def test_a_ledger_that_no_commit_has_is_found(labs, tmp_path):
    """A branch that never was is made up, merged from a file, and committed."""
    here, there = labs
    whole = documents(there)
    whole[-1]["who"] = "Somebody Else"
    (tmp_path / "made-up").mkdir()
    write(tmp_path / "made-up", whole)
    merge(here, str(tmp_path / "made-up"), *BY)
    committed(here, "merged")
    (found,) = findings(here)
    assert "entry 6 merged a ledger whose last entry has hash" in found
    assert "no commit up to HEAD has that" in found


def test_an_anchor_of_the_other_branch_stays_good(labs):
    here, there = labs
    make_anchor(GitFile(there / NAME), entries(there), "Ben", None)
    git(here, "fetch", "--quiet", "--tags", "there")
    both_joined(here)
    assert findings(here) == []
    whole = documents(here)
    write(here, [*whole[:4], *whole[6:]])
    assert any("no longer begins with the 4 entries that the anchor" in one for one in findings(here))


def test_a_branch_that_this_one_follows_may_be_merged_into_it(labs):
    here, _ = labs
    git(here, "branch", "--quiet", "--set-upstream-to", "there/main")
    (found,), _ = looked(here)
    assert "Then git merge there/main, and `canal ledger merge` joins the two" in found
    both_joined(here)
    assert looked(here) == ([], [])


def test_the_ledger_is_shown_with_what_was_merged(labs):
    here, _ = labs
    both_joined(here)
    shown = io.StringIO()
    Console(width=300, file=shown).print(ledger_table([one.document for one in entries(here)]))
    said = shown.getvalue()
    overridden = "clean, accuracy, balanced_accuracy, h_score, ece"
    assert f"promote canal-annotator 1 (champion -> 1) overriding {overridden} (entry 4" in said
    assert "(entry 4 of a merged ledger)" in said
    assert (
        f"merge of a ledger of 4 entries, {entries(here)[-2].document['details']['merged'][0]['hash'][:12]}"
        in said
    )


def test_a_full_disk_leaves_everything_as_it_was(labs, monkeypatch):
    here, _ = labs
    before = (here / NAME).read_bytes(), aliases(here)

    @contextmanager
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))
        yield path

    monkeypatch.setattr("canal.registry.promotion.merging.new_file", full)
    with pytest.raises(LedgerError, match="No space left on device; it is as it was, nothing was merged"):
        merge(here, "there/main", *BY)
    assert ((here / NAME).read_bytes(), aliases(here)) == before


def test_a_store_that_was_lost_is_made_again_from_a_merged_ledger(labs, template, tmp_path):
    here, _ = labs
    both_joined(here)
    shutil.copyfile(template / EMPTY, here / EMPTY)
    shutil.copytree(template / "models", here / "models", dirs_exist_ok=True)
    store = lost(here, tmp_path / "again")
    options = RebuildOptions("A. Person", "the disk died", [store.layout])
    rebuild(store, options, no_figures)
    assert [one.number for one in store.versions() if one.ready] == [1, 2]
    assert aliases(store.layout.root) == aliases(here)
    assert not any("merged" in one.document["details"] for one in entries(store.layout.root)[6:])
    assert findings(store.layout.root) == []
