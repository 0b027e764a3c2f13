"""Retrieval of captions by images and of images by captions: what fine-tuning for regions costs at image level."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from torch import Tensor

from densevlm_mm.registry import METRICS

from .region_accuracy import check_topk
from .report import format_table, output_path, write_json

# Cosines closer than this are ties: the same caption, encoded in batches of two sizes, differs by about 1e-7.
TIE = 1e-6
# Rows of the similarity matrix at once; 5,000 x 25,000 cosines would take half a gigabyte.
_CHUNK = 512


def recall_at_k(images: Tensor, texts: Tensor, owners: Tensor, topk: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Recall of image-text retrieval in both directions.

    An image is right at k if any of its captions is among the k most similar ones; a caption if its image is among the
    k most similar ones. Ties are wrong: what is as similar as the right answer is taken to rank before it.

    Args:
        images: ``(N, C)``, L2-normalised.
        texts: ``(M, C)``, L2-normalised.
        owners: ``(M,)`` index of the image that each caption is of; every image has at least one.
        topk: The k.

    Returns:
        Shares in 0..1: ``image_to_text.R@k`` of the images, ``text_to_image.R@k`` of the captions.
    """
    directions = {'image_to_text': _ranks_of_texts, 'text_to_image': _ranks_of_images}
    shares = {}
    for direction, ranks_of in directions.items():
        ranks = torch.cat(list(ranks_of(images, texts, owners)))
        shares |= {f'{direction}.R@{k}': (ranks < k).double().mean().item() for k in topk}
    return shares


def _ranks_of_texts(images: Tensor, texts: Tensor, owners: Tensor) -> Iterator[Tensor]:
    """For every image, how many captions of others rank before the best of its own."""
    for index in torch.arange(len(images)).split(_CHUNK):
        similarity, is_own = images[index] @ texts.T, owners == index[:, None]
        best = similarity.masked_fill(~is_own, -torch.inf).amax(1, keepdim=True)
        yield ((similarity > best - TIE) & ~is_own).sum(1)


def _ranks_of_images(images: Tensor, texts: Tensor, owners: Tensor) -> Iterator[Tensor]:
    """For every caption, how many images rank before its own."""
    for text, owner in zip(texts.split(_CHUNK), owners.split(_CHUNK), strict=True):
        similarity = text @ images.T
        yield (similarity > similarity.gather(1, owner[:, None]) - TIE).sum(1) - 1


@METRICS.register_module()
class CaptionRetrieval(BaseMetric):
    """Recall at k of image-to-text and text-to-image retrieval, in percent; see :func:`recall_at_k`.

    Takes data samples with ``image_embedding`` ``(C,)`` and ``text_embeddings`` ``(n, C)``. Figures are the same for
    any number of processes: mmengine drops what a distributed sampler repeats.

    Args:
        topk: The k.
        out_json: Where to write the figures; ``None`` puts ``caption_retrieval.json`` beside the log file of the run,
            or nowhere if there is none.
        collect_device: How embeddings travel between processes, 'cpu' or 'gpu'.
        collect_dir: Shared folder for 'cpu'; ``None`` makes a temporary one.
        prefix: Put before every key, with a slash.
    """

    # Keys are complete as they are; without this, mmengine warns that there is no prefix.
    default_prefix = ''

    def __init__(
        self,
        *,
        topk: Sequence[int] = (1, 5, 10),
        out_json: str | None = None,
        collect_device: str = 'cpu',
        collect_dir: str | None = None,
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, collect_dir=collect_dir, prefix=prefix)
        self.topk = check_topk(topk)
        self.out_json = out_json

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep the embeddings of a batch of data samples.

        Raises:
            ValueError: Shapes disagree, an image has no caption, or an embedding is not finite.
        """
        for sample in data_samples:
            image, texts = (sample[key].detach().float().cpu() for key in ('image_embedding', 'text_embeddings'))
            where = sample.get('img_path', 'a data sample')
            if image.ndim != 1 or texts.ndim != 2 or not len(texts) or texts.shape[1] != len(image):
                raise ValueError(
                    f'{where}: image_embedding (C,) and text_embeddings (n, C) with n > 0 are expected, got '
                    f'{tuple(image.shape)} and {tuple(texts.shape)}'
                )
            if not (image.isfinite().all() and texts.isfinite().all()):
                raise ValueError(f'{where}: an embedding is not finite; is the checkpoint broken?')
            self.results.append((image, texts))

    def compute_metrics(self, results: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Figures over all images, in percent; also logs the table and writes the file."""
        images = torch.stack([image for image, _ in results])
        counts = torch.tensor([len(texts) for _, texts in results])
        owners = torch.arange(len(results)).repeat_interleave(counts)
        shares = recall_at_k(images, torch.cat([texts for _, texts in results]), owners, self.topk)
        metrics = {key: 100 * share for key, share in shares.items()}
        rows = [
            [direction.replace('_', ' '), *(metrics[f'{direction}.R@{k}'] for k in self.topk), queries]
            for direction, queries in (('image_to_text', len(images)), ('text_to_image', len(owners)))
        ]
        logger = MMLogger.get_current_instance()
        header = ['retrieval', *(f'R@{k}' for k in self.topk), 'queries']
        logger.info('Caption retrieval in %:\n' + format_table(header, rows))
        if path := output_path(self.out_json, 'caption_retrieval.json'):
            write_json(path, {'metrics': metrics, 'images': len(images), 'captions': len(owners)})
        return metrics
