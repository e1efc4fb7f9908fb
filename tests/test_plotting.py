import os
import warnings

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from jem.plotting import (
    inputs_figure,
    roc_figure,
    save_figure,
    score_histograms,
    svg,
    tile_images,
    training_figure,
)

DOMAIN = (torch.tensor(-1.0), torch.tensor(1.0))


def test_tiles_lie_row_by_row_with_a_white_gap():
    x = torch.arange(3).view(3, 1, 1, 1).expand(3, 2, 4, 5) / 10
    grid = tile_images(x, columns=2)
    assert grid.shape == (2 * 4 + 1, 2 * 5 + 1, 2)
    assert (grid[:4, 6:] == 0.1).all()
    assert (grid[5:, :5] == 0.2).all()
    assert (grid[5:, 6:] == 1).all()  # the last row is filled up
    assert (grid[4] == 1).all()
    assert (grid[:, 5] == 1).all()


def pixels(figure):
    return np.asarray(figure.axes[0].images[0].get_array())


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_shown_between_the_bounds(channels):
    x = torch.full((2, channels, 4, 4), -1.0)
    x[1] = 3.0  # beyond the domain: white, no wrap-around
    shown = pixels(inputs_figure(x, DOMAIN, columns=2))
    assert shown.shape == ((4, 9) if channels == 1 else (4, 9, 3))
    assert (shown[:, :4] == 0).all()
    assert (shown[:, 5:] == 1).all()


def test_without_bounds_the_range_is_shown_and_one_grey_is_no_division_by_zero():
    x = torch.tensor([2.0, 6.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    assert set(pixels(inputs_figure(x, None, columns=2)).flatten().tolist()) == {0.0, 1.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown = pixels(inputs_figure(torch.full((1, 1, 2, 2), 5.0), None, columns=1))
    assert np.isfinite(shown).all()


def test_rows_of_images_are_named():
    figure = inputs_figure(torch.zeros(4, 1, 3, 3), DOMAIN, columns=2, row_names=["a", "b"])
    ticks = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert ticks == ["a", "b"]
    assert figure.axes[0].get_yticks().tolist() == [1.0, 5.0]  # middles of the rows


def test_points_of_the_plane_are_points():
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0]], requires_grad=True)
    axes = inputs_figure(x, None, title="points").axes[0]
    assert axes.collections[0].get_offsets().tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert axes.get_title() == "points"


def test_tables_are_rows_of_colour():
    figure = inputs_figure(torch.arange(12.0).view(3, 4), None)
    assert pixels(figure).shape == (3, 4)
    assert len(figure.axes) == 2  # with a colour bar


def test_rows_of_a_table_stand_over_the_names_of_its_columns_beside_their_classes():
    names = ("months", "plan", "plan", "fee")
    figure = inputs_figure(
        torch.rand(6, 4), None, columns=3, row_names=["stays", "goes"], names=names
    )
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["months", "plan", "fee"]
    assert axes.get_xticks().tolist() == [0, 1, 3]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["stays", "goes"]
    assert axes.get_yticks().tolist() == [0, 3]


def test_a_figure_is_written_as_png_and_leaves_no_partial_file(tmp_path):
    path = tmp_path / "samples.png"
    path.write_bytes(b"an older picture")
    save_figure(inputs_figure(torch.zeros(4, 1, 3, 3), DOMAIN), path)
    assert imread(path).ndim == 3
    assert [file.name for file in tmp_path.iterdir()] == ["samples.png"]


def test_a_long_name_leaves_room_for_the_curve():
    path = "/a/folder/in/a/folder/" * 5 + "others.npz"
    figure = roc_figure(torch.arange(9.0), {path: torch.arange(9.0), "letters": -torch.ones(3)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "axes sizes collapsed to zero"
        drawn = svg(figure, "roc")
    shown = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert shown[0].endswith("others.npz")
    assert max(len(name) for name in shown) == 28
    assert shown[1] == "letters"
    assert path not in drawn


def test_a_curve_without_points_has_no_panel():
    both = training_figure([(10, 1.0), (20, 0.5)], [(10, 0.1)], recoveries=[15])
    assert len(both.axes) == 2
    (gap,) = training_figure([], [(10, 0.1), (20, 0.2)]).axes
    assert "gap" in gap.get_ylabel()


def test_a_dollar_sign_in_a_name_is_no_formula(tmp_path):
    save_figure(
        inputs_figure(torch.rand(2, 1, 4, 4), None, columns=1, row_names=["$50_$60", "$70_$80"]),
        tmp_path / "a.png",
    )
    scores = torch.rand(9), {"new_$a_$.npz": torch.rand(9)}
    for number, figure in enumerate((roc_figure(*scores), score_histograms(*scores, 0.5))):
        assert "new_$a_$.npz" in svg(figure, f"f{number}")


def test_long_row_names_leave_images_their_room():
    def width_of_images(name):
        figure = inputs_figure(torch.rand(3, 1, 28, 28), None, columns=3, row_names=[name])
        figure.draw_without_rendering()
        return figure.axes[0].get_window_extent().width

    assert width_of_images("cats/IMG_20230714_123456.jpg" * 4) > 0.9 * width_of_images("7.png")


def test_pictures_need_no_latex_and_no_name_in_utf8(tmp_path):
    names = [os.fsdecode(b"caf\xe9"), "b"]
    with mpl.rc_context({"text.usetex": True}):
        figure = inputs_figure(torch.zeros(4, 1, 4, 4), DOMAIN, columns=2, row_names=names)
        save_figure(figure, tmp_path / "samples.png")
        scores = torch.linspace(-1, 1, 40)
        assert "caf" in svg(score_histograms(scores, {names[0]: scores}), "a")
    assert imread(tmp_path / "samples.png").size
