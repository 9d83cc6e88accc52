"""Bundles: the same bytes for the same content, read back whole, and every hostile one refused unwritten."""

import hashlib
import json
import stat
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from canal.core.errors import AuditError
from canal.registry.transfer.bundle import Content, check_names, parse_manifest, unpack_bundle, write_bundle
from canal.registry.transfer.proof import prove
from tests.support.bundle_files import make_bundle, make_files, member, remade, with_listing
from tests.support.lineage import make_specs


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle"))


def unpacked(path, into):
    into.mkdir()
    manifest = unpack_bundle(path, into)
    return manifest, prove(into, manifest)


def test_a_bundle_is_read_as_it_was_written(bundle, tmp_path):
    manifest, chain = unpacked(bundle, tmp_path / "in")
    assert [one.stage for one in chain] == ["backbone", "first", "second"]
    with zipfile.ZipFile(bundle) as archive:
        names = archive.namelist()
        assert names == ["manifest.json", *sorted(manifest.files)]
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert (tmp_path / "in" / "version" / "key.json").is_file()


def test_the_same_content_gives_the_same_bytes(tmp_path):
    about, files = make_files(tmp_path)
    write_bundle(tmp_path / "a.zip", about, files)
    for path in files.values():
        path.touch()
    write_bundle(tmp_path / "b.zip", about, dict(reversed(files.items())))
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def more(*members):
    return lambda old: [*old, *members]


def listed(name, content=b"x", **about):
    """Return a change that adds a member and lists it in the manifest."""
    digest = hashlib.sha256(content).hexdigest()

    def change(old):
        claims = Content(about.get("size", len(content)), about.get("sha256", digest))
        return [*with_listing(old, lambda files: files.update({name: claims})), member(name, content)]

    return change


def compressed(old):
    info, content = old[-1]
    info.compress_type = zipfile.ZIP_DEFLATED
    return [*old[:-1], (info, content)]


def without(name):
    return lambda old: [one for one in old if one[0].filename != name]


def edited(name, change):
    return lambda old: [
        (info, change(content)) if info.filename == name else (info, content) for info, content in old
    ]


HOSTILE = {
    "out of the folder": (more(member("../x")), "leads out of its folder"),
    "out of the folder, listed": (listed("version/../../x"), "leads out of its folder"),
    "an absolute path": (more(member("/etc/x")), "is no relative path"),
    "a Windows path": (more(member("version\\..\\x")), "is no relative path"),
    "a drive": (more(member("C:x")), "is no relative path"),
    "a name with NUL": (more(member("version/a\u0001b")), "cannot be seen"),
    "a long name": (more(member("x" * 5000)), "has 5000 characters"),
    "a folder": (more(member("version/new/", b"", stat.S_IFDIR | 0o755)), "is a folder"),
    "a link": (more(member("version/link", b"/etc/passwd", stat.S_IFLNK | 0o777)), "is a link"),
    "a pipe": (more(member("version/pipe", b"", stat.S_IFIFO | 0o644)), "another kind of file"),
    "a member twice": (lambda old: [*old, old[-1]], "twice"),
    "a name in capitals": (more(member("VERSION/KEY.JSON")), "the same on some systems"),
    "a file as a folder": (more(member("version/key.json/x")), "as a file and as a folder"),
    "an unknown file": (more(member("version/evil.py")), "does not name"),
    "a known file that belongs to nothing": (listed("version/evil.py"), "neither key.json nor record.json"),
    "an ancestor of nothing": (listed(f"ancestors/{'9' * 64}/key.json"), "it belongs to nothing"),
    "a missing file": (without("version/model/labels.json"), "not all of its files"),
    "no manifest": (without("manifest.json"), "holds no manifest"),
    "a manifest that is no JSON": (edited("manifest.json", lambda _: b"{"), "is damaged"),
    "another format": (
        edited("manifest.json", lambda text: text.replace(b'"format": 1', b'"format": 2')),
        "reads format 1, found 2",
    ),
    "another digest": (listed("version/new", sha256="0" * 64), "is not what manifest.json says"),
    "another size": (listed("version/new", size=2), "has 1 bytes, manifest.json says 2"),
    "a compressed member": (compressed, "is compressed"),
    "other bytes": (
        edited("version/model/labels.json", lambda text: text.replace(b"A", b"Z")),
        "labels.json is not what manifest.json says",
    ),
    "no word of the ledger": (
        lambda old: with_listing(
            edited("ledger.jsonl", lambda _: b"")(old),
            lambda files: files.update({"ledger.jsonl": Content(0, hashlib.sha256(b"").hexdigest())}),
        ),
        "no entry says that the version was registered",
    ),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("attack", HOSTILE)
def test_what_an_enemy_makes_is_refused_and_nothing_is_written_elsewhere(bundle, tmp_path, attack):
    change, expected = HOSTILE[attack]
    evil = remade(bundle, tmp_path / "evil.zip", change)
    with pytest.raises(AuditError, match=expected):
        unpacked(evil, tmp_path / "in")
    assert {path.name for path in tmp_path.iterdir()} == {"evil.zip", "in"}


def test_a_size_that_is_only_claimed_is_refused(bundle, tmp_path):
    """The central directory claims gigabytes that the file does not weigh."""
    content = bytearray(bundle.read_bytes())
    place = content.rfind(b"PK\x01\x02")
    content[place + 20 : place + 28] = (0x7FFFFFFF).to_bytes(4, "little") * 2
    (tmp_path / "evil.zip").write_bytes(bytes(content))
    with pytest.raises(AuditError, match="claims to unpack to"):
        unpacked(tmp_path / "evil.zip", tmp_path / "in")


def test_what_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(AuditError, match=r"none\.zip: no such file"):
        unpack_bundle(tmp_path / "none.zip", tmp_path)
    (tmp_path / "text.zip").write_text("no ZIP file")
    with pytest.raises(AuditError, match="no whole ZIP file"):
        unpack_bundle(tmp_path / "text.zip", tmp_path)


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_or_cut_bundle_is_refused_or_harmless(bundle, tmp_path_factory, data):
    """Whatever byte changes, and wherever the file ends: one clear error, or the same files."""
    content = bytearray(bundle.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    cut = data.draw(st.booleans())
    if cut:
        del content[place:]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "evil.zip").write_bytes(bytes(content))
    (folder / "in").mkdir()
    try:
        manifest = unpack_bundle(folder / "evil.zip", folder / "in")
    except AuditError:
        return
    assert not cut
    with zipfile.ZipFile(bundle) as archive:
        assert manifest == parse_manifest(archive.read("manifest.json"))
        for name in manifest.files:
            assert (folder / "in" / name).read_bytes() == archive.read(name)


@given(st.text(st.sampled_from("ab.-/\\:~ \0\n\u202e\u00e9"), max_size=12))
def test_a_name_that_passes_stays_in_its_folder(name):
    try:
        check_names([name])
    except AuditError:
        return
    assert (Path("/folder") / name).resolve().is_relative_to("/folder/")
    assert Path(name).name


UNPROVEN = {
    "a broken link": (
        lambda specs: setattr(specs["second"], "labels", ["B", "A", "C"]),
        "does not begin with the 2 labels",
    ),
    "a test cell in the bank": (
        lambda specs: specs["second"].bank.append(("second", "C6", "C", 3)),
        "are test cells of second",
    ),
    "a gate that did not pass": (lambda specs: setattr(specs["second"], "passed", False), "did not pass"),
    "a hostile label": (
        lambda specs: setattr(specs["second"], "labels", ["A", "B", "C\u202e"]),
        "cannot be seen",
    ),
}


@pytest.mark.parametrize("fault", UNPROVEN)
def test_a_version_that_proves_nothing_is_refused(tmp_path, fault):
    change, expected = UNPROVEN[fault]
    specs = make_specs()
    change(specs)
    path = make_bundle(tmp_path, specs)
    with pytest.raises(AuditError, match=f"(?s)does not prove what it claims.*{expected}"):
        unpacked(path, tmp_path / "in")


def test_another_key_than_the_ledger_names_is_refused(tmp_path):
    about, files = make_files(tmp_path / "made")
    write_bundle(tmp_path / "a.zip", replace(about, key="7" * 64), files)
    with pytest.raises(AuditError, match=r"key\.json has sha256 .*, but the tag says 777777777777"):
        unpacked(tmp_path / "a.zip", tmp_path / "in")


@pytest.mark.parametrize(
    "names",
    [["version/model/weights.safetensors"], ["version/key.json"], ["bank/bank.h5ad/../x"], [3], "bank", None],
)
def test_only_files_with_cells_may_be_withheld(bundle, names):
    with zipfile.ZipFile(bundle) as archive:
        document = json.loads(archive.read("manifest.json"))
    for name in names if isinstance(names, list) else ():
        document["files"].pop(name, None)
    with pytest.raises(AuditError, match="withholds|damaged"):
        parse_manifest(json.dumps({**document, "withheld": names}).encode())


def test_a_file_that_is_there_is_not_withheld(bundle):
    with zipfile.ZipFile(bundle) as archive:
        document = json.loads(archive.read("manifest.json"))
    with pytest.raises(AuditError, match="withholds"):
        parse_manifest(json.dumps({**document, "withheld": ["version/split/cells.csv"]}).encode())
