import torch

from detect.media.drawing import COLORS, CROWD, draw_detections, gallery, sheet


def detections(*boxes, scores=None):
    found = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.arange(1, len(boxes) + 1),
    }
    return found if scores is None else found | {"scores": torch.tensor(scores)}


def test_a_box_is_drawn_around_its_object_in_a_copy():
    image = torch.full((3, 120, 160), 128, dtype=torch.uint8)
    drawn = draw_detections(image, detections([40, 50, 100, 90]), ["cell"])
    assert image.eq(128).all()
    changed = (drawn != 128).any(dim=0)
    for y, x in ((50, 70), (90, 70), (70, 40), (70, 100)):
        assert changed[y - 1 : y + 2, x - 1 : x + 2].any()
    # Inside is free, and so is everything further out than the label above.
    assert not changed[53:88, 43:98].any()
    assert not changed[:30].any()
    assert not changed[93:].any()


def test_classes_differ_in_colour_and_scores_are_written():
    image = torch.full((3, 120, 160), 128, dtype=torch.uint8)
    boxes = ([10, 40, 40, 70], [90, 40, 120, 70])
    plain = draw_detections(image, detections(*boxes), ["a", "b"])
    assert not torch.equal(plain[:, 55, 10], plain[:, 55, 90])
    scored = draw_detections(image, detections(*boxes, scores=[0.9, 0.8]), ["a", "b"])
    assert (scored != 128).any(dim=0).sum() > (plain != 128).any(dim=0).sum()
    assert torch.equal(scored[:, 75:], plain[:, 75:])


def test_nothing_found_draws_nothing():
    image = torch.randint(0, 255, (3, 30, 40), dtype=torch.uint8)
    assert torch.equal(draw_detections(image, detections(), ["a"]), image)


def test_gallery_is_rows_of_cells_on_white():
    images = [torch.full((3, 4, 6), value, dtype=torch.uint8) for value in (1, 2, 3)]
    images[2] = images[2][:, :2]
    images.append(images[2][:, :1])
    images[3] = images[3] + 1
    picture = gallery(images, columns=2, gap=1)
    assert picture.shape == (3, 4 + 1 + 2, 6 + 1 + 6)  # the second row is lower
    assert picture[:, :4, :6].eq(1).all()
    assert picture[:, :4, 7:].eq(2).all()
    assert picture[:, 5:7, :6].eq(3).all()
    assert picture[:, 5:6, 7:].eq(4).all()
    for white in (picture[:, 4], picture[:, :, 6], picture[:, 6:, 7:]):
        assert white.eq(255).all()


def test_a_sheet_has_no_gaps_but_those_between_pictures():
    sizes = [(320, 427), (320, 240), (213, 480), (320, 480), (320, 240), (320, 427), (320, 320)]
    images = [torch.zeros(3, *size, dtype=torch.uint8) for size in sizes]
    picture = sheet(images, 1000, gap=4)
    assert 600 < picture.shape[2] < 1400
    # One picture is wider than high, and so has some white below it.
    assert picture.eq(255).all(dim=0).float().mean() < 0.08
    assert sheet(images[:1], 1000).shape == images[0].shape


def test_a_box_shows_on_every_ground_as_wide_as_suits_the_picture():
    for value in (0, 128, 255):
        for label in range(1, len(COLORS.colors) + 1):
            image = torch.full((3, 90, 90), value, dtype=torch.uint8)
            found = {"boxes": torch.tensor([[30.0, 30, 60, 60]]), "labels": torch.tensor([label])}
            drawn = draw_detections(image, found, [""] * label).float()
            luma = torch.tensor([0.299, 0.587, 0.114]) @ drawn[:, 55:65, 45]
            assert (luma - value).abs().max() > 80
    widths = []
    for side in (300, 1500):
        image = torch.full((3, side, side), 128, dtype=torch.uint8)
        box = torch.tensor([[0.2, 0.5, 0.8, 0.9]]) * side
        drawn = draw_detections(image, {"boxes": box, "labels": torch.tensor([1])}, ["a"])
        widths.append(int((drawn != 128).any(dim=0)[round(0.7 * side) :, side // 2].sum()))
    assert widths[0] <= 3
    assert widths[1] >= 3 * widths[0]


def test_labels_make_room_for_each_other_but_not_in_a_crowd():
    """Many at one place; to find one for each of thousands takes minutes."""
    image = torch.full((3, 300, 300), 128, dtype=torch.uint8)

    def changed(count):
        found = {
            "boxes": torch.tensor([[110.0, 110, 180, 180]]).expand(count, 4),
            "labels": torch.ones(count, dtype=torch.int64),
        }
        return int((draw_detections(image, found, ["car"]) != 128).any(dim=0).sum())

    assert changed(10) > 3 * changed(1)
    assert changed(CROWD + 1) < 1.5 * changed(1)


def test_many_small_boxes_have_one_label_for_each_class():
    """Whose labels would hide them."""
    image = torch.full((3, 600, 800), 128, dtype=torch.uint8)
    places = torch.arange(30) % 6 * 100 + 150, torch.arange(30) // 6 * 100 + 150
    corners = torch.stack(places, dim=1).float()
    found = {
        "boxes": torch.cat([corners, corners + 20], dim=1),
        "labels": torch.arange(30) % 2 + 1,
        "scores": torch.rand(30),
    }
    changed = (draw_detections(image, found, ["car", "bus"]) != 128).any(dim=0)
    # Beside the boxes there is nothing but the legend, in the upper left.
    for x, y in corners.int().tolist():
        assert not changed[y - 30 : y - 3, x - 10 : x + 70].any()
    assert changed[:50, :70].any()
    large = found | {"boxes": torch.cat([corners, corners + 80], dim=1)}
    labelled = (draw_detections(image, large, ["car", "bus"]) != 128).any(dim=0)
    x, y = corners.int().tolist()[0]
    assert labelled[y - 15 : y - 3, x : x + 40].any()
