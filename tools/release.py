"""A release: everything that names its version agrees, then a wheel, an sdist and its notes lie in dist/.

    python tools/release.py [--out FOLDER] [--tag vVERSION]

Before: give CHANGELOG.md's `Unreleased` part the version and the day, set the version in pyproject.toml,
`canal.core` and CITATION.cff, commit. After: `git tag vVERSION` and push it; .github/workflows/release.yml
does the rest.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = {
    "pyproject.toml": r'^version = "([^"]+)"',
    "src/canal/core/__init__.py": r'^__version__ = "([^"]+)"',
    "CITATION.cff": r"^version: (\S+)",
}
"""File -> what captures the version that it names."""


def main() -> None:
    """Refuse what does not agree; build."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="by default dist/")
    parser.add_argument("--tag", help="refuse unless this tag is the version's")
    asked = parser.parse_args()
    out = asked.out
    try:
        version = agreed_version(ROOT)
        check_tag(asked.tag, version)
        notes = notes_of((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version)
        require_clean(ROOT)
    except ValueError as error:
        sys.exit(f"release: {error}")
    build(ROOT, out)
    (out / "NOTES.md").write_text(notes, encoding="utf-8")
    print(f"release {version}: {', '.join(sorted(path.name for path in out.iterdir()))} in {out}")


def agreed_version(root: Path) -> str:
    """Return the version that all files name.

    Raises
    ------
    ValueError
        If they differ, or one names none.
    """
    found: dict[str, str] = {}
    for name, pattern in VERSIONS.items():
        match = re.search(pattern, (root / name).read_text(encoding="utf-8"), re.MULTILINE)
        found[name] = match[1] if match else "none"
    if len(set(found.values())) > 1 or "none" in found.values():
        named = ", ".join(f"{name} names {version}" for name, version in found.items())
        raise ValueError(f"all must name one version; {named}")
    return found["pyproject.toml"]


def check_tag(tag: str | None, version: str) -> None:
    """Refuse a tag that is not ``v`` and the version; None is no tag.

    Raises
    ------
    ValueError
        If it differs.
    """
    if tag not in (None, f"v{version}"):
        raise ValueError(f"the tag is {tag}, but the files name {version}: expected v{version}")


def notes_of(changelog: str, version: str) -> str:
    """Return the part of CHANGELOG.md about a version.

    Raises
    ------
    ValueError
        If there is none, or it is empty.
    """
    parts = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    for part in parts:
        heading, _, text = part.partition("\n")
        if heading.split(" ")[0].strip("[]") == version:
            if not text.strip():
                raise ValueError(f"CHANGELOG.md says nothing of {version}")
            return text.strip() + "\n"
    headings = ", ".join(part.partition("\n")[0] for part in parts[:5]) or "none"
    raise ValueError(f"CHANGELOG.md has no part `## {version} (DAY)`; its parts are {headings}")


def require_clean(root: Path) -> None:
    """Refuse where git has changes that are not committed: a release is of a commit."""
    command = ["git", "status", "--porcelain", "--untracked-files=no"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode or done.stdout.strip():
        said = (done.stderr or done.stdout).strip().splitlines()
        raise ValueError(f"commit first; git says: {said[0] if said else 'nothing'}")


def build(root: Path, out: Path) -> None:
    """Write a wheel and an sdist with the build tools that are installed here; nothing is downloaded."""
    out.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(root)],
        stdout=subprocess.DEVNULL,
        check=True,
    )


if __name__ == "__main__":
    main()
