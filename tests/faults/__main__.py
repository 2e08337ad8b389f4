"""``python -m faults --runs 200 --seed 1``: the campaign; exit status 1 if anything was lost."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from faults.campaign import ORCHESTRATIONS, QUALITIES, campaign, summary


def main() -> int:
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=1, help="number of the first run, to repeat one of a campaign")
    parser.add_argument("--only", choices=list(ORCHESTRATIONS), help="orchestrate all runs like this")
    parser.add_argument("--quality", choices=list(QUALITIES), help="sharpen all scenes like this")
    parser.add_argument("--seconds", type=float, help="start no run after this time")
    parser.add_argument("--folder", type=Path, help="keep the folders of runs with losses here")
    parser.add_argument("--results", type=Path, metavar="FILE", help="add each run here; what it has is not repeated")
    options = parser.parse_args()
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="faults-"))).resolve()
    results = campaign(
        options.runs,
        options.seed,
        folder,
        only=options.only,
        quality=options.quality,
        first=options.first,
        seconds=options.seconds,
        results=options.results,
    )
    print(summary(results, options.seed))
    return 1 if any(result.losses for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
