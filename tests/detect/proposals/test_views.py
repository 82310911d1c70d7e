"""Views of an image: nothing is missed between tiles, and what they show is where they say."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2.functional import resize

from detect.proposals.base import Proposals
from detect.proposals.views import (
    OVERLAP,
    SEAM_MARGIN,
    View,
    area_in_tiles,
    draw_view,
    join_views,
    plan_views,
    whole_in_view,
)

TILE, BORDER = 64, 11

sides = st.integers(1, 700)
scales = st.sampled_from([0.25, 0.4, 0.77, 1.0, 1.5, 2.0])


def plan(height: int, width: int, scale: float | None = 1.0) -> list[View]:
    return plan_views(height, width, scale=scale, tile=TILE, border=BORDER)


def window(view: View) -> torch.Tensor:
    """The part of the image that a view is of, xyxy."""
    height, width = view.shape
    return view.to_image(torch.tensor([[0.0, 0, width, height]]))[0]


@pytest.mark.parametrize("size", [(30, 64), (64, 1), (500, 300)])
def test_without_a_scale_the_image_is_looked_at_once_as_long_as_a_tile(size) -> None:
    (view,) = plan(*size, scale=None)
    assert max(view.shape) == TILE
    assert view.shape == view.size == tuple(max(1, round(s * TILE / max(size))) for s in size)
    assert not any(view.inner)


def test_an_image_no_larger_than_a_tile_is_one_view_at_its_scale() -> None:
    (view,) = plan(30, 64)
    assert (view.shape, view.scale) == ((30, 64), (1.0, 1.0))
    (small,) = plan(30, 64, scale=0.5)
    assert (small.shape, small.scale) == ((15, 32), (0.5, 0.5))


def test_large_images_are_looked_at_in_tiles_and_as_a_whole() -> None:
    views = plan(100, 160)
    # Two rows of 58, of which a quarter overlaps, are 100; three columns of 64 are 160.
    assert [view.shape for view in views[:-1]] == [(58, 64)] * 6
    assert views[-1].shape == (20, 32)
    # So large that a quarter is still in tiles.
    huge = plan(640, 640)
    scales = sorted({round(view.scale[0], 3) for view in huge}, reverse=True)
    assert scales == [1.0, 0.25, 0.05]
    assert len({view.shape for view in huge if view.scale[0] == 1}) == 1


@settings(deadline=None)
@given(height=sides, width=sides, scale=scales, data=st.data())
def test_whatever_fits_into_the_overlap_is_whole_in_a_tile(height, width, scale, data) -> None:
    views = plan(height, width, scale)
    assert all(max(view.shape) <= TILE for view in views)
    # A pixel of the view is left for rounding.
    most = (OVERLAP * TILE - 2 * SEAM_MARGIN - 2) / scale
    w, h = (data.draw(st.floats(0.5, most)) for _ in range(2))
    x = data.draw(st.floats(0, max(0, width - w)))
    y = data.draw(st.floats(0, max(0, height - h)))
    box = torch.tensor([[x, y, min(x + w, width), min(y + h, height)]])
    seen = [
        view
        for view in views
        if view.scale[0] > 0.6 * scale or len(views) == 1
        for own in [view.to_view(box)]
        if own.min() >= -1
        and own[0, 2] <= view.shape[1] + 1
        and own[0, 3] <= view.shape[0] + 1
        and whole_in_view(own, view).all()
    ]
    assert seen or max(height, width) * scale <= TILE


@settings(deadline=None)
@given(height=sides, width=sides, scale=scales)
def test_tiles_cover_the_image_and_boxes_travel_there_and_back(height, width, scale) -> None:
    covered = torch.zeros(height, width, dtype=torch.bool)
    for view in plan(height, width, scale)[:-1] or plan(height, width, scale):
        # To within a pixel of the view: its part of the image begins and ends between pixels.
        x, y = view.scale
        pixel = torch.tensor([-1 / x, -1 / y, 1 / x, 1 / y])
        x1, y1, x2, y2 = (window(view) + pixel).round().int().tolist()
        covered[max(0, y1) : y2, max(0, x1) : x2] = True
        box = torch.tensor([[1.5, 2.25, 30.0, 7.0]])
        torch.testing.assert_close(view.to_view(view.to_image(box)), box, atol=1e-3, rtol=0)
    assert covered.all()


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.3])
def test_a_tile_shows_the_image_and_what_surrounds_it(scale: float) -> None:
    """Drawn from its own part of the image, a view agrees with the image resized as a whole."""
    torch.manual_seed(0)
    coarse = torch.randint(0, 256, (3, 12, 16), dtype=torch.uint8)
    image = resize(coarse, [380, 510], antialias=True)
    grey = 128
    for view in plan(380, 510, scale):
        height, width = view.shape
        canvas = torch.full((3, height + 2 * BORDER, width + 2 * BORDER), grey, dtype=torch.uint8)
        draw_view(image, view, canvas, BORDER)
        # Where each pixel's centre lies in the image; nothing was drawn beyond it.
        ys, xs = (torch.arange(n + 2 * BORDER) + 0.5 - BORDER for n in view.shape)
        grid = torch.stack([xs.expand(len(ys), -1), ys[:, None].expand(-1, len(xs))], dim=-1)
        places = view.to_image(grid.repeat(1, 1, 2).view(-1, 4))[:, :2].view(len(ys), len(xs), 2)
        inside = (places > 0).all(-1) & (places < torch.tensor([510.0, 380.0])).all(-1)
        # Resized pixels at the border reach half a pixel beyond it.
        assert (canvas[:, ~inside] != grey).sum() <= 3 * (len(ys) + len(xs))
        index = (places - 0.5).round().long()
        want = image[:, index[..., 1].clamp(0, 379), index[..., 0].clamp(0, 509)]
        if scale == 1.0 and view.scale == (1.0, 1.0):
            assert torch.equal(canvas[:, inside], want[:, inside])
        else:
            off = (canvas.float() - want.float()).abs()[:, inside]
            assert off.mean() < 8


def test_an_object_across_a_seam_is_proposed_once_and_whole() -> None:
    views = plan(100, 160)
    for x in range(0, 150, 3):
        box = torch.tensor([[float(x), 40.0, x + 8.0, 48.0]])
        found = []
        for view in views:
            own = view.to_view(box)
            height, width = view.shape
            limits = own.new_tensor([width, height, width, height])
            seen = own.clamp(min=0).minimum(limits)
            is_seen = bool((seen[:, 2:] - seen[:, :2] > 1).all())
            boxes = seen[: int(is_seen)]
            found.append(Proposals(boxes, torch.full((len(boxes),), 0.9 - 0.1 * (x % 2))))
        joined = join_views(found, views, (100, 160), nms_thresh=0.7, limit=10)
        torch.testing.assert_close(joined.boxes, box, atol=1e-3, rtol=0)


def test_proposals_of_all_views_are_ranked_together_and_limited() -> None:
    views = plan(64, 112)
    assert len(views) == 3
    found = [
        Proposals(torch.tensor([[10.0, 10, 20, 20], [30, 30, 40, 40]]), torch.tensor([0.9, 0.3])),
        Proposals(torch.tensor([[10.0, 10, 20, 20]]), torch.tensor([0.5])),
        Proposals(torch.tensor([[0.0, 0, 64, 37]]), torch.tensor([0.7])),
    ]
    joined = join_views(found, views, (64, 112), nms_thresh=0.7, limit=3)
    assert joined.scores.tolist() == pytest.approx([0.9, 0.7, 0.5])
    assert joined.boxes[0].tolist() == [10, 10, 20, 20]
    assert joined.boxes[1].tolist() == pytest.approx([0, 0, 112, 64], abs=1)
    assert joined.boxes[2].tolist() == [58, 10, 68, 20]


def test_the_area_is_counted_in_tiles_as_they_are_seen() -> None:
    assert area_in_tiles(640, 640, scale=1.0, tile=640) == 1
    assert area_in_tiles(100, 100, scale=1.0, tile=640) == 1
    assert area_in_tiles(1280, 1280, scale=1.0, tile=640) == 4
    assert area_in_tiles(1280, 1280, scale=0.5, tile=640) == 1
    assert area_in_tiles(9000, 9000, scale=None, tile=640) == 1
