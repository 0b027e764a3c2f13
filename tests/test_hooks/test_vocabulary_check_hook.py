"""VocabularyCheckHook: model and data with other classes, or another order, do not run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseModel, BaseTTAModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from densevlm_mm.hooks import VocabularyCheckHook
from densevlm_mm.vlm import build_vocabulary

STAGES = ('train', 'val', 'test')
CLASSES = ('car', 'tree', 'star')


class Boxes(Dataset):
    """A data set that names its classes."""

    def __init__(self, classes: tuple[str, ...] | None) -> None:
        self.metainfo = {} if classes is None else {'classes': classes}

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict:
        return {'inputs': torch.zeros(1)}


class Detector(BaseModel):
    """A model that knows its classes."""

    def __init__(self, classes: tuple[str, ...] | None = CLASSES) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        if classes is not None:
            self.vocabulary = build_vocabulary(classes)

    def forward(self, inputs: Tensor, data_samples: None = None, mode: str = 'tensor') -> dict[str, Tensor]:
        return {'loss': self.weight.sum()}


class Augmented(BaseTTAModel):
    """The model under test-time augmentation."""

    def merge_preds(self, data_samples_list: list) -> list:
        return data_samples_list


def check(stage: str, model: nn.Module, dataset: object) -> None:
    runner = SimpleNamespace(model=model, **{f'{stage}_dataloader': DataLoader(dataset)})
    getattr(VocabularyCheckHook(), f'before_{stage}')(runner)


@pytest.mark.parametrize('stage', STAGES)
def test_equal_classes_pass_and_others_do_not(stage):
    check(stage, Detector(), Boxes(CLASSES))
    check(stage, nn.DataParallel(Detector()), Boxes(list(CLASSES)))
    check(stage, Augmented(Detector()), Boxes(CLASSES))
    for classes, difference in (
        (('car', 'star', 'tree'), "position 1 is 'star', not 'tree'"),
        (CLASSES[:2], "position 2 is None, not 'star'"),
        ((*CLASSES, 'boat'), "position 3 is 'boat', not None"),
    ):
        for model in (Detector(), nn.DataParallel(Detector())):
            with pytest.raises(ValueError, match=f'^{stage}_dataloader: .*{difference}; .*the same vocabulary$'):
                check(stage, model, Boxes(classes))


def test_nothing_to_compare():
    with pytest.raises(ValueError, match='Detector has no vocabulary'):
        check('train', Detector(None), Boxes(CLASSES))
    for dataset in (Boxes(None), [torch.zeros(1)]):
        with pytest.raises(ValueError, match='test_dataloader: the data set names no classes'):
            check('test', Detector(), dataset)


@pytest.mark.parametrize('wrong', [False, True])
def test_a_runner_refuses_to_train(tmp_path, wrong):
    runner = Runner(
        Detector(),
        work_dir=str(tmp_path),
        train_dataloader=DataLoader(Boxes(CLASSES[::-1] if wrong else CLASSES)),
        train_cfg={'by_epoch': True, 'max_epochs': 1},
        optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.1}},
        default_hooks={'checkpoint': None},
        custom_hooks=[{'type': 'densevlm_mm.VocabularyCheckHook'}],
        experiment_name=f'check-{wrong}',
        log_level='ERROR',
    )
    if wrong:
        with pytest.raises(ValueError, match="position 0 is 'star', not 'car'"):
            runner.train()
    else:
        runner.train()
    assert runner.iter == (0 if wrong else 1)
