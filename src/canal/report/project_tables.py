"""Terminal tables about a project as a whole: what a run would do, its status, whether it is in order."""

from collections.abc import Mapping, Sequence
from difflib import unified_diff
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from canal.report.terminal import table, text

Document = Mapping[str, Any]

_WORDS = {"keep": "learned", "restore": "to restore", "learn": "to learn", "refuse": "refused"}
_STATES = {"ok": "green", "look": "yellow", "broken": "bold red"}
_FATES = {"learn": "green", "register": "green", "restore": "cyan", "keep": "dim", "refuse": "bold red"}


def plan_table(planned: Mapping[str, Any]) -> Table:
    """Return what a run would do, stage by stage, and the other steps of DVC (`canal.app.planning.Plan`)."""
    found = table("What a run would do")
    found.add_column("stage", overflow="fold", style="bold")
    found.add_column("", no_wrap=True)
    found.add_column("version", justify="right")
    found.add_column("why", overflow="fold")
    found.add_column("steps of DVC", overflow="fold", style="dim")
    for one in planned["stages"]:
        version = "" if one["version"] is None else one["version"]
        steps = ", ".join(step.partition("@")[0] for step in one["steps"])
        found.add_row(
            text(one["stage"]),
            text(one["fate"], _FATES[one["fate"]]),
            text(version),
            text(one["why"]),
            text(steps),
        )
    own = {step for one in planned["stages"] for step in one["steps"]}
    for step, reason in planned["steps"].items():
        if step not in own:
            found.add_row(text(step), text("run"), "", text(reason), "")
    if perhaps := len(planned["perhaps"]):
        steps = "1 more step" if perhaps == 1 else f"{perhaps} more steps"
        found.caption = f"{steps} of DVC, only if one before them makes other bytes than last time"
    return found


def added_lines(before: str, after: str) -> str:
    """Return the lines of a text that an earlier one lacks or has otherwise, as `diff` shows them."""
    lines = unified_diff(
        before.splitlines(), after.splitlines(), "params.yaml", "params.yaml", n=1, lineterm=""
    )
    return "\n".join(lines)


def status_group(status: Document) -> Group:
    """Return where a project stands, on one screen (`canal.app.status.status`)."""
    if status["project"] is None:
        return Group(text(f"{status['folder']} is in no project of canal."), Text(), _needs(status["needs"]))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    fates: dict[str, list[str]] = {}
    for one in status["stages"]:
        fates.setdefault(one["fate"], []).append(one["stage"])
    facts = {
        "project": status["project"],
        "registry": status["registry"],
        "serves": _version(status["serving"], "no version yet"),
        "candidate": _version(status["candidate"], "none waits"),
        "stages": "; ".join(f"{_WORDS.get(fate, fate)}: {', '.join(names)}" for fate, names in fates.items()),
        "labelled": _labelled(status["labelled"]),
    }
    for name, value in facts.items():
        grid.add_row(text(name), text(value))
    if not status["needs"]:
        return Group(grid, Text(), text("Nothing waits for you.", "green"))
    return Group(grid, Text(), text("What waits for you", "bold"), _needs(status["needs"]))


def _version(one: Document | None, otherwise: str) -> str:
    if one is None:
        return otherwise
    decision = one["decision"]
    by = f", {decision['kind']} by {decision['who']}, {decision['time']}" if decision else ""
    return f"version {one['version']} ({one['stage']}){by}"


def _labelled(labelled: Document) -> str:
    if not labelled["files"]:
        return "no file since the newest version was learned"
    share = labelled["unassigned"] / max(1, labelled["cells"])
    files = "1 file" if labelled["files"] == 1 else f"{labelled['files']} files"
    each = ", ".join(
        f"{one['file']} {one['unassigned'] / max(1, one['cells']):.0%}" for one in labelled["newest"]
    )
    return (
        f"{files} since the newest version, {labelled['cells']:,} cells, {share:.0%} Unassigned "
        f"(the last: {each})"
    )


def _needs(needs: Sequence[Document]) -> Table:
    """Return what needs a person, each with its command on a line of its own, to be copied."""
    found = Table.grid(padding=(0, 1))
    found.add_column(no_wrap=True)
    found.add_column(overflow="fold")
    for one in needs:
        found.add_row("-", text(one["what"]))
        found.add_row("", text(one["command"], "cyan"))
    return found


def doctor_table(checks: Sequence[Document]) -> Table:
    """Return each check with what was found, and how to mend it (`canal.app.doctor.doctor`)."""
    found = table("Is everything in order?")
    found.add_column("check", no_wrap=True, style="bold")
    found.add_column("", no_wrap=True)
    found.add_column("found", overflow="fold")
    found.add_column("how to mend it", overflow="fold", style="dim")
    for one in checks:
        mend = one["mend"] if one["state"] != "ok" else ""
        found.add_row(
            text(one["name"]), text(one["state"], _STATES[one["state"]]), text(one["found"]), text(mend)
        )
    return found
