"""Size and time of the COG profiles against GDAL's COG driver and rio-cogeo's defaults, on the same pixels.

    PYTHONPATH=tests .venv/bin/python tests/benchmarks/cog_profiles.py SHARPENED.tif

Each writer gets the same pixels. Sizes are of whole files with overviews; times are wall and CPU of this process.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
from rasterio.shutil import copy as gdal_copy
from rio_cogeo.cogeo import cog_translate
from rio_cogeo.profiles import cog_profiles

from pancrafter.cog import Block, Profile, write_cog
from pancrafter.types import PixelGrid


def main() -> None:
    """Measure every writer and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path, help="Any GeoTIFF of a sharpened scene.")
    parser.add_argument("--repeat", type=int, default=1, help="Lay the image side by side so often, for a larger one.")
    options = parser.parse_args()
    with rasterio.open(options.image) as source:
        values = np.tile(source.read(), (1, options.repeat, options.repeat))
        crs, transform, names = source.crs.to_string(), tuple(source.transform)[:6], source.descriptions
    grid = PixelGrid(crs=crs, transform=transform, shape_yx=values.shape[1:])
    whole = (slice(0, values.shape[1]), slice(0, values.shape[2]))
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.tif"
        with rasterio.open(
            plain, "w", driver="GTiff", height=values.shape[1], width=values.shape[2], count=len(values),
            dtype=values.dtype, crs=crs, transform=rasterio.Affine(*transform), tiled=True, nodata=0,
        ) as target:  # fmt: skip
            target.write(values)

        def ours(profile: Profile) -> Callable[[Path], object]:
            return lambda path: write_cog(
                path, [Block(whole, values)], grid=grid, count=len(values), dtype=str(values.dtype), nodata=0,
                band_names=[name or f"b{i}" for i, name in enumerate(names)], profile=profile,
            )  # fmt: skip

        def driver(**creation: object) -> Callable[[Path], object]:
            return lambda path: gdal_copy(str(plain), str(path), driver="COG", **creation)

        def cogeo(name: str) -> Callable[[Path], object]:
            return lambda path: cog_translate(
                str(plain), str(path), cog_profiles.get(name), quiet=True, in_memory=False
            )

        writers = {
            "ours, fast (ZSTD 1, predictor 2), verified": ours("fast"),
            "ours, archive (ZSTD 9, predictor 2), verified": ours("archive"),
            "GDAL COG driver, defaults (LZW)": driver(),
            "GDAL COG driver, ZSTD 9, predictor": driver(COMPRESS="ZSTD", LEVEL=9, PREDICTOR="YES"),
            "GDAL COG driver, DEFLATE 6, predictor": driver(COMPRESS="DEFLATE", LEVEL=6, PREDICTOR="YES"),
            "rio-cogeo, profile deflate": cogeo("deflate"),
            "rio-cogeo, profile zstd": cogeo("zstd"),
        }
        raw = values.nbytes / 2**20
        print(f"{values.shape} {values.dtype}, {raw:.1f} MiB\n")  # noqa: T201
        print("| writer | MiB | share of raw | s | CPU s |\n|---|---|---|---|---|")  # noqa: T201
        for name, write in writers.items():
            path = Path(folder) / "out.tif"
            wall, cpu = time.perf_counter(), time.process_time()
            write(path)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            size = path.stat().st_size / 2**20
            print(f"| {name} | {size:.2f} | {size / raw:.0%} | {wall:.1f} | {cpu:.1f} |")  # noqa: T201
            path.unlink()


if __name__ == "__main__":
    main()
