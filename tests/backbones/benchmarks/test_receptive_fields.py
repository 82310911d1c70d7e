import json

import numpy as np
import pytest
from PIL import Image

from backbones.benchmarks import receptive_fields
from backbones.benchmarks.receptive_fields import ReceptiveFieldConfig, compare_receptive_fields
from backbones.classification.pretraining import NetworkConfig
from backbones.common.errors import UserError
from backbones.data.loaders import ImagesConfig
from backbones.training.run_folder import read_curves


def test_a_network_is_trained_scored_and_timed(tmp_path, monkeypatch):
    monkeypatch.setattr("backbones.benchmarks.timing.MIN_SECONDS", 0.0)
    monkeypatch.setattr(receptive_fields, "SPEED_BATCH", 2)
    for split in ("train", "val"):
        for level, name in ((60, "dark"), (190, "light")):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(2):
                pixels = np.full((32, 32, 3), level + index, np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{index}.png")
    config = ReceptiveFieldConfig(
        run=str(tmp_path / "run"),
        variants=("inception_v3_79_naive",),
        data=ImagesConfig(root=str(tmp_path)),
        model=NetworkConfig(width=0.25, aux="none"),
        epochs=1,
        batch_size=2,
        workers=0,
        processes=1,
        precision="fp32",
        device="cpu",
    )
    (row,) = compare_receptive_fields(config)
    assert (row.variant, row.receptive_field, row.published_top1) == (*config.variants, 79, None)
    assert 1.8e7 < row.multiply_adds < 2e7
    assert row.images_per_second > 0
    # Two images of each of two classes.
    assert row.top1_error == pytest.approx((row.top1 * (1 - row.top1) / 4) ** 0.5)
    assert (row.difference, row.difference_error) == (0.0, 0.0)
    points = read_curves(tmp_path / "run" / row.variant / "curves.csv")
    assert [point.value for point in points if point.name == "val/top1"] == [row.top1]
    assert json.loads((tmp_path / "run" / "receptive_fields.json").read_text()) == [vars(row)]
    with Image.open(tmp_path / "run" / "receptive_fields.png") as picture:
        assert picture.width > 500
    assert "| `inception_v3_79_naive` | 79 | 0.019 |" in receptive_fields.format_table([row])


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        (("inception_v9",), "unknown backbone 'inception_v9'"),
        (("inception_v3", "inception_v3"), "variants must be different names"),
        ((), "variants must be different names"),
    ],
)
def test_variants_are_known_and_different(variants, message):
    with pytest.raises(UserError, match=message):
        ReceptiveFieldConfig(variants=variants)
