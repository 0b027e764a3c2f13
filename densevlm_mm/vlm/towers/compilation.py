"""What towers ask of `torch.compile` unless a config says otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch._inductor import list_mode_options

from .norms import ALIGNMENT


def compile_options(options: Mapping[str, Any], weights: Iterable[Tensor]) -> dict[str, Any]:
    """Keywords for `torch.compile`: those of a config, and options of Inductor that suit transformers.

    Args:
        options: ``options``, ``mode``, ``backend`` and whatever else `torch.compile` takes. For Inductor a mode is
            written out as the options that it stands for, since `torch.compile` takes one or the other.
        weights: Parameters of what is compiled.
    """
    options = dict(options)
    if options.get('backend', 'inductor') == 'inductor':
        mode = list_mode_options(options.pop('mode', None) or 'default')
        options['options'] = {**_for_inductor(weights), **mode, **(options.get('options') or {})}
    return options


def has_cuda_graphs(options: Mapping[str, Any]) -> bool:
    """Whether code compiled with these keywords, as `compile_options` returns them, replays CUDA graphs."""
    return bool((options.get('options') or {}).get('triton.cudagraphs'))


def _for_inductor(weights: Iterable[Tensor]) -> dict[str, Any]:
    """Pad rows only where a matrix needs it.

    With more than 1,024 tokens Inductor also pads the rows of what norms remember, (B, L, 1). It then no longer sees
    that each token lies in one piece, and writes norms that read it twice and find its variance by many divisions.
    """
    aligned = all(size % ALIGNMENT == 0 for weight in weights if weight.ndim > 1 for size in weight.shape)
    return {'comprehensive_padding': False} if aligned else {}
