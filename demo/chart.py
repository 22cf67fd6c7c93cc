"""demo.png: what each server's KV cache holds over time, with the bursts behind it."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from demo.run import AFTER_LOAD_SECONDS, Turn
from demo.sizes import MIB, in_binary_units

VANILLA_COLOUR = "#c2410c"
ELASTIC_COLOUR = "#0e7490"
BURST_COLOUR = "#475569"

HEADROOM = 1.25
"""The axis ends this far above the highest line: room for what is written there."""

RIGHT_MARGIN = 1.09
"""And this far right of the last sample, for what is written after the last burst."""


def draw(vanilla: Turn, elastic: Turn, measured: str, model: str, file: Path) -> None:
    """Write the chart to `file`."""
    # A Figure of its own, not pyplot's: no window system is asked for anything.
    figure = Figure(figsize=(10, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    _scale(axes, vanilla, elastic)
    _shade_bursts(axes, elastic)
    _line(axes, vanilla, VANILLA_COLOUR)
    _line(axes, elastic, ELASTIC_COLOUR, fill=0.25)
    _name_vanilla(axes, vanilla)
    _name_elastic(axes, elastic)
    axes.set_title(f"{model}: the same requests to both servers", loc="left", weight="bold", pad=12)
    axes.set_xlabel("seconds since the first request (shaded: kvcached's server at work)")
    axes.set_ylabel(measured)
    figure.savefig(file)


def _scale(axes: Axes, vanilla: Turn, elastic: Turn) -> None:
    top = max(vanilla.peak_bytes, elastic.peak_bytes, MIB)
    # A power of two, so that the axis reads 512 MiB, 1 GiB and so on, three to six of them.
    step = 1 << (top // 5).bit_length()
    axes.set_ylim(0, top * HEADROOM)
    axes.set_xlim(0, RIGHT_MARGIN * max(turn.samples[-1].moment for turn in (vanilla, elastic)))
    axes.yaxis.set_major_locator(MultipleLocator(step))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda size, _: in_binary_units(int(size))))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)


def _shade_bursts(axes: Axes, turn: Turn) -> None:
    for burst in turn.bursts:
        axes.axvspan(burst.began, burst.ended, color=BURST_COLOUR, alpha=0.08, linewidth=0)
        axes.text(
            (burst.began + burst.ended) / 2,
            0.95,
            f"{burst.requests} requests",
            transform=axes.get_xaxis_transform(),
            ha="center",
            color=BURST_COLOUR,
        )


def _line(axes: Axes, turn: Turn, colour: str, fill: float = 0.0) -> None:
    moments = [sample.moment for sample in turn.samples]
    held = [sample.held_bytes for sample in turn.samples]
    axes.fill_between(moments, held, step="post", color=colour, alpha=fill, linewidth=0)
    axes.step(moments, held, where="post", color=colour, linewidth=2)


def _name_vanilla(axes: Axes, turn: Turn) -> None:
    text = f"vanilla vLLM: {in_binary_units(turn.peak_bytes)}, used or not"
    _write(axes, text, (0, turn.peak_bytes), VANILLA_COLOUR)


def _name_elastic(axes: Axes, turn: Turn) -> None:
    peak = max(turn.samples, key=lambda sample: sample.held_bytes)
    text = f"with kvcached: at most {in_binary_units(turn.peak_bytes)}"
    # To the left where the right edge is near.
    late = peak.moment > 0.7 * axes.get_xlim()[1]
    _write(axes, text, (max(0.0, peak.moment), turn.peak_bytes), ELASTIC_COLOUR, to_left=late)
    rest = turn.bursts[-1].ended + AFTER_LOAD_SECONDS
    text = f"{in_binary_units(turn.after_load_bytes)} left"
    _write(axes, text, (rest, turn.after_load_bytes), ELASTIC_COLOUR)


def _write(
    axes: Axes, text: str, point: tuple[float, float], colour: str, to_left: bool = False
) -> None:
    axes.annotate(
        text,
        xy=point,
        xytext=(-6 if to_left else 6, 7),
        textcoords="offset points",
        ha="right" if to_left else "left",
        color=colour,
        weight="bold",
    )
