"""How fast the backbones are on a GPU, beside torchvision's in their best forms, all in bf16."""

import gc
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch._inductor.config
from torch import nn

from backbones.benchmarks.gpu.correctness import classifier_step
from backbones.benchmarks.gpu.findings import Finding, failed
from backbones.benchmarks.gpu.settings import GpuSettings
from backbones.benchmarks.peers import CLASSES, fold_peer, peer_network, training_step
from backbones.benchmarks.timing import matrix_peak, time_interleaved
from backbones.data.loaders import ImagesConfig, build_train_loader, open_sources
from backbones.data.sampler import EpochSampler
from backbones.deployment import cuda
from backbones.deployment.folding import fold_batch_norm
from backbones.deployment.pytorch import DeployedInception, deploy
from backbones.networks.cost import count_multiply_adds
from backbones.networks.inception import InceptionV3, create_backbone
from backbones.networks.specs import SPECS
from backbones.training.step import TrainStep

logger = logging.getLogger(__name__)

Call = Callable[[], Any]

EAGER, COMPILED = "torchvision", "torchvision, folded, compiled"
"""The peer that ours should be half as fast again as, and the one that ours should equal."""

COMPILING_THREADS = 4
"""Of each process: four compile at the same time."""


@dataclass
class Timed:
    """Forms of one network, by name: made ready while other processes do the same, and timed alone.

    Training steps are by SGD, without auxiliary head.
    """

    settings: GpuSettings
    variant: str
    kind: Literal["inference", "training"]
    calls: dict[str, Call] = field(default_factory=dict)

    def prepare(self) -> Iterator[Finding]:
        """Build, compile and call each form; what fails is named."""
        torch._inductor.config.compile_threads = COMPILING_THREADS
        is_inference = self.kind == "inference"
        forms = (inference_forms if is_inference else training_forms)(self.settings, self.variant)
        for name, make in forms.items():
            began = time.monotonic()
            try:
                call = make()
                for _ in range(3):
                    call()
                if self.settings.is_gpu:
                    torch.cuda.synchronize()
            except torch.AcceleratorError:
                raise
            except Exception as error:  # the others are still worth timing
                logger.exception("%s", name)
                yield failed(name, error)
                continue
            self.calls[name] = call
            if name.endswith("compiled"):
                yield Finding(f"{name} in", time.monotonic() - began, "s")
        gc.collect()
        if self.settings.is_gpu:
            torch.cuda.empty_cache()
        yield Finding("forms that are ready", float(len(self.calls)))

    def measure(self) -> Iterator[Finding]:
        """Images a second; of inference also the share of the matrix peak."""
        settings = self.settings
        rates = _rates(self.calls, settings)
        if self.kind == "training":
            for name, rate in rates.items():
                yield Finding(name, rate, "images/s")
            for ending in ("", ", compiled"):
                yield from _ratio(rates, f"ours{ending}", f"torchvision{ending}", 1.0)
            return
        sizes = (4096, 8192) if settings.is_gpu else (256,)
        peak = matrix_peak(torch.bfloat16, settings.device, sizes)
        yield Finding("bf16 matrix product", 2 * peak / 1e12, "TFLOP/s")
        network = create_backbone(self.variant, num_classes=0, width=settings.width).eval()
        cost = count_multiply_adds(network, network.input_size)
        for name, rate in rates.items():
            yield Finding(name, rate, f"images/s, {100 * rate * cost / peak:.0f} % of the peak")
        ours = [name for name in rates if name.startswith("ours")]
        best = max(ours, key=lambda name: rates[name], default="")
        for peer, least in ((EAGER, 1.5), (COMPILED, 1.0)):
            for name in dict.fromkeys(("ours, deployed", best)):
                yield from _ratio(rates, name, peer, least)


def _ratio(rates: Mapping[str, float], ours: str, theirs: str, least: float) -> Iterator[Finding]:
    if ours in rates and theirs in rates:
        ratio = rates[ours] / rates[theirs]
        yield Finding(f"{ours} over {theirs}", ratio, "", f"at least {least:g}", ratio >= least)


def _rates(calls: Mapping[str, Call], settings: GpuSettings) -> dict[str, float]:
    seconds = time_interleaved(calls, settings.repeats, settings.device)
    return {name: settings.batch_size / taken for name, taken in seconds.items()}


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
        model.to(settings.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        train_step = classifier_step(model, "bf16", "muon")

        def step(train_step: TrainStep = train_step) -> None:
            train_step.accumulate_gradients(batch, 0)
            train_step.apply_gradients(1e-4)

        rate = _rates({"": step}, settings)[""]
        yield Finding(
            f"the trainer's step at width {width:g}",
            rate,
            "images/s",
            "no more than are read",
            rate <= loaded,
        )


def inference_forms(settings: GpuSettings, variant: str) -> dict[str, Callable[[], Call]]:
    """What makes a forward pass of each form of a network on one batch."""
    device, size = settings.device, SPECS[variant].input_size
    images = torch.randn(settings.batch_size, 3, size, size, device=device)
    images = images.bfloat16().contiguous(memory_format=torch.channels_last)

    def forward(network: nn.Module) -> Call:
        return torch.no_grad()(lambda: network(images))

    def compiled(network: nn.Module) -> Call:
        call = forward(torch.compile(network, dynamic=False, mode="reduce-overhead"))  # type: ignore[arg-type]

        def marked() -> Any:
            # Graphs of several networks share memory: what the last pass gave is not needed.
            torch.compiler.cudagraph_mark_step_begin()
            return call()

        return marked

    def in_bf16(network: nn.Module) -> nn.Module:
        network = network.eval().requires_grad_(False).to(device, torch.bfloat16)
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def folded_peer() -> nn.Module:
        return in_bf16(fold_peer(peer_network("torchvision", variant).eval()))

    def ours() -> InceptionV3:
        return create_backbone(variant, num_classes=CLASSES, width=settings.width).eval().to(device)

    def deployed(*changes: Callable[[nn.Module], None]) -> nn.Module:
        network = DeployedInception(fold_batch_norm(ours()), torch.bfloat16, adapts=False)
        for change in changes:
            change(network)
        return network

    own = {
        "ours, as trained": lambda: forward(in_bf16(ours())),
        "ours, deployed": lambda: forward(deploy(ours(), "bf16")),
    }
    if not settings.is_gpu:
        return own
    sums, merge, fuse = cuda.pool_sums, cuda.merge_entries, cuda.fuse_convolutions
    return {
        EAGER: lambda: forward(in_bf16(peer_network("torchvision", variant))),
        "torchvision, folded": lambda: forward(folded_peer()),
        **own,
        "ours, deployed, not merged": lambda: forward(deployed(sums, fuse)),
        "ours, deployed, not fused": lambda: forward(deployed(sums, merge)),
        "ours, deployed, CUDA graph": lambda: _captured(forward(deploy(ours(), "bf16"))),
        COMPILED: lambda: compiled(folded_peer()),
        "ours, folded, compiled": lambda: compiled(deployed(sums)),
    }


def training_forms(settings: GpuSettings, variant: str) -> dict[str, Callable[[], Call]]:
    """What makes a training step of each form of a network on one batch."""
    networks: dict[str, Callable[[], nn.Module]] = {
        "torchvision": partial(peer_network, "torchvision", variant),
        "ours": partial(create_backbone, variant, num_classes=CLASSES, width=settings.width),
    }
    if not settings.is_gpu:
        del networks["torchvision"]
    batch = SPECS[variant].input_size, settings.batch_size, settings.device
    steps = {
        name: partial(training_step, build, *batch, "channels_last", "bf16")
        for name, build in networks.items()
    }
    forms: dict[str, Callable[[], Call]] = dict(steps)
    if settings.is_gpu and variant == settings.variants[0]:
        forms |= {f"{name}, compiled": partial(step, compiled=True) for name, step in steps.items()}
    return forms


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

    def replay() -> Call:
        graph.replay()
        return call  # weights and images, which the graph knows by their addresses, stay with it

    return replay
