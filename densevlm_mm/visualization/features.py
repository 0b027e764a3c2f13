"""What dense features look like: their principal components as colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .canvas import check_image, fit_panel, stack_columns, stack_rows
from .legend import heading

_PANEL = 256  # px of the longest side of an image
_GAP = 8  # px
_TEXT = 16.0  # px
_TAILS = 0.01  # share of the tokens at both ends that get the ends of a colour's range


def draw_features(images: Sequence[np.ndarray], features: Mapping[str, Sequence[Tensor]]) -> np.ndarray:
    """Dense features as colours: a row for each source, such as before and after training, a column for each image.

    Red, green and blue are the first three principal components of the features of a row, computed over all its images
    together: equal colours in a row mean like features. Between rows, colours do not compare. The first row are the
    images.

    Args:
        images: B of ``(H, W, 3)`` uint8 RGB.
        features: By the title of a row, for each image its features ``(C, h, w)``, covering the whole image.

    Returns:
        RGB uint8.

    Raises:
        ValueError: If an image is of another kind, there is none, or a row has not one tensor for each.
    """
    if not images:
        raise ValueError('give at least one image')
    for title, row in features.items():
        if len(row) != len(images) or any(values.ndim != 3 for values in row):
            raise ValueError(f'features {title!r}: one (C, h, w) tensor for each of the {len(images)} images is needed')
    panels = [fit_panel(check_image(image), _PANEL) for image in images]
    rows = {'image': panels}
    for title, row in features.items():
        colors = principal_colors(row)
        rows[title] = [_fit(color, panel) for color, panel in zip(colors, panels, strict=True)]
    strips = [stack_columns(row, _GAP) for row in rows.values()]
    return stack_rows(
        [
            part
            for title, strip in zip(rows, strips, strict=True)
            for part in (heading(title, strip.shape[1], _TEXT), strip)
        ]
    )


@torch.no_grad()
def principal_colors(features: Sequence[Tensor]) -> list[np.ndarray]:
    """First three principal components of features, computed over all maps together, as colours.

    Args:
        features: Maps ``(C, h, w)`` of any sizes.

    Returns:
        For each ``(h, w, 3)`` uint8.
    """
    tokens = torch.cat([values.detach().flatten(1).T.cpu().double() for values in features])
    tokens = tokens - tokens.mean(0)
    _, vectors = torch.linalg.eigh(tokens.T @ tokens)
    vectors = vectors.flip(1)[:, :3]  # largest variance first
    # a component may point either way: the largest of its entries is to be positive
    signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    components = tokens @ (vectors * signs)
    components = torch.nn.functional.pad(components, (0, 3 - components.shape[1]))
    low, high = (torch.quantile(components, share, dim=0) for share in (_TAILS, 1 - _TAILS))
    colors = (components - low) / (high - low).clamp(min=1e-9)
    colors = (255 * colors.clamp(0, 1)).round().to(torch.uint8)
    parts = colors.split([values[0].numel() for values in features])
    return [part.view(*values.shape[1:], 3).numpy() for part, values in zip(parts, features, strict=True)]


def _fit(colors: np.ndarray, panel: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(colors).resize(panel.shape[1::-1], Image.Resampling.NEAREST))
