from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from densevlm_mm.vlm import VLM, build_vocabulary, class_embeddings, load_class_embeddings, load_vlm
from densevlm_mm.vlm import text_embeddings as module
from densevlm_mm.vlm.text_embeddings import average_synonyms, cache_dir, compute_class_embeddings

NAMES = ('cat', 'sky', 'apple')
TEMPLATES = ('a photo of {article} {}.', 'the {}')


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of its own; the folder of the embeddings in it."""
    monkeypatch.setenv('DENSEVLM_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'text_embeddings'


@pytest.fixture
def passes(word_vlm) -> list[int]:
    """Sizes of the batches that went through the text tower."""
    sizes = []
    word_vlm.text.register_forward_hook(lambda tower, inputs, output: sizes.append(len(inputs[0])))
    return sizes


def test_mean_of_unit_vectors(word_vlm):
    embeddings = compute_class_embeddings(word_vlm, NAMES, TEMPLATES)
    assert embeddings.shape == (3, 12)
    for row, (article, name) in zip(embeddings, (('a', 'cat'), ('a', 'sky'), ('an', 'apple')), strict=True):
        tokens = word_vlm.tokenize([f'a photo of {article} {name}.', f'the {name}'])
        expected = F.normalize(word_vlm.text(tokens), dim=-1).mean(0)
        torch.testing.assert_close(row, expected)
        assert row.norm() < 1 - 1e-4


def test_they_carry_no_gradient_and_are_in_single_precision(word_vlm):
    embeddings = compute_class_embeddings(word_vlm.to(torch.bfloat16), NAMES, TEMPLATES)
    assert embeddings.dtype == torch.float32
    assert not embeddings.requires_grad


def test_long_lists_go_through_in_chunks(word_vlm, passes, monkeypatch):
    whole = compute_class_embeddings(word_vlm, NAMES, TEMPLATES)
    monkeypatch.setattr(module, '_CHUNK', 4)
    torch.testing.assert_close(compute_class_embeddings(word_vlm, NAMES, TEMPLATES), whole)
    assert passes == [6, 4, 2]


def test_the_second_call_does_not_touch_the_text_tower(word_vlm, cache, passes):
    first = class_embeddings(word_vlm, NAMES, TEMPLATES)
    second = class_embeddings(word_vlm, list(NAMES), list(TEMPLATES))
    assert passes == [6]
    assert torch.equal(first, second)
    assert torch.equal(first, compute_class_embeddings(word_vlm, NAMES, TEMPLATES))
    assert [path.suffix for path in cache.iterdir()] == ['.npy']


def test_a_folder_that_cannot_be_written_is_no_obstacle(word_vlm, cache):
    cache.parent.write_text('a file where the cache should be')
    with pytest.warns(UserWarning, match='not cached .*DENSEVLM_CACHE'):
        embeddings = class_embeddings(word_vlm, NAMES, TEMPLATES)
    assert torch.equal(embeddings, compute_class_embeddings(word_vlm, NAMES, TEMPLATES))


def test_normalised_on_request(word_vlm, cache):
    plain = class_embeddings(word_vlm, NAMES, TEMPLATES)
    torch.testing.assert_close(class_embeddings(word_vlm, NAMES, TEMPLATES, normalize=True), F.normalize(plain, dim=-1))


def test_a_vocabulary_without_synonyms_is_its_names(word_vlm, cache, passes):
    expected = class_embeddings(word_vlm, NAMES, TEMPLATES)
    assert torch.equal(class_embeddings(word_vlm, build_vocabulary(NAMES), TEMPLATES), expected)
    assert passes == [6]
    assert torch.equal(compute_class_embeddings(word_vlm, build_vocabulary(NAMES), TEMPLATES), expected)


def test_synonyms_are_averaged(word_vlm, cache):
    vocabulary = build_vocabulary({'things': NAMES, 'synonyms': {'cat': ['cat', 'tree'], 'apple': ['photo']}})
    apart = compute_class_embeddings(word_vlm, ('cat', 'tree', 'sky', 'photo'), TEMPLATES)
    expected = torch.stack([(apart[0] + apart[1]) / 2, apart[2], apart[3]])
    for _ in range(2):
        torch.testing.assert_close(class_embeddings(word_vlm, vocabulary, TEMPLATES), expected)
    torch.testing.assert_close(compute_class_embeddings(word_vlm, vocabulary, TEMPLATES), expected)
    normalized = class_embeddings(word_vlm, vocabulary, TEMPLATES, normalize=True)
    torch.testing.assert_close(normalized, F.normalize(expected, dim=-1))


def test_other_synonyms_are_kept_apart(word_vlm, cache):
    plain = build_vocabulary(NAMES)
    before = class_embeddings(word_vlm, plain, TEMPLATES)
    after = class_embeddings(word_vlm, plain.with_synonyms({'sky': ['tree']}), TEMPLATES)
    assert len(list(cache.iterdir())) == 2
    assert [torch.equal(*rows) for rows in zip(before, after, strict=True)] == [True, False, True]


def test_average_over_phrases():
    embeddings = torch.tensor([[1.0, 0], [3, 0], [0, 5], [2, 2]])
    assert average_synonyms(embeddings, (1, 1, 0, 2)).tolist() == [[0, 5], [2, 0], [2, 2]]


@pytest.mark.parametrize('damage', [b'', b'hello', b'\x93NUMPY', 'cut', 'other shape'])
def test_a_damaged_cache_file_is_made_anew(word_vlm, cache, passes, damage):
    expected = class_embeddings(word_vlm, NAMES, TEMPLATES)
    (file,) = cache.iterdir()
    sound = file.read_bytes()
    if damage == 'other shape':
        np.save(file, np.zeros((2, 12), np.float32))
    else:
        file.write_bytes(sound[:-9] if damage == 'cut' else damage)
    assert torch.equal(class_embeddings(word_vlm, NAMES, TEMPLATES), expected)
    assert len(passes) == 2
    assert file.read_bytes() == sound


def other_weights(vlm: VLM, arch: dict) -> VLM:
    with torch.no_grad():
        vlm.text.ln_final.bias[0] += 1e-3
    return vlm


def other_dtype(vlm: VLM, arch: dict) -> VLM:
    return vlm.to(torch.bfloat16)


def same_weights(vlm: VLM, arch: dict, **text_cfg: object) -> VLM:
    other = load_vlm({**arch, 'text_cfg': {**arch['text_cfg'], **text_cfg}})
    other.load_state_dict(vlm.state_dict())
    return other


def other_words(vlm: VLM, arch: dict) -> VLM:
    return same_weights(vlm, arch, words=arch['text_cfg']['words'][::-1])


def other_heads(vlm: VLM, arch: dict) -> VLM:
    return same_weights(vlm, arch, heads=4)


def other_activation(vlm: VLM, arch: dict) -> VLM:
    return same_weights(vlm, {**arch, 'quick_gelu': True})


@pytest.mark.parametrize('change', [other_weights, other_dtype, other_words, other_heads, other_activation])
def test_another_model_has_other_embeddings(word_arch, word_vlm, cache, change):
    before = class_embeddings(word_vlm, NAMES, TEMPLATES)
    changed = change(word_vlm, word_arch)
    after = class_embeddings(changed, NAMES, TEMPLATES)
    assert len(list(cache.iterdir())) == 2
    assert not torch.equal(before, after)
    assert torch.equal(after, compute_class_embeddings(changed, NAMES, TEMPLATES))


@pytest.mark.parametrize(('names', 'templates'), [
    (('sky', 'cat', 'apple'), TEMPLATES),
    (('cat', 'sky', 'tree'), TEMPLATES),
    (NAMES, TEMPLATES[::-1]),
    (NAMES, ('a photo of the {}.', 'the {}')),
])  # fmt: skip
def test_other_names_and_templates_are_kept_apart(word_vlm, cache, names, templates):
    class_embeddings(word_vlm, NAMES, TEMPLATES)
    after = class_embeddings(word_vlm, names, templates)
    assert len(list(cache.iterdir())) == 2
    assert torch.equal(after, compute_class_embeddings(word_vlm, names, templates))


def test_the_vision_tower_does_not_matter(word_vlm, cache, passes):
    class_embeddings(word_vlm, NAMES, TEMPLATES)
    with torch.no_grad():
        word_vlm.visual.trunk.cls_token += 1
    class_embeddings(word_vlm, NAMES, TEMPLATES)
    assert len(passes) == 1


@pytest.mark.parametrize(('variables', 'expected'), [
    ({'DENSEVLM_CACHE': '/a', 'XDG_CACHE_HOME': '/b'}, '/a'),
    ({'DENSEVLM_CACHE': '', 'XDG_CACHE_HOME': '/b'}, '/b/densevlm_mm'),
    ({'HOME': '/home/me'}, '/home/me/.cache/densevlm_mm'),
])  # fmt: skip
def test_place_of_the_cache(monkeypatch, variables, expected):
    for name in ('DENSEVLM_CACHE', 'XDG_CACHE_HOME'):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_dir() == Path(expected)


# --- files made elsewhere ---------------------------------------------------------------------------------------------

STORED = torch.tensor([[0.5, 0.75], [1, 0], [-0.625, 0.625]])


@pytest.fixture
def write(tmp_path):
    def write(content: object, name: str = 'text.pt') -> Path:
        if name.endswith('.npy'):
            np.save(tmp_path / name, content)
        else:
            torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


@pytest.mark.parametrize('content', [
    STORED,
    STORED.half(),
    STORED.double(),
    {'embeddings': STORED},
    {'embeddings': STORED, 'names': list(NAMES)},
    {'embeddings': STORED, 'names': NAMES, 'made_by': 'someone'},
])  # fmt: skip
def test_embeddings_from_pt(write, content):
    loaded = load_class_embeddings(write(content), NAMES, 2)
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, STORED)


@pytest.mark.parametrize('dtype', ['float16', 'float32', 'float64'])
def test_embeddings_from_npy(write, dtype):
    loaded = load_class_embeddings(str(write(STORED.numpy().astype(dtype), 'text.npy')), NAMES, 2)
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, STORED)


@pytest.mark.parametrize(('content', 'message'), [
    (STORED[:2], r'text.pt has shape \(2, 2\), but the vocabulary has 3 classes'),
    (STORED[0], r'text.pt has shape \(2,\), but the vocabulary has 3 classes'),
    (torch.zeros(3, 4), "text.pt has width 4, but this model's text space has 2"),
    ({'names': NAMES}, "text.pt cannot be read as class embeddings: make it an array"),
    ({'embeddings': STORED, 'names': ['cat', 'tree', 'apple']}, "other classes: position 1 is 'tree', not 'sky'"),
    ({'embeddings': STORED, 'names': ['cat', 'sky']}, "other classes: position 2 is None, not 'apple'"),
    ({'embeddings': STORED, 'names': [*NAMES, 'tree']}, "other classes: position 3 is 'tree', not None"),
    (STORED * float('nan'), 'text.pt holds values that are not finite'),
    (STORED * float('inf'), 'text.pt holds values that are not finite'),
    (STORED * torch.tensor([[1.0], [0], [0]]), r"text.pt has zero embeddings of \['sky', 'apple'\]; compute them anew"),
    ('hello', 'text.pt cannot be read as class embeddings: make it an array'),
    ([['a']], 'text.pt cannot be read as class embeddings: make it an array'),
])  # fmt: skip
def test_embeddings_that_do_not_fit(write, content, message):
    with pytest.raises(ValueError, match=message):
        load_class_embeddings(write(content), NAMES, 2)


@pytest.mark.parametrize('factor', [0.4, 2.0])
def test_norms_far_from_one_are_worth_a_warning(write, factor):
    with pytest.warns(
        UserWarning, match=r'text.pt has rows with norms from .*, far from 1.* store the rows normalised'
    ):
        loaded = load_class_embeddings(write(STORED * factor), NAMES, 2)
    assert torch.equal(loaded, STORED * factor)


@pytest.mark.parametrize('norm', [0.886, 0.956, 1.0])
@pytest.mark.parametrize('dtype', [torch.float16, torch.float32])
def test_norms_of_released_embeddings_are_usual(write, norm, dtype):
    stored = (F.normalize(STORED, dim=-1) * norm).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load_class_embeddings(write(stored), NAMES, 2)


@pytest.mark.parametrize('name', ['text.npy', 'text.pt'])
def test_a_file_that_holds_no_embeddings(tmp_path, name):
    (tmp_path / name).write_bytes(b'hello')
    with pytest.raises(ValueError, match=f'{name} cannot be read as class embeddings'):
        load_class_embeddings(tmp_path / name, NAMES, 2)


def test_pickled_objects_are_refused(write):
    objects = np.array([Path('/a'), Path('/b'), Path('/c')])
    for name in ('text.npy', 'text.pt'):
        with pytest.raises(ValueError, match=f'{name} cannot be read as class embeddings'):
            load_class_embeddings(write(objects, name), NAMES, 2)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'class embedding file .*gone.npy does not exist'):
        load_class_embeddings(tmp_path / 'gone.npy', NAMES, 2)
