"""Read, check and edit the file params.yaml; edits keep its comments and formatting."""

import re
from collections.abc import Iterable, Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError
from ruamel.yaml.representer import RoundTripRepresenter

from canal.config.params import Config
from canal.config.sections import BACKBONE, DanglingNameError
from canal.core.errors import ConfigError, did_you_mean, shown_address
from canal.core.files import new_file
from canal.core.progress import count

_MARKS = ("<<<<<<< ", ">>>>>>> ")
_ADDRESSES = ("url", "storage")
"""Keys whose values may hold a password."""
_LARGEST, _DEEPEST = 200_000, 50
"""Most values of a YAML text with aliases expanded, and the deepest nesting; params.yaml has hundreds."""


def parse_yaml(text: str | bytes, name: str) -> Any:
    """Return the value of a YAML text, after limiting the size of its expanded aliases.

    Parameters
    ----------
    text
        UTF-8, as bytes or decoded.
    name
        The file's name, for messages.

    Raises
    ------
    ConfigError
        If the text is no YAML, has too many values or levels, or an alias refers to itself.
    """
    try:
        _count(YAML(typ="safe").parse(text), name)
        return YAML(typ="safe").load(text)
    except YAMLError as error:
        check_merged(text, name)
        raise ConfigError(f"{name} is no valid YAML: {_without_advice(error)}") from error
    except (ValueError, LookupError, ArithmeticError, TypeError, AttributeError) as error:
        # Invalid scalars, such as the date 2001-99-99, raise Python's own errors.
        raise ConfigError(f"{name} holds a value that cannot be read: {str(error)[:200]}") from error


def _without_advice(error: YAMLError) -> str:
    """Return what is wrong and in which line, without ruamel's advice to those who write programs."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return str(error)
    said = f"{getattr(error, 'context', None) or ''} {getattr(error, 'problem', None) or ''}".strip()
    return f"{said} (line {mark.line + 1})"


def check_merged(text: str | bytes, name: str) -> None:
    """Raise for a text with git's merge conflict markers.

    Raises
    ------
    ConfigError
        With the numbers of the lines.
    """
    lines = (text.decode("utf-8", "replace") if isinstance(text, bytes) else text).splitlines()
    marked = [str(number) for number, line in enumerate(lines, start=1) if line.startswith(_MARKS)]
    if marked:
        raise ConfigError(
            f"{name} has an unresolved merge conflict (git's markers <<<<<<< and >>>>>>> in lines "
            f"{', '.join(marked[:6])}): resolve it, remove the markers, then run this again. "
            f"`git checkout --ours {Path(name).name}` keeps your side alone, `--theirs` the other one"
        )


def _count(events: Iterable[Any], name: str) -> None:
    """Raise `ConfigError` for too many values (aliases expanded) or too deep nesting."""
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []
    total = 0
    for event in events:
        kind = type(event).__name__
        if kind == "AliasEvent":
            if event.anchor in (anchor for anchor, _ in open_nodes):
                raise ConfigError(f"{name}: the alias *{event.anchor} refers to a value that contains it")
            total += sizes.get(event.anchor, 1)
        elif kind == "ScalarEvent":
            total += 1
            sizes |= {event.anchor: 1} if event.anchor else {}
        elif kind in ("MappingStartEvent", "SequenceStartEvent"):
            open_nodes.append((event.anchor, total))
            total += 1
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            anchor, before = open_nodes.pop()
            sizes |= {anchor: total - before} if anchor else {}
        if len(open_nodes) > _DEEPEST:
            raise ConfigError(f"{name}: values are nested more than {_DEEPEST} levels deep")
        if total > _LARGEST:
            raise ConfigError(f"{name} holds more than {_LARGEST:,} values (aliases expanded)")


def _problems(error: ValidationError) -> Iterator[str]:
    """Yield a line for each problem, starting with the path of the key."""
    for item in error.errors(include_url=False):
        path = ".".join(str(part) for part in item["loc"] if part != "[key]")
        if item["type"] == "extra_forbidden":
            yield f"{path}: unknown key"
        elif item["type"] == "missing":
            yield f"{path}: missing"
        elif item["type"] == "value_error" and isinstance(item["ctx"]["error"], DanglingNameError):
            yield str(item["ctx"]["error"])
        elif item["type"] == "literal_error":
            found = str(item["input"])
            near = did_you_mean(found, re.findall("'([^']+)'", item["ctx"]["expected"]))
            yield f"{path}: expected {item['ctx']['expected']}, found {found[:80]!r}{near}"
        else:
            message = item["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list")
            value = shown_address(str(item["input"])) if path.endswith(_ADDRESSES) else str(item["input"])
            found = "" if item["type"] == "value_error" else f" (found {value[:80]!r})"
            yield f"{path}: {message}{found}"


class InvalidParamsError(ConfigError):
    """A params document breaks rules of the configuration: a line for each problem."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        self.problems = problems
        lines = "\n  ".join(problems)
        super().__init__(f"params.yaml has {count(len(problems), 'problem')}:\n  {lines}")

    def about_stage(self, name: str) -> ConfigError:
        """Return the error for a command that declares a stage: its user wrote options, no params.yaml."""
        keys = (f"stages.{name}.panel.", f"sources.{name}.", f"stages.{name}.")
        lines = []
        for problem in self.problems:
            key = next((one for one in keys if problem.startswith(one)), None)
            if key is not None:
                option, _, what = problem.removeprefix(key).partition(": ")
                problem = f"--{_OPTIONS.get(option, option).replace('_', '-')}: {what}"
            elif problem.startswith((f"sources.{name}: ", f"stages.{name}: ")):
                problem = f"the stage's name: {problem.partition(': ')[2]}"
            lines.append(problem)
        return ConfigError("; ".join(dict.fromkeys(lines)))


_OPTIONS = {"label_map": "map"}
"""Options that are called otherwise than their key."""


def parse_config(document: Mapping[str, Any]) -> Config:
    """Check a params document and return it typed.

    Raises
    ------
    ConfigError
        With one line for each problem, each beginning with the path of its key.
    """
    try:
        return Config.model_validate(_tuples(document))
    except ValidationError as error:
        raise InvalidParamsError(tuple(_problems(error))) from error


def _tuples(value: Any) -> Any:
    """Return ``value`` with lists as tuples, as the frozen sections hold them."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def load_config(path: Path) -> Config:
    """Read and check ``params.yaml``.

    Raises
    ------
    ConfigError
        If the file is missing, is no YAML mapping, or breaks a rule.
    """
    if not path.is_file():
        raise ConfigError(f"{path} not found: run canal in a project folder, or name one with --root")
    try:
        document = parse_yaml(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    if not isinstance(document, Mapping):
        found = "nothing" if document is None else type(document).__name__
        raise ConfigError(f"{path} must hold a mapping of sections, found {found}")
    return parse_config(document)


def with_stage(
    text: str, name: str, source: Mapping[str, Any], parent: str | None, fixed: bool = False, grow: int = 0
) -> str:
    """Return params.yaml's text with one more source and one more stage, both called ``name``.

    It is learned on ``parent``, by default the last stage; the first stage chooses the lineage's panel. It is
    tuned where params.yaml has a section ``tuning``, unless it is to be ``fixed``, is the first one or is
    learned by sums alone. It may add ``grow`` genes to its parent's panel.

    Raises
    ------
    ConfigError
        If the name is taken or no name, or the result would break a rule.
    """
    text = with_tune(text)
    config = parse(text)
    for section in ("sources", "stages"):
        if name in getattr(config, section):
            raise ConfigError(f"{section}.{name} exists already; choose another name")
    parent = parent or (config.last_stage if config.stages else BACKBONE)
    entry: dict[str, Any] = {"source": name, "parent": parent}
    if parent != BACKBONE and not fixed and config.tuning is not None and config.continual.method != "exact":
        entry["tune"] = True
    if grow:
        entry["panel"] = {"grow": grow}
    text = _append(_append(text, "sources", {name: dict(source)}), "stages", {name: entry})
    if not config.stages:
        document = round_trip().load(text)
        panel = document.setdefault("panel", CommentedMap())
        panel["stage"] = name
        text = dumped(document)
    try:
        parse(text)
    except InvalidParamsError as error:
        raise error.about_stage(name) from error
    return text


def with_tune(text: str) -> str:
    """Return params.yaml's text with ``tune`` in its stages instead of the section ``finetune`` of before.

    A text without that section is returned as it is.
    """
    document = round_trip().load(text)
    if not isinstance(document, CommentedMap) or "finetune" not in document:
        return text
    tuned = parse(text).tuned
    lines, names = text.splitlines(keepends=True), list(document)
    start, after = document.lc.key("finetune")[0], names[names.index("finetune") + 1 :]
    end = document.lc.key(after[0])[0] if after else len(lines)
    while not lines[end - 1].strip() or lines[end - 1].startswith("#"):
        end -= 1  # a comment above the next section is that one's
    if not "".join(lines[end : end + 1]).strip() and not "".join(lines[start - 1 : start]).strip():
        end += 1
    document = round_trip().load("".join([*lines[:start], *lines[end:]]))
    for name in tuned:
        document["stages"][name]["tune"] = True
    return dumped(document)


def with_rest(text: str, rests: Mapping[str, str]) -> str:
    """Return params.yaml's text with the digests of what is left of some sources' files."""
    document = round_trip().load(text)
    for name, digest in rests.items():
        document["sources"][name]["rest"] = digest
    return dumped(document)


def with_import(text: str, path: str, key: str) -> str:
    """Return params.yaml's text with the imported backbone in folder ``path``, whose key has digest ``key``.

    Raises
    ------
    ConfigError
        If the result would break a rule: an imported backbone excludes some settings of pre-training.
    """
    document = round_trip().load(text)
    put_entry(document.setdefault("backbone", CommentedMap()), "imported", {"path": path, "key": key})
    text = dumped(document)
    parse(text)
    return text


def with_basis(text: str, path: str, digest: str) -> str:
    """Return params.yaml's text with the adopted basis in folder ``path``.

    Raises
    ------
    ConfigError
        If the result would break a rule.
    """
    document = round_trip().load(with_sections(text))
    put_entry(document["memory"], "basis", {"path": path, "digest": digest})
    text = dumped(document)
    parse(text)
    return text


def put_entry(section: Any, name: str, entry: Mapping[str, Any]) -> None:
    """Set an entry of a section of a round-trip document; a new entry is inserted at the top.

    Blank lines and comments after the section's last line belong to the next section.
    """
    if name in section:
        section[name] = entry
    else:
        section.insert(0, name, entry)


_COMPARED = {"memory": "{}              # how sums are solved; docs/memory.md", "tuning": "null"}
"""Sections that DVC compares and that older files lack; as they stand here they mean the same as none."""


def with_sections(text: str) -> str:
    """Return params.yaml's text with every section that DVC compares; requests of stages do not change."""
    for name, value in _COMPARED.items():
        if not re.search(rf"^{name}\s*:", text, re.MULTILINE):
            text = f"{text.rstrip()}\n\n{name}: {value}\n"
    return text


def parse(text: str) -> Config:
    """Return the configuration that a params.yaml text describes."""
    return parse_config(parse_yaml(text, "params.yaml"))


def save(path: Path, text: str, before: str) -> None:
    """Replace params.yaml atomically, if it still is the text ``before`` that the new one was made from.

    Raises
    ------
    ConfigError
        If an editor or another command changed the file meanwhile; it is left as it is.
    """
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        if path.read_text(encoding="utf-8") != before:
            raise ConfigError(
                f"{path} was changed while this command ran, by an editor or another command, so it is left "
                "as it is: call the command again"
            )


def _append(text: str, section: str, entry: Mapping[str, Any]) -> str:
    """Insert an entry at the end of a top-level mapping, which may be ``{}``; other lines stay as they are.

    Blank lines and comments after its last entry belong to the next section.
    """
    lines = text.splitlines(keepends=True)
    if lines and lines[-1][-1] != "\n":
        lines[-1] += "\n"
    opening = re.compile(rf"{section}:\s*(\{{\s*\}}\s*)?(#.*)?$")
    start = next((number for number, line in enumerate(lines) if opening.match(line)), None)
    if start is None:
        raise ConfigError(
            f"params.yaml: `{section}:` must stand on a line of its own to be edited by `canal stage add`"
        )
    lines[start] = re.sub(r":\s*\{\s*\}", ":", lines[start])
    end = start + 1
    for number, line in enumerate(lines[end:], start=end):
        if line.strip() and not line.startswith((" ", "#")):
            break
        if line.startswith(" ") and line.strip():
            end = number + 1
    added = [f"  {line}\n" for line in dumped(entry).splitlines()]
    return "".join([*lines[:end], *added, *lines[end:]])


def round_trip() -> Any:
    """Return a reader and writer of YAML that keeps comments and quotes."""

    class Representer(RoundTripRepresenter):
        """Writes null as ``null``, as people do; ruamel leaves its place empty."""

    null = "tag:yaml.org,2002:null"
    Representer.add_representer(type(None), lambda to, _: to.represent_scalar(null, "null"))
    yaml = YAML()
    yaml.Representer = Representer
    yaml.width = 10_000
    yaml.preserve_quotes = True
    return yaml


def dumped(document: Any) -> str:
    """Return the text of a document that `round_trip` has read."""
    stream = StringIO()
    round_trip().dump(document, stream)
    return stream.getvalue()
