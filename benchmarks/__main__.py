"""``python -m benchmarks [growth|lookup|parity|point_in_time|stream ...] [--quick]``: all subjects when none is named.

Prints a table for each subject and writes `results.json`. With ``--quick`` everything is small: that shows that the
programs run, not how good anything is, so nothing is written.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Final

from rich.console import Console

from benchmarks.measure import alone, report_of, show, write

SUBJECTS: Final = ("growth", "lookup", "parity", "point_in_time", "stream")
WIDTH: Final = 140
RESULTS: Final = Path(__file__).with_name("results.json")


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Tally beside other systems.")
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"any of {', '.join(SUBJECTS)}; none: all")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs; writes no results")
    parser.add_argument(
        "--size", type=_events, metavar="100M", help="growth: how many events the largest export joins (10M)"
    )
    arguments = parser.parse_args()
    unknown = [name for name in arguments.subjects if name not in SUBJECTS]
    if unknown:
        parser.error(f"no subject {', '.join(unknown)}; choose from {', '.join(SUBJECTS)}")
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print("Both sides run in turns on the same machine; it may be shared, so the ratios count, not the times.")
    missed = 0
    for subject in dict.fromkeys(arguments.subjects or SUBJECTS):
        before = os.getloadavg()[0]
        options = {"quick": arguments.quick}
        if arguments.size and subject == "growth":
            options["events"] = arguments.size
        report, _ = alone(report_of, subject, options)  # subjects do not weigh on each other
        show(console, subject, report)
        console.print(
            f"- The machine's load was {before:.1f} before and {os.getloadavg()[0]:.1f} after, on {os.cpu_count()} "
            "processors: where others were at work, the side that uses more threads lost more.",
            highlight=False,
        )
        missed += sum(result.meets is False for result in report.results)
        if not arguments.quick:
            write(RESULTS, subject, report.results)
    console.print(f"{missed} of the targets above are missed." if missed else "All targets above are met.")


def _events(text: str) -> int:
    return int(text[:-1]) * 1_000_000 if text.endswith("M") else int(text)


if __name__ == "__main__":
    main()
