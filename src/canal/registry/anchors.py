"""Anchors: annotated git tags that name the ledger's last hash, to be kept where others keep them.

Whoever can rewrite the ledger can rewrite the commits that hold it. An anchor that was pushed to a server, or
mailed, is out of reach: a ledger that no longer begins with what it names was rewritten since. It is signed
by git (``git tag -s``) where a key is configured, or with a key of canal in its message; unsigned, it proves
as much as the place where it is kept.
"""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from canal.core.digests import canonical_json, json_digest
from canal.core.errors import LedgerError
from canal.core.files import parse_json
from canal.registry.gitted import GitFile
from canal.registry.ledger import Entry
from canal.registry.signing import SigningKey

FORMAT = 1
FOLDER = "canal-ledger"
_HEADING = "canal ledger anchor, format 1"
_SIGNED, _SIGNATURE = "-s", b"-----BEGIN "
_PATIENCE_S = 300
_FIELDS = {"format": int, "path": str, "entries": int, "hash": str, "who": str}


@dataclass(frozen=True)
class Anchor:
    """A tag that names a hash of the ledger.

    Attributes
    ----------
    tag : str
        Its name.
    document : dict
        What its message says: path of the ledger in the repository, number of entries, last hash, who.
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
        found: dict[str, str] | None = self.document.get("signature")
        return found

    @property
    def digest(self) -> str:
        """What canal's own signature covers."""
        return json_digest({name: value for name, value in self.document.items() if name != "signature"})

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        signed = "git" if self.by_git else "canal" if self.signature else None
        return {"tag": self.tag, "signed": signed, **self.document}


def make_anchor(git: GitFile, entries: list[Entry], who: str, key: SigningKey | None) -> Anchor:
    """Tag HEAD with the hash of the ledger's last entry; an anchor that is there already is returned.

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
    for found in anchors(git):
        if isinstance(found, Anchor) and found.tag == tag:
            return found
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
    """Yield the anchors in this repository; for a tag that is none, what is wrong with it."""
    said = git.line("for-each-ref", "--format=%(objecttype) %(refname:strip=2)", f"refs/tags/{FOLDER}")
    for line in said.splitlines():
        kind, _, tag = line.partition(" ")
        content = git.ask("cat-file", "tag", f"refs/tags/{tag}") if kind == "tag" else None
        found = None if content is None else _parse(content)
        if found is None:
            yield f"the tag {tag} is no anchor as canal writes it: it names no hash that can be compared"
        else:
            yield Anchor(tag, found, _SIGNATURE in (content or b""))


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
        found = parse_json(line)
        json_digest(found)
    except ValueError:
        return None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        return None
    signature = found.get("signature", {"key": "", "value": ""})
    typed = all(isinstance(found.get(name), kind) for name, kind in _FIELDS.items())
    signed = isinstance(signature, dict) and all(
        isinstance(signature.get(one), str) for one in ("key", "value")
    )
    return found if typed and signed and set(found) <= {*_FIELDS, "signature"} else None


def _tag(git: GitFile, how: str, tag: str, message: str) -> None:
    """Make a tag as the user would: with their name and key."""
    command = ["git", "tag", how, "--cleanup=verbatim", "-F", "-", tag, "HEAD"]
    try:
        done = subprocess.run(
            command,
            cwd=git.path.parent,
            input=message,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LedgerError(f"git could not make the tag {tag}: {error}; nothing was anchored") from error
    made = done.returncode == 0
    if made and how == _SIGNED and _SIGNATURE not in (git.ask("cat-file", "tag", f"refs/tags/{tag}") or b""):
        git.ask("tag", "-d", tag)  # git 2.39 makes a tag without a signature where the key is not there
        made = False
    if not made:
        said = " / ".join((done.stderr or done.stdout).strip().splitlines()[:3])[:400]
        other = "; or sign with a key of canal: --sign FILE" if how == _SIGNED else ""
        raise LedgerError(f"git could not make the tag {tag}: {said}{other}; nothing was anchored")
