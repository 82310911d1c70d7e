"""Networks to be timed side by side: ours in each of their forms, torchvision's and timm's.

A peer is the same network as the variant: for the receptive fields that torchvision and timm do not
have, their stem loses the stride and the pool that the variant's does not have either.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import timm
import torch
import torch._inductor.config
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.common.device import autocast
from backbones.deployment.folding import fold_batch_norm
from backbones.deployment.openvino import convert, core, quantize
from backbones.deployment.pytorch import deploy
from backbones.networks.inception import InceptionV3, create_backbone
from backbones.networks.specs import SPECS

CLASSES = 1000

Layout = Literal["default", "channels_last"]
FormPrecision = Literal["fp32", "bf16", "int8"]
Build = Callable[[], nn.Module]


@dataclass(frozen=True)
class NetworkForm:
    """One way to run one network."""

    name: str
    """Of the package and of the form."""
    precision: FormPrecision
    make: Callable[[], Callable[[], Any]]
    """Builds it; the function that comes back makes a forward pass, or a training step."""


def peer_network(package: Literal["torchvision", "timm"], variant: str) -> nn.Module:
    """Their `inception_v3` without auxiliary head, with the receptive field of a variant; raises
    `ValueError` for one of another layout."""
    spec = SPECS[variant]
    if spec.layout != "released":
        raise ValueError(f"{package} has no network of the layout of {variant}")
    if package == "torchvision":
        network = torchvision.models.inception_v3(
            weights=None, num_classes=CLASSES, aux_logits=False, init_weights=False
        )
        pool = "maxpool1"
    else:
        network = timm.create_model("inception_v3", num_classes=CLASSES, aux_logits=False)
        pool = "Pool1"
    if spec.receptive_field in ("151", "79"):
        network.get_submodule("Conv2d_1a_3x3.conv").stride = (1, 1)
    if spec.receptive_field == "79":
        setattr(network, pool, nn.Identity())
    return network


def inference_forms(
    variant: str, width: float, batch_size: int, device: torch.device, *, compiled: bool
) -> list[NetworkForm]:
    """Forward passes in fp32, bf16 and int8; first torchvision's as its users run it.

    The peers have width 1 and are left out at another; OpenVINO and int8 are for the CPU.
    `compiled` adds torchvision's and ours compiled by `torch.compile`, which takes minutes.
    """
    size = SPECS[variant].input_size
    torchvisions = partial(peer_network, "torchvision", variant)
    timms = partial(peer_network, "timm", variant)
    found: list[NetworkForm] = []

    def add(name: str, precision: FormPrecision, make: Callable[..., Any], *arguments: Any) -> None:
        found.append(NetworkForm(name, precision, partial(make, *arguments)))

    def forward(network: Callable[[Tensor], Any], like: Tensor) -> Callable[[], Any]:
        return torch.inference_mode()(lambda: network(like))

    def batch(dtype: torch.dtype = torch.float32, layout: Layout = "channels_last") -> Tensor:
        images = torch.randn(batch_size, 3, size, size, device=device).to(dtype)
        return images.contiguous(memory_format=_FORMATS[layout])

    def ours() -> InceptionV3:
        return create_backbone(variant, num_classes=CLASSES, width=width).eval().to(device)

    def as_it_is(build: Build, layout: Layout, bf16: bool = False) -> Callable[[], Any]:
        network = build().eval().to(device).to(memory_format=_FORMATS[layout])  # type: ignore[call-overload]
        return forward(autocast(device, "bf16" if bf16 else "fp32")(network), batch(layout=layout))

    def folded(build: Build) -> Callable[[], Any]:
        network = fold_peer(build().eval()).to(device, torch.bfloat16)
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return forward(network, batch(torch.bfloat16))

    def frozen(build: Build) -> Callable[[], Any]:
        network = build().eval().to(device, torch.bfloat16)
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        call = forward(torch.compile(network, dynamic=False), batch(torch.bfloat16))
        # It folds what can be folded by itself; compiled here, at its first call.
        with torch._inductor.config.patch(freezing=True):
            call()
        return call

    def deployed(precision: Literal["fp32", "bf16"]) -> Callable[[], Any]:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        return forward(deploy(ours(), precision), batch(dtype))

    def theirs_in_openvino(precision: FormPrecision) -> Callable[[], Any]:
        return _openvino(torchvisions(), batch(layout="default"), precision)

    def ours_in_openvino(precision: FormPrecision) -> Callable[[], Any]:
        images = batch(layout="default")
        if precision == "int8":
            return forward(quantize(ours(), [images]), images)
        return forward(convert(ours(), precision), images)

    in_openvino: list[FormPrecision] = []
    if device.type == "cpu" and find_spec("openvino"):
        in_openvino = ["fp32", "bf16", "int8"] if find_spec("nncf") else ["fp32", "bf16"]
    has_peers = SPECS[variant].layout == "released" and width == 1
    if has_peers:
        mixed = "torchvision, channels_last, autocast"
        add("torchvision", "fp32", as_it_is, torchvisions, "default")
        add("torchvision, channels_last", "fp32", as_it_is, torchvisions, "channels_last")
        add(mixed, "bf16", as_it_is, torchvisions, "channels_last", True)
        add("timm", "fp32", as_it_is, timms, "default")
        add("timm, channels_last, folded", "bf16", folded, timms)
        for precision in in_openvino:
            quantizer = ", NNCF" if precision == "int8" else ""
            name = f"torchvision in OpenVINO{quantizer}"
            add(name, precision, theirs_in_openvino, precision)
    add("ours as trained", "fp32", as_it_is, ours, "default")
    add("ours as trained, channels_last", "fp32", as_it_is, ours, "channels_last")
    add("ours as trained, channels_last, autocast", "bf16", as_it_is, ours, "channels_last", True)
    add("ours deployed", "fp32", deployed, "fp32")
    add("ours deployed", "bf16", deployed, "bf16")
    if compiled and has_peers:
        add("torchvision, compiled", "bf16", frozen, torchvisions)
    if compiled:
        add("ours, compiled", "bf16", frozen, lambda: fold_batch_norm(ours()))
    for precision in in_openvino:
        add("ours in OpenVINO", precision, ours_in_openvino, precision)
    return found


def training_forms(
    variant: str, width: float, batch_size: int, device: torch.device
) -> list[NetworkForm]:
    """Training steps without auxiliary head, by SGD with momentum; arguments as above."""
    batch = SPECS[variant].input_size, batch_size, device
    networks: dict[str, Build] = {}
    if SPECS[variant].layout == "released" and width == 1:
        networks["torchvision"] = partial(peer_network, "torchvision", variant)
        networks["timm"] = partial(peer_network, "timm", variant)
    networks["ours"] = partial(create_backbone, variant, num_classes=CLASSES, width=width)
    forms: tuple[tuple[Layout, Literal["fp32", "bf16"]], ...] = (
        ("default", "fp32"),
        ("channels_last", "fp32"),
        ("channels_last", "bf16"),
    )
    return [
        NetworkForm(
            name if layout == "default" else f"{name}, {layout}",
            precision,
            partial(training_step, build, *batch, layout, precision),
        )
        for layout, precision in forms
        for name, build in networks.items()
    ]


def training_step(
    build: Build,
    size: int,
    batch_size: int,
    device: torch.device,
    layout: Layout,
    precision: Literal["fp32", "bf16"],
    *,
    compiled: bool = False,
) -> Callable[[], None]:
    """Takes a step on one batch of images of a size each time that it is called."""
    network = build().train().to(device).to(memory_format=_FORMATS[layout])  # type: ignore[call-overload]
    images = torch.randn(batch_size, 3, size, size, device=device)
    images = images.contiguous(memory_format=_FORMATS[layout])
    labels = torch.randint(0, CLASSES, (batch_size,), device=device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)
    called = torch.compile(network, dynamic=False) if compiled else network

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, precision):
            loss = F.cross_entropy(called(images), labels)
        loss.backward()
        optimizer.step()

    return step


def fold_peer(network: nn.Module) -> nn.Module:
    """A copy of a peer's network with its normalisation folded into the convolutions."""
    network = copy.deepcopy(network)
    for layer in list(network.modules()):
        conv, bn = getattr(layer, "conv", None), getattr(layer, "bn", None)
        if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
            layer.conv = nn.utils.fuse_conv_bn_eval(conv, bn)
            layer.bn = getattr(bn, "act", nn.Identity())  # timm's holds the activation
    return network


def _openvino(network: nn.Module, images: Tensor, precision: FormPrecision) -> Callable[[], Any]:
    """OpenVINO's own conversion of a network, for this size of image and any batch."""
    import openvino

    shape = [-1, *images.shape[1:]]
    # Two images, and no gradients: what the tracing keeps would count as OpenVINO's memory.
    network = network.eval().requires_grad_(False)
    model = openvino.convert_model(network, example_input=images[:2], input=shape)
    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    if precision == "int8":
        import nncf

        model = nncf.quantize(model, nncf.Dataset([images.numpy()]))
    else:
        settings["INFERENCE_PRECISION_HINT"] = "f32" if precision == "fp32" else precision
    compiled = core().compile_model(model, "CPU", settings)
    array = images.numpy()
    return lambda: compiled(array)


_FORMATS = {"default": torch.contiguous_format, "channels_last": torch.channels_last}
