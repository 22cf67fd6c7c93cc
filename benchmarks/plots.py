"""The plots of docs/benchmarks.md: only those that say more than a table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

COLOURS = ("#0e7490", "#c026d3", "#b45309", "#4d7c0f", "#be123c", "#4338ca")
_GREY = "#475569"
_SIDES = {"vanilla": _GREY, "elastic": COLOURS[0]}
_DRAIN = re.compile(r"drain, (.+), peak of held over live")


def draw(document: Mapping[str, Any], into: Path, name: str) -> list[tuple[Path, str]]:
    """Draws what there is to draw of one result; returns each file and what it shows."""
    drawer = {"solo": _solo, "sharing": _sharing, "growth": _growth}.get(document["benchmark"])
    drawn = drawer(document) if drawer else None
    if drawn is None:
        return []
    figure, caption = drawn
    path = into / f"{name}.svg"
    # The same result gives the same file.
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(path, metadata={"Date": None})
    return [(path, caption)]


def _figure(rows: int, columns: int, height: float) -> tuple[Figure, Any]:
    # A Figure of its own, not pyplot's: no window system is asked for anything.
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex="all", sharey="row")
    for each in axes.flat:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(axis="y", alpha=0.25)
    return figure, axes


def _solo(document: Mapping[str, Any]) -> tuple[Figure, str] | None:
    runs = [run for run in document.get("runs", ()) if "memory" in run]
    firsts = {run["engine"]: run for run in reversed(runs)}
    if set(firsts) != set(_SIDES):
        return None
    figure, axes = _figure(1, 1, 3.6)
    plot = axes[0][0]
    on_gpu = any(gpu is not None for _, gpu, _ in firsts["elastic"]["memory"])
    for side, run in firsts.items():
        points = [(at, gpu if on_gpu else held) for at, gpu, held in run["memory"]]
        if not on_gpu and side == "vanilla":
            points = [(at, run["kv_bytes"] / (1 << 20)) for at, _ in points]
        shown = [(at, mib / 1024) for at, mib in points if mib is not None]
        plot.plot(*zip(*shown, strict=True), color=_SIDES[side], label=side)
    for name, spans in firsts["elastic"]["phases"].items():
        for begin, end in spans:
            plot.axvspan(begin, end, color=_GREY, alpha=0.08, linewidth=0)
        plot.text(
            spans[0][0], 1.0, f" {name}", transform=plot.get_xaxis_transform(), color=_GREY, size=8
        )
    what = "GPU memory in use" if on_gpu else "KV memory (vanilla: reserved)"
    plot.set_ylabel(f"{what}, GiB")
    plot.set_xlabel("seconds since the process was started; shaded: the elastic engine's phases")
    plot.set_ylim(bottom=0)
    plot.legend(frameon=False)
    return figure, f"{what} over time, vanilla and elastic"


def _sharing(document: Mapping[str, Any]) -> tuple[Figure, str] | None:
    kinds = document.get("plots") or {}
    if not kinds:
        return None
    figure, axes = _figure(2, len(kinds), 5.5)
    arguments = document["arguments"]
    part = arguments["kv_gib"] / arguments["servers"]
    for column, (kind, found) in enumerate(kinds.items()):
        above, below = axes[0][column], axes[1][column]
        for colour, (server, points) in zip(COLOURS, found["ttft"].items(), strict=False):
            above.scatter(*zip(*points, strict=True), s=5, color=colour, label=server)
        above.set_yscale("log")
        above.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        above.yaxis.set_minor_formatter(NullFormatter())
        above.set_title(kind)
        _memory(below, found["memory"], list(found["ttft"]), part)
        below.set_xlabel("seconds")
    axes[0][0].set_ylabel("time to first token, ms")
    axes[1][0].set_ylabel("memory, GiB")
    axes[0][0].legend(frameon=False, markerscale=2)
    return figure, "Time to first token of every request, and memory, over time"


def _memory(
    axes: Axes, points: Sequence[Mapping[str, Any]], servers: Sequence[str], part: float
) -> None:
    """KV memory of every server, stacked; where nobody counts it, the `part` that each has."""
    times = [point["t"] for point in points]
    counted = any(point["held"] for point in points)
    held = [
        [point["held"].get(name, 0) / 1024 if counted else part for point in points]
        for name in servers
    ]
    axes.stackplot(times, *held, colors=COLOURS[: len(servers)], alpha=0.6)
    gpu = [(point["t"], point["gpu"] / 1024) for point in points if point["gpu"] is not None]
    if gpu:
        axes.plot(*zip(*gpu, strict=True), color=_GREY, label="GPU, in all")
        axes.legend(frameon=False, loc="lower right")
    axes.set_ylim(bottom=0)


def _growth(document: Mapping[str, Any]) -> tuple[Figure, str] | None:
    points: list[tuple[str, float, float]] = []
    cost_name = ""
    for row in document["rows"]:
        named = _DRAIN.fullmatch(row["name"])
        costs = [name for name in row["parts"] if name.startswith("bare growth")]
        if named and costs:
            cost_name = costs[0]
            cost = row["parts"][cost_name]["median"]
            points.append((named.group(1), row["figure"]["median"], cost))
    if not points:
        return None
    figure, axes = _figure(1, 1, 3.6)
    plot = axes[0][0]
    for name, pinned, cost in points:
        chosen = not name[0].isdigit()
        plot.scatter(pinned, cost, color=COLOURS[1] if chosen else COLOURS[0])
        plot.annotate(name, (pinned, cost), xytext=(5, 5), textcoords="offset points", size=8)
    plot.set_xlabel("memory held over memory live while 256 requests become 16, at its peak")
    plot.set_ylabel(f"{cost_name}, ms")
    plot.set_ylim(bottom=0)
    return figure, "What large handles cost and pin"
