"""demo.png: what each model's KV cache holds over time, split in halves and shared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from demo.budget import Budget
from demo.outcome import Outcome
from demo.sizes import in_binary_units

COLOURS = ("#0e7490", "#c026d3")
"""The models', in the order of their first burst."""

BUDGET_COLOUR = "#b91c1c"
BURST_COLOUR = "#475569"

HEADROOM = 1.3
"""The axis ends this far above the budget: room for what is written there."""

STEP_SECONDS = 0.1


@dataclass(frozen=True)
class Titles:
    """What the chart says of itself."""

    chart: str
    engines: str
    axis: str


def draw(static: Outcome, shared: Outcome, budget: Budget, titles: Titles, file: Path) -> None:
    """Write the chart to `file`."""
    # A Figure of its own, not pyplot's: no window system is asked for anything.
    figure = Figure(figsize=(10, 7), dpi=150, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, sharey=True)
    figure.suptitle(titles.chart, x=0.01, ha="left", weight="bold")
    _panel(above, static, budget, f"split in halves, vanilla {titles.engines}")
    _panel(below, shared, budget, f"shared, {titles.engines} with kvcached")
    _scale(above, budget, max(_seconds(static), _seconds(shared)))
    figure.legend(*above.get_legend_handles_labels(), loc="outside upper right", ncols=2)
    below.set_xlabel("seconds since the first request (shaded: requests are being answered)")
    figure.supylabel(titles.axis)
    figure.savefig(file)


def _seconds(outcome: Outcome) -> float:
    return max(samples[-1].moment for samples in outcome.held.values())


def _scale(axes: Axes, budget: Budget, seconds: float) -> None:
    # A power of two, so that the axis reads 128 MiB, 256 MiB and so on.
    step = 1 << (budget.shared // 5).bit_length()
    axes.set_ylim(0, budget.shared * HEADROOM)
    axes.set_xlim(0, seconds)
    axes.yaxis.set_major_locator(MultipleLocator(step))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda size, _: in_binary_units(int(size))))


def _panel(axes: Axes, outcome: Outcome, budget: Budget, title: str) -> None:
    _shade_bursts(axes, outcome)
    moments = [number * STEP_SECONDS for number in range(int(_seconds(outcome) / STEP_SECONDS))]
    below = [0] * len(moments)
    for model, colour in zip(outcome.held, COLOURS, strict=False):
        top = [
            base + outcome.of(model, moment) for base, moment in zip(below, moments, strict=True)
        ]
        axes.fill_between(
            moments, below, top, step="post", color=colour, alpha=0.55, linewidth=0, label=model
        )
        below = top
    axes.axhline(budget.shared, color=BUDGET_COLOUR, linewidth=1.2, linestyle="--")
    axes.annotate(
        f"budget: {in_binary_units(budget.shared)}",
        xy=(0, budget.shared),
        xytext=(6, 5),
        textcoords="offset points",
        color=BUDGET_COLOUR,
    )
    wait = f"slowest first token {outcome.p99_wait:.1f} s, {outcome.tokens_per_second:.0f} tokens/s"
    axes.set_title(f"{title}: {wait}", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)


def _shade_bursts(axes: Axes, outcome: Outcome) -> None:
    for burst in outcome.bursts:
        axes.axvspan(burst.began, burst.ended, color=BURST_COLOUR, alpha=0.08, linewidth=0)
        axes.text(
            (burst.began + burst.ended) / 2,
            0.87,
            f"{burst.requests} requests to {burst.model}",
            transform=axes.get_xaxis_transform(),
            ha="center",
            color=BURST_COLOUR,
        )
