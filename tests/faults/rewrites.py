"""Ways to rewrite a ledger and commit that, so that git's last copy is the file: each must be named.

The history: one commit an entry, five in all. Each function is handed the project's folder.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from canal.registry.ledger.ledger import Ledger
from tests.faults.forgeries import rechained

NAME = "ledger.jsonl"
PERSON = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "A. Person"), ("EMAIL", "person@localhost"))
}


def git(root: Path, *arguments: str) -> str:
    """Run git in a folder and return what it prints."""
    done = subprocess.run(
        ["git", *arguments],
        cwd=root,
        env={**os.environ, **PERSON},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"git {arguments}: {done.stderr}"
    return done.stdout.strip()


def documents(root: Path) -> list[dict[str, Any]]:
    """Return what the entries of a ledger say."""
    return [entry.document for entry in Ledger(root / NAME).entries()]


def write(root: Path, wanted: Sequence[dict[str, Any]]) -> None:
    """Write a ledger of these entries, whose chain holds."""
    (root / NAME).write_text("".join(entry.line for entry in rechained(wanted)))


def commit(root: Path, message: str = "ledger") -> str:
    """Commit the ledger as it is, and return the commit."""
    git(root, "add", NAME)
    git(root, "commit", "--quiet", "--allow-empty", "-m", message)
    return git(root, "rev-parse", "HEAD")


def commit_each(root: Path) -> None:
    """Make a repository of a folder whose ledger is committed entry by entry."""
    whole = (root / NAME).read_text().splitlines(keepends=True)
    git(root, "init", "--quiet", "--initial-branch", "main")
    for number in range(1, len(whole) + 1):
        (root / NAME).write_text("".join(whole[:number]))
        commit(root, f"entry {number}")


def edited(root: Path) -> None:
    found = documents(root)
    found[3]["why"] = "for fun"
    write(root, found)
    commit(root)


def last_dropped(root: Path) -> None:
    write(root, documents(root)[:-1])
    commit(root)


def middle_dropped(root: Path) -> None:
    found = documents(root)
    write(root, [*found[:2], *found[3:]])
    commit(root)


def reordered(root: Path) -> None:
    found = documents(root)
    write(root, [found[0], found[2], found[1], *found[3:]])
    commit(root)


def inserted(root: Path) -> None:
    found = documents(root)
    write(root, [*found[:4], found[3] | {"why": "once more"}, *found[4:]])
    commit(root)


def removed_and_written_anew(root: Path) -> None:
    found = documents(root)
    git(root, "rm", "--quiet", NAME)
    git(root, "commit", "--quiet", "-m", "clean up")
    found[0]["who"] = "Somebody Else"
    write(root, found)
    commit(root)


def removed_and_cut(root: Path) -> None:
    whole = (root / NAME).read_text().splitlines(keepends=True)
    git(root, "rm", "--quiet", NAME)
    git(root, "commit", "--quiet", "-m", "clean up")
    git(root, "commit", "--quiet", "--allow-empty", "-m", "nothing to see")
    (root / NAME).write_text("".join(whole[:3]))
    commit(root)


def _merged(root: Path, own_first: bool) -> None:
    """Join the branch with one on which the ledger was rewritten from before the first promotion on."""
    main, found = git(root, "rev-parse", "HEAD"), documents(root)
    git(root, "checkout", "--quiet", "-b", "side", "HEAD~2")
    write(root, [*found[:3], found[3] | {"why": "for fun"}])
    side = commit(root)
    parents = (main, side) if own_first else (side, main)
    tree = git(root, "rev-parse", "HEAD^{tree}")
    joined = git(root, "commit-tree", tree, "-p", parents[0], "-p", parents[1], "-m", "merge")
    git(root, "checkout", "--quiet", "main")
    git(root, "reset", "--quiet", "--hard", joined)


def merged_from_a_side(root: Path) -> None:
    _merged(root, own_first=True)


def merged_into_a_side(root: Path) -> None:
    _merged(root, own_first=False)


def both_promoted(root: Path) -> None:
    """Two branches that promoted, and a merge that keeps one of the ledgers, as git offers."""
    found = documents(root)
    git(root, "checkout", "--quiet", "-b", "side", "HEAD~1")
    write(root, [*found[:4], found[4] | {"why": "the other branch"}])
    commit(root)
    git(root, "checkout", "--quiet", "main")
    git(root, "merge", "--quiet", "-s", "ours", "-m", "merge", "side")


def behind_a_replacement(root: Path) -> None:
    """The commit before the rewritten one is replaced by one that fits."""
    honest = git(root, "rev-parse", "HEAD")
    found = documents(root)
    found[4]["why"] = "for fun"
    write(root, found)
    git(root, "add", NAME)
    fits = git(root, "commit-tree", git(root, "write-tree"), "-p", f"{honest}~1", "-m", "entry 5")
    commit(root)
    git(root, "replace", honest, fits)


def behind_a_graft(root: Path) -> None:
    """The rewritten commit is said to have no parents."""
    edited(root)
    info = root / ".git" / "info"
    info.mkdir(exist_ok=True)
    (info / "grafts").write_text(git(root, "rev-parse", "HEAD") + "\n")


def behind_a_shallow_clone(root: Path) -> None:
    """The clone is said to begin with the rewritten commit."""
    edited(root)
    (root / ".git" / "shallow").write_text(git(root, "rev-parse", "HEAD") + "\n")


def amended_after_a_push(root: Path) -> None:
    """The last commit is another than the one that the server has."""
    _push(root)
    found = documents(root)
    found[4]["why"] = "for fun"
    write(root, found)
    git(root, "add", NAME)
    git(root, "commit", "--quiet", "--amend", "-m", "entry 5")


def begun_anew_after_a_push(root: Path) -> None:
    """The branch begins again, with one commit that holds a rewritten ledger."""
    _push(root)
    found = documents(root)
    found[1]["who"] = "Somebody Else"
    write(root, found)
    git(root, "add", NAME)
    made = git(root, "commit-tree", git(root, "write-tree"), "-m", "start")
    git(root, "update-ref", "refs/heads/main", made)


def rewritten_behind_an_anchor(root: Path) -> None:
    """All commits are rewritten, and no server has the old ones; an anchor names what the ledger was."""
    from canal.registry.ledger.git_history import GitFile, make_anchor

    with patch.dict(os.environ, PERSON):
        make_anchor(GitFile(root / NAME), Ledger(root / NAME).entries(), "A. Person", None)
    found = documents(root)
    found[1]["who"] = "Somebody Else"
    write(root, found)
    git(root, "add", NAME)
    made = git(root, "commit-tree", git(root, "write-tree"), "-m", "start")
    git(root, "update-ref", "refs/heads/main", made)


def _push(root: Path) -> None:
    server = root.parent / f"{root.name}.git"
    git(root, "clone", "--quiet", "--bare", ".", str(server))
    git(root, "remote", "add", "origin", str(server))
    git(root, "fetch", "--quiet", "origin")
    git(root, "branch", "--quiet", "--set-upstream-to", "origin/main")


REWRITES: dict[Callable[[Path], None], str] = {
    edited: r"line 4: commit [0-9a-f]{12} rewrote it from line 4 on",
    last_dropped: r"line 5: commit [0-9a-f]{12} rewrote",
    middle_dropped: r"line 3: commit [0-9a-f]{12} rewrote",
    reordered: r"line 2: commit [0-9a-f]{12} rewrote",
    inserted: r"line 5: commit [0-9a-f]{12} rewrote",
    removed_and_written_anew: r"line 1: commit [0-9a-f]{12} rewrote .* had removed",
    removed_and_cut: r"line 4: commit [0-9a-f]{12} rewrote .* had removed",
    merged_from_a_side: r"line 4: merge [0-9a-f]{12} joined branches .*ledger merge [0-9a-f]{12}` appends it",
    merged_into_a_side: r"line 4: merge [0-9a-f]{12} joined branches .*ledger merge [0-9a-f]{12}` appends it",
    both_promoted: r"line 5: merge [0-9a-f]{12} joined branches .*which no merge entry explains",
    behind_a_replacement: r"line 5: commit [0-9a-f]{12} rewrote",
    behind_a_graft: r"line 4: commit [0-9a-f]{12} rewrote",
    behind_a_shallow_clone: r"line 4: commit [0-9a-f]{12} rewrote",
    amended_after_a_push: r"line 5: origin/main has another",
    begun_anew_after_a_push: r"line 2: origin/main has another",
    rewritten_behind_an_anchor: r"no longer begins with the 5 entries that the anchor canal-ledger/5-",
}
"""Each way, and words by which a finding has to name it: commit and line, or who has another."""
