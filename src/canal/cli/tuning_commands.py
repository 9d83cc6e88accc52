"""tune show, tune run: the study that chooses lambda and L of a stage."""

from typing import Annotated

import typer

from canal.cli.parsing import AsJson, Root, note, show_result

StageName = Annotated[str, typer.Argument(help="A stage that stands in finetune.tuned.")]


def add_to(app: typer.Typer) -> None:
    """Add this module's commands to the command line."""
    group = typer.Typer(no_args_is_help=True, help="The study that chooses lambda and L of a stage.")
    example = "Example: canal tune"
    group.command(epilog=f"{example} show kang-ctrl")(show)
    group.command(epilog=f"{example} run kang-ctrl --jobs 2")(run)
    app.add_typer(group, name="tune")


def show(stage: StageName, root: Root = None, as_json: AsJson = False) -> None:
    """Show the trials that no other one beats, the published point and what was chosen."""
    from canal.app.choosing import tuned_document
    from canal.app.project import Project
    from canal.report.tuning import front_rows, tuning_table

    document = tuned_document(Project.open(root), stage)
    result = {**document, "rows": front_rows(document)} if as_json else tuning_table(document)
    show_result(result, as_json)


def run(
    stage: StageName,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes that share the study; by default tuning.jobs.")
    ] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Run a stage's study ahead of `make run`, which then finds its trials done; nothing is learned."""
    from canal.app.choosing import choose
    from canal.app.project import Project
    from canal.app.step import watch_trials
    from canal.report.tuning import front_rows, tuning_table

    document = choose(Project.open(root), stage, watch_trials, jobs)
    result = {**document, "rows": front_rows(document)} if as_json else tuning_table(document)
    show_result(result, as_json)
    note("next: make run, which takes these trials and learns the stage")
