"""Does the sizing model say what runs take? Rates from one process, then two at once on scenes of other sizes.

``PYTHONPATH=tests .venv/bin/python tests/benchmarks/check_sizing.py`` prints a JSON line; exit status 1 if the model is
more than 20 % off.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from small_archive import add_scene

from pancrafter import runs
from pancrafter.ledger import open_ledger
from pancrafter.settings import Settings
from pancrafter.sizing import Archive, Fleet, forecast, rates_from
from pancrafter.states import State

KNOWN_PX = (384, 768, 1024, 384, 768, 1024)
OTHER_PX = (512, 640, 896, 512, 640, 896, 512, 640, 896, 512, 640, 896)
LIMIT = 0.2


def settings_for(folder: Path, source: str) -> Settings:
    return Settings(
        source=str(folder / source),
        sink=str(folder / f"{source}-out"),
        state_dir=str(folder / f"{source}-state"),
        workers=0,
        block_px=512,
    )


def runner(folder: Path, meeting: Any, times: Any) -> None:
    """One process: a scene to warm up, then, together with the others, whatever waits."""
    me = multiprocessing.current_process().name
    runs.run(settings_for(folder, "warm").model_copy(update={"sink": str(folder / f"warm-{me}")}), lambda _: None)
    meeting.wait()
    start = time.perf_counter()
    runs.run(settings_for(folder, "other"), lambda _: None)
    times.put((start, time.perf_counter()))


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        add_scene(folder / "warm", "warm", side_px=384)
        for source, sizes in (("known", KNOWN_PX), ("other", OTHER_PX)):
            for k, side in enumerate(sizes):
                add_scene(folder / source, f"{source}-{k}", side_px=side, seed=k)
        runs.run(settings_for(folder, "warm"), lambda _: None)
        known = settings_for(folder, "known")
        start = time.perf_counter()
        runs.run(known, lambda _: None)
        known_s = time.perf_counter() - start
        with open_ledger(known) as ledger:
            rates = rates_from(row.measures for row in ledger.rows(sink=known.sink, states=[State.CONFIRMED]))
        context = multiprocessing.get_context("spawn")
        meeting, times = context.Barrier(2), context.Queue()
        processes = [context.Process(target=runner, args=(folder, meeting, times)) for _ in range(2)]
        for process in processes:
            process.start()
        spans = [times.get() for _ in processes]
        for process in processes:
            process.join()
        measured = max(end for _, end in spans) - min(start for start, _ in spans)
    predictions = {}
    for label, sizes, many, seconds in (("one process", KNOWN_PX, 1, known_s), ("two at once", OTHER_PX, 2, measured)):
        mean = sum(side * side for side in sizes) / len(sizes) / 1e6
        fleet = Fleet(gpus=many, cpus=many, runners=many)
        predicted = forecast(Archive(scenes=len(sizes), mpx=mean), fleet, rates).hours * 3600
        predictions[label] = {"measured_s": seconds, "predicted_s": predicted, "off": predicted / seconds - 1}
    sys.stdout.write(json.dumps({"rates": rates.model_dump(), **predictions}) + "\n")
    return int(any(abs(one["off"]) > LIMIT for one in predictions.values()))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sys.exit(main())
