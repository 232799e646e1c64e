"""What the client shows: a progress bar in a terminal or notebook, and a drawn image."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tangods_receiver.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A drawn image: Jupyter shows it, `save` writes it, `figure` is matplotlib's."""

    figure: Figure

    def _repr_png_(self) -> bytes:
        drawn = io.BytesIO()
        self.figure.savefig(drawn, format="png", dpi=100)
        return drawn.getvalue()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file; the kind is as its name ends: .png, .pdf, .svg."""
        self.figure.savefig(path, dpi=100)


def draw(image: NDArray[Any], title: str, log: bool = True) -> Picture:
    """Draw an image (rows x columns), colours logarithmic or not. ConfigError: matplotlib is not there."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.colors import LogNorm, Normalize
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise ConfigError("plot needs matplotlib: pip install 'tangods-detector[demo]'") from exc
    pixels = np.asarray(image, float)
    low, top = float(np.nanmin(pixels)), float(np.nanpercentile(pixels, 99.99))
    figure = Figure(figsize=(7, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    norm = LogNorm(1, max(2.0, top + 1), clip=True) if log else Normalize(low, max(low + 1, top))
    drawn = axes.imshow(pixels + 1 if log else pixels, norm=norm, cmap="inferno", interpolation="nearest")
    axes.set(title=title, xlabel="column", ylabel="row")
    figure.colorbar(drawn, ax=axes, label="counts + 1" if log else "counts", shrink=0.85)
    return Picture(figure)


@contextmanager
def bar(title: str, shown: bool) -> Iterator[Callable[[int, int | None], None]]:
    """Gives what is called with done and total: a bar in a notebook, or in a terminal that somebody watches."""
    if not shown or threading.current_thread() is not threading.main_thread():
        yield lambda done, total: None
    elif _in_notebook():
        yield _notebook_bar()
    else:
        from tangods_detector.cli import progress_bar

        with progress_bar(title) as step:
            yield step


def _in_notebook() -> bool:
    """A notebook's shell has a kernel; a terminal's has none."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return getattr(shell, "kernel", None) is not None


def _notebook_bar() -> Callable[[int, int | None], None]:
    shown = sys.modules["IPython.display"].ProgressBar(1)
    shown.display()

    def step(done: int, total: int | None) -> None:
        shown.total = total or max(done, 1)
        shown.progress = done

    return step
