"""The chaos suite from the command line; `make chaos` is `python -m tests.chaos --runs 200 --parallel 4 --minutes 30`.

python -m tests.chaos --seed 7 --run 12          one run again
python -m tests.chaos --fault "fail-over of 5 to 20 s" --runs 5
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING

from tests.chaos.crew import Crew
from tests.chaos.faults import load
from tests.chaos.report import markdown, summary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.chaos.runner import Report

#: So many violated runs end the suite: more would say nothing new.
ENOUGH = 10

#: The share of runs that may go without one of their faults; a run of its own may not.
MAY_MISS = 0.05


def say(text: str) -> None:
    """A line on standard output, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.partition("\n")[0])
    result.add_argument("--seed", type=int, default=None, help="what everything is drawn from; default: by the clock")
    result.add_argument("--run", type=int, help="only this run")
    result.add_argument("--runs", type=int, default=200)
    result.add_argument("--parallel", type=int, default=4, help="fleets at once")
    result.add_argument("--minutes", type=float, default=None, help="begin no run after so many")
    result.add_argument("--fault", action="append", choices=sorted(load()), help="only this fault (may be repeated)")
    result.add_argument("--workers", help="only these, separated by commas")
    result.add_argument("--quick", action="store_true", help="compressed times, as in `make test`")
    result.add_argument("--markdown", type=Path, help="write the table there")
    result.add_argument("--stop-at-first", action="store_true", help="end at the first violated run, not the tenth")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    seed = int(time.time()) % 100_000 if options.seed is None else options.seed
    runs = range(options.runs) if options.run is None else [options.run]
    faults = options.fault
    order: dict[str, object] = {
        "seed": seed,
        "faults": faults,
        "quick": options.quick,
        "workers": options.workers.split(",") if options.workers else None,
    }
    replay = "".join(
        [" --quick" if options.quick else "", f" --workers {options.workers}" if options.workers else ""]
        + [f' --fault "{name}"' for name in faults or ()]
    )
    say(f"seed {seed}: {len(runs)} runs, {min(options.parallel, len(runs))} fleets at once")
    started = time.monotonic()
    ends_at = started + (options.minutes * 60 if options.minutes else float("inf"))
    crew = Crew(min(options.parallel, len(runs)), order, list(runs), ends_at)
    reports: list[Report] = []
    broken: list[str] = []
    try:
        while crew.busy:
            try:
                report = crew.reports.get(timeout=0.2)
            except Empty:
                continue
            if isinstance(report, str):
                broken.append(report)
                say(report)
                continue
            reports.append(report)
            say(_line(report))
            for violation in report.violations:
                say(f"    {violation.kind}: {violation.what}")
            if report.violations:
                say(f"    again: python -m tests.chaos --seed {seed} --run {report.run}{replay}")
                say("\n".join(f"    | {line}" for line in report.log.splitlines()[-30:]))
            if sum(bool(one.violations) for one in reports) >= (1 if options.stop_at_first else ENOUGH):
                say("that is enough")
                break
    except KeyboardInterrupt:
        broken.append("interrupted")
    finally:
        # Impatience must not leave anybody behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        crew.stop()
    took_s = time.monotonic() - started
    say(summary(reports, seed, took_s))
    if options.markdown:
        options.markdown.write_text(markdown(reports, seed, took_s), encoding="utf-8")
    # Among many runs a few do not meet all of their faults, however often they are made: said, and not counted.
    missing = sum(not one.happened for one in reports)
    violated = any(one.violations for one in reports)
    return 1 if broken or not reports or violated or missing > len(reports) * MAY_MISS else 0


def _line(report: Report) -> str:
    counts = ", ".join(f"{name} x {report.injected.get(name, 0)}" for name in report.faults)
    first, ninety = (f"{value:.1f}" if value is not None else "-" for value in (report.first_commit_s, report.ninety_s))
    result = "VIOLATED" if report.violations else "ok" if report.happened else "NOT INJECTED"
    return f"run {report.run:4} {result:8} {report.took_s:5.1f} s  recovery {first}/{ninety} s  {counts}"


if __name__ == "__main__":
    sys.exit(main())
