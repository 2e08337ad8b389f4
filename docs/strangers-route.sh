#!/bin/sh
# A stranger's route: a fresh environment with only pystac-client, odc-stac and rioxarray finds, opens and plots a
# published scene. Usage: docs/strangers-route.sh output/catalog.json [PICTURE.png]
set -eu
catalog=$1
picture=${2:-scene.png}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pystac-client odc-stac rioxarray matplotlib
"$folder/venv/bin/python" - "$catalog" "$picture" <<'PYTHON'
import sys
from datetime import UTC, datetime

import matplotlib
import odc.stac
import rioxarray
from pystac_client import Client

matplotlib.use("Agg")
catalog, picture = sys.argv[1:]
west, south, east, north, first = -180, -90, 180, 90, datetime(2020, 1, 1, tzinfo=UTC)
found = [
    item
    for item in Client.open(catalog).get_items(recursive=True)
    if item.datetime >= first
    and item.bbox[0] <= east and item.bbox[2] >= west and item.bbox[1] <= north and item.bbox[3] >= south
    and not item.properties.get("deprecated")
]
print(len(found), "scenes found")
item = found[0]
print(item.id, item.properties["title"], sep="\n")
image = rioxarray.open_rasterio(item.assets["sharpened"].get_absolute_href(), masked=True)
print("rioxarray:", dict(image.sizes), image.rio.crs, image.rio.resolution(), image.dtype, image.long_name)
cube = odc.stac.load([item], bands=["sharpened.1", "mask"], chunks={})
print("odc-stac: ", dict(cube.sizes), "usable", f"{float((cube['mask'] == 0).mean()):.1%}")
names = [band.get("eo:common_name") for band in item.assets["sharpened"].to_dict()["bands"]]
colour = image.isel(band=[names.index(name) for name in ("red", "green", "blue")])
axes = colour.plot.imshow(robust=True, add_labels=False).axes
axes.figure.savefig(picture, dpi=80)
print("plotted:  ", picture)
PYTHON
