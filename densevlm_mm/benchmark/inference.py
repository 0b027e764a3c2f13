"""How fast dense features of images are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from densevlm_mm.vlm import load_vlm
from densevlm_mm.vlm.factory import resolve_dtype

from .options import PROJECT, InferenceOptions, Progress
from .reference_like import dense_features
from .synthetic import arch_named
from .timing import StageClock, Timing, summarize, take_turns


def measure_inference(options: InferenceOptions, progress: Progress) -> dict[str, Any]:
    """Measure dense features.

    Returns:
        ``measurements``.
    """
    clock = StageClock(options.device)

    def timed(encode: Callable[[Tensor], Tensor]) -> Callable[[], Timing]:
        def run() -> Timing:
            clock.start()
            with torch.inference_mode():
                encode(images)
            return clock.stop()

        return run

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(options.batch_size, 3, options.image_size, options.image_size, generator=generator)
    images = images.to(options.device)
    runs = {name: timed(encode) for name, encode in build_encoders(options).items()}
    timings = take_turns(runs, repeats=options.repeats, warmup=options.warmup, progress=progress)
    setting = f'{options.arch}, {options.image_size} px, {options.dtype}'
    return {'measurements': [{'setting': setting, **summarize(timings, options.batch_size)}]}


def build_encoders(options: InferenceOptions) -> dict[str, Callable[[Tensor], Tensor]]:
    """Functions from images ``(B, 3, H, W)`` to dense features, with the same weights.

    This project's has weights of the dtype that is asked for, the baseline fp32 ones which it casts in every pass.
    """
    torch.manual_seed(0)
    plain = load_vlm(arch_named(options.arch), device=options.device).requires_grad_(False)
    vlm = load_vlm(arch_named(options.arch), device=options.device, dtype=options.dtype).requires_grad_(False)
    vlm.load_state_dict(plain.state_dict())
    encoders = {PROJECT: vlm.encode_dense}
    if options.baseline != 'none':
        encoders[options.baseline] = lambda images: _encode_plainly(plain.visual, images, options)
    return encoders


def _encode_plainly(tower: torch.nn.Module, images: Tensor, options: InferenceOptions) -> Tensor:
    dtype = resolve_dtype(options.dtype)
    with torch.autocast(torch.device(options.device).type, dtype=dtype, enabled=dtype != torch.float32):
        return dense_features(tower, images, fused=options.fused)
