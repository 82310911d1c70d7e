"""A detector trained by the loop of torchvision's reference scripts, on digits made on the spot.

python examples/torchvision_loop.py    (minutes; writes runs/digits and runs/loop.safetensors)
"""

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import to_dtype

from detect import RCNN, ModelConfig, RCNNConfig, build_detector, save_detector
from detect.data import load_coco, make_digits
from detect.proposals import LearnedConfig


class Digits(Dataset):
    """Images and targets as torchvision's detectors take them."""

    def __init__(self, images: int) -> None:
        folder = make_digits("runs/digits", train=images, val=8)
        self.data = load_coco(folder / "annotations/train.json", folder / "train")

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        sample = self.data.sample(index)
        image = to_dtype(self.data.load_image(index), torch.float32, scale=True)
        return image, {"boxes": sample.boxes, "labels": sample.labels}


def train_one_epoch(model: RCNN, optimizer: torch.optim.Optimizer, loader: DataLoader) -> float:
    """The mean loss of an epoch."""
    model.train()
    total = 0.0
    for images, targets in loader:
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() / len(loader)
    return total


def main(images: int = 200, epochs: int = 6) -> None:
    """Train, and write the detector."""
    digits = Digits(images)
    config = ModelConfig(learned=LearnedConfig(tile_size=256), rcnn=RCNNConfig(crop_size=40))
    model = build_detector(config, num_classes=10)  # the background not counted
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
    loader = DataLoader(digits, 4, shuffle=True, collate_fn=lambda batch: zip(*batch, strict=True))
    for epoch in range(epochs):
        print(f"epoch {epoch}: loss {train_one_epoch(model, optimizer, loader):.3f}", flush=True)
    names, ids = digits.data.class_names, digits.data.category_ids
    save_detector("runs/loop.safetensors", model, config, names, ids)


if __name__ == "__main__":
    main()
