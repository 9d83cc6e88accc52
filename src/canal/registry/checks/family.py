"""All versions of a registry as members of chains, each opened once and its manifests checked then."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from canal.core.digests import file_digest
from canal.core.errors import CanalError
from canal.core.files import unreadable
from canal.registry.bundle import Record
from canal.registry.checks.finding import Found, examples, version_name
from canal.registry.checks.member import ANCESTORS, Member
from canal.registry.checks.version_files import check_key, check_record, read_manifest_key
from canal.registry.downloads import Bring
from canal.registry.key import KEY_FILE, read_key
from canal.registry.ledger import Entry
from canal.registry.schema import schema_complaints
from canal.registry.store import Store, Version


class Family:
    """The versions of both registered models, and the ledger's last word on each.

    ``bring`` returns the folder with a version's artifacts (`canal.registry.downloads.fresh_copies`): a
    server's own bytes are judged, not a copy that was good once.
    """

    def __init__(
        self,
        store: Store,
        versions: Sequence[Version],
        entries: Mapping[tuple[str, int], Entry],
        found: Found,
        bring: Bring,
    ) -> None:
        self._store = store
        self._bring = bring
        self._found = found
        self._entries = entries
        self._by_key: dict[str, Version] = {}
        for version in versions:
            self._by_key.setdefault(version.key, version)
        self._opened: dict[tuple[str, int], Member | None] = {}

    def member(self, version: Version) -> Member | None:
        """Return a version whose key.json holds; None, and findings, where it does not."""
        place = (version.model, version.number)
        if place not in self._opened:
            self._opened[place] = self._open(version)
        return self._opened[place]

    def record(self, member: Member) -> Record | None:
        """Check record.json and all it covers, and return it if it holds."""
        if member.version is None:
            return None
        version = member.version
        return check_record(member, version, self._entry(version), self._found)

    def chain(self, member: Member) -> list[Member]:
        """Return a member's ancestors and itself, oldest first; a finding says where the chain breaks off.

        A parent is looked for among the registered versions, then among what came with an imported one.
        """
        chain, came_with = [member], member
        while (parent := chain[0].parent) is not None:
            version = self._by_key.get(parent)
            found = self._came_with(came_with, parent) if version is None else self.member(version)
            if version is None and found is None:
                what = f"key.json names the parent {parent[:12]}..., which is not registered"
                self._found.wrong(chain[0].name, "chain", what)
            if found is None or found in chain:
                break
            came_with = found if found.version is not None else came_with
            chain.insert(0, found)
        return chain

    def _open(self, version: Version) -> Member | None:
        name = version_name(self._store, version.model, version.number)
        try:
            folder = self._bring(version)
        except CanalError as error:
            self._found.wrong(name, "files", f"its artifacts are not there: {error}")
            return None
        if closed := unreadable(folder):
            names = examples([path.relative_to(folder).as_posix() for path in closed])
            what = f"this user may not read {names} in {folder}: whose they are can grant it (chmod -R a+rX)"
            self._found.wrong(name, "files", what)
            return None
        key = read_manifest_key(name, folder, version, self._entry(version), self._found)
        if key is None:
            self._found.note(name, "files", "its other files were not checked: key.json does not hold")
            return None
        member = Member(name, folder, key, file_digest(folder / KEY_FILE), version)
        check_key(member, self._found)
        return member

    def _entry(self, version: Version) -> Entry | None:
        return self._entries.get((version.model, version.number))

    def _came_with(self, member: Member, key: str) -> Member | None:
        return ancestor(member.folder / ANCESTORS / key, key, member.name, self._found)


def ancestor(folder: Path, digest: str, of: str, found: Found) -> Member | None:
    """Return what came with an imported version of one of its ancestors, if its key.json holds."""
    if not (folder / KEY_FILE).is_file():
        return None
    name = f"{of}, ancestor {digest[:12]}"
    if file_digest(folder / KEY_FILE) != digest:
        found.wrong(
            name, "files", f"{ANCESTORS}/{digest}/{KEY_FILE} is not the key that its folder is called after"
        )
        return None
    try:
        key = read_key(folder)
    except CanalError as error:
        found.wrong(name, "schema", str(error))
        return None
    if broken := schema_complaints("key", key):
        found.wrong(name, "schema", f"{KEY_FILE} breaks its schema: {broken[0]}")
        return None
    return Member(name, folder, key, digest, None)
