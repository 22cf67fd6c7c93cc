"""The rows of benchmarks.solo about memory, and about what waiting for it cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.engines import EngineFailed
from benchmarks.meters import Reading
from benchmarks.report import Report, Row, Target
from benchmarks.samples import Samples, ratios
from benchmarks.solo_run import Run
from kvcached import settings

_MIB = 1 << 20
#: What an elastic engine may hold beyond what it should, after the start and when idle; MiB.
ALLOWANCE = 128.0
OFF_THE_PATH = Target(at_least=0.95)
LONGEST_WAIT = Target(at_most=2.0)

_Moment = Callable[[Run], Sequence[Reading]]
_PEAK: tuple[str, _Moment] = ("peak", lambda run: run.busy)
_SECOND_LATER: tuple[str, _Moment] = ("1 s later", lambda run: run.one_second_later)


def add_rows(report: Report, elastic: list[Run], vanilla: list[Run], alone: bool) -> None:
    """Adds every row for which there are readings; of the GPU's memory where engines had it
    `alone`."""
    reserved = Samples("MiB", [run.report["kv_bytes"] / _MIB for run in vanilla])
    for name, moment in (_PEAK, _SECOND_LATER):
        held = Samples("MiB", [_held(moment(run)) / _MIB for run in elastic])
        report.add(
            Row(
                f"KV memory, {name}",
                ratios(held, reserved),
                parts={"elastic": held, "vanilla": reserved},
            )
        )
    for name, moment in (_PEAK, _SECOND_LATER):
        ours, theirs = (
            Samples("MiB", [max(read.resident for read in moment(run)) / _MIB for run in runs])
            for runs in (elastic, vanilla)
        )
        parts = {"elastic": ours, "vanilla": theirs}
        report.add(Row(f"resident memory, {name}", ratios(ours, theirs), parts=parts))
    if alone and all(read.gpu is not None for run in (*elastic, *vanilla) for read in run.fresh):
        _add_gpus(report, elastic, vanilla, reserved)
    _add_growth(report, elastic)


def _held(readings: Sequence[Reading]) -> int:
    held = [reading.held for reading in readings if reading.held is not None]
    if not held:
        raise EngineFailed("the elastic engine had no row: it ran vanilla")
    return max(held)


def _gpu(runs: list[Run], moment: _Moment, device: int | None) -> Samples:
    """Of one GPU, or of all together."""

    def used(reading: Reading) -> int:
        return (reading.gpu or 0) if device is None else reading.gpus[device]

    return Samples("MiB", [max(map(used, moment(run))) / _MIB for run in runs])


def _difference(one: Samples, other: Samples) -> Samples:
    return Samples(
        one.unit, [mine - its for mine, its in zip(one.values, other.values, strict=True)]
    )


def _add_gpus(report: Report, elastic: list[Run], vanilla: list[Run], reserved: Samples) -> None:
    """Rows of all GPUs together, or of each alone where the engine has a rank on each: there what
    holds for one must hold for every other, too."""
    found = len(elastic[0].readings[-1].gpus)
    ranks = int(elastic[0].report["ranks"])
    if ranks == 1 or found < ranks:
        _add_gpu(report, elastic, vanilla, reserved)
        return
    # Equal parts of heads or of layers.
    part = Samples("MiB", [value / ranks for value in reserved.values])
    for device in range(ranks):
        _add_gpu(report, elastic, vanilla, part, device, ranks)


def _add_gpu(
    report: Report,
    elastic: list[Run],
    vanilla: list[Run],
    reserved: Samples,
    device: int | None = None,
    ranks: int = 1,
) -> None:
    moments: dict[str, _Moment] = {
        "after the start": lambda run: run.fresh,
        "peak": lambda run: run.busy,
        "1 s after the last answer": lambda run: run.one_second_later,
    }
    which = "GPU" if device is None else f"GPU {device}"
    read = {
        name: {
            "elastic": _gpu(elastic, moment, device),
            "vanilla": _gpu(vanilla, moment, device),
        }
        for name, moment in moments.items()
    }
    for name, parts in read.items():
        report.add(
            Row(
                f"{which} memory, {name}",
                ratios(parts["elastic"], parts["vanilla"]),
                parts=parts,
            )
        )
    label = "" if device is None else f"{which}: "
    start, later = read["after the start"], read["1 s after the last answer"]
    without_cache = _difference(start["vanilla"], reserved)
    report.add(
        Row(
            f"{label}after the start, beyond vanilla without its KV cache",
            _difference(start["elastic"], without_cache),
            Target(at_most=ALLOWANCE),
            {"elastic": start["elastic"], "vanilla": without_cache},
        )
    )
    cap = _prefix_cap(elastic[0])
    target = None if cap is None else Target(at_most=round(cap / ranks / _MIB + ALLOWANCE))
    grown = {side: _difference(later[side], start[side]) for side in ("elastic", "vanilla")}
    report.add(Row(f"{label}1 s later, beyond the start", grown["elastic"], target, grown))
    report.add(
        Row(
            f"{label}the same, beyond what vanilla keeps",
            _difference(grown["elastic"], grown["vanilla"]),
            target,
            grown,
        )
    )


def _prefix_cap(run: Run) -> int | None:
    """Bytes of finished prefixes that an engine may keep; None where nothing bounds them."""
    if not run.report["keeps_prefixes"]:
        return 0
    tokens = settings.load().max_cached_tokens
    return None if tokens < 0 else tokens * int(run.report["kv_bytes_per_token"])


def _add_growth(report: Report, elastic: list[Run]) -> None:
    for phase in ("ramp", "rounds", "steady"):
        grown = [run.grown(turn) for run in elastic for turn in _turns(run.report.get(phase))]
        turns = [turn for turn in grown if turn.get("commits")]
        if not turns:
            continue
        judged = phase == "ramp"
        committed, exposed, waited = (
            Samples("", [turn[name] for turn in turns])
            for name in ("commits", "exposed_extents", "waited_extents")
        )
        off_the_path = [
            1 - out / of for out, of in zip(exposed.values, committed.values, strict=True)
        ]
        milliseconds = {
            name: Samples("ms", [turn[name] / 1e6 for turn in turns])
            for name in ("longest_wait_ns", "wait_ns")
        }
        if judged:
            together = [run.report[phase]["most_at_once"] for run in elastic]
            report.add(Row(f"{phase}: sequences at once, at most", Samples("", together)))
        report.add(Row(f"{phase}: extents committed", committed, facts={"counters": turns}))
        report.add(Row(f"{phase}: of them waited for", waited))
        report.add(
            Row(
                f"{phase}: share committed while no step waited with an idle device",
                Samples("ratio", off_the_path),
                OFF_THE_PATH if judged else None,
            )
        )
        report.add(
            Row(
                f"{phase}: longest wait of a step, since the start",
                milliseconds["longest_wait_ns"],
                LONGEST_WAIT if judged else None,
            )
        )
        report.add(Row(f"{phase}: waiting for memory, in all", milliseconds["wait_ns"]))


def _turns(phase: object) -> list[dict[str, object]]:
    if isinstance(phase, dict):
        return [phase]
    return phase if isinstance(phase, list) else []
