"""How long all requests of a burst decode: from its last first token to its first end.

  python -m benchmarks.decoding FILE ...

prints, for results of benchmarks.solo whose requests were all of one length, how much longer
elastic's bursts took there than vanilla's: medians and quartiles of the differences, two
neighbouring rounds together.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.samples import Samples


def decoding_seconds(
    first_tokens: Sequence[float], between_tokens: Sequence[float], tokens: Sequence[int]
) -> float:
    """Of one burst, by each request's time to its first token, mean time between two, and number of
    tokens. 0 where some end before others begin."""
    ends = [
        first + between * (count - 1)
        for first, between, count in zip(first_tokens, between_tokens, tokens, strict=True)
    ]
    return max(0.0, min(ends) - max(first_tokens))


def of_round(turn: Mapping[str, Any]) -> float:
    """Of a round as a result has it, in seconds."""
    each = turn["output_tokens"] // turn["requests"]
    return decoding_seconds(turn["ttft"], turn["tpot"], [each] * len(turn["ttft"]))


def longer(document: Mapping[str, Any]) -> Samples:
    """Elastic's time less vanilla's, of every two rounds. Raises ValueError where requests were of
    several lengths."""
    if document["order"]["mixed"]:
        raise ValueError("its requests were of several lengths")
    sides = {run["engine"]: map(of_round, run["rounds"]) for run in document["runs"]}
    more = [ours - theirs for ours, theirs in zip(sides["elastic"], sides["vanilla"], strict=True)]
    return Samples("ms", [500 * (one + other) for one, other in list(pairwise(more))[::2]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    for path in parser.parse_args().files:
        found = longer(json.loads(path.read_text()))
        low, high = found.percentile(25), found.percentile(75)
        print(f"{path.name}: {found.median:.1f} ms ({low:.1f} .. {high:.1f}) longer")


if __name__ == "__main__":
    main()
