"""`mlflow models serve` under load: requests a second, waiting times, memory, and whether answers are right.

    python benchmarks/serving.py                         # random weights of preset small, 300 genes
    python benchmarks/serving.py --root PROJECT          # the champion of a project
    python benchmarks/serving.py --clients 8 --seconds 300 --cells 1 --no-wrong

Clients in threads of this process, which share the machine with the server, send cells whose labels by
`canal annotate` are known, and among them bodies that must be refused. A first round fills caches and
buffers; memory is compared after it and after the last one.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import requests
from served import Question, Server, champion_of, right_questions, serving, wrong_questions

PANEL = 300


@dataclass(frozen=True)
class Load:
    """What came of a load: seconds in all, seconds that each request took by question, complaints."""

    seconds: float
    waited: dict[str, list[float]]
    complaints: list[str]

    @property
    def answered(self) -> int:
        """Number of requests."""
        return sum(map(len, self.waited.values()))

    def to_json(self) -> dict[str, Any]:
        """Return rates and waiting times."""
        everything = [seconds for values in self.waited.values() for seconds in values]
        return {
            "requests": self.answered,
            "requests_per_second": self.answered / self.seconds,
            "latency_s": _quantiles(everything),
            "by_question": {name: {"n": len(one), **_quantiles(one)} for name, one in self.waited.items()},
            "wrong_answers": dict(Counter(self.complaints)),
        }


def load(
    server: Server, questions: Sequence[Question], clients: int, each: int = 0, seconds: float = 0
) -> Load:
    """Let clients ask at once, from one question on each, so many requests or so long; judge answers."""
    waited: dict[str, list[float]] = {question.name: [] for question in questions}
    complaints: list[str] = []
    start = threading.Barrier(clients + 1)
    end = time.monotonic() + seconds if seconds else float("inf")

    def client(number: int) -> None:
        with requests.Session() as session:
            start.wait()
            for i in range(each or sys.maxsize):
                if time.monotonic() > end:
                    return
                question = questions[(number + i) % len(questions)]
                began = time.perf_counter()
                answer = server.ask(question.body, session)
                waited[question.name].append(time.perf_counter() - began)
                if said := question.complaint(answer):
                    complaints.append(said)

    with ThreadPoolExecutor(clients) as pool:
        done = [pool.submit(client, number) for number in range(clients)]
        start.wait()
        began = time.perf_counter()
        for one in done:
            one.result()
    return Load(time.perf_counter() - began, waited, complaints)


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    return {name: float(np.quantile(values, q)) for name, q in (("p50", 0.5), ("p95", 0.95), ("max", 1.0))}


def measure(root: Path, arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Serve the champion of a project and return what the load showed."""
    from canal.app.models import load_annotator
    from canal.app.project import Project

    if arguments.root is None:
        from engine import annotator_of

        annotator = annotator_of(arguments.preset, PANEL)
        champion_of(root, annotator)
    else:
        project = Project.open(root)
        annotator = load_annotator(project, project.store.serving("champion"))
    questions = right_questions(annotator, tuple(arguments.cells))
    if arguments.wrong:
        questions += wrong_questions(annotator, arguments.megabytes)
    began = time.perf_counter()
    with serving(root, scratch / "server.log") as server:
        _say(f"serving after {time.perf_counter() - began:.0f} s; {arguments.clients} clients")
        at_rest = server.memory
        first = load(server, questions, arguments.clients, each=2)
        before = server.memory
        found = load(server, questions, arguments.clients, seconds=arguments.seconds)
        after = server.memory
    return {
        **found.to_json(),
        "wrong_answers": dict(Counter([*first.complaints, *found.complaints])),
        "memory_mib": {"at_rest": at_rest >> 20, "before": before >> 20, "after": after >> 20},
    }


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main() -> None:
    """Measure, print, and end with 1 where an answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", type=Path, help="a project with a champion; by default one is made up")
    parser.add_argument("--preset", default="small", help="of the model that is made up")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--cells", type=int, nargs="+", default=[1, 10, 100], help="cells in a request")
    parser.add_argument("--megabytes", type=float, default=8, help="of the largest body")
    parser.add_argument(
        "--no-wrong", dest="wrong", action="store_false", help="only bodies that are answered"
    )
    arguments = parser.parse_args()
    with TemporaryDirectory() as scratch:
        found = measure(arguments.root or Path(scratch) / "project", arguments, Path(scratch))
    waits, memory = found["latency_s"], found["memory_mib"]
    wrong = sum(found["wrong_answers"].values())
    _say(
        f"{found['requests']:,} requests, {found['requests_per_second']:.1f}/s; p50 {waits['p50']:.2f} s, "
        f"p95 {waits['p95']:.2f} s; memory {memory['at_rest']:,} MiB at rest, {memory['before']:,} before, "
        f"{memory['after']:,} after; {wrong or 'no'} wrong answers"
    )
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
