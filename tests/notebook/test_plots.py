"""Pictures: what is sent, bounds, and figures that stay as they are."""

import io
import warnings
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from IPython.display import Image as DisplayImage
from matplotlib.figure import Figure
from PIL import Image

from jupyter_gemma.errors import BadImage
from jupyter_gemma.notebook.context import item_of, parts_of
from jupyter_gemma.notebook.items import Limits
from jupyter_gemma.types import ImagePart

mpl.use("Agg")


def picture(value, limits=None) -> Image.Image:
    (part,) = parts_of(value, replace(limits or Limits(), plot_text=False))
    assert isinstance(part, ImagePart)
    return Image.open(io.BytesIO(part.data))


def encoded(mode="RGB", size=(40, 30), kind="PNG", color=None) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, color or "red").save(buffer, format=kind)
    return buffer.getvalue()


@pytest.fixture
def figure() -> Figure:
    made = Figure(figsize=(4, 3), dpi=100)
    made.subplots().plot([1, 2, 3])
    return made


def test_figure_is_sent_as_it_is_drawn(figure):
    assert picture(figure).size == (400, 300)
    assert item_of(figure, Limits()).note == "picture 400 × 300"


def test_axes_artists_and_subfigures_are_their_figure(figure):
    axes = figure.axes[0]
    artist = axes.imshow(np.zeros((2, 2)))
    assert picture(axes).size == picture(artist).size == (400, 300)
    parent = Figure(figsize=(6, 4), dpi=100)
    left, _ = parent.subfigures(1, 2)
    assert picture(left.subplots()).size == (600, 400)


def test_an_owner_of_a_figure_counts_as_its_figure(figure):
    class Grid:
        def __init__(self):
            self.figure = figure

    assert picture(Grid()).size == (400, 300)


def test_an_artist_without_figure_is_named():
    from matplotlib.lines import Line2D

    with pytest.raises(BadImage, match="Line2D stands in no figure"):
        parts_of(Line2D([0], [0]))


def test_rendering_changes_nothing_of_the_figure(figure):
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    canvas = FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)

    def state():
        bounds = figure.axes[0].get_position().bounds
        return figure.dpi, tuple(figure.get_size_inches()), figure.get_facecolor(), bounds, figure.axes[0].get_xlim()

    before = state()
    shown = picture(figure)
    assert state() == before
    assert figure.canvas is canvas
    assert shown.getpixel((1, 1)) == (255, 255, 255)


def test_a_legend_outside_the_figure_is_not_cut_off(figure):
    figure.axes[0].plot([3, 2, 1], label="outside")
    figure.axes[0].legend(loc="upper left", bbox_to_anchor=(1.3, 1))
    assert picture(figure).width > 420


def test_large_figures_are_bounded():
    large = Figure(figsize=(100, 50), dpi=200)
    assert max(picture(large).size) <= 2048


def test_png_and_jpeg_within_bounds_pass_untouched():
    for data in (encoded(), encoded(kind="JPEG")):
        assert parts_of(data) == (ImagePart(data),)


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "BMP", "TIFF"])
def test_other_formats_become_png(kind):
    assert picture(encoded(kind=kind)).format == "PNG"


def test_transparency_becomes_white():
    assert picture(encoded("RGBA", color=(0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert picture(Image.new("RGBA", (5, 5), (255, 0, 0, 0))).getpixel((2, 2)) == (255, 255, 255)


def test_sides_are_bounded_and_the_shape_is_kept():
    assert picture(Image.new("RGB", (4096, 1024))).size == (2048, 512)
    assert picture(encoded(size=(300, 150)), Limits(side=100)).size == (100, 50)


@pytest.mark.parametrize(
    ("array", "first_pixel"),
    [
        (np.full((20, 30, 3), 7, np.uint8), (7, 7, 7)),
        (np.full((20, 30, 4), 255, np.uint8), (255, 255, 255)),
        (np.full((20, 30), 9, np.uint8), (9, 9, 9)),
        (np.ones((20, 30, 3)), (255, 255, 255)),
        (np.ones((20, 30), bool), (255, 255, 255)),
        (np.full((20, 30, 3), 128), (128, 128, 128)),
        (np.linspace(-5, 5, 600).reshape(20, 30), (0, 0, 0)),
        (np.zeros((20, 30), np.float32), (0, 0, 0)),
    ],
)
def test_arrays(array, first_pixel):
    before = array.copy()
    shown = picture(array)
    assert shown.size == (30, 20)
    assert shown.getpixel((0, 0)) == first_pixel
    assert (array == before).all()


def test_a_small_matrix_and_a_vector_are_text():
    assert "array of shape (3, 3)" in parts_of(np.eye(3))[0].text
    assert "array of shape (5,)" in parts_of(np.arange(5))[0].text


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((0, 20, 3), np.uint8),
        np.full((20, 20), np.nan),
        Image.new("RGB", (0, 5)),
        encoded()[:60],
        b"\x89PNG\r\n\x1a\nnonsense",
        DisplayImage(url="http://127.0.0.1/x.png"),
        Path("/nowhere/x.png"),
    ],
)
def test_bad_pictures_say_so(bad):
    with pytest.raises(BadImage) as caught:
        parts_of(bad)
    assert caught.value.fix


def test_huge_headers_are_refused_before_decoding():
    header = encoded(size=(1, 1)).replace((1).to_bytes(4, "big") * 2, (40_000).to_bytes(4, "big") * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(BadImage):
            parts_of(header)


def test_paths_and_display_images(tmp_path):
    path = tmp_path / "a.PNG"
    path.write_bytes(encoded())
    assert parts_of(path) == (ImagePart(encoded()),)
    assert parts_of(DisplayImage(data=encoded())) == (ImagePart(encoded()),)
    with pytest.raises(BadImage, match="more than 10 bytes"):
        parts_of(path, Limits(file_bytes=10))
