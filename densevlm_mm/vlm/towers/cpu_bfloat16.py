"""Whether products in bfloat16 are worth anything on this CPU."""

from __future__ import annotations

import torch

# PyTorch's own products of bfloat16 take many times as long as those of fp32, so that what trades other work for
# products does not pay.
CPU_MULTIPLIES_BFLOAT16: bool = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
