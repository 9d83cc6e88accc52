"""Run the gate on one stage: verdicts/<stage>/verdict.json; exit code 1 unless the stage passes."""

from rich.console import Console

from canal.app.pipeline import argument, run
from canal.app.project import Project
from canal.core.errors import GateError, tell
from canal.quality.gate import judge
from canal.registry.versions.history import require_available, restore_file
from canal.report.gate_tables import verdict_line, verdict_table


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
        tell(f"{stage}: gate {verdict_line(verdict)}")
    else:
        Console(stderr=True, width=110).print(verdict_table(verdict))
    if not verdict.passed:
        raise GateError(f"stage {stage!r} did not pass its gate: {verdict_line(verdict)}")


if __name__ == "__main__":
    run(main)
