"""A release is refused unless every file names one version; its wheel holds what the source tree does."""

import importlib.util
import shutil
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("release", ROOT / "tools" / "release.py")
assert spec is not None
assert spec.loader is not None
release = importlib.util.module_from_spec(spec)
spec.loader.exec_module(release)


@pytest.fixture
def tree(tmp_path):
    """What a release reads, in a folder of its own."""
    for name in (*release.VERSIONS, "README.md", "LICENSE", "CHANGELOG.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


def test_all_files_of_this_tree_name_one_version(tree):
    import canal

    assert release.agreed_version(tree) == canal.__version__


@pytest.mark.parametrize("name", sorted(release.VERSIONS))
def test_a_file_that_names_another_version_is_refused(tree, name):
    import canal

    text = (tree / name).read_text()
    (tree / name).write_text(text.replace(canal.__version__, "9.9.9", 1))
    with pytest.raises(ValueError, match=rf"one version; .*{name} names 9\.9\.9"):
        release.agreed_version(tree)


def test_a_tag_of_another_version_is_refused():
    release.check_tag("v1.2.0", "1.2.0")
    release.check_tag(None, "1.2.0")
    with pytest.raises(ValueError, match=r"the tag is v1\.3, but the files name 1\.2\.0: expected v1\.2\.0"):
        release.check_tag("v1.3", "1.2.0")


def test_notes_are_the_part_of_the_changelog():
    log = "# Changelog\n\n## Unreleased\n\n## 1.2.0 (2026-11-29)\n\n### Added\n- x\n\n## 1.1.0\n\n- y\n"
    assert release.notes_of(log, "1.2.0") == "### Added\n- x\n"
    assert release.notes_of(log, "1.1.0") == "- y\n"
    with pytest.raises(ValueError, match=r"no part `## 1\.3\.0 \(DAY\)`; its parts are Unreleased, 1\.2\.0"):
        release.notes_of(log, "1.3.0")
    with pytest.raises(ValueError, match="says nothing of 1\\.2\\.0"):
        release.notes_of("## 1.2.0\n\n## 1.1.0\n- y\n", "1.2.0")


def test_the_wheel_holds_every_module_and_no_test(tree, tmp_path):
    shutil.copyfile(ROOT / "pyproject.toml", tree / "pyproject.toml")
    shutil.copytree(
        ROOT / "src",
        tree / "src",
        ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"),
        dirs_exist_ok=True,
    )
    release.build(tree, tmp_path / "dist")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert len(list((tmp_path / "dist").glob("*.tar.gz"))) == 1
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tracked = {
        path.relative_to(tree / "src").as_posix() for path in (tree / "src").rglob("*") if path.is_file()
    }
    tracked = {name for name in tracked if ".egg-info/" not in name and "__pycache__" not in name}
    assert held == tracked
