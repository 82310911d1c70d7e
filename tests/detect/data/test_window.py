import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detect.data.window import (
    GREY,
    boxes_in_window,
    count_windows,
    cut_window,
    draw_window,
)

NO_OBJECTS = torch.zeros(0, 4)


def ramp(height: int, width: int) -> torch.Tensor:
    """Pixels that tell their place: red their column, green their row."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[0] = torch.arange(width)
    image[1] = torch.arange(height)[:, None]
    return image


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    canvas=st.none() | st.integers(1, 90),
    factor=st.floats(0.3, 3.0),
)
def test_a_window_lies_in_its_picture_and_has_the_canvas_size(seed, height, width, canvas, factor):
    window = draw_window(
        *(np.random.default_rng(seed), (height, width), canvas, (factor, factor)), NO_OBJECTS
    )
    largest = max(height, width) if canvas is None else canvas
    for span, length in ((window.x, width), (window.y, height)):
        assert 0 <= span.start < span.stop <= length
        assert span.canvas == min(length, largest)
        assert span.before >= 0
        assert 1 <= span.length <= span.canvas - span.before
        shown = span.length / (span.stop - span.start)
        # To the whole pixel that either of them is rounded to.
        assert abs(span.length - factor * (span.stop - span.start)) <= max(1, factor), shown
    assert cut_window(ramp(height, width), window).shape == (3, window.y.canvas, window.x.canvas)


@pytest.mark.parametrize("seed", range(10))
def test_pixels_and_boxes_of_a_window_are_those_of_the_picture(seed):
    image = ramp(200, 250)
    window = draw_window(np.random.default_rng(seed), (200, 250), 64, (1.0, 1.0), NO_OBJECTS)
    x, y = window.x.start, window.y.start
    assert torch.equal(cut_window(image, window), image[:, y : y + 64, x : x + 64])
    boxes = torch.tensor([[x + 3.0, y + 5, x + 20, y + 9], [x - 10.0, y + 60, x + 10, y + 70]])
    shown, visible = boxes_in_window(boxes, window)
    torch.testing.assert_close(shown, torch.tensor([[3.0, 5, 20, 9], [0, 60, 10, 64]]))
    torch.testing.assert_close(visible, torch.tensor([1.0, 0.5 * 0.4]))
    # Elsewhere.
    _, visible = boxes_in_window(torch.tensor([[x + 70.0, y + 70, x + 80, y + 90]]), window)
    assert visible.tolist() == [0]


def test_a_picture_that_is_shrunk_stands_in_grey():
    image = torch.full((3, 40, 60), 250, dtype=torch.uint8)
    places = set()
    for seed in range(30):
        window = draw_window(np.random.default_rng(seed), (40, 60), None, (0.5, 0.5), NO_OBJECTS)
        example = cut_window(image, window)
        inside = example[0] == 250
        assert inside.sum() == 20 * 30
        assert (example[0][~inside] == GREY).all()
        box, visible = boxes_in_window(torch.tensor([[0.0, 0, 60, 40]]), window)
        rows, columns = inside.nonzero().unbind(1)
        assert box[0].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert visible.tolist() == [1]
        places.add((window.x.before, window.y.before))
    assert len(places) > 20


def test_half_of_the_windows_hold_an_object_whole_and_the_others_lie_anywhere():
    """One object at the border of a large picture, where a window seldom is by chance."""
    box = torch.tensor([[0.0, 2000, 30, 2030]])
    whole, starts = 0, []
    for seed in range(400):
        window = draw_window(np.random.default_rng(seed), (3000, 3000), 100, (1.0, 1.0), box)
        _, visible = boxes_in_window(box, window)
        whole += int(visible[0] == 1)
        starts.append(window.x.start)
    assert 0.4 < whole / 400 < 0.6
    assert 0.1 < np.mean(np.array(starts) > 1500) < 0.4


@pytest.mark.parametrize("canvas", [40, 100])
def test_of_an_object_larger_than_the_window_a_part_is_shown(canvas):
    box = torch.tensor([[100.0, 50, 350, 290]])
    for seed in range(60):
        window = draw_window(np.random.default_rng(seed), (400, 400), canvas, (1.0, 1.0), box)
        shown, _ = boxes_in_window(box, window)
        inside = (shown[:, 2:] - shown[:, :2]).prod() / canvas**2
        if inside > 0.99:
            break
    else:
        pytest.fail("never")


@pytest.mark.parametrize(
    ("size", "canvas", "count"),
    [
        ((480, 640), None, 1),
        ((480, 640), 640, 1),
        ((480, 640), 512, 1),
        ((2250, 4000), 512, 34),
        ((100, 5120), 512, 10),
        ((4000, 4000), 4000, 1),
    ],
)
def test_an_epoch_shows_as_many_windows_as_cover_a_picture(size, canvas, count):
    assert count_windows(*size, canvas) == count


def test_the_factor_is_as_often_below_as_above_the_mean_of_its_logarithm():
    factors = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        span = draw_window(rng, (1000, 1000), None, (0.25, 4.0), NO_OBJECTS).x
        factors.append(span.length / (span.stop - span.start))
    assert 0.25 <= min(factors) < 0.26
    assert 3.9 < max(factors) <= 4.01
    for bound, share in ((0.5, 0.25), (1.0, 0.5), (2.0, 0.75)):
        assert np.mean(np.array(factors) < bound) == pytest.approx(share, abs=0.08)
