"""What answers in a version, in words: for the terminal and for the page."""

from collections.abc import Iterator, Mapping
from typing import Any


def method_lines(method: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what answers, and of which stages there are sums; see `canal.registry.method.method_view`."""
    if method["name"] == "published":
        yield "answers", "the network (published method)"
        return
    weight = method.get("network_weight")
    if weight is None:
        yield "answers", "the sums alone (exact): no network was trained"
    elif not weight and method.get("lacking"):
        yield "answers", "the sums, but for types without them, of which the network is asked (combined)"
    elif not weight:
        yield "answers", "the sums (combined, network's weight 0: validation cells ask for no more)"
    else:
        yield "answers", f"network and sums together (combined, network's weight {weight:g})"
    yield "novelty of", ", ".join(method["novelty"]) or "nothing"
    yield "sums of", ", ".join(f"{stage} {digest[:8]}" for stage, digest in method["sums"].items())
    if method.get("backfilled"):
        yield "backfilled", f"sums were added to the version with key {method['backfilled'][:12]}..."
    if method.get("lacking"):
        what = "never answered" if weight is None else "only the network knows these types"
        yield "without sums", f"{', '.join(method['lacking'])}: {what}"
