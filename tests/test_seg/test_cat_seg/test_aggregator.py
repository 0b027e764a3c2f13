"""The aggregator against the reference's numbers, and the laws that it keeps."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densevlm_mm.seg import CATSegAggregator
from densevlm_mm.seg.cat_seg import decoder

TINY = {
    'guidance_dims': (20, 12), 'hidden_dim': 32, 'window': 4, 'pad_len': 10, 'appearance_dim': 16, 'text_dim': 16,
    'decoder_dims': (32, 16), 'guidance_proj_dims': (8, 4),
}  # fmt: skip
CASES = [f'T{classes}_pool{pooling}' for classes in (4, 10, 14) for pooling in (1, 2)]
OUT_OF_QUESTION = -100


@pytest.fixture(scope='module')
def parity(data_dir) -> tuple[dict, dict, dict]:
    """Config, weights and arrays of the reference."""
    path = data_dir / 'parity' / 'catseg_aggregator'
    config = json.loads(path.with_suffix('.json').read_text())['config']
    with np.load(path.with_suffix('.npz')) as arrays:
        arrays = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    return config, torch.load(path.with_suffix('.pt'), weights_only=True), arrays


def tiny(**options) -> CATSegAggregator:
    torch.manual_seed(0)
    aggregator = CATSegAggregator(24, **{**TINY, **options})
    for layer in aggregator.layers:
        if options.get('pad_len', 10):
            torch.nn.init.normal_(layer.classes.padding_tokens)
            torch.nn.init.normal_(layer.classes.padding_guidance)
    return aggregator.eval()


def inputs(batch: int = 1, classes: int = 5, grid: tuple[int, int] = (4, 4)) -> tuple:
    height, width = grid
    maps = [torch.randn(batch, c, n * height, n * width) for n, c in ((1, 24), (2, 20), (4, 12))]
    return maps[0], torch.randn(batch, classes, 1, 24), maps[1:]


@pytest.mark.parametrize('case', CASES)
def test_parity(parity, case):
    config, state, arrays = parity
    pooling = int(case[-1])
    aggregator = CATSegAggregator.from_reference({**config, 'pooling_size': [pooling, pooling]}, state)
    image, text, *guidance, expected = (
        arrays[f'{case}/{name}'] for name in ('image_features', 'text_features', 'guidance1', 'guidance2', 'logits')
    )
    with torch.no_grad():
        logits = aggregator(image, text, guidance)
    kept = expected != OUT_OF_QUESTION
    assert kept.any()
    assert torch.equal(logits != OUT_OF_QUESTION, kept)
    error = (logits - expected)[kept].abs().max() / expected[kept].abs().max()
    assert error < 5e-5


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'attention_type': 'full'}, 'linear'),
        ({'appearance_guidance_dim': 8}, 'text_guidance_dim'),
        ({'colour': 1}, 'colour'),
    ],
)
def test_a_config_of_another_aggregator_is_refused(parity, change, message):
    with pytest.raises(ValueError, match=message):
        CATSegAggregator.from_reference({**parity[0], **change}, parity[1])


def test_reference_weights_load_strictly(parity):
    config, state, _ = parity
    with pytest.raises(RuntimeError, match=r'decoder\.head\.bias'):
        CATSegAggregator.from_reference(config, {key: state[key] for key in state if key != 'head.bias'})
    with pytest.raises(RuntimeError, match='surplus'):
        CATSegAggregator.from_reference(config, {**state, 'surplus': torch.ones(1)})


@pytest.mark.parametrize(('embed_dim', 'millions'), [(512, 2.309), (768, 2.637)])
def test_number_of_parameters(embed_dim, millions):
    with torch.device('meta'):
        aggregator = CATSegAggregator(embed_dim)
    assert round(sum(p.numel() for p in aggregator.parameters()) / 1e6, 3) == millions


@pytest.mark.parametrize('classes', [1, 9, 10, 11, 40])
def test_any_number_of_classes(classes):
    aggregator = tiny()
    with torch.no_grad():
        logits = aggregator(*inputs(classes=classes))
    assert logits.shape == (1, classes, 16, 16)
    kept = (logits != OUT_OF_QUESTION).flatten(2).all(2).sum()
    assert kept == min(classes, 10)


@settings(max_examples=20)
@given(order=st.permutations(range(14)), pooling=st.sampled_from([1, 2]))
def test_the_order_of_the_classes_does_not_matter(order, pooling):
    torch.manual_seed(0)
    aggregator, (image, text, guidance) = tiny(eval_pooling=pooling, num_layers=1), inputs(classes=14)
    with torch.no_grad():
        expected = aggregator(image, text, guidance)[:, list(order)]
        torch.testing.assert_close(aggregator(image, text[:, list(order)], guidance), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('classes', [5, 14])
def test_a_batch_of_two_is_two_singles(classes):
    aggregator, (image, text, guidance) = tiny(), inputs(batch=2, classes=classes)
    with torch.no_grad():
        together = aggregator(image, text, guidance)
        for i, expected in enumerate(together):
            part = slice(i, i + 1)
            alone = aggregator(image[part], text[part], [maps[part] for maps in guidance])[0]
            torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)


def test_how_many_classes_are_decoded_at_once_makes_no_difference(monkeypatch):
    aggregator, given = tiny(), inputs(batch=2, classes=9)
    with torch.no_grad():
        expected = aggregator(*given)
        monkeypatch.setattr(decoder, '_CLASSES_AT_ONCE', 4)
        torch.testing.assert_close(aggregator(*given), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('grid', [(3, 2), (4, 8), (5, 9), (6, 7)])
def test_any_grid(grid):
    with torch.no_grad():
        logits = tiny(eval_pooling=2)(*inputs(grid=grid))
    assert logits.shape == (1, 5, 4 * grid[0], 4 * grid[1])
    assert torch.isfinite(logits).all()


def test_pooling_is_for_training_only():
    aggregator, arguments = tiny(), inputs()
    with torch.no_grad():
        plain, trained = aggregator(*arguments), aggregator.train()(*arguments)
        aggregator.pooling = (1, 1)
        assert torch.equal(aggregator(*arguments), plain)
    assert not torch.allclose(trained, plain, atol=1e-4)


@pytest.mark.parametrize('classes', [5, 10, 14])
def test_every_parameter_gets_a_gradient(classes):
    aggregator = tiny().train()
    aggregator(*inputs(classes=classes)).square().mean().backward()
    assert [name for name, p in aggregator.named_parameters() if p.grad is None] == []


def test_without_padding_all_classes_are_kept():
    aggregator = tiny(pad_len=0)
    assert not any('padding' in name for name in aggregator.state_dict())
    with torch.no_grad():
        logits = aggregator(*inputs(classes=14))
    assert (logits != OUT_OF_QUESTION).all()
