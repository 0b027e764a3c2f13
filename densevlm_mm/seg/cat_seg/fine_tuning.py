"""Which weights of a CLIP tower train: few, so that it keeps its open vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

FineTuning = Literal['none', 'qv', 'in_proj', 'attention', 'all']
_LETTERS = {'qv': 'qv', 'in_proj': 'qkv'}
# Projections of the last block that a dense mode never asks for.
_LEFT_OUT = {'value': 'qk', 'vv': 'qk', 'qq': 'k', 'clearclip': 'k', 'kk': 'q'}


def unused_letters(mode: str) -> str:
    """Which of queries, keys and values a dense mode makes nothing of in the last block."""
    return _LEFT_OUT.get(mode, '')


def fine_tune(
    tower: nn.Module, what: FineTuning, *, last_unused: str = '', unused: Iterable[nn.Parameter] = ()
) -> None:
    """Freeze a tower but for some of its weights.

    A fused input projection of which parts train is taken apart, see `take_apart`.

    Args:
        tower: A transformer, of images or text.
        what: 'none'; 'qv', the weights (no biases) of queries and values in every block, as CAT-Seg trains; 'in_proj',
            those of keys, too; 'attention', all that the attention layers have; 'all'.
        last_unused: Letters of the projections that nothing in the last block uses.
        unused: Parameters that nothing uses. They stay frozen, since DDP would wait for their gradients.

    Raises:
        ValueError: If there is no such option, or the tower has no attention layers for it.
    """
    if what not in get_args(FineTuning):
        raise ValueError(f'fine-tuning must be one of {get_args(FineTuning)}, got {what!r}')
    tower.requires_grad_(False)
    for parameter in _chosen(tower, what, last_unused):
        parameter.requires_grad_(True)
    for parameter in unused:
        parameter.requires_grad_(False)
    tower.train(tower.training)  # a vision tower keeps what is frozen in eval mode


def _chosen(tower: nn.Module, what: FineTuning, last_unused: str) -> Iterator[nn.Parameter]:
    if what == 'all':
        yield from tower.parameters()
    if what in ('none', 'all'):
        return
    layers = [module for module in tower.modules() if _has_projections(module)]
    if not layers:
        raise ValueError(f"{type(tower).__name__} has no attention layers: fine-tune 'none' or 'all' of it")
    if what == 'attention':
        for layer in layers:
            yield from layer.parameters()
        return
    for layer in layers:
        left_out = last_unused if layer is layers[-1] else ''
        yield from _projections(layer, [letter for letter in _LETTERS[what] if letter not in left_out])


def _has_projections(module: nn.Module) -> bool:
    fused = getattr(module, 'in_proj_weight', None)
    return fused is not None or any(isinstance(getattr(module, name, None), nn.Linear) for name in ('q_proj', 'qkv'))


def _projections(layer: nn.Module, letters: list[str]) -> list[nn.Parameter]:
    """Weights of an attention layer's projections, as EVA-CLIP, timm or PyTorch keep them."""
    if isinstance(getattr(layer, 'q_proj', None), nn.Linear):
        return [getattr(layer, f'{letter}_proj').weight for letter in letters]
    owner, name = (layer, 'in_proj_weight') if hasattr(layer, 'in_proj_weight') else (layer.qkv, 'weight')
    if len(letters) == 3:
        return [getattr(owner, name)]
    parts = dict(zip('qkv', take_apart(owner, name), strict=True))
    return [parts[letter] for letter in letters]


class _Rows(nn.Module):
    """Parametrization of a fused weight by three, one below the other."""

    def forward(self, *parts: Tensor) -> Tensor:
        return torch.cat(parts)

    def right_inverse(self, weight: Tensor) -> list[Tensor]:
        return [part.clone() for part in weight.chunk(3)]


def take_apart(module: nn.Module, name: str) -> list[nn.Parameter]:
    """Make three parameters of a fused one: queries, keys and values.

    To whoever reads ``module.NAME`` and in state dicts it is the fused one as before. So its parts can train, decay and
    be counted each for itself, and checkpoints stay what they are.

    Whoever pairs parameters with entries of a state dict finds no parts there. MMEngine's averaged models update the
    parts only with ``update_buffers=False``, their default; `WeightEnsembleHook` refuses such a model.

    Args:
        module: Owner of the parameter.
        name: Name of a parameter whose rows are queries, keys and values, in this order.

    Returns:
        The parts, in this order.
    """
    if not parametrize.is_parametrized(module, name):
        parametrize.register_parametrization(module, name, _Rows())

        def fuse(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Mapping[str, Any]) -> None:
            parts = [state.pop(key) for key in _part_names(prefix, name)]
            state[prefix + name] = torch.cat(parts)

        def part(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
            if prefix + name in state:
                state.update(zip(_part_names(prefix, name), state.pop(prefix + name).chunk(3), strict=True))

        module.register_state_dict_post_hook(fuse)
        module.register_load_state_dict_pre_hook(part)
    parts = module.parametrizations[name]
    return [parts.original0, parts.original1, parts.original2]


def _part_names(prefix: str, name: str) -> list[str]:
    return [f'{prefix}parametrizations.{name}.original{index}' for index in range(3)]
