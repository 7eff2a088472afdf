"""mRoPE positions by hand, and window slots against transformers' window order."""

import numpy as np
import pytest

from mmrl.models.positions import patch_grid, positions, window_blocks, window_count


def test_text_only():
    position, after = positions(4, [])
    np.testing.assert_array_equal(position, np.repeat(np.arange(4), 3).reshape(4, 3))
    assert after == 4


def test_text_image_text():
    """Two words, an image of 2 x 3 tokens, one word."""
    position, after = positions(9, [(2, 2, 3)])
    rows = [(0, 0, 0), (1, 1, 1), (2, 2, 2), (2, 2, 3), (2, 2, 4), (2, 3, 2), (2, 3, 3), (2, 3, 4), (5, 5, 5)]
    np.testing.assert_array_equal(position, rows)
    assert after == 6


def test_image_at_the_end_and_images_in_a_row():
    position, after = positions(5, [(0, 1, 2), (2, 3, 1)])
    np.testing.assert_array_equal(position, [(0, 0, 0), (0, 0, 1), (2, 2, 2), (2, 3, 2), (2, 4, 2)])
    assert after == position.max() + 1 == 5


def test_positions_equal_transformers():
    torch = pytest.importorskip("torch")
    from transformers import Qwen2_5_VLConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

    rng = np.random.default_rng(0)
    model = Qwen2_5_VLModel.__new__(Qwen2_5_VLModel)
    torch.nn.Module.__init__(model)
    model.config = Qwen2_5_VLConfig()
    for _ in range(20):
        grids = rng.integers(1, 9, (rng.integers(1, 4), 2))
        kinds, spans = [], []
        for rows, columns in grids:
            kinds += [0] * int(rng.integers(1, 6))  # transformers tells images apart by the text between
            spans.append((len(kinds), int(rows), int(columns)))
            kinds += [1] * int(rows * columns)
        kinds += [0] * int(rng.integers(0, 4))
        thw = torch.tensor([[1, 2 * r, 2 * c] for r, c in grids])
        kinds = torch.tensor([kinds])
        expected, delta = model.get_rope_index(kinds, kinds, thw)
        position, after = positions(kinds.shape[1], spans)
        np.testing.assert_array_equal(position, expected[:, 0].T)
        assert after == kinds.shape[1] + int(delta)


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (1, 1), (5, 7), (8, 3), (2, 9), (11, 13)])
@pytest.mark.parametrize("window", [1, 2, 4])
def test_windows_equal_transformers(rows, columns, window):
    torch = pytest.importorskip("torch")
    from transformers.vision_utils import get_vision_window_index

    thw = torch.tensor([[1, 2 * rows, 2 * columns]])
    order, seams = get_vision_window_index(thw, 2, window * 28, 14)
    place = window_blocks(rows, columns, window)
    assert len(set(place.tolist())) == rows * columns
    assert place.max() < window_count(rows, columns, window) * window**2
    np.testing.assert_array_equal(np.argsort(place), order)
    used = np.bincount(place // window**2, minlength=window_count(rows, columns, window))
    np.testing.assert_array_equal(np.cumsum(used) * 4, seams[1:])
    # within a window the places in use come first
    first = np.concatenate([np.arange(n) for n in used])
    np.testing.assert_array_equal(np.sort(place) % window**2, first)


def test_patch_grid():
    grid = patch_grid(4, 6, 2)
    np.testing.assert_array_equal(grid[:6], [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3)])
    assert len({tuple(cell) for cell in grid.tolist()}) == 24
