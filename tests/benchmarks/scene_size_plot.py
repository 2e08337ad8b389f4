"""Cost per pixel and peak memory against scene size, from a report of ``pancrafter bench``.

pancrafter bench --only io,engine,exp,brovey,gdal-pansharpen-cog --sizes 2048,4096,8192,16384 --out benchmark.json
python tests/benchmarks/scene_size_plot.py benchmark.json docs/images/scene-size.svg
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.fonttype"] = "none"
mpl.rcParams["svg.hashsalt"] = "pancrafter"  # the same figures give the same file
from matplotlib import pyplot as plt  # noqa: E402


def main(report: Path, picture: Path) -> None:
    """Draw every measure that has more than one size."""
    by_name: dict[str, list[dict[str, float]]] = defaultdict(list)
    for measure in json.loads(report.read_text(encoding="utf-8"))["measures"]:
        by_name[measure["name"]].append(measure)
    figure, (cost, memory) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    sizes: set[int] = set()
    for name, measures in sorted(by_name.items()):
        if len(measures) < 2:
            continue
        measures.sort(key=lambda measure: measure["mpx"])
        edges = [round((measure["mpx"] * 1e6) ** 0.5) for measure in measures]
        sizes.update(edges)
        cost.plot(edges, [1e3 * measure["wall_s"] / measure["mpx"] for measure in measures], "o-", label=name)
        memory.plot(edges, [measure["peak_mib"] for measure in measures], "o-", label=name)
    for axes, title in ((cost, "wall time, ns per PAN pixel"), (memory, "peak memory, MiB")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(sizes), labels=[str(size) for size in sorted(sizes)])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("edge of the scene, PAN pixels")
        axes.set_title(title)
    figure.legend(*cost.get_legend_handles_labels(), loc="outside right center")
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", metavar="JSON", type=Path)
    parser.add_argument("picture", metavar="SVG", type=Path)
    main(**vars(parser.parse_args()))
