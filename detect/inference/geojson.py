"""Detections in an image of a place on Earth, as GeoJSON."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from backbones.common.files import write_json
from detect.media.large import Place


def write_geojson(
    path: Path,
    detections: dict[str, Tensor],
    class_names: Sequence[str],
    place: Place,
) -> None:
    """A polygon for each detection, with its class and score.

    Args:
        path: file to write; replaced atomically.
        detections: `boxes` `[N, 4]` xyxy in pixels, `labels` `[N]` in `1..K`, `scores` `[N]`.
        class_names: of labels `1..K`.
        place: of the image. GIS programs read its reference system from the member `crs`; by
            RFC 7946 GeoJSON has longitudes and latitudes (`EPSG:4326`) alone.
    """
    a, b, c, d, e, f = place.transform
    rows = zip(*(detections[key].tolist() for key in ("boxes", "labels", "scores")), strict=True)
    features = []
    for (x1, y1, x2, y2), label, score in rows:
        corners = [(x1, y1), (x1, y2), (x2, y2), (x2, y1), (x1, y1)]
        ring = [[a * x + b * y + c, d * x + e * y + f] for x, y in corners]
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"class": class_names[label - 1], "score": score},
            }
        )
    document = {
        "type": "FeatureCollection",
        "crs": {"type": "name", "properties": {"name": place.crs}},
        "features": features,
    }
    write_json(path, document)
