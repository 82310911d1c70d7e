"""Whether the backbones compute on a GPU what the CPU does, and what torchvision does."""

import copy
import os
import signal
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from backbones.benchmarks.gpu.findings import Finding
from backbones.benchmarks.gpu.processes import OwnProcess
from backbones.benchmarks.gpu.settings import GpuSettings
from backbones.benchmarks.peers import peer_network
from backbones.classification.pretraining import NetworkConfig, PretrainConfig, pretrain
from backbones.common import distributed
from backbones.common.device import set_tf32
from backbones.data.datasets import ImageBatch
from backbones.data.loaders import ImagesConfig
from backbones.deployment.pytorch import deploy
from backbones.networks.conversion import to_torchvision
from backbones.networks.inception import InceptionV3, create_backbone
from backbones.training.checkpoints import load_last_checkpoint
from backbones.training.recipe import OptimConfig, classification_loss
from backbones.training.step import StepConfig, TrainStep

NARROW = 0.25
"""Width of what a CPU computes too."""


def check_parity(settings: GpuSettings) -> Iterator[Finding]:
    """Logits beside torchvision's, with the same weights, in fp32 without TF32."""
    for variant in settings.variants:
        ours = _with_statistics(create_backbone(variant, num_classes=1000).eval())
        theirs = peer_network("torchvision", variant).eval()
        theirs.load_state_dict(to_torchvision(ours.state_dict()))
        size = ours.input_size
        x = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            found = ours.to(settings.device)(x.to(settings.device))
            expected = theirs.to(settings.device)(x.to(settings.device))
        yield _close(f"{variant}: logits beside torchvision's", found, expected, 1e-4)


def check_step(settings: GpuSettings) -> Iterator[Finding]:
    """The change of all weights in a step beside the CPU's, in double precision."""
    changes = {}
    for device in (torch.device("cpu"), settings.device):
        torch.manual_seed(0)
        model = create_backbone(settings.variants[0], num_classes=10, width=NARROW)
        before = copy.deepcopy(model).double()
        train_step = classifier_step(model.double().to(device), "fp32")
        batch = _batch(model, 8)
        train_step.accumulate_gradients(batch, 0)
        train_step.apply_gradients(0.1)
        pairs = zip(model.cpu().parameters(), before.parameters(), strict=True)
        changes[device.type] = torch.cat([(new - old).flatten() for new, old in pairs])
    yield _close("a step beside the CPU's", changes[settings.device.type], changes["cpu"], 1e-6)


def check_deployed(settings: GpuSettings) -> Iterator[Finding]:
    """Deployed networks beside those they were made from."""
    for variant in settings.variants:
        trained = create_backbone(variant, num_classes=1000, width=settings.width).eval()
        trained = _with_statistics(trained).to(settings.device)
        size = trained.input_size
        images = torch.randint(0, 256, (8, 3, size, size), dtype=torch.uint8)
        images = images.to(settings.device)
        with torch.no_grad():
            expected = trained(images)
            for precision, limit in (("fp32", 1e-3), ("bf16", 0.05)):
                found = deploy(trained, precision)(images)  # type: ignore[arg-type]
                yield _close(f"{variant}: deployed in {precision}", found, expected, limit)


def check_waiting(settings: GpuSettings) -> Iterator[Finding]:
    """How often a training step waits for the GPU."""
    if not settings.is_gpu:
        yield Finding("waiting for the device in a step", "not on this device")
        return
    model = create_backbone(settings.variants[0], num_classes=10, width=NARROW, aux="batch_norm")
    model.to(settings.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    train_step, batch = classifier_step(model, "bf16"), _batch(model, 32)
    for step in range(3):
        count = len(waits_of(lambda step=step: train_step.accumulate_gradients(batch, step)))  # type: ignore[misc]
        others = len(waits_of(lambda: train_step.apply_gradients(0.1)))
    yield Finding("waits in forward and backward", float(count), "", "1, for the loss", count <= 1)
    yield Finding("waits in the optimiser", float(others), "", "none", others == 0)


def check_resume(settings: GpuSettings) -> Iterator[Finding]:
    """A run stopped in the middle of an epoch and resumed, beside one that went through."""
    config = PretrainConfig(
        data=ImagesConfig(root=str(settings.images), max_classes=2),
        model=NetworkConfig(settings.variants[0], NARROW, aux="none"),
        optim=OptimConfig(optimizer="sgd", lr=0.01, ema_decay=0.9),
        epochs=1,
        batch_size=32 if settings.is_gpu else 4,
        workers=2 if settings.is_gpu else 0,
        precision="fp32",
        device=str(settings.device),
    )
    steps = 5 if settings.is_gpu else 1
    whole, broken = (replace(config, run=str(settings.work / name)) for name in ("whole", "broken"))
    through, stopped, resumed = (
        OwnProcess(partial(_run, *run))
        for run in ((whole, None), (broken, steps), (replace(broken, resume=True), None))
    )
    through.begin()
    list(stopped.begin().values(60))
    stopped_at = last_checkpoint(broken.run)["state"]["step"]
    list(resumed.begin().values(60))
    list(through.values(10))
    expected, found = (_weights(last_checkpoint(one.run)["model"]) for one in (whole, broken))
    # The signal is seen in the step after it.
    seen = steps + 1
    yield Finding("stopped after step", float(stopped_at), "", str(seen), stopped_at == seen)
    yield _close("weights of the resumed run", found, expected, 1e-3)


def check_nccl(settings: GpuSettings) -> Iterator[Finding]:
    """One process that trains through NCCL."""
    if not settings.is_gpu:
        yield Finding("NCCL", "not on this device")
        return
    reducing = OwnProcess(partial(_reduce, settings.variants[0])).begin()
    ((backend, total, difference),) = reducing.values(60)
    yield Finding("backend", backend, "", "with nccl", "nccl" in backend)
    yield Finding("sum over one process", total, "", "3", total == 3)
    yield Finding("gradients through DDP", difference, "", "below 1e-3", difference < 1e-3)


def _run(config: PretrainConfig, stop_after: int | None) -> Iterator[None]:
    """Train; send this process SIGTERM in a step."""
    torch.backends.cudnn.deterministic = True
    if stop_after is not None:
        apply, taken = TrainStep.apply_gradients, iter(range(1, 1000))

        def stopping(self: TrainStep, lr: float) -> None:
            apply(self, lr)
            if next(taken) == stop_after:
                os.kill(os.getpid(), signal.SIGTERM)

        TrainStep.apply_gradients = stopping  # type: ignore[method-assign]
    try:
        pretrain(config)
    except SystemExit as error:
        if stop_after is None:
            raise RuntimeError("it was stopped") from error
    yield from ()


def _reduce(variant: str) -> Iterator[tuple[str, float, float]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    set_tf32(False)
    with distributed.processes("cuda") as device:
        number = torch.full((), 3.0, device=device)
        dist.all_reduce(number)
        gradients = []
        for wraps in (False, True):
            torch.manual_seed(0)
            model = create_backbone(variant, num_classes=10, width=NARROW).to(device)
            network = DistributedDataParallel(model, device_ids=[device]) if wraps else model
            batch = _batch(model.train(), 8)
            F.cross_entropy(network(batch.images), batch.labels).backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))  # type: ignore[union-attr]
        yield dist.get_backend_config(), number.item(), _difference(*gradients)


def classifier_step(model: InceptionV3, precision: Any, optimizer: Any = "sgd") -> TrainStep:
    """Steps of a classifier, as the trainer takes them."""
    device = next(model.parameters()).device

    def loss_fn(network: nn.Module, batch: ImageBatch) -> Mapping[str, Tensor]:
        images = batch.images.to(device, non_blocking=True)
        output = network(images.contiguous(memory_format=torch.channels_last))
        return classification_loss(output, batch.labels.to(device, non_blocking=True))

    optim = OptimConfig(optimizer=optimizer, lr=0.1, clip_grad=None, ema_decay=0.9)
    return TrainStep(model.train(), loss_fn, optim, StepConfig(), precision, seed=0)


def _batch(model: InceptionV3, count: int) -> Any:
    device, size = next(model.parameters()).device, model.input_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % model.num_classes
    return ImageBatch(images.to(device), labels.to(device), [""] * count, [])


def waits_of(work: Callable[[], Any]) -> list[str]:
    """What torch says of each time that the GPU is waited for."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [str(one.message) for one in caught if "synchronizing" in str(one.message)]


def _with_statistics(model: InceptionV3) -> InceptionV3:
    """Normalise as after training."""
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.weight.data.uniform_(0.5, 1.5, generator=generator)
            layer.bias.data.normal_(std=0.3, generator=generator)
            layer.running_mean.normal_(std=0.5, generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
    return model


def last_checkpoint(run: str) -> dict[str, Any]:
    """Of a run that has one."""
    found = load_last_checkpoint(Path(run) / "checkpoints")
    if found is None:
        raise RuntimeError(f"{run} has no checkpoint")
    return found


def _weights(state: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([t.double().flatten() for t in state.values() if t.is_floating_point()])


def _difference(found: Tensor, expected: Tensor) -> float:
    found, expected = (t.detach().double().cpu() for t in (found, expected))
    return float((found - expected).norm() / expected.norm())


def _close(name: str, found: Tensor, expected: Tensor, limit: float) -> Finding:
    """That the norm of a difference is small beside that of what is expected."""
    difference = _difference(found, expected)
    return Finding(name, difference, "off", f"below {limit:g}", difference < limit)
