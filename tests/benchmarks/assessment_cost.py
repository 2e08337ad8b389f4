"""What the quality gate costs beside sharpening, on a large simulated scene and through the real steps.

    PYTHONPATH=tests .venv/bin/python tests/benchmarks/assessment_cost.py --side 4096 --workers 2

Pixels are one simulated GeoEye-1 scene laid side by side: no stage's time depends on what they show. Times are the
ledger's own; ``sharpen`` and ``assess`` run on the same workers.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import rasterio
from small_archive import GSD_M, RATIO, add_scene, write_raster

from pancrafter import runs
from pancrafter.ledger import open_ledger
from pancrafter.settings import Settings

PATCH_PX = 1024


def main() -> None:
    """Make the scene, run it, print the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4096, help=f"PAN pixels, a multiple of {PATCH_PX}.")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        scene = add_scene(root / "source", "large", side_px=PATCH_PX)
        for path, gsd_m in ((scene.pan, GSD_M), (scene.ms, GSD_M * RATIO)):
            with rasterio.open(path) as file:
                patch = file.read()
            write_raster(path, np.tile(patch, (1, options.side // PATCH_PX, options.side // PATCH_PX)), gsd_m)
        settings = Settings(
            source=str(root / "source"),
            sink=str(root / "output"),
            state_dir=str(root / "state"),
            workers=options.workers,
        )
        (outcome,) = runs.run(settings, lambda _: None)
        with open_ledger(settings) as ledger:
            (row,) = ledger.find("large")
        sharpen, assess = (row.measures[f"{name}_seconds"] for name in ("sharpen", "assess"))
        print(f"{options.side} x {options.side} px, {options.workers} workers: {outcome.verdict} {outcome.reason}")  # noqa: T201
        print(f"sharpen {sharpen:.1f} s, assess {assess:.1f} s: {assess / sharpen:.1%}")  # noqa: T201


if __name__ == "__main__":
    main()
