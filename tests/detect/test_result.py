import io
import os
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageShow
import pytest
import torch
from helpers.untrained_detector import save_untrained

from backbones.common.errors import ImageError, UserError
from backbones.common.images import from_pillow, read_image, write_image
from detect import Result, load_detector
from detect.deployment.detector import calibration_crops, deploy_detector
from detect.deployment.export import export_detector
from detect.media.video import slideshow

FOUND = {
    "boxes": torch.tensor([[10.0, 20, 40, 60], [50.4, 5.2, 70.6, 25.8], [0, 0, 0.4, 0.4]]),
    "labels": torch.tensor([2, 1, 2]),
    "scores": torch.tensor([0.9, 0.6, 0.2]),
}


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randint(
        0, 256, (3, 80, 100), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.fixture
def result(image) -> Result:
    return Result(FOUND, image, ["cat", "dog/wolf"], [7, 9], name="some/photo.png")


def test_it_is_plain_tensors_too(result):
    assert len(result) == 3
    assert dict(result) == FOUND
    assert {**result}["labels"] is result.labels
    assert result.names == ["dog/wolf", "cat", "dog/wolf"]
    assert [name for _, name, _ in result] == result.names
    box, _, score = next(iter(result))
    assert box == [10, 20, 40, 60]
    assert score == pytest.approx(0.9)


def test_it_says_what_was_found(result, image):
    expected = "Result(some/photo.png 100x80: 2 dog/wolf, 1 cat, scores 0.20 to 0.90)"
    assert repr(result) == expected
    nothing = Result({key: value[:0] for key, value in FOUND.items()}, image, [], [])
    assert repr(nothing) == "Result(image 100x80: nothing)"


def test_above_keeps_the_better_ones(result):
    assert result.above(0.5).scores.tolist() == pytest.approx([0.9, 0.6])
    assert len(result) == 3


def test_plot_and_save_leave_the_image_alone(result, image, tmp_path):
    before = image.clone()
    plot = result.plot()
    assert (plot != image).any()
    result.save(tmp_path / "found.png")
    assert torch.equal(read_image(tmp_path / "found.png"), plot)
    assert torch.equal(image, before)


def test_what_cannot_be_saved_is_one_line(result, image, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"x\.foo: expected a name that ends in \.jpg"):
        result.save(tmp_path / "x.foo")
    monkeypatch.chdir(tmp_path)
    write_image("photo.png", image)
    own = Result(FOUND, image, ["cat", "dog"], [7, 9], name="photo.png")
    with pytest.raises(UserError, match=r"photo\.png: would replace the image itself"):
        own.save(tmp_path / "photo.png")
    assert torch.equal(read_image("photo.png"), image)
    own.save("found.png")
    os.link("photo.png", "link.png")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in ("photo.png", "link.png"):
        with pytest.raises(UserError, match=r"\.png: would replace the image itself"):
            own.above(0.5).save(tmp_path / name)
    own.save("photo.png")  # another folder's


def test_a_notebook_draws_it_and_a_server_says_that_it_shows_nothing(result, monkeypatch):
    shown = []
    drawn = PIL.Image.open(io.BytesIO(result._repr_png_()))
    assert torch.equal(from_pillow(drawn, "drawn"), result.plot())
    monkeypatch.setattr(PIL.ImageShow, "_viewers", [])
    with pytest.raises(UserError, match=r"no program here shows pictures: .*result.save\(file\)"):
        result.show()

    class Viewer(PIL.ImageShow.Viewer):
        def show_image(self, image, **options):
            shown.append(image.size)
            return 1

    PIL.ImageShow.register(Viewer)
    result.show()
    assert shown == [(100, 80)]


def test_crops_are_the_pixels_of_the_boxes(result, image, tmp_path):
    crops = result.crop(tmp_path / "crops")
    assert torch.equal(crops[0], image[:, 20:60, 10:40])
    assert torch.equal(crops[1], image[:, 5:26, 50:71])
    # Less than a pixel.
    assert torch.equal(crops[2], image[:, :1, :1])
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.jpg"))
    files = ("cat/photo_0.jpg", "dog_wolf/photo_0.jpg", "dog_wolf/photo_1.jpg")
    assert written == [f"crops/{file}" for file in files]
    # A second one of that name is added, and no class leads out of the folder.
    Result(FOUND, image, ["..", ".."], [7, 9], name="other/photo.png").crop(tmp_path / "crops")
    result.crop(tmp_path / "crops")
    assert len(list((tmp_path / "crops").rglob("*.jpg"))) == 9


def test_other_programs_forms(result):
    rows = result.to_coco(image_id=5)
    assert rows[0]["category_id"] == 9
    assert rows[0]["bbox"] == [10, 20, 30, 40]
    detections = result.to_supervision()
    assert detections.class_id.tolist() == [1, 0, 1]
    assert detections["class_name"].tolist() == result.names
    np.testing.assert_array_equal(detections.xyxy, FOUND["boxes"].numpy())
    frame = pytest.importorskip("pandas") and result.to_pandas()
    assert list(frame.columns) == ["x1", "y1", "x2", "y2", "score", "label", "name"]
    assert frame.iloc[1].x1 == pytest.approx(50.4)


@pytest.fixture
def detector(tmp_path):
    detector = load_detector(save_untrained(tmp_path / "x.safetensors", 3), "cpu")
    detector.metadata["metrics"] = {"score_thresh": 0.0}
    return detector


def test_a_folder_a_list_and_one_image(detector, image, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    write_image(folder / "b.png", image)
    write_image(folder / "a.png", image.flip(2))
    (folder / "notes.txt").write_text("none")
    found = detector.detect(folder)
    assert [result.name for result in found] == [str(folder / "a.png"), str(folder / "b.png")]
    assert [result.name for result in detector.stream(folder)] == [result.name for result in found]
    torch.testing.assert_close(dict(found[1]), dict(detector(image)), rtol=0, atol=1e-4)
    assert torch.equal(found[1].image, image)
    named = [result.name for result in found]
    assert [result.name for result in detector(folder)] == named
    assert [result.name for result in detector([folder / "b.png", folder / "a.png"])] == named[::-1]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no images in this folder"):
        detector.detect(tmp_path / "empty")


def test_a_broken_file_of_a_folder_is_left_out_with_a_warning(detector, image, tmp_path, caplog):
    write_image(tmp_path / "a.png", image)
    (tmp_path / "b.png").write_bytes(b"broken")
    write_image(tmp_path / "c.png", image)
    for results in (detector(tmp_path), detector.stream(tmp_path)):
        assert [result.name[-5:] for result in results] == ["a.png", "c.png"]
        assert caplog.text.count("left out: ") == caplog.text.count("b.png: not an image") == 1
        caplog.clear()
    # Named by itself it would shift the results of those behind it.
    with pytest.raises(ImageError, match=r"b\.png: not an image"):
        detector([tmp_path / "a.png", tmp_path / "b.png"])


def test_a_stream_takes_a_video(detector, image, tmp_path):
    image = torch.zeros_like(image)
    image[0] = 200
    slideshow(tmp_path / "v.mp4", [image, image], 5, (80, 100))
    found = list(detector.stream(tmp_path / "v.mp4", score_thresh=0, bgr=True))
    assert [result.frame for result in found] == [(0, 0), (1, pytest.approx(0.2))]
    assert repr(found[1].above(1)).startswith(f"Result({tmp_path}/v.mp4 frame 1, 0.20 s, ")
    assert found[1].crop(tmp_path / "crops")
    assert {path.name[:9] for path in tmp_path.glob("crops/*/*")} == {"v_000001_"}
    # Only a program's own arrays have blue first.
    red, _, blue = found[0].image.float().mean(dim=(1, 2))
    assert red > 50 > blue
    for call in (detector, lambda path: detector([path])):
        with pytest.raises(ImageError, match=r"v\.mp4: this is a video: detector\.stream\("):
            call(tmp_path / "v.mp4")


def test_without_a_threshold_there_is_what_infer_shows(detector, image):
    every = detector(image)
    middle = float(every.scores[len(every) // 2])
    detector.metadata["metrics"] = {"score_thresh": middle}
    results = (detector(image), detector([image])[0], next(detector.stream([image])))
    assert {len(result) for result in results} == {len(every.above(middle))}
    assert len(detector(image, score_thresh=0.0)) == len(every) > len(results[0]) > 0


def test_thresholds_and_blue_first(detector, image):
    rgb = image.permute(1, 2, 0).numpy()
    every = detector(image)
    middle = float(every.scores[len(every) // 2])
    kept = detector(image, score_thresh=middle)
    assert 0 < len(kept) < len(every)
    assert kept.scores.min() >= middle
    assert len(next(iter(detector.stream([image], score_thresh=middle)))) == len(kept)
    blue_first = rgb[..., ::-1]
    for found in (
        detector(blue_first, bgr=True),
        detector.detect([blue_first], bgr=True)[0],
        next(iter(detector.stream([blue_first], bgr=True))),
    ):
        torch.testing.assert_close(dict(found), dict(every), rtol=0, atol=1e-4)
        assert torch.equal(found.image, image)
    # What knows its own order is not swapped.
    pillow = detector(PIL.Image.fromarray(rgb), bgr=True)
    torch.testing.assert_close(dict(pillow), dict(every), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "address",
    [
        "https://me:hidden@host/x.jpg",
        "https://me:hidden@host/x.mp4",
        "rtsp://hidden@host/live",
        "http://host/x.jpg?token=hidden",
        Path("https://me:hidden@host/x.jpg"),
    ],
)
def test_an_address_is_refused_without_its_secret(detector, address):
    calls = [detector, detector.stream, detector.detect, detector.propose, load_detector]
    calls += [lambda one: detector([one]), lambda one: list(detector.stream([one]))]
    for call in calls:
        with pytest.raises(UserError, match=r"https?:/|rtsp:/") as caught:
            call(address)
        # A notebook shows the errors before it too.
        assert "hidden" not in str(caught.value)
        assert caught.value.__cause__ is caught.value.__context__ is None


def test_folders_in_a_folder_are_told_as_python_wants_them(detector, image, tmp_path, caplog):
    (tmp_path / "below").mkdir()
    write_image(tmp_path / "a.png", image)
    assert len(detector(tmp_path)) == 1
    assert "folders not looked into: 1 (of infer: name them" in caplog.text
    assert "in Python give a list, as of Path(FOLDER).rglob('*.jpg'))" in caplog.text


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda r: r[0], r"expected result\['boxes'\], \['labels'\] or \['scores'\], got \[0\]"),
        (lambda r: r[:2], r"or \['scores'\], got \[slice\(None, 2, None\)\]"),
        (lambda r: r.save(io.BytesIO()), "save takes a file's name, got BytesIO"),
        (lambda r: r.to_coco(None), "image_id: expected a whole number, got None"),
        (lambda r: r.to_coco("a.jpg"), "image_id: expected a whole number, got 'a.jpg'"),
    ],
)
def test_what_a_result_does_not_take_is_a_type_error(result, call, words):
    with pytest.raises(TypeError, match=words):
        call(result)
    assert type(result.to_coco(np.int64(5))[0]["image_id"]) is int


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda d, x: d.propose("a.jpg"), "propose takes a list of images, got 'a.jpg'"),
        (lambda d, x: deploy_detector("a.pt"), r"expected a detector, which .*\(FILE\) .*'a.pt'"),
        (lambda d, x: deploy_detector(d.model), "expected a detector, which .* got RCNN"),
        (lambda d, x: export_detector("a.onnx", "b.pt"), "expected a detector, .* got 'b.pt'"),
        (lambda d, x: calibration_crops(d, "no"), "calibration_images: expected a list .* 'no'"),
        (lambda d, x: d(x, score_thresh="x"), r"score_thresh must be in \[0, 1\], got 'x'"),
        (lambda d, x: d.stream([x], score_thresh=2), r"score_thresh must be in \[0, 1\], got 2"),
        (lambda d, x: d(x).above([0.5]), r"score_thresh must be in \[0, 1\], got \[0.5\]"),
        (lambda d, x: d(x, 0.5), r"proposals: expected Proposals\(boxes, scores\) for each image"),
        (lambda d, x: d([x, x], 0.5), r"proposals: expected Proposals\(boxes, scores\) for each"),
        (lambda d, x: d.stream(0.5), "stream takes a series of images, a .* itself\\), got float"),
        (lambda d, x: d.stream("no"), r"\(for one image call the detector itself\), got 'no'"),
        (lambda d, x: d.detect(None), "detect takes a list of images or a folder .*got NoneType"),
        (lambda d, x: d.keep_classes("0"), "classes: expected a list of names, got '0'"),
        (lambda d, x: d.keep_classes([3]), "classes: 3 is no class of this detector: there are 0"),
        (lambda d, x: load_detector(None), "weights: expected a file, a run folder or hf-hub:NAME"),
        (lambda d, x: load_detector(""), "weights: expected a file, a run folder or hf-hub:NAME"),
        (lambda d, x: load_detector(x, None), "device must be auto, cpu, cuda or cuda:N, got None"),
        (lambda d, x: load_detector(x, "cpu", [1]), r"settings: expected keys .*, got \[1\]"),
        (
            lambda d, x: load_detector(x, "cpu", {"a": 1}),
            r"model.a is no setting of use\. There are",
        ),
    ],
)
def test_nonsense_is_one_line(call, words, detector, image, tmp_path):
    given = tmp_path / "x.safetensors" if "load_detector" in call.__code__.co_names else image
    with pytest.raises(UserError, match=words):
        call(detector, given)
