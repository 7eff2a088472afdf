"""Figures hold what they were given, hostile texts as they stand, and leave no global state."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from mmrl import analysis
from mmrl.analysis import Occlusion, Share, TokenPerception
from mmrl.analysis.compare import Change
from mmrl.analysis.plots import LETTERS
from mmrl.config import Config
from mmrl.statistics import Interval


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def drawn(figure: Figure) -> np.ndarray:
    file = io.BytesIO()
    figure.savefig(file, dpi=40)
    return np.asarray(Image.open(file).convert("RGB"))


def measured(pieces: list[str], values: list[float]) -> TokenPerception:
    array = np.array(values, np.float32)
    return TokenPerception(array.astype(np.int32), tuple(pieces), array, array, array, array, array)


def test_curves_of_arms_with_bands():
    config = Config()
    rows = [{"step": step, "a$_x$": 0.1 * step, "b": 1.0} for step in range(3)]
    runs = [analysis.Run(Path("r"), config.__class__(seed=k), rows, [], [], {}) for k in (0, 1)]
    figure = analysis.plot_curves({"one": runs, "two": runs}, ["a$_x$", "b"])
    axis = figure.axes[0]
    assert axis.get_title() == "a$_x$"
    assert len(axis.lines) == 2 * (1 + 2)
    np.testing.assert_allclose(axis.lines[0].get_ydata(), [0, 0.1, 0.2])
    difference = analysis.plot_curves({"one": runs, "two": runs}, ["b"], baseline="one").axes[0]
    assert next(line.get_label() for line in difference.lines) == "two"
    np.testing.assert_array_equal(difference.lines[0].get_ydata(), [0, 0, 0])
    drawn(figure)


def test_tokens_stand_on_lines_in_their_colours():
    pieces = ["$x_1", " \\frac{", "\n", "w" * (LETTERS + 5), "<script>", "", "\x00\u202e"]
    one = measured(pieces, [0, 1, 0, 0, 2, 0, 0])
    figure = analysis.plot_tokens(one)
    shown = texts(figure)
    assert {"$x_1", " \\frac{", "↵", "<script>", "∎", "··"} <= set(shown)
    assert "".join(shown).count("w") == LETTERS + 5
    colours = {
        text.get_text(): patch.get_facecolor()
        for text, patch in zip(figure.axes[0].texts, figure.axes[0].patches, strict=True)
    }
    assert colours["<script>"] != colours[" \\frac{"] != colours["$x_1"] == colours["∎"]
    assert drawn(figure).std() > 5
    titled = analysis.plot_tokens({"before $": one, "after": one}, "k3", highest=4.0)
    assert {"before $", "after"} <= set(texts(titled))
    drawn(titled)
    drawn(analysis.plot_tokens(measured([], [])))


def test_histograms_of_profiles():
    profiles = {
        "one": analysis.perception_profile([measured(["a"] * 3, [0, 0.1, 2])]),
        "none": analysis.perception_profile([]),
    }
    figure = analysis.plot_perception_histogram(profiles)
    assert next(axis.get_title() for axis in figure.axes) == "perception of a token"
    drawn(figure)


def test_bars_of_errors_and_of_weights():
    def share(kind: str, value: float) -> Share:
        return Share("all $", kind, Interval(value, value, value, 1), 1)

    shares = [share("right", 0.75), share("wrong", 0.25)]
    figure = analysis.plot_errors({"before": shares, "after": shares})
    bars = figure.axes[0].patches
    assert [(bar.get_x(), bar.get_width()) for bar in bars] == [(0, 0.75), (0.75, 0.25)]
    drawn(figure)
    changes = [Change("vision/a", 1, 1.0, 1.0, 0.5, 1.0), Change("zero", 1, 0.0, 1.0, 1.0, 1.0)]
    figure = analysis.plot_param_changes(changes)
    assert [bar.get_width() for bar in figure.axes[0].patches] == [0.5]
    drawn(figure)
    with pytest.raises(ValueError, match="no change to draw"):
        analysis.plot_param_changes(changes[1:])
    with pytest.raises(ValueError, match="at least one breakdown"):
        analysis.plot_errors({})


def test_where_it_looks_has_one_scale():
    drop = np.zeros((2, 3, 4), np.float32)
    drop[1, 2, 3] = -2.0
    drop[0, 0, 1] = 1.0
    look = Occlusion(Image.new("RGB", (70, 56)), 28, ("a", "$b", "c", ""), np.zeros(4, np.float32), drop)
    figure = analysis.plot_where_it_looks(look, most=2)
    panels = [axis for axis in figure.axes if axis.get_title()]
    assert [axis.get_title() for axis in panels] == ["what the model sees", "whole response", "1: $b", "3: ∎"]
    maps = [axis.images[1] for axis in panels[1:]]
    np.testing.assert_array_equal(maps[2].get_array(), drop[:, :, 3])
    assert {image.get_clim() for image in maps} == {(-2.0, 2.0)}
    assert panels[1].get_xlim() == (-0.5, 69.5)
    drawn(figure)
    with pytest.raises(ValueError, match="no tokens"):
        analysis.plot_where_it_looks(Occlusion(look.picture, 28, (), look.logprob[:0], drop[:, :, :0]))


def test_pyplot_is_not_asked_for():
    assert "matplotlib.pyplot" not in vars(sys.modules["mmrl.analysis.plots"])
    assert "pyplot" not in Path(sys.modules["mmrl.analysis.plots"].__file__).read_text()
