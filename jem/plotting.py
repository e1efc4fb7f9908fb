"""Pictures: arrays in, matplotlib figures out. The only module that draws."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure as Figure
from matplotlib.text import Text
from torch import Tensor

from jem.runs.folder import replacing

Array = npt.NDArray[Any]
Points = Sequence[tuple[int, float]]

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Colours that colour-blind readers can tell from each other."""

BLUE, ORANGE = COLORS[:2]
SMALL = 9  # points: 12 pixels of a page, the smallest text that a phone should show
LONGEST_NAME = 28  # characters
MOST_NAMED = 40  # columns of a table whose names stand under it
NARROW = 3.38  # inches: as wide as a phone shows without scrolling


def tile_images(x: Tensor, columns: int, gap: int = 1) -> Tensor:
    """Lay images out in a grid, row by row.

    Args:
        x: Images in [0, 1], shape (B, C, H, W).
        columns: Images a row; the last row is filled with white.
        gap: White pixels between images.

    Returns:
        One image, shape (H', W', C), or (H', W') for C = 1.
    """
    count, channels, height, width = x.shape
    rows = -(-count // columns)
    tiles = torch.ones(rows * columns, channels, height + gap, width + gap)
    tiles[:count, :, :height, :width] = x
    grid = tiles.view(rows, columns, channels, height + gap, width + gap)
    grid = grid.permute(0, 3, 1, 4, 2).reshape(
        rows * (height + gap), columns * (width + gap), channels
    )
    grid = grid[: -gap or None, : -gap or None]
    return grid.squeeze(-1) if channels == 1 else grid


def inputs_figure(
    x: Tensor,
    bounds: tuple[Tensor, Tensor] | None,
    *,
    columns: int = 8,
    row_names: Sequence[str] = (),
    names: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Show inputs: images as a grid, points of the plane as points, tables as rows of colour.

    Args:
        x: Inputs in the network's units, shape (B, *shape).
        bounds: Values shown as black and white; the range of `x` if None.
        columns: Images a row; for tables, rows of each name.
        row_names: Name of each row of images, such as its class.
        names: The column of the user's table that each number comes from, if columns have names.
        title: Heading.

    Returns:
        The figure.
    """
    x = x.detach().cpu().float()
    low, high = (x.amin(), x.amax()) if bounds is None else (bound.cpu() for bound in bounds)
    if x.ndim == 4 and x.shape[1] in (1, 3):
        width = torch.where(high > low, high - low, 1.0)  # images that are all of one grey
        return _image_figure(((x - low) / width).clamp(0, 1), columns, row_names, title)
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.add_subplot(title=title)
    flat = x.flatten(1)
    if flat.shape[1] == 2:
        axes.scatter(flat[:, 0].numpy(), flat[:, 1].numpy(), s=8)
        first, second = names or ("first number", "second number")
        axes.set(xlabel=first, ylabel=second)
        return figure
    shown = axes.imshow(flat.numpy(), aspect="auto", interpolation="nearest")
    figure.colorbar(shown, label="value, in the network's units")
    axes.set(xlabel="column", ylabel="row")
    if row_names:
        axes.set_yticks(range(0, len(x), columns), labels=[_label(name) for name in row_names])
    names = names or ()
    starts = [i for i, name in enumerate(names) if not i or name != names[i - 1]]
    if 0 < len(starts) <= MOST_NAMED:
        axes.set_xticks(starts, labels=[_label(names[i]) for i in starts], rotation=90)
        axes.set_xlabel("column; one of text has a number for each value")
    return figure


def _image_figure(x: Tensor, columns: int, row_names: Sequence[str], title: str) -> Figure:
    grid = tile_images(x, columns)
    rows = -(-len(x) // columns)
    scale, longest = 0.55, max((len(_short(name)) for name in row_names[:rows]), default=0)
    margin = max(1.2, 0.5 + 0.105 * longest)  # inches, for the names
    figure = Figure(figsize=(scale * columns + margin, scale * rows + 0.4), layout="constrained")
    axes = figure.add_subplot(title=title)
    axes.imshow(grid.numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    if row_names:
        height, names = x.shape[2] + 1, [_label(name) for name in row_names[:rows]]
        axes.set_yticks((np.arange(len(names)) + 0.5) * height - 1, labels=names)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG whole or not at all: a viewer never sees half a picture.

    Raises:
        OSError: If it cannot be written; what was there before is untouched.
    """
    with replacing(path) as file:
        _write(figure, file, format="png", dpi=150)


def _write(figure: Figure, file: IO[Any], **how: Any) -> None:  # noqa: ANN401
    """Write a figure as everywhere, also where the user's settings want LaTeX."""
    for text in figure.findobj(Text):
        text.set_usetex(False)
    with mpl.rc_context({"text.usetex": False}):
        figure.savefig(file, **how)


def image_bytes(x: Tensor, bounds: tuple[Tensor, Tensor], columns: int) -> bytes:
    """A PNG of images in a grid, one pixel a pixel; the viewer enlarges it.

    Args:
        x: Images in the network's units, shape (B, C, H, W), C 1 or 3.
        bounds: Values shown as black and white.
        columns: Images a row.

    Returns:
        The file's content.
    """
    from PIL import Image

    low, high = (bound.cpu() for bound in bounds)
    grid = tile_images(((x.cpu().float() - low) / (high - low)).clamp(0, 1), columns)
    pixels = (255 * grid).round().to(torch.uint8).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def svg(figure: Figure, name: str) -> str:
    """A figure as an inline SVG element that takes the page's text colour.

    Args:
        figure: The figure; black in it becomes `currentColor`, its background transparent.
        name: Distinguishes the ids in it from those of other figures on a page.

    Returns:
        `<svg ...>...</svg>`, hidden from screen readers: the caller labels it.
    """
    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        _write(figure, file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].replace("#000000", "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    return text.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)


def score_histograms(
    test: Tensor, others: Mapping[str, Tensor], threshold: float | None = None
) -> Figure:
    """Draw the scores of the test part and of each OOD set, a panel each.

    Args:
        test: Scores of the test part (N,).
        others: Name of an OOD set -> its scores (M,).
        threshold: Scores below it are flagged; a line, or None.

    Returns:
        The figure.
    """
    columns = min(3, max(1, len(others)))
    rows = -(-len(others) // columns)
    figure = Figure(figsize=(3.1 * columns, 2.1 * rows + 0.3), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for (name, other), axes in zip(others.items(), panels, strict=False):
        both = torch.cat([test, other])
        low, high = (float(both.quantile(q)) for q in (0.002, 0.998))
        edges = np.linspace(low, high + 1e-9, 41)
        for values, color in ((test, BLUE), (other, ORANGE)):
            clipped = values.clamp(low, high).numpy()
            share = np.full(len(clipped), 1 / len(clipped))
            axes.hist(clipped, edges, weights=share, alpha=0.65, color=color)
        if threshold is not None:
            axes.axvline(threshold, color="#000000", ls=":", lw=1)
        axes.set_title(_label(name), fontsize=SMALL)
        axes.set_yscale("log")  # in-distribution scores are often a spike beside a plain
        axes.set_ylim(5e-4, 1.5)
        axes.yaxis.set_major_formatter("{x:g}")  # exponents would be smaller still
        axes.tick_params(labelsize=SMALL)
    for axes in panels[len(others) :]:
        axes.set_visible(False)
    return figure


def roc_figure(test: Tensor, others: Mapping[str, Tensor]) -> Figure:
    """Draw the share of each OOD set flagged against that of test inputs, by threshold.

    Args:
        test: Scores of the test part (N,), higher = in-distribution.
        others: Name of an OOD set -> its scores (M,).

    Returns:
        The figure.
    """
    figure = Figure(figsize=(NARROW, 3.1), layout="constrained")
    axes = figure.subplots()
    shares = torch.linspace(0, 1, 401, dtype=torch.float64)
    thresholds = test.double().quantile(shares)
    for index, (name, other) in enumerate(others.items()):
        flagged = (other.double() < thresholds[:, None]).double().mean(dim=1)
        style, color = ("-", "--", "-.", ":")[index % 4], COLORS[index % len(COLORS)]
        axes.plot(shares.numpy(), flagged.numpy(), style, color=color, label=_label(name))
    axes.plot([0, 1], [0, 1], color="grey", lw=0.8)
    axes.set(xlim=(-0.01, 1), ylim=(0, 1.01))
    axes.set(xlabel="share of test inputs rejected", ylabel="share of the OOD set rejected")
    axes.legend(loc="lower right", frameon=False, fontsize=SMALL)
    return figure


def _label(name: str) -> str:
    """A name as a figure shows it: no formula between dollar signs, and nothing but UTF-8."""
    shown = _short(name).encode(errors="backslashreplace").decode()
    return shown.replace("$", r"\$")


def _short(name: str) -> str:
    """The end of a long name, such as a file's: a figure has no room for its folders."""
    return (
        name if len(name) <= LONGEST_NAME else f"\N{HORIZONTAL ELLIPSIS}{name[1 - LONGEST_NAME :]}"
    )


def corruption_figure(
    severities: Sequence[int], panels: Mapping[str, Mapping[str, Sequence[float]]]
) -> Figure:
    """Draw figures along severity: a panel each, a line a kind of corruption.

    Args:
        severities: Of the values, 0 for none.
        panels: Name of a figure -> kind of corruption -> a value for each severity.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(3.0 * len(panels), 2.7), layout="constrained")
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, kinds) in zip(row, panels.items(), strict=True):
        styles = zip(COLORS, ("o-", "s--", "^-.", "d:"), strict=False)
        for (kind, values), (color, style) in zip(kinds.items(), styles, strict=False):
            axes.plot(severities, values, style, color=color, ms=3, label=kind)
        axes.set(xlabel="severity (0: none)", ylabel=name)
        axes.set_ylim(bottom=0)
    row[0].legend(frameon=False, fontsize=SMALL)
    return figure


def robustness_figure(
    sizes: Sequence[str], lines: Mapping[str, Sequence[tuple[float, float, float]]]
) -> Figure:
    """Draw shares by size of attack, with their intervals.

    Args:
        sizes: Names of the sizes, in order.
        lines: Name of a line -> (share, lower end, upper end) for each size.

    Returns:
        A figure of one panel.
    """
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(sizes))
    styles = zip(COLORS, ("o-", "s--", "^-.", "d:"), strict=False)
    for index, ((name, values), (color, style)) in enumerate(
        zip(lines.items(), styles, strict=False)
    ):
        share, low, high = np.asarray(values).T
        reach = np.stack([share - low, high - share]).clip(min=0)
        x = places + 0.06 * index  # bars beside each other
        axes.errorbar(x, share, reach, fmt=style, color=color, ms=4, lw=1.2, capsize=2, label=name)
    axes.set_xticks(places, labels=sizes)
    axes.set(xlabel="largest change", ylabel="share classified rightly", ylim=(0, 1.02))
    axes.legend(frameon=False, fontsize=SMALL)
    return figure


def training_figure(validation_nll: Points, gap: Points, recoveries: Sequence[int] = ()) -> Figure:
    """Draw validation NLL and the energy gap along training, recoveries as vertical lines.

    Args:
        validation_nll: Pairs (update, NLL in nats).
        gap: Pairs (update, mean energy of the chains minus that of the data, nats).
        recoveries: Updates.

    Returns:
        The figure, a panel for each of the two that has points.
    """
    curves = {"validation NLL, nats": validation_nll, "energy gap, nats": gap}
    drawn = {name: np.asarray(points) for name, points in curves.items() if len(points)}
    figure = Figure(figsize=(3.7 * max(1, len(drawn)), 2.7), layout="constrained")
    panels = figure.subplots(1, max(1, len(drawn)), squeeze=False)[0]
    for (name, points), axes in zip(drawn.items(), panels, strict=False):
        axes.plot(*points.T, color=BLUE)
        axes.set(xlabel="update", ylabel=name)
        axes.axhline(0, color="grey", lw=0.8)
        for update in recoveries:
            axes.axvline(update, color=ORANGE, ls=":", lw=1)
    return figure


def reliability_diagram(
    edges: Array,
    counts: Array,
    confidence: Array,
    accuracy: Array,
    accuracy_low: Array,
    accuracy_high: Array,
    *,
    title: str = "Reliability",
    note: str = "",
) -> Figure:
    """Draw accuracy against confidence by bin, with a band and the count of every bin.

    Points below the diagonal are overconfident. Empty bins are left out.

    Args:
        edges: Of the bins, shape (B + 1,).
        counts: Inputs in each bin, shape (B,).
        confidence: Their mean confidence, shape (B,).
        accuracy: Share of them that is classified rightly, shape (B,).
        accuracy_low: Lower end of its band, shape (B,).
        accuracy_high: Upper end of its band, shape (B,).
        title: Heading.
        note: Text in the lower right corner.

    Returns:
        A figure of two panels, held by no global state.
    """
    figure = Figure(figsize=(NARROW, 4.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled = counts > 0
    x, y = confidence[filled], accuracy[filled]
    reach = np.stack([y - accuracy_low[filled], accuracy_high[filled] - y]).clip(min=0)
    upper.plot([0, 1], [0, 1], color="grey", ls=":", label="calibrated")
    upper.errorbar(
        x, y, reach, fmt="o", ms=4, lw=1, capsize=2, color=BLUE, label="observed, 95% band"
    )
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title=title)
    upper.text(0.97, 0.04, note, ha="right", va="bottom", fontsize=SMALL)
    upper.legend(loc="upper left", frameon=False, fontsize=SMALL)
    lower.bar(edges[:-1], counts, np.diff(edges), align="edge", color=BLUE, ec="white")
    lower.set(xlabel="confidence", ylabel="inputs")
    return figure


def risk_coverage_plot(coverage: Array, risk: Array) -> Figure:
    """Draw the share of errors among the answered inputs against the share of inputs answered.

    Args:
        coverage: Share of inputs answered, shape (J,).
        risk: Share of the answered that are wrong, shape (J,).

    Returns:
        A figure of one panel, held by no global state.
    """
    figure = Figure(figsize=(NARROW, 2.9), layout="constrained")
    axes = figure.subplots()
    axes.plot(coverage, risk, color=BLUE)
    axes.set(xlim=(0, 1), xlabel="share of inputs answered", ylabel="share of these wrong")
    axes.set_ylim(bottom=0)
    return figure
