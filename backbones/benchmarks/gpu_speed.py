"""How fast the backbones are on a GPU, beside torchvision's in their best forms, all in bf16."""

import itertools
import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.benchmarks.findings import Finding, NotHereError
from backbones.benchmarks.gpu_settings import GpuSettings
from backbones.benchmarks.peers import CLASSES, fold_peer, peer_network
from backbones.benchmarks.processes import OwnProcess
from backbones.benchmarks.timing import matrix_peak, time_interleaved
from backbones.data.datasets import ImageBatch
from backbones.data.loaders import ImagesConfig, build_train_loader, open_sources
from backbones.data.sampler import EpochSampler
from backbones.deployment import cuda
from backbones.deployment.folding import fold_batch_norm
from backbones.deployment.pytorch import DeployedInception, deploy
from backbones.networks.cost import count_multiply_adds
from backbones.networks.inception import InceptionV3, create_backbone
from backbones.networks.specs import SPECS
from backbones.training.recipe import OptimConfig, classification_loss
from backbones.training.step import StepConfig, TrainStep

logger = logging.getLogger(__name__)

Call = Callable[[], Any]

EAGER, COMPILED = "torchvision", "torchvision, folded, compiled"
"""The peer that ours should be half as fast again as, and the one that ours should equal."""


class Case(NamedTuple):
    """What is timed, for another process to compile it beforehand: picklable."""

    kind: str
    name: str
    variant: str


class CompiledAhead:
    """Compiles networks in other processes, which fill the caches that this one will use.

    Attributes:
        done: what is in the caches; the rest would take minutes here.
    """

    def __init__(self, settings: GpuSettings) -> None:
        self._settings = settings
        self._running: dict[Case, OwnProcess] = {}
        self.done: set[Case] = set()

    def start(self) -> Iterator[Finding]:
        """Begin."""
        cases = [
            Case("inference", name, variant)
            for variant in self._settings.variants
            for name, is_compiled in _inference_forms(variant, self._settings).items()
            if is_compiled
        ]
        cases += _compiled_steps(self._settings.variants[0])
        for case in cases:
            self._running[case] = OwnProcess(_compile, case, self._settings)
        yield Finding("networks that are compiled meanwhile", float(len(cases)))

    def wait(self, seconds: float) -> Iterator[Finding]:
        """Until all are done, or so many seconds have passed; what failed is named."""
        until = time.monotonic() + seconds
        for case, process in self._running.items():
            try:
                took = process.result(until - time.monotonic())
                self.done.add(case)
                yield Finding(f"{case.variant}: {case.kind}, {case.name}", took, "s")
            except RuntimeError as error:
                logger.warning("%s", error)
                reason = str(error).partition("\n")[0][:80]
                yield Finding(
                    f"{case.variant}: {case.kind}, {case.name}", f"not compiled: {reason}"
                )
        self._running.clear()


def _compile(case: Case, settings: GpuSettings) -> float:
    began = time.monotonic()
    build = inference_call if case.kind == "inference" else training_call
    call = build(case.name, case.variant, settings)
    for _ in range(2):
        call()
    if settings.is_gpu:
        torch.cuda.synchronize()
    return time.monotonic() - began


def measure_peak(settings: GpuSettings) -> Iterator[Finding]:
    """The fastest matrix product in bf16."""
    sizes = (4096, 8192) if settings.is_gpu else (256,)
    peak = matrix_peak(torch.bfloat16, settings.device, sizes)
    yield Finding("bf16 matrix product", 2 * peak / 1e12, "TFLOP/s")


def measure_inference(
    settings: GpuSettings, variant: str, ahead: CompiledAhead
) -> Iterator[Finding]:
    """Images a second of forward passes, and their share of the matrix peak."""
    forms = [
        name
        for name, is_compiled in _inference_forms(variant, settings).items()
        if not is_compiled or Case("inference", name, variant) in ahead.done
    ]
    rates = yield from _rates(
        {name: partial(inference_call, name, variant, settings) for name in forms}, settings
    )
    sizes = (4096, 8192) if settings.is_gpu else (256,)
    peak = matrix_peak(torch.bfloat16, settings.device, sizes)
    network = create_backbone(variant, num_classes=0, width=settings.width).eval()
    cost = count_multiply_adds(network, network.input_size)
    for name, rate in rates.items():
        yield Finding(name, rate, f"images/s, {100 * rate * cost / peak:.0f} % of the peak")
    ours = {name: rate for name, rate in rates.items() if name.startswith("ours")}
    if not ours or EAGER not in rates:
        return
    best = max(ours, key=lambda name: ours[name])
    for peer, least in ((EAGER, 1.5), (COMPILED, 1.0)):
        if peer in rates:
            for name in dict.fromkeys(("ours, deployed", best)):
                if name in ours:
                    ratio = ours[name] / rates[peer]
                    yield Finding(
                        f"{name} over {peer}", ratio, "", f"at least {least}", ratio >= least
                    )


def measure_training(settings: GpuSettings, variant: str, suffix: str = "") -> Iterator[Finding]:
    """Images a second of training steps by SGD, without auxiliary head.

    Args:
        settings: see there.
        variant: network.
        suffix: of the names of the forms, `, compiled` or nothing.
    """
    ours, theirs = f"ours{suffix}", f"torchvision{suffix}"
    rates = yield from _rates(
        {name: partial(training_call, name, variant, settings) for name in (theirs, ours)}, settings
    )
    for name, rate in rates.items():
        yield Finding(name, rate, "images/s")
    if len(rates) == 2:
        ratio = rates[ours] / rates[theirs]
        yield Finding(f"{ours} over {theirs}", ratio, "", "at least 1", ratio >= 1)


def measure_compiled_training(
    settings: GpuSettings, variant: str, ahead: CompiledAhead
) -> Iterator[Finding]:
    """As `measure_training`, of compiled networks."""
    missing = [case.name for case in _compiled_steps(variant) if case not in ahead.done]
    if missing:
        raise NotHereError(f"not compiled in time: {', '.join(missing)}")
    yield from measure_training(settings, variant, ", compiled")


def _compiled_steps(variant: str) -> list[Case]:
    return [Case("training", f"{whose}, compiled", variant) for whose in ("torchvision", "ours")]


def measure_input(settings: GpuSettings) -> Iterator[Finding]:
    """Images a second that the trainer's loader reads and augments, and that its step takes."""
    variant = settings.variants[0]
    sources = open_sources(ImagesConfig(root=str(settings.images)))
    spec, batch_size = SPECS[variant], settings.batch_size
    sampler = EpochSampler(sources.num_train, batch_size, epochs=3, seed=0)
    loader = build_train_loader(
        *(sources, spec, ImagesConfig().augment, sampler),
        workers=settings.workers,
        pin_memory=settings.is_gpu,
    )
    batches = iter(loader)
    warm, counted = (24, 96) if settings.is_gpu else (1, 2)
    batch: Any = next(batches)
    for _ in itertools.islice(batches, warm):
        pass
    began = time.perf_counter()
    read = sum(1 for _ in itertools.islice(batches, counted))
    loaded = read * batch_size / (time.perf_counter() - began)
    del batches, loader
    yield Finding(f"input pipeline, {settings.workers} processes", loaded, "images/s")
    for width in dict.fromkeys((settings.width, 0.25)):
        model = create_backbone(variant, num_classes=len(sources.class_names), width=width)
        rates = yield from _rates(
            {
                f"the trainer's step at width {width:g}": partial(
                    _trainer_step, model, batch, settings
                )
            },
            settings,
        )
        for name, rate in rates.items():
            yield Finding(name, rate, "images/s", "no more than are read", rate <= loaded)


def _trainer_step(model: InceptionV3, batch: Any, settings: GpuSettings) -> Call:
    device = settings.device
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss_fn(network: nn.Module, batch: ImageBatch) -> Mapping[str, Tensor]:
        images = batch.images.to(device, non_blocking=True)
        output = network(images.contiguous(memory_format=torch.channels_last))
        return classification_loss(output, batch.labels.to(device, non_blocking=True))

    optim = OptimConfig(optimizer="muon", lr=1e-4, ema_decay=0.99)
    train_step = TrainStep(model.train(), loss_fn, optim, StepConfig(), "bf16", seed=0)

    def step() -> None:
        train_step.accumulate_gradients(batch, 0)
        train_step.apply_gradients(1e-4)

    return step


def _rates(
    builders: Mapping[str, Callable[[], Call]], settings: GpuSettings
) -> Generator[Finding, None, dict[str, float]]:
    """Images a second by name, returned; what cannot be built or called is named instead."""
    calls: dict[str, Call] = {}
    for name, build in builders.items():
        try:
            call = build()
            for _ in range(3):
                call()
            if settings.is_gpu:
                torch.cuda.synchronize()
            calls[name] = call
        except Exception as error:  # the others are still worth timing
            logger.exception("%s", name)
            reason = str(error).strip().partition("\n")[0]
            yield Finding(name, f"FAILED: {type(error).__name__}: {reason}"[:160], met=False)
    seconds = time_interleaved(calls, settings.repeats, settings.device)
    return {name: settings.batch_size / taken for name, taken in seconds.items()}


def _inference_forms(variant: str, settings: GpuSettings) -> dict[str, bool]:
    """Names of what is timed, and whether it is compiled."""
    forms: dict[str, bool] = {}
    if settings.width == 1:
        forms |= {EAGER: False, "torchvision, folded": False}
    forms |= {"ours, as trained": False, "ours, deployed": False}
    if settings.is_gpu:
        forms |= {
            "ours, deployed, not merged": False,
            "ours, deployed, not fused": False,
            "ours, deployed, CUDA graph": False,
        }
    if settings.compile:
        forms |= {COMPILED: True, "ours, folded, compiled": True}
    return forms


def inference_call(name: str, variant: str, settings: GpuSettings) -> Call:
    """A forward pass of one form of a network on one batch."""
    device, size = settings.device, SPECS[variant].input_size
    images = torch.randn(settings.batch_size, 3, size, size, device=device)
    images = images.bfloat16().contiguous(memory_format=torch.channels_last)

    def in_bf16(network: nn.Module) -> nn.Module:
        network = network.eval().requires_grad_(False).to(device, torch.bfloat16)
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def ours() -> InceptionV3:
        return create_backbone(variant, num_classes=CLASSES, width=settings.width).eval().to(device)

    def deployed(*changes: Callable[[nn.Module], None]) -> nn.Module:
        network = DeployedInception(fold_batch_norm(ours()), torch.bfloat16, adapts=False)
        for change in changes:
            change(network)
        return network

    network: nn.Module
    if name == EAGER:
        network = in_bf16(peer_network("torchvision", variant))
    elif name in ("torchvision, folded", COMPILED):
        network = in_bf16(fold_peer(peer_network("torchvision", variant).eval()))
    elif name == "ours, as trained":
        network = in_bf16(ours())
    elif name == "ours, folded, compiled":
        network = deployed(cuda.pool_sums)
    elif name == "ours, deployed, not merged":
        network = deployed(cuda.pool_sums, cuda.fuse_convolutions)
    elif name == "ours, deployed, not fused":
        network = deployed(cuda.pool_sums, cuda.merge_entries)
    else:
        network = deploy(ours(), "bf16")
    if name.endswith("compiled"):
        network = torch.compile(network, dynamic=False, mode="reduce-overhead")  # type: ignore[assignment]
    call: Call = torch.no_grad()(lambda: network(images))
    return _captured(call) if name.endswith("CUDA graph") else call


def _captured(call: Call) -> Call:
    """The same kernels without the processor's part in starting each."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def training_call(name: str, variant: str, settings: GpuSettings) -> Call:
    """A training step of one network on one batch."""
    device, size = settings.device, SPECS[variant].input_size
    if name.startswith("torchvision"):
        network: nn.Module = peer_network("torchvision", variant)
    else:
        network = create_backbone(variant, num_classes=CLASSES, width=settings.width)
    network = network.train().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(settings.batch_size, 3, size, size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (settings.batch_size,), device=device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)
    called: nn.Module = network
    if name.endswith("compiled"):
        called = torch.compile(network, dynamic=False)  # type: ignore[assignment]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.cross_entropy(called(images), labels)
        loss.backward()
        optimizer.step()

    return step
