"""tools/test.py from end to end: one figure for every file format, several processes, files that cannot be used."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from mmengine.fileio import load as load_file
from safetensors.torch import save_file
from torch import Tensor

from densevlm_mm.apis import ConfigError
from densevlm_mm.vlm import load_vlm

ROOT = Path(__file__).parents[2]
# ours -> EVA-CLIP's
NAMES = {
    'attn.q_proj.bias': 'attn.q_bias', 'attn.v_proj.bias': 'attn.v_bias', 'attn.norm': 'attn.inner_attn_ln',
    'mlp.fc1_g': 'mlp.w1', 'mlp.fc1_x': 'mlp.w2', 'mlp.norm': 'mlp.ffn_ln', 'mlp.fc2': 'mlp.w3',
    'visual.trunk.': 'visual.',
}  # fmt: skip


def eva_clip_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {'visual.rope.freqs_cos': torch.ones(16, 16), 'visual.rope.freqs_sin': torch.ones(16, 16)}
    for key, value in state.items():
        if key.startswith('visual.'):
            for ours, theirs in NAMES.items():
                key = key.replace(ours, theirs)
        renamed[key] = value
    return renamed


@pytest.fixture
def figures(tool, configs, tmp_path):
    """Evaluates a checkpoint; returns the figures that are written."""

    def evaluate(checkpoint: Path, *arguments: object, config: str = 'evaluate', **options: object) -> dict[str, float]:
        out = tmp_path / 'figures.json'
        arguments = ('--work-dir', tmp_path / 'run', *arguments)
        tool('test', configs[config], checkpoint, *arguments, test_evaluator__out_json=out, **options)
        return json.loads(out.read_text())['metrics']

    return evaluate


def test_every_format_gives_the_same_figures(figures, trained, tiny_arch, tmp_path):
    ours = trained / 'iter_10.pth'
    state = load_vlm(tiny_arch(), ours).state_dict()
    released = {'epoch': 6, 'name': 'run', 'state_dict': eva_clip_names(state), 'optimizer': {}, 'scaler': {}}
    torch.save(released, tmp_path / 'epoch_6.pt')
    assert not any('trunk' in key for key in released['state_dict'])
    torch.save({f'module.{key}': value for key, value in state.items()}, tmp_path / 'bare.pt')
    save_file(state, tmp_path / 'model.safetensors')
    expected = figures(ours)
    assert {'boxes.thing.macc1', 'masks.thing.macc5', 'masks.stuff.macc1', 'bias'} <= set(expected)
    for name in ('epoch_6.pt', 'bare.pt', 'model.safetensors'):
        assert figures(tmp_path / name) == expected, name


def test_evaluation_during_training_is_that_of_the_checkpoint(figures, trained, checkpoints):
    logged = [
        json.loads(line) for log in trained.glob('*/vis_data/scalars.json') for line in log.read_text().splitlines()
    ]
    last = [entry for entry in logged if 'masks.stuff.macc1' in entry][-1]
    tested = figures(trained / 'iter_10.pth')
    assert tested == {name: pytest.approx(last[name]) for name in tested}
    assert tested != figures(checkpoints['student'])


def test_training_configs_evaluate_too(figures, trained, checkpoints):
    assert figures(checkpoints['student'], config='train') == figures(checkpoints['student'])
    assert figures(trained / 'iter_4.pth', config='train') == figures(trained / 'iter_4.pth')


def test_weights_that_a_config_names_do_not_take_the_place_of_the_checkpoint(figures, trained, checkpoints):
    expected = figures(checkpoints['student'])
    for resume in (False, True):
        assert figures(checkpoints['student'], load_from=trained / 'iter_10.pth', resume=resume) == expected


def test_raw_predictions_are_dumped_when_asked(figures, trained, tmp_path):
    figures(trained / 'iter_10.pth', '--out', tmp_path / 'raw.pkl')
    raw = load_file(tmp_path / 'raw.pkl')
    assert len(raw) == 8
    assert all(len(entry['pred_regions']['box_logits'][0]) == 18 for entry in raw)
    with pytest.raises(SystemExit):
        figures(trained / 'iter_10.pth', '--out', tmp_path / 'raw.json')


def test_two_processes_agree_with_one(figures, launch, configs, trained, tmp_path):
    out = tmp_path / 'two.json'
    options = ['env_cfg.dist_cfg.backend=gloo', 'model_wrapper_cfg.device_ids=None', f'test_evaluator.out_json={out}']
    arguments = [
        configs['evaluate'],
        trained / 'iter_10.pth',
        2,
        '--work-dir',
        tmp_path / 'run',
        '--cfg-options',
        *options,
    ]
    launch('bash', ROOT / 'tools' / 'dist_test.sh', *arguments)
    content = json.loads(out.read_text())
    assert content['images'] == 8
    assert content['metrics'] == pytest.approx(figures(trained / 'iter_10.pth'))


def test_missing_checkpoint_is_reported_before_anything_starts(figures, tmp_path):
    with pytest.raises(ConfigError, match='EVA02_CLIP_B_psz16_s8B.pt does not exist(.|\n)*QuanSun/EVA-CLIP'):
        figures(Path('checkpoints/EVA02_CLIP_B_psz16_s8B.pt'), test_dataloader__dataset__ann_file='gone.json')
    assert not (tmp_path / 'run').exists()


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_checkpoint_that_holds_code_is_refused_unread(figures, tmp_path):
    for number, save in enumerate((torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, 2)))):
        path = tmp_path / f'code{number}.pt'
        save({'state_dict': {'logit_scale': Payload(tmp_path / 'touched')}}, path)
        with pytest.raises(ValueError, match=rf'code{number}.pt is refused'):
            figures(path)
        assert not (tmp_path / 'touched').exists()


def test_damaged_checkpoint(figures, trained, tmp_path):
    content = (trained / 'iter_10.pth').read_bytes()
    (tmp_path / 'cut.pth').write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match='cut.pth is damaged'):
        figures(tmp_path / 'cut.pth')
    (tmp_path / 'empty.pt').touch()
    with pytest.raises(ValueError, match='empty.pt is (damaged|refused)'):
        figures(tmp_path / 'empty.pt')


def test_checkpoint_of_another_architecture(figures, checkpoints):
    with pytest.raises(ValueError, match='teacher.pt does not fit this architecture(.|\n)*of another shape'):
        figures(checkpoints['teacher'])


def test_vocabulary_that_is_not_the_data_sets(figures, checkpoints):
    swapped = '[boat,house,tree,person,ball,star,fish,cup,car,flower]'
    with pytest.raises(ValueError, match="class 0 is 'boat' in the vocabulary of the model, but 'car' in the data set"):
        figures(checkpoints['student'], model__eval_vocabulary__things=swapped)


def test_mistyped_keys_are_named(figures, checkpoints):
    with pytest.raises(TypeError, match='per_clas'):
        figures(checkpoints['student'], test_evaluator__per_clas=True)
    with pytest.raises(ConfigError, match="'test_dataloder': did you mean 'test_dataloader'"):
        figures(checkpoints['student'], test_dataloder__batch_size=2)
