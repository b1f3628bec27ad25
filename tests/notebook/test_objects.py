"""Every kind of object: within its bounds, under 200 ms unless it is drawn, and as it was before.

The table holds at least 40 real objects; each is built by a function that names its kind.
"""

import io
import time
import wave
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from jupyter_gemma.notebook.context import item_of
from jupyter_gemma.notebook.items import Limits, tokens_of
from jupyter_gemma.types import AudioPart, ImagePart, TextPart

mpl.use("Agg")
LIMITS = Limits()
SECONDS = 0.2


@dataclass
class Kind:
    """``make`` builds the object, ``parts`` are the kinds it becomes, ``words`` stand in its text.

    ``needs`` names a fixture that drawing it takes.
    """

    make: object
    parts: tuple = (TextPart,)
    words: str = ""
    drawn: bool = False
    needs: str = ""


def frame(rows=1000):
    rng = np.random.default_rng(0)
    x = rng.normal(size=rows)
    return pd.DataFrame(
        {
            "x": x,
            "double": 2 * x + 0.01 * rng.normal(size=rows),
            "city": np.array(["Rome", "Oslo", "Lima"])[rng.integers(0, 3, rows)],
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(rows) % 366, unit="D"),
        }
    )


def wide():
    return pd.DataFrame(np.arange(15_000.0).reshape(3, 5000))


def huge():
    rng = np.random.default_rng(0)
    return pd.DataFrame({"a": rng.normal(size=10_000_000), "b": rng.integers(0, 9, 10_000_000)})


def tone(seconds=0.5, rate=16_000):
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def wav(dtype="<i2", channels=1):
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(np.repeat(32767 * tone(), channels).astype(dtype).tobytes())
    return buffer.getvalue()


def sound_file(kind, subtype=None):
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, tone(), 16_000, format=kind, subtype=subtype)
    return buffer.getvalue()


def figure():
    made = Figure()
    axes = made.subplots()
    axes.plot([0, 1, 2], [5, 7, 6], label="speed")
    axes.set(title="Run", xlabel="time (s)", ylabel="m/s")
    axes.legend()
    return made


def bars():
    made = Figure()
    made.subplots().bar(["Rome", "Oslo"], [3, 4])
    return made


def grid():
    made = Figure()
    for number, axes in enumerate(made.subplots(2, 2).flat):
        axes.plot(range(5))
        axes.set_title(f"panel {number}")
    return made


def seaborn_grid():
    import seaborn

    return seaborn.relplot(frame(50), x="x", y="double")


def plotly():
    import plotly.graph_objects as go

    return go.Figure(go.Scatter(x=np.arange(500), y=np.arange(500) ** 2, name="squares"), layout={"title": "Growth"})


def altair():
    import altair

    return altair.Chart(frame(20)).mark_point().encode(x="x", y="double")


def bokeh():
    from bokeh.plotting import figure as bokeh_figure

    made = bokeh_figure(title="Speeds", x_axis_label="time", y_axis_label="m/s")
    made.line([0, 1, 2], [5, 7, 6])
    return made


def polars(rows=1000):
    import polars

    return polars.from_pandas(frame(rows))


def arrow(rows=1000):
    import pyarrow

    return pyarrow.Table.from_pandas(frame(rows), preserve_index=False)


def duckdb():
    import duckdb

    return duckdb.sql("select range as n, range % 7 as weekday from range(100000)")


def dask():
    import dask.dataframe

    return dask.dataframe.from_pandas(frame(), npartitions=3)


def torch(shape, dtype="float32"):
    import torch

    return torch.linspace(0, 1, int(np.prod(shape))).reshape(shape).to(getattr(torch, dtype))


def encoded(kind, mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, (64, 48), "red").save(buffer, format=kind)
    return buffer.getvalue()


SVG = b"<svg xmlns='http://www.w3.org/2000/svg' width='80' height='60'><rect width='40' height='30' fill='red'/></svg>"
PICTURE, PLOT, SOUND = (ImagePart,), (ImagePart, TextPart), (AudioPart,)
KINDS = {
    "frame": Kind(frame, words="Correlations: x and double 1.00"),
    "frame of dates": Kind(frame, words="2024-12-31 00:00:00, spanning 365 days"),
    "frame with unicode": Kind(lambda: pd.DataFrame({"ünï 🎉": ["日本" * 90, "ß"]}), words="ünï 🎉"),
    "frame with nested cells": Kind(lambda: pd.DataFrame({"n": [[1], {"a": 2}, np.ones(3)]}), words="3 unique"),
    "frame of categories": Kind(lambda: pd.DataFrame({"c": pd.Categorical(["x", "y", "x"])}), words="category"),
    "frame with time zones": Kind(
        lambda: pd.DataFrame({"t": pd.date_range("2024", periods=3, tz="Europe/Rome")}), words="+01:00"
    ),
    "frame with missing values": Kind(lambda: pd.DataFrame({"a": [1.0, None], "b": [None, None]}), words="1 missing"),
    "frame with nullable types": Kind(lambda: pd.DataFrame({"a": pd.array([1, None], dtype="Int64")}), words="Int64"),
    "frame of 10^7 rows": Kind(huge, words="Table of 10000000 rows"),
    "frame of 5,000 columns": Kind(wide, words="more columns"),
    "frame with long names": Kind(lambda: pd.DataFrame({"n" * 100_000: [1]}), words="…"),
    "frame with double names": Kind(lambda: pd.DataFrame([[1, 2]], columns=["same", "same"]), words="same"),
    "frame with levels": Kind(
        lambda: frame(9).pivot_table(index="city", values=["x", "double"]), words="indexed by city"
    ),
    "frame without rows": Kind(lambda: frame(0), words="Table of 0 rows"),
    "frame without anything": Kind(pd.DataFrame, words="Table of 0 rows and 0 columns"),
    "frame of decimals and objects": Kind(lambda: pd.DataFrame({"o": [object(), 1, "a"]}), words="object"),
    "series": Kind(lambda: frame()["x"], words="x (float64)"),
    "index": Kind(lambda: pd.Index([1, 2, 3], name="key"), words="key"),
    "groups": Kind(lambda: frame().groupby("city"), words="Grouped by city into 3 groups. Largest:"),
    "groups of a series": Kind(lambda: frame().groupby("city")["x"], words="into 3 groups"),
    "pivot": Kind(lambda: frame().pivot_table(index="city", columns=frame()["day"].dt.month, values="x"), words="city"),
    "polars": Kind(polars, words="x (Float64)"),
    "polars of 10^6 rows": Kind(lambda: polars(1_000_000), words="Table of 1000000 rows and 4 columns"),
    "polars lazy": Kind(lambda: polars().lazy(), words="Lazy table of 4 columns"),
    "polars series": Kind(lambda: polars()["x"], words="Table of 1000 rows and 1 columns"),
    "arrow": Kind(arrow, words="x (double)"),
    "arrow of 10^6 rows": Kind(lambda: arrow(1_000_000), words="Figures are from every 200th row"),
    "duckdb": Kind(duckdb, words="Table of 100000 rows"),
    "dask": Kind(dask, words="Dask table of 4 columns in 3 partitions"),
    "dask series": Kind(lambda: dask()["x"], words="Dask table of 1 columns"),
    "matrix of numbers": Kind(lambda: np.arange(20.0).reshape(10, 2), words="array of shape (10, 2), float64, 0 to 19"),
    "vector of numbers": Kind(lambda: np.arange(10**7), words="array of shape (10000000,)"),
    "matplotlib figure": Kind(figure, PLOT, "x 'time (s)' from -0.1 to 2.1", drawn=True),
    "matplotlib axes": Kind(lambda: figure().axes[0], PLOT, "line 'speed' of 3 points", drawn=True),
    "matplotlib bars": Kind(bars, PLOT, "ticks Rome, Oslo", drawn=True),
    "matplotlib grid": Kind(grid, PLOT, "axes 4: title 'panel 3'", drawn=True),
    "seaborn grid": Kind(seaborn_grid, PLOT, "'double'", drawn=True),
    "plotly": Kind(plotly, PICTURE, drawn=True, needs="chromium"),
    "altair": Kind(altair, PICTURE, drawn=True),
    "bokeh": Kind(bokeh, words="Bokeh plot 'Speeds', x 'time', y 'm/s'"),
    "PIL": Kind(lambda: Image.new("RGBA", (4000, 300)), PICTURE, drawn=True),
    "numpy picture": Kind(lambda: np.zeros((48, 64, 3), np.uint8), PICTURE),
    "numpy floats": Kind(lambda: np.linspace(0, 1, 48 * 64).reshape(48, 64), PICTURE),
    "torch picture": Kind(lambda: torch((3, 48, 64)), PICTURE),
    "torch grey picture": Kind(lambda: torch((1, 48, 64), "bfloat16"), PICTURE),
    "torch vector": Kind(lambda: torch((10,)), words="array of shape (10,)"),
    "PNG": Kind(lambda: encoded("PNG"), PICTURE),
    "JPEG": Kind(lambda: encoded("JPEG"), PICTURE),
    "WebP": Kind(lambda: encoded("WEBP"), PICTURE),
    "SVG": Kind(lambda: SVG, PICTURE, drawn=True),
    "(samples, rate)": Kind(lambda: (tone(), 16_000), SOUND),
    "(rate, samples)": Kind(lambda: (16_000, tone()), SOUND),
    "16-bit samples": Kind(lambda: ((32767 * tone()).astype(np.int16), 16_000), SOUND),
    "32-bit samples": Kind(lambda: ((2e9 * tone()).astype(np.int32), 16_000), SOUND),
    "stereo": Kind(lambda: (np.stack([tone(), tone()], axis=1), 44_100), SOUND),
    "torch samples": Kind(lambda: (torch((8000,)), 16_000), SOUND),
    "loud samples": Kind(lambda: (20 * tone(), 16_000), SOUND),
    "WAV": Kind(wav, SOUND),
    "stereo WAV": Kind(lambda: wav(channels=2), SOUND),
    "FLAC": Kind(lambda: sound_file("FLAC"), SOUND),
    "Ogg": Kind(lambda: sound_file("OGG", "VORBIS"), SOUND),
    "MP3": Kind(lambda: sound_file("MP3"), SOUND),
    "list": Kind(lambda: list(range(10**6)), words="998000 more"),
    "dict": Kind(lambda: {"a": {"b": [1, 2]}}, words="{'a': {'b': [1, 2]}}"),
    "module": Kind(lambda: wave, words="Module wave"),
    "function": Kind(lambda: tone, words="def tone"),
    "path of code": Kind(lambda: Path(__file__), words="Every kind of object"),
    "path of a notebook": Kind(
        lambda: Path(__file__).parents[2] / "examples" / "quickstart.ipynb", words="# Cell 2 (code)"
    ),
}


def test_the_table_is_large_enough():
    assert len(KINDS) >= 40


@pytest.fixture(params=KINDS.items(), ids=list(KINDS))
def kind(request) -> Kind:
    made = request.param[1]
    if made.needs:
        request.getfixturevalue(made.needs)
    return made


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_it_becomes_what_it_should_within_its_bounds(kind):
    value = kind.make()
    took = []
    for _ in range(1 if kind.drawn else 3):
        started = time.perf_counter()
        item = item_of(value, LIMITS)
        took.append(time.perf_counter() - started)
    assert tuple(map(type, item.parts)) == kind.parts
    text = "".join(part.text for part in item.parts if isinstance(part, TextPart))
    assert kind.words in text
    assert item.note
    assert len(text) <= LIMITS.chars + 100
    if item.note.startswith("table"):
        assert tokens_of(text) <= LIMITS.tokens
    for part in item.parts:
        if isinstance(part, ImagePart):
            assert max(Image.open(io.BytesIO(part.data)).size) <= LIMITS.side
    assert kind.drawn or min(took) < SECONDS, took


FRAMES = [name for name, kind in KINDS.items() if name.startswith(("frame", "series")) and "10^7" not in name]


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("form", ["digest", "columns"])
def test_frames_stay_as_they_were(name, form):
    value = KINDS[name].make()
    before = value.copy(deep=True)
    item_of(value, Limits(table_form=form))
    same = pd.testing.assert_series_equal if isinstance(value, pd.Series) else pd.testing.assert_frame_equal
    same(value, before)


def test_samples_and_pixels_stay_as_they_were():
    loud, pixels = 20 * tone() + 3, np.linspace(-5, 5, 3000).reshape(50, 60)
    before = loud.copy(), pixels.copy()
    item_of((loud, 16_000), LIMITS)
    item_of(pixels, LIMITS)
    np.testing.assert_array_equal(loud, before[0])
    np.testing.assert_array_equal(pixels, before[1])


def test_nothing_is_imported_for_the_question():
    import subprocess
    import sys

    code = (
        "import sys; from jupyter_gemma.notebook.context import item_of;"
        "from jupyter_gemma.notebook.items import Limits;"
        "item_of({'a': [1]}, Limits()); item_of('x', Limits()); item_of(object(), Limits());"
        "names = 'pandas polars pyarrow duckdb dask matplotlib plotly altair bokeh torch numpy PIL vl_convert'.split();"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
