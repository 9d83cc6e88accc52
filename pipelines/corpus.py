"""Gate the unlabelled sources and draw the cells of them that pre-train the backbone: corpus/."""

from pathlib import Path

from rich.console import Console

from canal.app.corpora import draw_corpora, judge_corpora, restore_corpora, write_corpus
from canal.app.pipeline import run
from canal.app.project import Project
from canal.core.errors import GateError, tell
from canal.core.files import new_folder, write_json
from canal.report.gate_tables import verdict_line, verdict_table


def draw(project: Project, into: Path) -> None:
    """Judge all sources, then draw of all of them; nothing is written where one fails."""
    verdicts = dict(judge_corpora(project))
    for name, verdict in verdicts.items():
        if all(rule.passed for rule in verdict.rules):
            tell(f"{name}: gate {verdict_line(verdict)}")
        else:
            Console(stderr=True, width=110).print(verdict_table(verdict))
    for name, verdict in verdicts.items():
        if not verdict.passed:
            raise GateError(f"unlabelled source {name!r} did not pass its gate: {verdict_line(verdict)}")
    for name, table in draw_corpora(project).items():
        write_corpus(table, verdicts[name], into / name)
        counts = table["set"].value_counts()
        held_out, n_cells = counts.get("validation", 0), verdicts[name].counts["cells"]
        tell(f"{name}: {counts['train']} of {n_cells} cells pre-train, {held_out} are held out")


def main() -> None:
    """Gate and draw, or restore what the learned backbone saw."""
    project = Project.open()
    with new_folder(project.layout.corpus) as folder:
        write_json(folder / "sources.json", list(project.config.backbone.unlabelled))
        if not restore_corpora(project, folder):
            draw(project, folder)


if __name__ == "__main__":
    run(main)
