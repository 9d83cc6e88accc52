"""Audit of the ledger against all its committed states: each has to be the beginning of the next.

A comparison with HEAD alone would miss a ledger that was rewritten and committed. So each commit that changes
the ledger is compared with its parents, along all branches that lead to HEAD. Commits that were themselves
rewritten, in every clone, are detected by an anchor alone (`canal.registry.ledger.git_history`).

Where two branches both grew, `canal ledger merge` appended the entries of one anew: what that one had begins
the ledger that the merge entry joined, and the head that it names is that of a commit.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from canal.core.errors import RegistryError
from canal.registry.audit.version_files import LEDGER, AuditLog
from canal.registry.ledger.git_history import Commit, GitFile, Reader
from canal.registry.ledger.joined import MERGE, holds
from canal.registry.ledger.ledger import Entry, read_entry

_MOST = 20


@dataclass(frozen=True)
class _State:
    """The ledger in one commit, or, where ``removed`` names the commit that deleted it, before that."""

    commit: Commit
    size: int
    digest: bytes
    removed: Commit | None = None

    def begins(self, content: bytes) -> bool:
        return len(content) >= self.size and _digest(content[: self.size]) == self.digest


def check_committed(git: GitFile, content: bytes, log: AuditLog) -> None:
    """Check the ledger's file, which holds ``content``, and all its committed states."""
    name = git.path.name
    commits, cut = git.commits()
    if not commits:
        refusal = git.refusal
        todo = f"git add {name}, then commit it" if refusal is None else f"git says: {refusal[:200]}"
        log.note(LEDGER, "ledger", f"{name} is not committed to git: {todo}")
        return
    before, changed = len(log.findings), 0
    try:
        with git.reading() as reader:
            heads: set[str] = set()
            last, changed = _walk(commits, reader, heads, log)
            if last is not None:
                _check_file(git, last, reader, content, log)
                missing = _merged_heads(reader.at(last.commit.sha) or b"")
                _check_heads(_in_no_commit(missing, heads, commits, reader), cut, name, log)
    except (RegistryError, OSError) as error:
        log.finding(LEDGER, "git", f"{name}: its committed states cannot be read ({error})")
    if len(log.findings) - before > _MOST:
        del log.findings[before + _MOST :]
        log.finding(LEDGER, "git", f"{name}: more commits rewrote it; the first {_MOST} are named")
    _check_upstream(git, content, name, log)
    if cut:
        what = "the clone is shallow: what was committed before it begins cannot be compared"
        log.note(LEDGER, "git", f"{what} (git fetch --unshallow)")
    if disguises := git.disguises:
        what = f"git shows another history than was committed, for this clone has {' and '.join(disguises)}"
        log.note(LEDGER, "git", f"{what}: looked at without")
    log.counts["commits that changed the ledger"] = changed


def _walk(
    commits: Sequence[Commit], reader: Reader, heads: set[str], log: AuditLog
) -> tuple[_State | None, int]:
    """Compare each commit with its parents; return the state at HEAD, and add the last hash of each.

    Also return how many of them changed this ledger: not one that git holds of before, which was removed.
    """
    states: dict[str, _State] = {}
    name, changed = reader.name, 0
    for commit in commits:
        content = reader.at(commit.sha)
        parents = [states[sha] for sha in commit.parents if sha in states]
        if content is None:
            if parents:
                before = max(parents, key=lambda one: (one.removed is None, one.size))
                states[commit.sha] = replace(before, removed=before.removed or commit)
            continue
        last = read_entry(content.rpartition(b"\n")[0].rpartition(b"\n")[2])
        heads.add(last.hash if isinstance(last, Entry) else "")  # empty where it cannot be read
        ended = [one for one in parents if _ended(one, content, reader, name, log)]
        parents = [one for one in parents if one not in ended]
        same = any(one.size == len(content) and one.begins(content) for one in parents)
        changed = (0 if ended else changed) + (not same)
        kept = [state for state in parents if state.begins(content)]
        gone = [state for state in parents if state not in kept]
        if gone and not kept:
            line, removed = _line(reader, gone[0], content), gone[0].removed
            since = f", and {removed.short} had removed" if removed else ""
            what = f"rewrote it from line {line} on, which {gone[0].commit.short} had{since}"
            _say(log, commit, name, what, line)
        elif gone:
            _check_joined(commit, gone, (content, reader.at(commits[-1].sha) or b""), reader, log)
        states[commit.sha] = _State(commit, len(content), _digest(content))
    at_head = states.get(commits[-1].sha)
    return at_head, 0 if at_head is None or at_head.removed else changed


def _ended(state: _State, content: bytes, reader: Reader, name: str, log: AuditLog) -> bool:
    """Whether a ledger was deleted and another one, about other versions, was begun; notes it."""
    if state.removed is None or state.begins(content):
        return False
    if not content:
        return True
    before, now = (_entries((one or b"").split(b"\n")) for one in (reader.at(state.commit.sha), content))
    if before is None or now is None or _keys(before) & _keys(now):
        return False
    log.note(
        LEDGER,
        "git",
        f"nothing to do: git's history has another {name}, of none of the versions here, which commit "
        f"{state.removed.short} removed (`git show {state.commit.short}:./{name}` shows it)",
    )
    return True


def _keys(entries: Sequence[Entry]) -> set[str]:
    return {entry.document["key"] for entry in entries if entry.document["key"]}


def _merged_heads(content: bytes) -> dict[str, Entry]:
    """Return the merge entries of a ledger by the hash of the last entry that each joined."""
    lines = [line for line in content.split(b"\n") if b'"merge"' in line]
    merges = [entry for entry in _entries(lines) or () if entry.kind == MERGE]
    theirs = [entry.document["details"].get("theirs") for entry in merges]
    heads = [str(one.get("hash") if isinstance(one, Mapping) else one) for one in theirs]
    return dict(zip(heads, merges, strict=True))


def _in_no_commit(
    merges: dict[str, Entry], heads: Collection[str], commits: Sequence[Commit], reader: Reader
) -> dict[str, Entry]:
    """Return those whose hash is that of no entry in any commit; ``heads`` are the last ones of commits."""
    left = {head: entry for head, entry in merges.items() if head not in heads}
    for commit in commits if left else ():
        for entry in _entries((reader.at(commit.sha) or b"").split(b"\n")) or ():
            left.pop(entry.hash, None)
    return left


def _check_heads(merges: Mapping[str, Entry], cut: bool, name: str, log: AuditLog) -> None:
    """Tell of merges that joined a ledger that no commit has."""
    for head, entry in merges.items():
        where = f"{name}: entry {entry.seq} merged a ledger whose last entry has hash {head[:12]}..."
        if cut:
            log.note(LEDGER, "git", f"{where}, which this shallow clone may lack")
            continue
        log.finding(
            LEDGER,
            "git",
            f"{where}; no commit up to HEAD has that. If another clone does: commit it there, git fetch it, "
            "then git merge it, and `canal ledger merge` resolves it",
        )


def _say(log: AuditLog, commit: Commit, name: str, what: str, line: int) -> None:
    log.finding(
        LEDGER,
        "git",
        f"{name}, line {line}: commit {commit.short} {what}; a ledger only grows. Find out who did it, and "
        f"what was true: git show {commit.short} -- {name}",
    )


def _check_joined(
    commit: Commit,
    gone: Sequence[_State],
    ledgers: tuple[bytes, bytes],
    reader: Reader,
    log: AuditLog,
) -> None:
    """Check a merge whose ledger continues only some of its parents: it has to hold the others' entries, too.

    ``ledgers`` are the ledger of the merge, and that of HEAD, which may have made good for it.
    """
    name, content = reader.name, ledgers[0]
    entries, newest = (_entries(one.split(b"\n")) or [] for one in ledgers)
    for state in gone:
        other = reader.at(state.commit.sha) or b""
        if holds(entries, other):
            continue
        line = _first_difference(other, content)
        if holds(newest, other):
            what = f"merge {commit.short} dropped what {state.commit.short} had from line {line} on"
            log.note(LEDGER, "git", f"{name}: {what}; a later merge entry holds it")
            continue
        lost = _entries(other.split(b"\n")[line - 1 :])
        what = f"merge {commit.short} joined branches that both wrote into it from line {line} on"
        if lost is not None and _harmless(lost, entries):
            numbers = ", ".join(f"{entry.model} {entry.version}" for entry in lost)
            log.note(
                LEDGER, "git", f"{name}: {what}; registrations of {state.commit.short} are gone ({numbers})"
            )
            continue
        log.finding(
            LEDGER,
            "git",
            f"{name}, line {line}: {what}, and dropped what {state.commit.short} had there, which no merge "
            f"entry explains: `canal ledger merge {state.commit.short}` appends it",
        )


def _harmless(lost: Sequence[Entry], kept: Sequence[Entry]) -> bool:
    """Whether only registrations are gone, and no kept registration contradicts them."""
    keys: Mapping[tuple[str, int], str] = {
        (entry.model, entry.version): entry.document["key"] for entry in kept if entry.kind == "register"
    }
    return all(
        entry.kind == "register"
        and not set(entry.aliases) - {"candidate"}
        and keys.get((entry.model, entry.version), entry.document["key"]) == entry.document["key"]
        for entry in lost
    )


def _entries(lines: Sequence[bytes]) -> list[Entry] | None:
    """Return the entries of lines; None where a line is malformed."""
    read = [read_entry(line) for line in lines if line]
    entries = [one for one in read if isinstance(one, Entry)]
    return entries if len(entries) == len(read) else None


def _check_file(git: GitFile, last: _State, reader: Reader, content: bytes, log: AuditLog) -> None:
    """Check that the last committed state is the beginning of the file."""
    name = git.path.name
    if _ended(last, content, reader, name, log):
        if content:
            log.note(LEDGER, "ledger", f"{name} is not committed to git: git add {name}, then commit it")
    elif not last.begins(content):
        merging, entries = git.at("MERGE_HEAD"), _entries(content.split(b"\n")) or []
        if merging and content.startswith(merging) and holds(entries, reader.at(last.commit.sha) or b""):
            log.note(LEDGER, "ledger", f"{name}: the merge that holds HEAD's entries is not committed yet")
            return
        line = _line(reader, last, content)
        at = last.commit.short if last.removed else "HEAD"
        if content:
            what = f"{name}, line {line}: the committed ledger (git show {at}:{name}) differs"
        else:
            what = f"{name} is gone or empty: `git checkout {at} -- {name}` brings it back"
        log.finding(LEDGER, "ledger", what)
    elif last.size < len(content):
        number = content[last.size :].count(b"\n")
        last_ones = "the last entry is" if number == 1 else f"the last {number} entries are"
        log.note(LEDGER, "ledger", f"{name}: {last_ones} not committed to git yet")


def _check_upstream(git: GitFile, content: bytes, name: str, log: AuditLog) -> None:
    """Check the upstream branch: one of the two ledgers has to be the beginning of the other."""
    upstream = git.line("rev-parse", "--abbrev-ref", "--symbolic-full-name", "@{upstream}")
    theirs = git.at("@{upstream}") if upstream else None
    if theirs is None or content.startswith(theirs):
        return
    if theirs.startswith(content):
        number = theirs[len(content) :].count(b"\n")
        log.note(LEDGER, "git", f"{name}: {upstream} has {number} more entries (git pull)")
        return
    ours, others = (_entries(one.split(b"\n")) or [] for one in (content, theirs))
    if holds(ours, theirs):
        return
    if holds(others, content):
        log.note(LEDGER, "git", f"{name}: {upstream} has merged this one with another (git pull)")
        return
    line = _first_difference(theirs, content)
    log.finding(
        LEDGER,
        "git",
        f"{name}, line {line}: {upstream} has another. Was this one rewritten, or did both branches move "
        f"something? Then git merge {upstream}, and `canal ledger merge` joins the two",
    )


def _line(reader: Reader, state: _State, content: bytes) -> int:
    return _first_difference(reader.at(state.commit.sha) or b"", content)


def _first_difference(one: bytes, other: bytes) -> int:
    ours, theirs = one.split(b"\n"), other.split(b"\n")
    pairs = enumerate(zip(ours, theirs, strict=False), start=1)
    return next((number for number, (left, right) in pairs if left != right), min(len(ours), len(theirs)))


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
