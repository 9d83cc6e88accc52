"""The committed states of a file in git, and anchors: annotated tags that hold the ledger's last hash.

States are read without replace refs, grafts and commit graphs, which could show another history.

Whoever can rewrite the ledger can rewrite the commits that hold it. An anchor that was pushed to a server, or
mailed, is out of reach: a ledger without the hash that it names was rewritten since. An anchor is signed by
git (``git tag -s``) where a key is configured, or with a key of canal in its message; an unsigned anchor
proves as much as the place where it is kept.
"""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from canal.core.digests import canonical_json, json_digest
from canal.core.errors import LedgerError, RegistryError
from canal.core.files import parse_json
from canal.registry.ledger.ledger import Entry
from canal.registry.ledger.signing import SigningKey

_PATIENCE_S = 60
_PLAIN = {
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_GRAFT_FILE": os.devnull,
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "LC_ALL": "C",
}
"""Objects as they were committed: no replace refs, no grafts."""
_NO_GRAPH = ("git", "--no-pager", "-c", "core.commitGraph=false", "-c", "core.fsmonitor=false")
"""No commit graph either: a file beside the objects, which nothing compares with them."""
_READING = (*_NO_GRAPH, "-c", "safe.directory=*")
"""Another user's repository is read, too: reading commands run no program from its settings."""
_RUNS_PROGRAMS = ("verify-tag", "tag", "add")

FORMAT = 1
FOLDER = "canal-ledger"
_HEADING = "canal ledger anchor, format 1"
_SIGNED, _SIGNATURE = "-s", b"-----BEGIN "
_TAG_PATIENCE_S = 300
_FIELDS = {"format": int, "path": str, "entries": int, "hash": str, "who": str}


@dataclass(frozen=True)
class Commit:
    """A commit that changes the file or merges, with those of its ancestors that do."""

    sha: str
    parents: Sequence[str]

    @property
    def short(self) -> str:
        """The name that people use."""
        return self.sha[:12]


class GitFile:
    """One file of a git working tree."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def ask(self, *arguments: str) -> bytes | None:
        """Return the output of git; None where it fails or is not installed."""
        try:
            done = self._run(arguments)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    def _run(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*(_NO_GRAPH if arguments[0] in _RUNS_PROGRAMS else _READING), *arguments],
            cwd=self.path.parent,
            env={**os.environ, **_PLAIN},
            capture_output=True,
            timeout=_PATIENCE_S,
            check=False,
        )

    def line(self, *arguments: str) -> str:
        """Return the output of git as text; empty where it fails."""
        return (self.ask(*arguments) or b"").decode("utf-8", "replace").strip()

    @property
    def refusal(self) -> str | None:
        """Why git refuses a repository, such as that of another owner; None where it does not."""
        try:
            done = self._run(("rev-parse", "--git-dir"))
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        output = done.stderr.decode("utf-8", "replace").strip().splitlines()
        return output[0] if done.returncode and output and "not a git repository" not in output[0] else None

    def at(self, revision: str) -> bytes | None:
        """Return the file in a revision; None where the revision or the file does not exist."""
        return self.ask("cat-file", "blob", f"{revision}:./{self.path.name}")

    @property
    def unmerged(self) -> tuple[bytes, bytes] | None:
        """The file of this branch and of the other in an unfinished merge; None where there is none."""
        if not self.line("ls-files", "--unmerged", "--", self.path.name):
            return None
        sides = (self.ask("cat-file", "blob", f":{side}:./{self.path.name}") for side in (2, 3))
        ours, theirs = (side or b"" for side in sides)
        return ours, theirs

    def mark_resolved(self) -> None:
        """Tell git that the file, as it lies there, resolves the conflict.

        Raises
        ------
        LedgerError
            If git refuses.
        """
        if self.ask("add", "--", self.path.name) is None:
            raise LedgerError(f"git could not add {self.path}: git add {self.path.name}, then commit")

    def commits(self) -> tuple[list[Commit], bool]:
        """Return the commits up to HEAD that change the file, and all merges, each after its parents.

        The second value says whether the history is cut off, as in a shallow clone.
        """
        order = ("--full-history", "--topo-order", "--reverse", "--parents", "HEAD", "--", self.path.name)
        output = self.ask("--shallow-file", "", "rev-list", *order)
        cut = output is None
        if output is None:
            output = self.ask("rev-list", *order)
        rows = (line.split() for line in (output or b"").decode("ascii", "replace").splitlines())
        return [Commit(sha, tuple(parents)) for sha, *parents in rows], cut

    @property
    def disguises(self) -> list[str]:
        """Replace refs and grafts of the repository, which make git show another history."""
        refs = self.line("for-each-ref", "--count=1", "--format=%(refname)", "refs/replace/")
        grafts = self.path.parent / (self.line("rev-parse", "--git-path", "info/grafts") or ".")
        return [*(["replace refs"] if refs else []), *(["grafts"] if grafts.is_file() else [])]

    @contextmanager
    def reading(self) -> Iterator["Reader"]:
        """Give a reader of the file at many commits: one git process, one state in memory at a time."""
        with subprocess.Popen(
            [*_READING, "cat-file", "--batch"],
            cwd=self.path.parent,
            env={**os.environ, **_PLAIN},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            assert process.stdin is not None  # noqa: S101 - what mypy cannot know of PIPE
            assert process.stdout is not None  # noqa: S101
            yield Reader(self, process.stdin, process.stdout)
            process.stdin.close()


class Reader:
    """Reads a file at one commit after the other."""

    def __init__(self, git: GitFile, ask: IO[bytes], output: IO[bytes]) -> None:
        self._git = git
        self._input = ask
        self._output = output

    @property
    def name(self) -> str:
        """Name of the file."""
        return self._git.path.name

    def at(self, sha: str) -> bytes | None:
        """Return the file in a commit, or None.

        Raises
        ------
        RegistryError
            If the commit has it, but git cannot read it.
        """
        name = f"{sha}:./{self._git.path.name}"
        self._input.write(f"{name}\n".encode())
        self._input.flush()
        head = self._output.readline().split()
        if len(head) == 3 and head[1] == b"blob":
            content = self._output.read(int(head[2]))
            self._output.read(1)
            return content
        if len(head) == 3 or not head or self._git.line("rev-parse", "--verify", "--quiet", name):
            raise RegistryError(f"git cannot read {self._git.path.name} of commit {sha[:12]}: git fsck")
        return None


@dataclass(frozen=True)
class Anchor:
    """A tag that names a hash of the ledger.

    Attributes
    ----------
    tag : str
        Its name.
    document : dict
        The document in its message: path of the ledger in the repository, number of entries, last hash, who.
    by_git : bool
        Whether git signed it.
    """

    tag: str
    document: dict[str, Any]
    by_git: bool

    @property
    def entries(self) -> int:
        """How many entries the ledger had."""
        return int(self.document["entries"])

    @property
    def signature(self) -> dict[str, str] | None:
        """Canal's own signature."""
        signature: dict[str, str] | None = self.document.get("signature")
        return signature

    @property
    def digest(self) -> str:
        """The digest that canal's own signature covers."""
        return json_digest({name: value for name, value in self.document.items() if name != "signature"})

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        signed = "git" if self.by_git else "canal" if self.signature else None
        return {"tag": self.tag, "signed": signed, **self.document}


def make_anchor(git: GitFile, entries: list[Entry], who: str, key: SigningKey | None) -> Anchor:
    """Tag HEAD with the hash of the ledger's last entry; return an existing anchor of it.

    Raises
    ------
    LedgerError
        If the ledger is empty or not committed as it is, or git refuses.
    """
    name = git.path.name
    if not entries:
        raise LedgerError(f"{git.path} is empty: there is nothing to anchor")
    if git.at("HEAD") != git.path.read_bytes():
        raise LedgerError(
            f"{name} is not committed as it is; first git add {name}, git commit, then anchor it"
        )
    last = entries[-1]
    tag = f"{FOLDER}/{last.seq}-{last.hash[:12]}"
    for anchor in anchors(git):
        if isinstance(anchor, Anchor) and anchor.tag == tag:
            return anchor
    document = {
        "format": FORMAT,
        "path": place(git),
        "entries": last.seq,
        "hash": last.hash,
        "who": who,
    }
    if key is not None:
        value = key.anchor(json_digest(document))
        document["signature"] = {"key": key.public.fingerprint, "value": value}
    by_git = key is None and bool(git.line("config", "user.signingKey"))
    message = f"{_HEADING}: {last.seq} entries\n\n{canonical_json(document)}\n"
    _tag(git, _SIGNED if by_git else "-a", tag, message)
    return Anchor(tag, document, by_git)


def anchors(git: GitFile) -> Iterator[Anchor | str]:
    """Yield the anchors in this repository; for a malformed tag, a sentence about it."""
    output = git.line("for-each-ref", "--format=%(objecttype) %(refname:strip=2)", f"refs/tags/{FOLDER}")
    for line in output.splitlines():
        kind, _, tag = line.partition(" ")
        content = git.ask("cat-file", "tag", f"refs/tags/{tag}") if kind == "tag" else None
        document = None if content is None else _parse(content)
        if document is None:
            yield f"the tag {tag} is no anchor as canal writes it: it names no hash that can be compared"
        else:
            yield Anchor(tag, document, _SIGNATURE in (content or b""))


def place(git: GitFile) -> str:
    """Return the path of the ledger in its repository."""
    return f"{git.line('rev-parse', '--show-prefix')}{git.path.name}"


def _parse(content: bytes) -> dict[str, Any] | None:
    """Return the document in a tag's message; None where there is none."""
    message = content.partition(b"\n\n")[2]
    if not message.startswith(_HEADING.encode()):
        return None
    line = next((one for one in message.splitlines() if one.startswith(b"{")), b"")
    try:
        document = parse_json(line)
        json_digest(document)
    except ValueError:
        return None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        return None
    signature = document.get("signature", {"key": "", "value": ""})
    typed = all(isinstance(document.get(name), kind) for name, kind in _FIELDS.items())
    signed = isinstance(signature, dict) and all(
        isinstance(signature.get(one), str) for one in ("key", "value")
    )
    return document if typed and signed and set(document) <= {*_FIELDS, "signature"} else None


def _tag(git: GitFile, how: str, tag: str, message: str) -> None:
    """Make a tag with the user's own git settings: their name and key."""
    command = ["git", "tag", how, "--cleanup=verbatim", "-F", "-", tag, "HEAD"]
    try:
        done = subprocess.run(
            command,
            cwd=git.path.parent,
            input=message,
            capture_output=True,
            text=True,
            timeout=_TAG_PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LedgerError(f"git could not make the tag {tag}: {error}; nothing was anchored") from error
    made = done.returncode == 0
    if made and how == _SIGNED and _SIGNATURE not in (git.ask("cat-file", "tag", f"refs/tags/{tag}") or b""):
        git.ask("tag", "-d", tag)  # git 2.39 makes a tag without a signature where the key is not there
        made = False
    if not made:
        output = " / ".join((done.stderr or done.stdout).strip().splitlines()[:3])[:400]
        other = "; or sign with a key of canal: --sign FILE" if how == _SIGNED else ""
        raise LedgerError(f"git could not make the tag {tag}: {output}{other}; nothing was anchored")
