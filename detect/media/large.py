"""Image files that are read part by part, for they may be too large for memory; by rasterio (GDAL).

TIFF, BigTIFF and GeoTIFF, JPEG, JPEG 2000, PNG and what else GDAL knows.
"""

import os
import warnings
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from backbones.common.errors import ImageError, MissingPackageError
from backbones.common.images import check_white
from backbones.common.packages import require
from backbones.common.regular_files import open_file

CACHE_BYTES = 2**28
"""Of decoded rows that GDAL keeps: those that the margins of neighbouring parts share."""


class Place(NamedTuple):
    """Where on Earth an image lies.

    Attributes:
        transform: a to f: x = a column + b row + c, y = d column + e row + f.
        crs: name of the reference system of x and y, such as `EPSG:32633`.
    """

    transform: tuple[float, ...]
    crs: str


class LargeImage:
    """An image file that is read part by part, a context manager.

    Attributes:
        height: in pixels.
        width: in pixels.
        place: of a GeoTIFF, else None.

    Raises:
        ImageError: missing, broken, or pixels that are no 8- or 16-bit grey, palette or RGB.
        MissingPackageError: rasterio is not there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            require("large", "rasterio")
        except MissingPackageError as error:
            raise MissingPackageError(f"{path}: to read it part by part {error}") from error
        import rasterio

        self._rasterio = rasterio
        self.path = str(path)
        if not os.path.isfile(path):
            raise ImageError(f"{path}: cannot read image: no such file")
        self._settings = rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES, GDAL_DISABLE_READDIR_ON_OPEN=True)
        try:
            with self._settings, warnings.catch_warnings():
                # Most pictures are of no place on Earth.
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                self._file = rasterio.open(path)
        except rasterio.errors.RasterioError as error:
            raise ImageError(f"{path}: not an image in a known format: {error}") from error
        self.height, self.width = self._file.height, self._file.width
        self.place = None
        if self._file.crs is not None:
            self.place = Place(tuple(self._file.transform)[:6], self._file.crs.to_string())
        palette = rasterio.enums.ColorInterp.palette
        self._palette = None
        if self._file.colorinterp[0] == palette:
            colours = self._file.colormap(1)
            self._palette = np.array([colours[i][:3] for i in range(len(colours))], np.uint8)
        try:
            self._check()
        except ImageError:
            self._file.close()
            raise

    def _check(self) -> None:
        """Raise `ImageError` for what reading it as a whole would show otherwise."""
        if self._file.subdatasets:
            raise ImageError(f"{self.path}: has several pages: save each as an image of its own")
        kinds = set(self._file.dtypes)
        if kinds not in ({"uint8"}, {"uint16"}):
            raise ImageError(
                f"{self.path}: pixels are {', '.join(sorted(kinds))}: expected 8- or 16-bit "
                "integers from 0 (gdal_translate -ot Byte -scale converts)"
            )
        turned = self._file.tags().get("EXIF_Orientation", "1") != "1"
        if self._file.driver == "GTiff":
            try:
                with open_file(self.path) as file:
                    turned = TiffImageFile(file).getexif().get(ExifTags.Base.Orientation, 1) != 1
            except Exception as error:  # Pillow raises about anything for a damaged header
                raise ImageError(f"{self.path}: damaged header: {error}") from error
        if turned:
            raise ImageError(
                f"{self.path}: its orientation tag says that it is turned, which is not done part "
                "by part: save it upright"
            )
        structure = "IMAGE_STRUCTURE"
        space = self._file.tags(ns=structure).get("SOURCE_COLOR_SPACE", "RGB")
        bits = self._file.tags(1, ns=structure).get("NBITS", "8")
        if space not in ("RGB", "YCbCr") or (bits not in ("8", "16") and self._palette is None):
            raise ImageError(
                f"{self.path}: pixels of {bits} bits in {space}: expected 8 or 16 bits of grey or "
                "RGB, or a palette"
            )
        if self._file.dtypes[0] == "uint16":
            # Of a quarter of a million of its pixels: to see all would take as long as the work.
            everything = (0, 0, self.width, self.height)
            check_white(self._raw(everything, (512, 512), "nearest"), self.path)

    def __enter__(self) -> "LargeImage":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, box: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
        """A part x1, y1, x2, y2 in pixels, as `uint8` RGB `[3, *size]`, shrunk to means.

        Raises:
            ImageError: the file is broken there.
        """
        # Of colours' numbers there is no mean.
        pixels = self._raw(box, size, "average" if self._palette is None else "nearest")
        if self._palette is not None:
            pixels = self._palette[pixels[0]].transpose(2, 0, 1)
        elif pixels.dtype == np.uint16:
            pixels = (pixels >> 8).astype(np.uint8)
        return torch.from_numpy(np.ascontiguousarray(pixels)).expand(3, -1, -1)

    def _raw(
        self, box: tuple[int, int, int, int], size: tuple[int, int], method: str
    ) -> np.ndarray:
        """`[1 or 3, *size]` as they are in the file."""
        x1, y1, x2, y2 = box
        bands = [1, 2, 3] if self._file.count >= 3 else [1]
        try:
            with self._settings:
                pixels: np.ndarray = self._file.read(
                    bands,
                    window=((y1, y2), (x1, x2)),
                    out_shape=(len(bands), *size),
                    resampling=self._rasterio.enums.Resampling[method],
                )
        except self._rasterio.errors.RasterioError as error:
            raise ImageError(f"{self.path}: corrupt or truncated image: {error}") from error
        return pixels
