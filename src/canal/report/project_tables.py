"""Terminal tables about a project as a whole: what a run would do, its status, whether it is in order."""

from collections.abc import Mapping, Sequence
from difflib import unified_diff
from typing import Any

from rich.console import Group
from rich.text import Text

from canal.core.errors import visible
from canal.core.progress import count, percent
from canal.report.listing import Column, Listing, facts, figures, text

Document = Mapping[str, Any]

_WORDS = {
    "keep": "learned",
    "restore": "to restore",
    "register": "learned, to be registered",
    "learn": "to learn",
    "refuse": "refused",
}
_NOTHING = "Nothing waits for you."
_RUNNING = "at work in this folder: it learns what params.yaml asks for, and says at its end what to commit"
_STATES = {"ok": "green", "look": "yellow", "broken": "bold red"}
_FATES = {"learn": "green", "register": "green", "restore": "cyan", "keep": "dim", "refuse": "bold red"}


def plan_table(planned: Mapping[str, Any]) -> Group:
    """Return what a run would do, stage by stage, and the other steps of DVC (`canal.app.planning.Plan`)."""
    found = Listing(
        "What a run would do",
        (
            Column("stage", style="bold"),
            Column("fate"),
            *figures("version"),
            Column("why", "prose"),
            Column("steps of DVC", "names", "dim"),
        ),
    )
    for one in planned["stages"]:
        steps = [step.partition("@")[0] for step in one["steps"]]
        version = "" if one["version"] is None else str(one["version"])
        found.add(one["stage"], text(one["fate"], _FATES[one["fate"]]), version, one["why"], steps)
    own = {step for one in planned["stages"] for step in one["steps"]}
    for step, reason in planned["steps"].items():
        if step not in own:
            found.add(step, "run", "", reason)
    if perhaps := len(planned["perhaps"]):
        steps_more = count(perhaps, "more step")
        found.note = f"{steps_more} of DVC, only if one before them makes other bytes than last time"
    if not planned["stages"]:
        return Group(text("params.yaml declares no stage yet: canal stage add NAME --file F declares one"))
    return Group(found)


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
    fates: dict[str, list[str]] = {}
    for one in status["stages"]:
        fates.setdefault(one["fate"], []).append(one["stage"])
    standing = {
        "project": status["project"],
        "registry": status["registry"],
        "serves": _version(status["serving"], "no version yet"),
        "candidate": _version(status["candidate"], "none waits"),
        "stages": "; ".join(f"{_WORDS.get(fate, fate)}: {', '.join(names)}" for fate, names in fates.items()),
        "labelled": _labelled(status["labelled"]),
        **({"run": _RUNNING} if status["running"] else {}),
    }
    told = facts(standing.items())
    if not status["needs"]:
        nothing = "Nothing waits for you but the end of the run." if status["running"] else _NOTHING
        return Group(told, Text(), text(nothing, "green"))
    return Group(told, Text(), text("What waits for you", "bold"), _needs(status["needs"]))


def _version(one: Document | None, otherwise: str) -> str:
    if one is None:
        return otherwise
    decision = one["decision"]
    done = {"promote": "promoted", "rollback": "rolled back to"}
    by = f", {done[decision['kind']]} by {decision['who']}, {decision['time']}" if decision else ""
    return f"version {one['version']} ({one['stage']}){by}"


def _labelled(labelled: Document) -> str:
    if not labelled["files"]:
        return "no file since the newest version was learned"
    each = ", ".join(f"{one['file']} {_unassigned(one)}" for one in labelled["newest"])
    return (
        f"{count(labelled['files'], 'file')} since the newest version, {count(labelled['cells'], 'cell')}, "
        f"{_unassigned(labelled)} Unassigned (the last: {each})"
    )


def _unassigned(one: Document) -> str:
    return percent(one["unassigned"] / max(1, one["cells"]))


def _needs(needs: Sequence[Document]) -> Group:
    """Return what needs a person, each with its command on a line of its own, to be copied."""
    told: list[Any] = []
    for one in needs:
        told += [text(f"- {one['what']}"), Text(f"  {visible(one['command'])}", "cyan", no_wrap=True)]
    return Group(*told)


def doctor_table(checks: Sequence[Document]) -> Listing:
    """Return each check with what was found, and how to mend it (`canal.app.doctor.doctor`)."""
    columns = (
        Column("check", style="bold"),
        Column(""),
        Column("found", "prose"),
        Column("how to mend it", "prose", "dim"),
    )
    found = Listing("Is everything in order?", columns)
    for one in checks:
        mend = one["mend"] if one["state"] != "ok" else ""
        found.add(one["name"], text(one["state"], _STATES[one["state"]]), one["found"], mend)
    return found
