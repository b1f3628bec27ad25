"""Pictures: figures, images and arrays as PNG or JPEG bytes, white under transparency, bounded in size.

PIL and numpy are imported when a picture is at hand; matplotlib only through the figure that was handed in.
"""

from __future__ import annotations

import io
from typing import Any

from jupyter_gemma.errors import BadImage
from jupyter_gemma.notebook import texts
from jupyter_gemma.notebook.figures import figure_text
from jupyter_gemma.notebook.items import Item, Limits, read_file
from jupyter_gemma.types import ImagePart, TextPart

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
THUMBNAIL = (96, 64)
# Smaller float and integer matrices are read as tables of numbers, not as pictures.
SMALLEST_MATRIX = 16
# PIL opens headers of any size; a picture above this is refused before its pixels are decoded.
MAX_PIXELS = 200_000_000


def from_figure(figure: Any, limits: Limits) -> Item:
    """A matplotlib figure as its own dpi shows it; its size, dpi and canvas stay as they are."""
    figure = figure if hasattr(figure, "savefig") else figure.get_figure(root=True)  # a subfigure cannot be saved
    width, height = figure.get_size_inches()
    dpi = min(figure.dpi, limits.side / max(width, height))
    buffer = io.BytesIO()
    inside = "tight" if _reaches_out(figure, width, height) else None
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches=inside)
    item = from_bytes(buffer.getvalue(), limits)
    words = figure_text(figure) if limits.plot_text else ""
    return Item((*item.parts, TextPart(f"\nTexts and ranges of this figure: {words}\n")), item.note) if words else item


def _reaches_out(figure: Any, width: float, height: float) -> bool:
    """Whether something, as a legend beside the axes, would be cut off at the edge of the figure."""
    from matplotlib.backends.backend_agg import RendererAgg

    # A renderer of our own: the one an SVG or PDF canvas lends leaves the figure with another dpi. It draws nothing.
    measure = RendererAgg(1, 1, figure.dpi)  # type: ignore[no-untyped-call]
    box = figure.get_tightbbox(measure)
    slack = 0.01 * max(width, height)
    return bool(box.x0 < -slack or box.y0 < -slack or box.x1 > width + slack or box.y1 > height + slack)


def from_artist(artist: Any, limits: Limits) -> Item:
    """Axes, images, lines and seaborn grids: the figure they stand in."""
    if artist.figure is None:
        raise BadImage(f"This {type(artist).__name__} stands in no figure.", "Hand in the figure it was drawn in.")
    return from_figure(artist.figure, limits)


def from_pil(image: Any, limits: Limits) -> Item:
    """A PIL image."""
    width, height = image.size
    if not width or not height:
        raise BadImage(f"The picture has {width} × {height} pixels.", "Hand in one that has some.")
    flat = _on_white(image)
    flat.thumbnail((limits.side, limits.side))
    data = _png(flat)
    return Item((ImagePart(data),), note_of(data))


def is_picture_array(array: Any) -> bool:
    """H × W × 3 or 4, H × W bytes, or an H × W matrix too large to be a table of numbers."""
    if array.dtype.kind not in "buif":
        return False
    if array.ndim == 3:
        return bool(array.shape[2] in (3, 4))
    small = array.ndim != 2 or min(array.shape) < SMALLEST_MATRIX
    return not small or (array.ndim == 2 and array.dtype.kind in "bu" and array.dtype.itemsize == 1)


def from_any_array(array: Any, limits: Limits) -> Item:
    """A numpy array: a picture where it has the shape of one, else text."""
    return from_array(array, limits) if is_picture_array(array) else texts.from_array(array, limits)


def from_array(array: Any, limits: Limits) -> Item:
    """H × W (grey), H × W × 3 or H × W × 4: bytes, floats of 0..1, or any numbers, spread over 0..255."""
    import numpy
    from PIL import Image

    if array.size == 0:
        raise BadImage(f"The array of shape {array.shape} has no pixels.", "Hand in one that has some.")
    return from_pil(Image.fromarray(_to_bytes(numpy, array)), limits)


def _to_bytes(numpy: Any, array: Any) -> Any:
    if array.dtype.kind == "u" and array.dtype.itemsize == 1:
        return array
    values = array.astype(numpy.float64)
    if not numpy.isfinite(values).all():
        raise BadImage("The array holds values that are not finite.", "Replace them: numpy.nan_to_num(array).")
    low, high = values.min(), values.max()
    if low < 0 or (high > 1 and (array.dtype.kind == "f" or high > 255)):
        values = (values - low) / (high - low) if high > low else values * 0
    elif array.dtype.kind in "iu":
        values = values / 255
    return (values * 255).round().clip(0, 255).astype(numpy.uint8)


def is_picture(data: bytes) -> bool:
    """Whether ``data`` begins as PNG, JPEG, GIF, BMP, TIFF or WebP files do."""
    if data[:4] == b"RIFF":
        return data[8:12] == b"WEBP"
    return data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*"))


def from_bytes(data: bytes, limits: Limits) -> Item:
    """A picture file. PNG and JPEG within the bounds and without transparency pass untouched.

    Raises:
        BadImage: no picture, a truncated one, or one too large.
    """
    image = _open(data, limits)
    fits = max(image.size) <= limits.side and image.format in ("PNG", "JPEG")
    if fits and not image.has_transparency_data:
        return Item((ImagePart(data),), note_of(data))
    return from_pil(image, limits)


def from_path(path: Any, limits: Limits) -> Item:
    """A picture file on disk."""
    return from_bytes(read(path, limits), limits)


def read(path: Any, limits: Limits) -> bytes:
    """The bytes of a picture file.

    Raises:
        BadImage: it is too large or cannot be read.
    """
    return read_file(path, limits, BadImage, "Shrink it first.")


def from_display(image: Any, limits: Limits) -> Item:
    """An ``IPython.display.Image``; one that is only a link is refused, nothing is fetched."""
    if not isinstance(image.data, bytes):
        raise BadImage("This Image holds no picture, only a link.", "Save the picture and hand in its path.")
    return from_bytes(image.data, limits)


def note_of(data: bytes) -> str:
    """ "picture W × H"."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return f"picture {image.width} × {image.height}"
    except (OSError, ValueError):
        return f"picture, {len(data)} bytes"


def thumbnail(data: bytes) -> bytes:
    """A small PNG of the picture, for people to see what was sent."""
    image = _on_white(_open(data, Limits()))
    image.thumbnail(THUMBNAIL)
    return _png(image)


def _open(data: bytes, limits: Limits) -> Any:
    from PIL import Image

    if len(data) > limits.file_bytes:
        raise BadImage(f"The picture has more than {limits.file_bytes} bytes.", "Shrink it first.")
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise BadImage(f"The picture has {image.width} × {image.height} pixels.", "Shrink it first.")
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadImage(f"The picture cannot be read: {error}.", "Hand in a PNG or JPEG file.") from error
    return image


def _on_white(image: Any) -> Any:
    """A copy in RGB; where the picture is transparent it becomes white, as on a page."""
    from PIL import Image

    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
