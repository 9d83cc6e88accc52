"""Run by `benchmarks/kinds.py` with one canal: takes jobs as JSON lines, does each in a process of its own.

It uses only what canal has had since b42cc87, by its name and wherever it stands, so that an earlier
revision can be measured in the same way.
"""

import json
import os
import resource
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

from named import by_name

SECONDS = 30
GIB = 8


def main() -> None:
    """Import what is slow once, load the model, and answer every job."""
    import anndata  # noqa: F401
    import pandas as pd  # noqa: F401
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    annotator = by_name("Annotator").load(Path(sys.argv[1]))
    for line in sys.stdin:
        job = json.loads(line)
        if job["declared"]:
            import great_expectations  # noqa: F401
        sys.stdout.write(json.dumps(answered(annotator, job)) + "\n")
        sys.stdout.flush()


def answered(annotator: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Return how a job ended: its code, what was said, and the labels."""
    said, result = Path(job["said"]), Path(job["result"])
    if (child := os.fork()) == 0:
        with said.open("w") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        os.setsid()
        signal.alarm(SECONDS)
        resource.setrlimit(resource.RLIMIT_AS, (GIB * 2**30, GIB * 2**30))
        os._exit(tried(annotator, job, result))
    _, status, used = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    text = said.read_text(errors="replace")
    labels = json.loads(result.read_text()) if result.is_file() else None
    return {"code": code, "said": text, "labels": labels, "peak": used.ru_maxrss * 1024}


def tried(annotator: Any, job: dict[str, Any], result: Path) -> int:
    """Do a job; 0 done, 1 refused for a reason made for people, 99 anything else."""
    try:
        done = judged(annotator, job) if job["declared"] else labelled(annotator, job, result)
    except by_name("CanalError") as error:
        print(error)
        done = 1
    except BaseException:
        traceback.print_exc()
        done = 99
    sys.stdout.flush()
    return done


def labelled(annotator: Any, job: dict[str, Any], result: Path) -> int:
    """Label a file and keep each cell's label by its name."""
    target = Path(job["target"])
    options = by_name("Options")(**job["options"])
    summary = by_name("annotate_h5ad")(annotator, Path(job["path"]), target, options)
    print("\n".join(summary.warnings))
    if target.suffix == ".csv":
        import pandas as pd

        table = pd.read_csv(target, index_col=0, dtype=str, keep_default_na=False)
    else:
        import anndata

        table = anndata.read_h5ad(target).obs
    result.write_text(
        json.dumps(dict(zip(map(str, table.index), map(str, table["canal_cell_type"]), strict=True)))
    )
    return 0


def judged(annotator: Any, job: dict[str, Any]) -> int:
    """Let the gate judge a file as a stage without earlier ones."""
    path = Path(job["path"])
    source = by_name("Source")(path=str(path), sha256=by_name("file_digest")(path), **job["declared"])
    subject = by_name("Subject")("new", "new", source, path, list(annotator.genes), earlier={})
    settings = by_name("PrepareSettings")(100, 2000)
    verdict = by_name("judge_file")(subject, settings, by_name("Gate")())
    for rule in verdict.rules:
        if not rule.passed:
            print(
                f"{rule.severity}: {rule.rule}: expected {rule.expected}; found {rule.found} {rule.examples}"
            )
    return 0 if verdict.passed else 1


if __name__ == "__main__":
    main()
