"""What a model asks of the machine, without a clock."""

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Counts operations, and the multiply-adds of convolutions."""

    def __init__(self):
        super().__init__()
        self.counts, self.multiply_adds = Counter(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.__name__.partition(".")[0].strip("_")
        self.counts[name] += 1
        if name == "convolution_pointwise":
            self.multiply_adds += out.numel() * args[1].shape[1:].numel()
        return out
