from __future__ import annotations

import os
import pickle
import random
import sys
import zipfile
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file
from torch import Tensor, nn

from densevlm_mm.vlm import CheckpointError, load_vlm, read_meta, read_state_dict
from densevlm_mm.vlm.checkpoints import load_checkpoint, read_checkpoint, save_atomically

STATE = {'visual.a': torch.arange(3.0), 'logit_scale': torch.tensor(4.6)}
RECONSTRUCT = f'{np.zeros(1).__reduce__()[0].__module__}._reconstruct'
MODULE = {f'module.{key}': value for key, value in STATE.items()}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(actual) == set(expected)
    for key in expected:
        torch.testing.assert_close(actual[key], expected[key], rtol=0, atol=0)


@pytest.mark.parametrize('content', [
    STATE,
    MODULE,
    OrderedDict(STATE),
    {'state_dict': STATE},
    {'model': STATE},
    {'module': STATE},
    {'epoch': 6, 'name': 'densevlm', 'state_dict': MODULE, 'optimizer': {'state': {0: {'step': 7}}}, 'scaler': {}},
    {'model': STATE, 'state_dict': {'another': torch.zeros(1)}},
    {'meta': {'epoch': 1}, 'state_dict': {f'vlm.{key}': value for key, value in STATE.items()}},
    {'state_dict': {**{f'module.vlm.{key}': value for key, value in STATE.items()}, 'module.loss.x': torch.ones(1)}},
    {**STATE, 'input_resolution': torch.tensor(224), 'context_length': torch.tensor(77), 'vocab_size': torch.tensor(9)},
])  # fmt: skip
@pytest.mark.parametrize('legacy', [False, True])
def test_every_container_and_prefix_is_taken_off(tmp_path, content, legacy):
    file = tmp_path / 'weights.pt'
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    assert_same(read_state_dict(file), STATE)


def test_safetensors(tmp_path):
    save_file(MODULE, tmp_path / 'weights.safetensors')
    assert_same(read_state_dict(tmp_path / 'weights.safetensors'), STATE)
    assert read_meta(tmp_path / 'weights.safetensors') == {}


class OpenAIArchive(nn.Module):
    """OpenAI's archives have CLIP's names at the root, and three numbers that are no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(STATE['logit_scale'].clone())
        self.visual = nn.Module()
        self.visual.a = nn.Parameter(STATE['visual.a'].clone())
        for name in ('input_resolution', 'context_length', 'vocab_size'):
            self.register_buffer(name, torch.tensor(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.logit_scale


@pytest.mark.filterwarnings('ignore:.*torch.jit:DeprecationWarning')
def test_torchscript_archive(tmp_path):
    torch.jit.script(OpenAIArchive()).save(str(tmp_path / 'weights.pt'))
    assert_same(read_state_dict(tmp_path / 'weights.pt'), STATE)


class ArchiveThatWrites(nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path, self.written = path, torch.zeros(4, dtype=torch.uint8)

    def forward(self, x: Tensor) -> Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path, self.training = state[0], state[1]
        self.written = torch.from_file(self.path, True, 4, dtype=torch.uint8).fill_(1)


@pytest.mark.filterwarnings('ignore:.*torch.jit:DeprecationWarning')
def test_torchscript_archive_that_runs_its_script_is_refused(tmp_path):
    traces, file = tmp_path / 'it ran', tmp_path / 'weights.pt'
    torch.jit.script(ArchiveThatWrites(str(traces))).save(str(file))
    with pytest.raises(CheckpointError, match='weights.pt is refused: reading it would run __setstate__'):
        read_state_dict(file)
    assert not traces.exists()
    torch.jit.load(str(file))
    assert traces.exists()


@pytest.fixture(scope='module')
def runner_checkpoint(tmp_path_factory) -> Path:
    """What mmengine's runner saves, made as it makes it: log buffers and numpy values beside the weights."""
    hub = pytest.importorskip('mmengine.logging').MessageHub('checkpoints')
    hub.update_scalar('train/loss', np.float32(0.5))
    hub.update_scalar('train/lr', 1e-4)
    hub.update_info('eta', np.float64(1.0))
    hub.update_info('dataset_meta', {'classes': ('cat', 'sky'), 'is_thing': (True, False)})
    file = tmp_path_factory.mktemp('runner') / 'epoch_1.pth'
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(2))])
    torch.save(
        {
            'meta': {'epoch': 1, 'cfg': 'model = dict()'},
            'state_dict': OrderedDict((f'vlm.{key}', value) for key, value in STATE.items()),
            'message_hub': hub.state_dict(),
            'optimizer': optimizer.state_dict(),
            'param_schedulers': [{'last_step': 3, '_get_lr_called_within_step': False}],
        },
        file,
    )
    return file


def test_checkpoint_of_a_runner(runner_checkpoint):
    with pytest.raises(pickle.UnpicklingError):  # it does hold what torch calls unsafe
        torch.load(runner_checkpoint, weights_only=True)
    assert_same(read_state_dict(runner_checkpoint), STATE)


def test_checkpoint_of_a_runner_opens_without_mmengine(runner_checkpoint, monkeypatch):
    for name in [name for name in sys.modules if name.partition('.')[0] == 'mmengine']:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError):
        import mmengine.logging  # noqa: F401
    assert_same(read_state_dict(runner_checkpoint), STATE)


def test_what_others_declare_safe_changes_nothing(runner_checkpoint):
    """Real numpy functions beside our stand-ins would not work together."""
    declared = [np.ndarray, np.dtype, type(np.dtype('float64')), (np.zeros(1).__reduce__()[0], RECONSTRUCT)]
    with torch.serialization.safe_globals(declared):
        before = torch.serialization.get_safe_globals()
        assert_same(read_state_dict(runner_checkpoint), STATE)
        assert set(torch.serialization.get_safe_globals()) == set(before)


def test_what_stands_beside_the_weights_is_kept_or_named(runner_checkpoint):
    checkpoint = read_checkpoint(runner_checkpoint)
    assert checkpoint.container == 'state_dict'
    assert checkpoint.meta == {'epoch': 1, 'cfg': 'model = dict()'}
    assert checkpoint.dropped == ('message_hub', 'optimizer', 'param_schedulers')
    assert read_meta(runner_checkpoint) == {}


class RunsOnUnpickling:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize('place', ['alone', 'beside the weights'])
@pytest.mark.parametrize('legacy', [False, True])
def test_a_file_that_holds_code_is_refused_and_does_not_run(tmp_path, place, legacy):
    traces, file = tmp_path / 'it ran', tmp_path / 'weights.pt'
    attack = RunsOnUnpickling(f"touch '{traces}'")
    content = attack if place == 'alone' else {'state_dict': STATE, 'meta': attack}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        CheckpointError, match=r'weights.pt is refused: reading it would run \w+\.system\. Ask'
    ) as caught:
        read_state_dict(file)
    assert 'weights_only' not in str(caught.value)
    assert not traces.exists()
    torch.load(file, weights_only=False)
    assert traces.exists()


class Attribute:
    """Pickled as ``getattr(owner, name)``, as the log buffers of mmengine's checkpoints are."""

    def __init__(self, owner: object, name: str) -> None:
        self.owner, self.name = owner, name

    def __call__(self) -> None: ...

    def __reduce__(self):
        return getattr, (self.owner, self.name)


class Call:
    def __init__(self, function: Attribute, *args: object) -> None:
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def test_getattr_leads_nowhere(tmp_path):
    """It stands on the list of what may be named, but only for the statistics of log buffers, and not to be called."""
    buffer = pytest.importorskip('mmengine.logging').HistoryBuffer
    file = tmp_path / 'weights.pt'
    torch.save({'state_dict': STATE, 'meta': Attribute(buffer, 'mean')}, file)
    assert torch.load(file, weights_only=False)['meta'] is buffer.mean
    assert_same(read_state_dict(file), STATE)
    for attack in (
        Attribute('cat', 'upper'),
        Attribute(getattr, '__self__'),  # the module builtins, of which everything could be had, and replaced
        Attribute(buffer, '__init__'),
        Call(Attribute('a {}', 'format'), 'cat'),
        Call(Attribute(buffer, 'register_statistics'), print),
    ):
        torch.save({'state_dict': STATE, 'meta': attack}, file)
        with pytest.raises(CheckpointError, match='refused'):
            read_state_dict(file)


def test_reading_in_threads_leaves_what_others_declare_safe(runner_checkpoint):
    before = torch.serialization.get_safe_globals()
    with ThreadPoolExecutor(4) as pool:
        for state in pool.map(read_state_dict, [runner_checkpoint] * 40):
            assert_same(state, STATE)
    assert set(torch.serialization.get_safe_globals()) == set(before)


@pytest.mark.parametrize('suffix', ['.pt', '.pth', '.safetensors'])
@pytest.mark.parametrize('content', [b'', b'hello', b'<html>404: not found</html>\n' * 50, b'PK\x03\x04', b'\x80\x02}'])
def test_a_file_that_is_no_checkpoint(tmp_path, suffix, content):
    file = tmp_path / f'weights{suffix}'
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f'weights{suffix} is (damaged or no checkpoint|refused: it is damaged)'):
        read_state_dict(file)


@pytest.mark.parametrize('format_', ['zip', 'legacy', 'safetensors'])
@pytest.mark.parametrize('share', [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file(tmp_path, format_, share):
    file = tmp_path / ('weights.safetensors' if format_ == 'safetensors' else 'weights.pt')
    state = {'visual.a': torch.randn(100, 10)}
    if format_ == 'safetensors':
        save_file(state, file)
    else:
        torch.save(state, file, _use_new_zipfile_serialization=format_ == 'zip')
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match='damaged'):
        read_state_dict(file)


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('legacy', [False, True])
def test_a_file_with_flipped_bytes_is_read_or_refused(tmp_path, legacy):
    """Whatever a transfer does to a file, no other exception comes out."""
    file = tmp_path / 'weights.pt'
    torch.save(STATE, file, _use_new_zipfile_serialization=not legacy)
    content = file.read_bytes()
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[random.randrange(len(content))] ^= random.randrange(1, 256)
        file.write_bytes(damaged)
        try:
            read_state_dict(file)
        except CheckpointError:
            refused += 1
    assert refused > 10


def test_a_damaged_table_of_contents(tmp_path):
    file = tmp_path / 'weights.pt'
    torch.save(STATE, file)
    file.write_bytes(file.read_bytes().replace(b'PK\x01\x02', b'PK\x00\x00'))
    with pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(file)
    with pytest.raises(CheckpointError, match='damaged'):
        read_state_dict(file)


@pytest.mark.parametrize(('content', 'message'), [
    ({}, 'holds no state dict'),
    ({'state_dict': {}}, 'holds no state dict'),
    ([torch.zeros(1)], 'holds no state dict'),
    (torch.zeros(1), 'holds no state dict'),
    ({'epoch': 3, 'optimizer': {}}, r"holds no state dict: \['epoch', 'optimizer'\] are not tensors"),
    ({'state_dict': {'visual.a': [1.0]}}, r"\['visual.a'\] are not tensors"),
])  # fmt: skip
def test_a_file_without_weights(tmp_path, content, message):
    torch.save(content, tmp_path / 'weights.pt')
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(tmp_path / 'weights.pt')


@pytest.mark.parametrize('place', ['weights.pt', '.'])
def test_a_missing_file(tmp_path, place):
    with pytest.raises(FileNotFoundError, match=f'checkpoint {tmp_path / place} does not exist'):
        read_state_dict(tmp_path / place)


# --- into a model -----------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """Writes a state dict and gives the file."""

    def save(state: dict[str, Tensor]) -> Path:
        torch.save(state, tmp_path / 'weights.pt')
        return tmp_path / 'weights.pt'

    return save


def test_loading_its_own_weights_changes_nothing(family, tiny_arch, vlm, saved):
    file = saved({'state_dict': {f'vlm.{key}': value for key, value in vlm.state_dict().items()}})
    assert_same(load_vlm(tiny_arch(family), file).state_dict(), vlm.state_dict())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_values_are_cast_to_the_model_s_dtype(word_vlm, saved, dtype):
    state = {key: value.to(dtype) for key, value in word_vlm.state_dict().items()}
    load_checkpoint(word_vlm, saved(state))
    assert_same(word_vlm.state_dict(), {key: value.float() for key, value in state.items()})


@pytest.mark.parametrize('shape', [(), (1,), (1, 1)])
def test_a_logit_scale_of_any_shape(word_vlm, saved, shape):
    state = word_vlm.state_dict() | {'logit_scale': torch.tensor(3.25).reshape(shape)}
    load_checkpoint(word_vlm, saved(state))
    assert word_vlm.logit_scale.item() == 3.25


def test_everything_that_does_not_fit_is_listed(word_vlm, saved):
    before = {key: value.clone() for key, value in word_vlm.state_dict().items()}
    state = {key: value + 1 for key, value in before.items()}
    del state['visual.trunk.cls_token']
    state['visual.blocks.0.mlp.w1.gate'] = torch.ones(1)
    state['text.ln_final.weight'] = torch.ones(7)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(word_vlm, saved(state))
    message = str(caught.value)
    assert 'weights.pt does not fit this architecture' in message
    assert '1 missing:\n    visual.trunk.cls_token\n' in message
    assert '1 unexpected:\n    visual.blocks.0.mlp.w1.gate\n' in message
    assert '1 of another shape:\n    text.ln_final.weight: (7,) in the file, (16,) in the model\n' in message
    assert 'Give the arch that the file was trained with' in message.splitlines()[-1]
    assert_same(word_vlm.state_dict(), before)


@pytest.mark.parametrize('fault', ['missing', 'unexpected', 'of another shape'])
def test_a_single_fault_is_enough(word_vlm, saved, fault):
    state = word_vlm.state_dict()
    if fault == 'missing':
        del state['text.text_projection']
    else:
        state['text.gate' if fault == 'unexpected' else 'text.text_projection'] = torch.ones(1)
    with pytest.raises(CheckpointError, match=f'1 {fault}:'):
        load_checkpoint(word_vlm, saved(state))


def test_a_parameter_under_two_names_is_refused(word_vlm, saved):
    """EVA-CLIP's and open_clip's, say: one of them would be lost."""
    state = word_vlm.state_dict()
    state['visual.blocks.0.attn.q_bias'] = state['visual.trunk.blocks.0.attn.q_proj.bias'] + 1
    listed = 'visual.trunk.blocks.0.attn.q_proj.bias and visual.blocks.0.attn.q_bias'
    with pytest.raises(CheckpointError, match=f'1 there twice:\n    {listed}\n'):
        load_checkpoint(word_vlm, saved(state))


def test_the_file_of_a_detector_is_refused(word_vlm, saved):
    state = {f'backbone.tower.{key}': value for key, value in word_vlm.state_dict().items()}
    with pytest.raises(CheckpointError, match='    backbone.tower(.|\n)*the file of a whole detector or segmentor'):
        load_checkpoint(word_vlm, saved(state | {'neck.conv.weight': torch.ones(1)}))


def test_another_architecture_s_file_is_refused_with_a_short_list(tiny_arch, parity_dir):
    with pytest.raises(CheckpointError, match='does not fit this architecture') as caught:
        load_vlm(tiny_arch('openai'), parity_dir / 'eva_tiny.pt')
    message = str(caught.value)
    assert 'visual.trunk.transformer.resblocks' in message
    assert 'visual.blocks' in message
    assert ' more\n' in message
    assert len(message.splitlines()) < 70


def test_a_table_for_another_grid_is_refused(tiny_arch, parity_dir):
    """The model would have to be told; nothing is interpolated behind anyone's back."""
    arch = tiny_arch('eva')
    arch['vision_cfg']['image_size'] = 96
    with pytest.raises(CheckpointError, match=r'pos_embed: \(1, 17, 96\) in the file, \(1, 37, 96\) in the model'):
        load_vlm(arch, parity_dir / 'eva_tiny.pt')


# --- from open_clip ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', [CLIP, CustomTextCLIP])
@pytest.mark.parametrize('quick_gelu', [False, True])
@pytest.mark.parametrize('suffix', ['.pt', '.safetensors'])
def test_models_saved_by_open_clip(tmp_path, tiny_arch, kind, quick_gelu, suffix):
    arch = tiny_arch('openai') | {'quick_gelu': quick_gelu}
    theirs = kind(**arch).eval()
    file = tmp_path / f'weights{suffix}'
    save = save_file if suffix == '.safetensors' else torch.save
    save(theirs.state_dict(), file)
    ours, other_activation = (load_vlm(arch | {'quick_gelu': q}, file) for q in (quick_gelu, not quick_gelu))
    images, tokens = torch.randn(2, 3, 48, 48), torch.randint(1, 600, (3, 16))
    with torch.no_grad():
        expected = theirs.encode_image(images, normalize=True), theirs.encode_text(tokens, normalize=True)
        torch.testing.assert_close((ours.encode_image(images), ours.encode_text(tokens)), expected)
        assert (other_activation.encode_image(images) - expected[0]).abs().max() > 1e-3
        assert (other_activation.encode_text(tokens) - expected[1]).abs().max() > 1e-3


# --- writing ----------------------------------------------------------------------------------------------------------


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / 'folder' / 'weights.bin'
    save_atomically(file, lambda f: f.write(b'old'))
    assert file.read_bytes() == b'old'

    def fail(f):
        f.write(b'half of the new')
        raise RuntimeError('disk full')

    with pytest.raises(RuntimeError, match='disk full'):
        save_atomically(file, fail)
    assert file.read_bytes() == b'old'
    assert [path.name for path in file.parent.iterdir()] == ['weights.bin']


def test_a_file_that_fails_its_check_takes_no_place(tmp_path):
    seen = []

    def check(written: Path) -> None:
        seen.append((written.suffix, written.read_bytes()))
        raise RuntimeError('differs')

    with pytest.raises(RuntimeError, match='differs'):
        save_atomically(tmp_path / 'weights.pth', lambda f: f.write(b'new'), check)
    assert seen == [('.pth', b'new')]
    assert list(tmp_path.iterdir()) == []
