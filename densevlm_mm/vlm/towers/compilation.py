"""What towers ask of `torch.compile` unless a config says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch._inductor import list_mode_options

# With more than 1,024 tokens Inductor would pad the rows of what norms remember, (B, L, 1); it then no longer sees that
# each token lies in one piece, and writes norms that read it twice and find its variance step by step, with divisions.
_INDUCTOR = {'comprehensive_padding': False}


def compile_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords for `torch.compile`: those of a config, and options of Inductor that suit transformers.

    Args:
        options: ``options``, ``mode``, ``backend`` and whatever else `torch.compile` takes. For Inductor a mode is
            written out as the options that it stands for, since `torch.compile` takes one or the other.
    """
    options = dict(options)
    if options.get('backend', 'inductor') == 'inductor':
        mode = list_mode_options(options.pop('mode', None) or 'default')
        options['options'] = {**_INDUCTOR, **mode, **(options.get('options') or {})}
    return options


def has_cuda_graphs(options: Mapping[str, Any]) -> bool:
    """Whether code compiled with these keywords, as `compile_options` returns them, replays CUDA graphs."""
    return bool((options.get('options') or {}).get('triton.cudagraphs'))
