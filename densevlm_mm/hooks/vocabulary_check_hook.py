"""A model and its data must number the classes alike."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from densevlm_mm.registry import HOOKS
from densevlm_mm.vlm.vocabulary import first_difference


@HOOKS.register_module()
class VocabularyCheckHook(Hook):
    """Refuse to train, validate or test on a data set whose classes are not those of the model's vocabulary."""

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Check the training data.

        Raises:
            ValueError: If its classes differ from the model's; the message names the first difference.
        """
        check_classes(runner, runner.train_dataloader, 'train_dataloader')

    def before_val(self, runner: Runner) -> None:
        """Check the validation data; see `before_train`."""
        check_classes(runner, runner.val_dataloader, 'val_dataloader')

    def before_test(self, runner: Runner) -> None:
        """Check the test data; see `before_train`."""
        check_classes(runner, runner.test_dataloader, 'test_dataloader')


def check_classes(runner: Runner, loader: DataLoader, key: str) -> None:
    """Compare the classes of a loader with the vocabulary of the runner's model.

    Raises:
        ValueError: If the model has no vocabulary, the data set no classes, or they differ.
    """
    model = runner.model
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    vocabulary = getattr(model, 'vocabulary', None)
    if vocabulary is None:
        raise ValueError(f'{type(model).__name__} has no vocabulary to compare with: leave VocabularyCheckHook out')
    classes = getattr(loader.dataset, 'metainfo', {}).get('classes')
    if classes is None:
        raise ValueError(f'{key}: the data set names no classes: set its vocabulary, or metainfo=dict(classes=...)')
    difference = first_difference(classes, vocabulary.names)
    if difference:
        raise ValueError(
            f"{key}: the data set has other classes than the model's vocabulary: {difference}; "
            f'give model and {key}.dataset the same vocabulary'
        )
