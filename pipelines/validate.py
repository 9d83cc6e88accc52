"""The gate of one stage: verdicts/<stage>/verdict.json; exit code 1 unless it passes."""

from rich.console import Console

from canal.app.project import Project
from canal.app.step import argument, run, say
from canal.core.errors import GateError
from canal.quality.gate import judge
from canal.quality.verdict import render, summary
from canal.registry.history import require_available, restore_file


def main() -> None:
    """Judge the stage named by --stage against the panel and the stages before it."""
    project = Project.open()
    stage = argument("stage", project.config.stages)
    layout, target = project.layout, project.layout.verdict(stage)
    if version := project.learned(stage):
        restore_file(project.store, version, "validation/verdict.json", target)
        return
    require_available(project.config, stage)
    verdict = judge(project.subject(stage), project.config.gate, layout.data_docs(stage))
    verdict.write(target)
    if all(rule.passed for rule in verdict.rules):
        say(f"{stage}: gate {summary(verdict)}")
    else:
        Console(stderr=True, width=110).print(render(verdict, only_failed=True))
    if not verdict.passed:
        raise GateError(f"stage {stage!r} did not pass its gate: {summary(verdict)}")


if __name__ == "__main__":
    run(main)
