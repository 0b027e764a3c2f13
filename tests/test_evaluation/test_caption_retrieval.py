from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from mmengine.evaluator import Evaluator
from mmengine.structures import BaseDataElement

from densevlm_mm.evaluation import CaptionRetrieval, caption_retrieval, recall_at_k
from densevlm_mm.registry import METRICS


def embeddings(count: int, seed: int, width: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, generator=generator), dim=-1)


def brute_force(images: torch.Tensor, texts: torch.Tensor, owners: list[int], k: int) -> tuple[float, float]:
    """Lists sorted by similarity, looked through one by one."""
    scores = (images.double() @ texts.double().T).tolist()
    found = []
    for image, row in enumerate(scores):
        nearest = sorted(range(len(row)), key=lambda text: -row[text])[:k]
        found.append(any(owners[text] == image for text in nearest))
    backwards = []
    for text, owner in enumerate(owners):
        nearest = sorted(range(len(scores)), key=lambda image: -scores[image][text])[:k]
        backwards.append(owner in nearest)
    return sum(found) / len(found), sum(backwards) / len(backwards)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.integers(0, 1000), st.integers(1, 6))
def test_recall_is_that_of_sorted_lists(counts, seed, k):
    owners = [image for image, count in enumerate(counts) for _ in range(count)]
    images, texts = embeddings(len(counts), seed), embeddings(len(owners), seed + 5000)
    shares = recall_at_k(images, texts, torch.tensor(owners), (k,))
    expected = brute_force(images, texts, owners, k)
    assert (shares[f'image_to_text.R@{k}'], shares[f'text_to_image.R@{k}']) == pytest.approx(expected)


def test_chunks_do_not_change_figures(monkeypatch):
    owners = torch.arange(20).repeat_interleave(3)
    images = embeddings(20, 1)
    texts = F.normalize(images[owners] + 0.7 * embeddings(60, 2), dim=-1)
    whole = recall_at_k(images, texts, owners)
    assert 0.05 < whole['image_to_text.R@1'] < 1 and 0.05 < whole['text_to_image.R@1'] < 1
    monkeypatch.setattr(caption_retrieval, '_CHUNK', 7)
    assert recall_at_k(images, texts, owners) == pytest.approx(whole)


def test_any_caption_of_the_image_counts():
    """The first image's second caption is its nearest; its first one is the other image's."""
    images = torch.eye(2)
    texts = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8]])
    shares = recall_at_k(images, texts, torch.tensor([0, 0, 1]), (1, 2))
    assert shares['image_to_text.R@1'] == 0.5  # the second image's nearest caption is a stranger's
    assert shares['image_to_text.R@2'] == 1
    assert shares['text_to_image.R@1'] == pytest.approx(2 / 3)


def test_ties_are_wrong_in_both_directions():
    """Nothing to tell the images apart, nor the captions: right only where k takes in everything."""
    images, texts = embeddings(1, 0).expand(3, 4), embeddings(1, 1).expand(6, 4)
    # as from batches of another size
    texts = texts + 1e-7 * torch.randn(6, 4)
    shares = recall_at_k(images, texts, torch.arange(3).repeat_interleave(2), (1, 2, 3, 4, 5))
    assert [shares[f'text_to_image.R@{k}'] for k in (1, 2, 3)] == [0, 0, 1]
    assert [shares[f'image_to_text.R@{k}'] for k in (1, 4, 5)] == [0, 0, 1]


def make_samples(count: int = 9) -> list[BaseDataElement]:
    samples = []
    for number in range(count):
        sample = BaseDataElement(metainfo={'img_path': f'{number}.jpg'})
        sample.image_embedding = embeddings(1, number)[0]
        noise = 1.5 * embeddings(1 + number % 3, 100 + number)
        sample.text_embeddings = F.normalize(sample.image_embedding + noise, dim=-1)
        samples.append(sample)
    return samples


def evaluate(samples: list[BaseDataElement], size: int | None = None, **options) -> dict[str, float]:
    evaluator = Evaluator(METRICS.build({'type': 'densevlm_mm.CaptionRetrieval', **options}))
    evaluator.dataset_meta = {}
    for start in range(0, len(samples), 2):
        evaluator.process(samples[start : start + 2])
    return evaluator.evaluate(size or len(samples))


def test_metric_is_the_function_in_percent(tmp_path):
    samples, path = make_samples(), tmp_path / 'new' / 'figures.json'
    metrics = evaluate(samples, topk=(1, 3), out_json=str(path))
    owners = torch.tensor([i for i, sample in enumerate(samples) for _ in sample.text_embeddings])
    images = torch.stack([sample.image_embedding for sample in samples])
    shares = recall_at_k(images, torch.cat([s.text_embeddings for s in samples]), owners, (1, 3))
    assert metrics == pytest.approx({key: 100 * share for key, share in shares.items()})
    assert 0 < metrics['image_to_text.R@1'] < 100
    assert json.loads(path.read_text()) == {'metrics': metrics, 'images': 9, 'captions': 18}


def test_images_that_a_sampler_repeats_count_once():
    samples = make_samples()
    padded = samples + samples[:1]
    assert evaluate(padded, size=9) == evaluate(samples)


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('text_embeddings', torch.zeros(0, 4), '3.jpg: image_embedding .*n > 0 are expected, got .4,. and .0, 4.'),
        ('text_embeddings', torch.zeros(2, 5), '3.jpg: .*got .4,. and .2, 5.'),
        ('image_embedding', torch.full((4,), torch.nan), '3.jpg: an embedding is not finite'),
    ],
)
def test_bad_embeddings_name_the_image(field, value, message):
    sample = make_samples()[3]
    setattr(sample, field, value)
    with pytest.raises(ValueError, match=message):
        evaluate([sample])


def test_typos_are_errors():
    with pytest.raises(TypeError, match='top_k'):
        CaptionRetrieval(top_k=(1,))
    with pytest.raises(ValueError, match='topk'):
        CaptionRetrieval(topk=(0, 5))
