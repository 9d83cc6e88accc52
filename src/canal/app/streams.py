"""Streams of published experiments: `canal init --stream` declares them over files that the user has.

A stream names its stages in order, the species and the published settings. Where its files lie, what their
columns are called and which labels mean one type is up to the user.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canal.annotation.label_maps import read_label_map
from canal.app.declaring import declare_labelled, labels_in
from canal.config.sections import (
    NAME_PATTERN,
    PUBLISHED_BANK_SIZE,
    PUBLISHED_DISTILLATION,
    Continual,
    Method,
    Novelty,
)
from canal.config.stage_sections import Source
from canal.config.yaml_file import dumped, parse, parse_yaml, round_trip, with_stage
from canal.core.errors import ConfigError, SourceError, no_such_file, there_are
from canal.io.arrays import EXAMPLES, listed

_STREAMS = Path(__file__).parent / "templates" / "streams"
_PER_SOURCE = {*Source.model_fields} - {"rest", "available", "url", "wheel"}

PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "split": {"train": 0.64, "validation": 0.16, "test": 0.2},
    "panel": {"size": 1000, "rule": "dispersion"},
    "backbone": {"preset": "scbert"},
    "bank": {"capacity": PUBLISHED_BANK_SIZE},
}
"""Published settings that are no defaults of ours; a fifth of each stage is tested on, the rest is 80/20."""

_LEARNING = ("label_smoothing", "learning_rate", "batch_size", "max_epochs", "patience")
"""Settings of learning whose default is the published one: they stand in params.yaml to be seen."""


@dataclass(frozen=True)
class StreamOptions:
    """What a user says about the files of a stream.

    Attributes
    ----------
    data : Path
        The folder of the files, each ``STAGE.h5ad`` unless ``sources`` says another path.
    order : tuple of str
        The stages in order, where the stream does not name them, or others are wanted.
    declared : dict
        What holds for every file: ``label``, ``values``, ``batch``, ``layer``, ``gene_column``; or None.
    label_map : Path or None
        A CSV of label and cell type for every file.
    sources : Path or None
        A YAML file with what differs: a mapping of stage -> keys of ``sources`` in params.yaml.
    held_out : tuple of str
        Cell types to hold out as novel instead of the stream's own.
    """

    data: Path
    order: tuple[str, ...] = ()
    declared: Mapping[str, Any] | None = None
    label_map: Path | None = None
    sources: Path | None = None
    held_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class StreamSource:
    """One file of a stream: its declaration, and whether its digest was expected or only computed."""

    stage: str
    source: dict[str, Any]
    expected: bool


@dataclass(frozen=True)
class Stream:
    """A stream over files that exist.

    Attributes
    ----------
    name, about : str
    species : str
    sources : tuple of StreamSource
        The stages in order.
    unseen : dict
        Data sets that are never learned, by name: their file.
    held_out : tuple of str
    published : str
        What was published of it; empty where canal's docs know nothing.
    """

    name: str
    about: str
    species: str
    sources: tuple[StreamSource, ...]
    unseen: Mapping[str, Path]
    held_out: tuple[str, ...]
    published: str

    def params(self, text: str, method: Method) -> str:
        """Return a new project's params.yaml with the stream's sources, stages and the published settings."""
        for one in self.sources:
            text = with_stage(text, one.stage, one.source, None, fixed=True)
        document, learning = round_trip().load(text), Continual()
        document["continual"] |= {
            "method": method,
            "distillation": PUBLISHED_DISTILLATION,
            "bank_size": PUBLISHED_BANK_SIZE,
            **{name: getattr(learning, name) for name in _LEARNING},
        }
        for section, settings in PUBLISHED.items():
            document[section] |= settings
        document["novelty"] |= {"temperature": Novelty().temperature}
        if self.held_out:
            document["novelty"]["holdouts"] = list(self.held_out)
        if self.species != "human":
            document["gate"] |= {"species": self.species}
        text = dumped(document)
        parse(text)
        return text


def stream_names() -> list[str]:
    """Return the names of all streams that canal knows."""
    return sorted(path.stem for path in _STREAMS.glob("*.yaml"))


def find_stream(name: str, options: StreamOptions, root: Path) -> Stream:
    """Return a stream over the user's files; ``root`` is the project that is to learn it.

    Raises
    ------
    ConfigError
        If there is no such stream, it does not name its stages, or a type to be held out is in no file.
    SourceError
        If files are missing (all that are expected are named), or one is another than was declared.
    DataError
        If a file is no h5ad file that can be read.
    """
    known = _document(_STREAMS / f"{name}.yaml") if name in stream_names() else None
    if known is None:
        raise ConfigError(f"no stream {name[:80]!r}{there_are(name, stream_names())}")
    stages = {stage: known["stages"].get(stage) or {} for stage in options.order or known["stages"]}
    if not stages:
        raise ConfigError(
            f"which data sets {name} learns, and in which order, is not in canal's docs: name their files "
            "with --order FIRST,SECOND,..."
        )
    for stage in stages:
        if not NAME_PATTERN.fullmatch(stage):
            raise ConfigError(f"--order: {stage[:80]!r} is no name of a stage (a-z, 0-9, '-' and '_')")
    unseen = {} if options.order else known.get("unseen", {})
    own = _own_sources(options.sources, [*stages, *unseen])
    files = {stage: _file(options, stage, own.get(stage, {})) for stage in (*stages, *unseen)}
    _require_files(name, options, {stage: (files[stage], about) for stage, about in stages.items()})
    sources = tuple(
        _declared(stage, files[stage], about, own.get(stage, {}), options, root)
        for stage, about in stages.items()
    )
    held_out = options.held_out or tuple(known.get("held_out", ()) if not options.order else ())
    _require_types(name, held_out, sources, files)
    there = {stage: files[stage] for stage in unseen if files[stage].is_file()}
    return Stream(
        name, known["about"], known["species"], sources, there, held_out, known.get("published", "")
    )


def _document(path: Path) -> dict[str, Any]:
    document = parse_yaml(path.read_bytes(), path.name)
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected a mapping of names, found {type(document).__name__}")
    return document


def _own_sources(path: Path | None, stages: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what a user's YAML file says of single sources."""
    if path is None:
        return {}
    if not path.is_file():
        what = "it must map a stage to keys of params.yaml's sources"
        raise ConfigError(f"--sources {no_such_file(path, what)}")
    document = _document(path)
    for stage, entry in document.items():
        if stage not in stages:
            raise ConfigError(f"{path}: {stage!r} is no data set of the stream{there_are(stage, stages)}")
        if not isinstance(entry, dict) or (wrong := [one for one in entry if one not in _PER_SOURCE]):
            what = f"unknown key {wrong[0]!r}" if isinstance(entry, dict) else "no mapping"
            raise ConfigError(f"{path}, {stage}: {what}; expected some of {', '.join(sorted(_PER_SOURCE))}")
    return document


def _file(options: StreamOptions, stage: str, own: Mapping[str, Any]) -> Path:
    """Return where the file of a data set is expected; a path in --sources is relative to --data."""
    return options.data / str(own.get("path", f"{stage}.h5ad"))


def _require_files(
    name: str, options: StreamOptions, wanted: Mapping[str, tuple[Path, Mapping[str, Any]]]
) -> None:
    """Refuse missing files, with what each of the stream's files has to hold."""
    missing = [path for path, _ in wanted.values() if not path.is_file()]
    if not missing:
        return
    declared = options.declared or {}
    lines = [
        f"{path} ({'missing' if path in missing else 'found'})"
        + (f": {about['cells']} training cells published" if "cells" in about else "")
        + (f"; {about['citation']}" if "citation" in about else "")
        for path, about in wanted.values()
    ]
    raise SourceError(
        f"{len(missing)} of the {len(wanted)} files of {name} are missing. Each is an h5ad file of cells x "
        f"genes, with gene symbols as names of var, a cell type for each cell in "
        f"obs[{declared.get('label') or 'cell_type'!r}] (--label) and values as --values says "
        f"({declared.get('values')}); --sources FILE.yaml says what differs in one of them:\n  "
        + "\n  ".join(lines)
    )


def _declared(
    stage: str,
    file: Path,
    about: Mapping[str, Any],
    own: Mapping[str, Any],
    options: StreamOptions,
    root: Path,
) -> StreamSource:
    """Return the declaration of one file; refuse it where another digest was expected."""
    common = {name: value for name, value in (options.declared or {}).items() if value is not None}
    given = {"citation": about.get("citation"), "label": "cell_type", "layer": "X", **common, **own}
    given = {name: value for name, value in given.items() if name not in ("path", "sha256", "label_map")}
    label_map = own.get("label_map")
    if "label_map" not in own and options.label_map is not None:
        label_map = _used(read_label_map(options.label_map).types, file, given["label"])
    entry, _ = declare_labelled(file, given, label_map, root)
    expected = own.get("sha256", about.get("sha256"))
    if expected is not None and entry["sha256"] != expected:
        raise SourceError(
            f"{file}: expected sha256 {expected}, found {entry['sha256']}: this is another file, or the "
            "expected digest is wrong"
        )
    return StreamSource(stage, entry, expected is not None)


def _used(types: Mapping[str, str | None], file: Path, column: str) -> dict[str, str | None]:
    """Return the entries of a label map that one file has use for, and the labels outside as they are."""
    labels = labels_in(file, column)
    return {label: types.get(label, types.get(label.strip(), label)) for label in labels}


def _require_types(
    name: str, held_out: Sequence[str], sources: Sequence[StreamSource], files: Mapping[str, Path]
) -> None:
    """Refuse types to be held out that no file has: their novelty would never be measured."""
    types: set[str] = set()
    for one in sources:
        label_map = one.source.get("label_map")
        labels = labels_in(files[one.stage], one.source["label"])
        types |= {label if label_map is None else label_map.get(label) or "" for label in labels}
    if absent := [one for one in held_out if one not in types - {""}]:
        raise ConfigError(
            f"{name} holds out {', '.join(held_out)} as novel, and no file has {', '.join(absent)}: give the "
            f"label its name with --map, or name another type with --held-out; the files have "
            f"{listed(sorted(types - {''}), EXAMPLES * 4)}"
        )
