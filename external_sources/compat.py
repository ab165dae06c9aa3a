"""Patches with which heareval 2021.1.3 and hearvalidator 2021.0.2 run on today's libraries.

The files of these packages are not changed; each function here says which of their expectations it meets. Written for
pytorch-lightning 2.6, torch 2.13, setuptools 84 and dcase_util 0.2.20.
"""

import contextlib
import copy
import functools
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Provide empty `tensorflow` and `pkg_resources` modules while the kit is imported, if they are not installed.

    The kit imports tensorflow for `tf.Module` and, if torch sees a GPU, `tf.test.is_gpu_available`. dcase_util imports
    pkg_resources (removed in setuptools 82) but calls it only in functions that the kit does not use. Afterwards both
    are removed from `sys.modules`, so that no other library mistakes them for the real ones.
    """
    tensorflow: Any = types.ModuleType("tensorflow")
    tensorflow.__spec__ = importlib.machinery.ModuleSpec("tensorflow", None)  # torch._dynamo looks for it
    tensorflow.Module = type("Module", (), {})
    tensorflow.test = types.SimpleNamespace(is_gpu_available=lambda *args, **kwargs: True)
    with replaced_modules(
        *(
            module
            for module in (tensorflow, types.ModuleType("pkg_resources"))
            if importlib.util.find_spec(module.__name__) is None
        )
    ):
        yield


@contextlib.contextmanager
def replaced_modules(*modules: types.ModuleType) -> Iterator[None]:
    """Let `import` find these modules in place of installed ones, until the block ends."""
    before = {module.__name__: sys.modules.get(module.__name__) for module in modules}
    sys.modules.update({module.__name__: module for module in modules})
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def patch_predictions() -> None:
    """Make `heareval.predictions` train and test on pytorch-lightning 2. Call it once, after its import."""
    from heareval.predictions import task_predictions

    _accept_gpus_argument()
    _make_current_epoch_settable()
    for stage in ("validation", "test"):
        _move_epoch_end_to_hook(task_predictions.AbstractPredictionModel, stage)
    _filter_events_faster()


def patch_device_name() -> None:
    """Replace `heareval.gpu_max_mem.device_name`, which decodes a name that today's pynvml returns as text."""
    import torch
    from heareval import gpu_max_mem

    if torch.cuda.is_available():
        gpu_max_mem.device_name = torch.cuda.get_device_name


def _accept_gpus_argument() -> None:
    """Translate `Trainer(gpus=...)` to `accelerator` and `devices`, without the progress bar, which fills log files."""
    import pytorch_lightning as lightning

    original = lightning.Trainer.__init__

    @functools.wraps(original)
    def init(self, *args, gpus=None, **kwargs):
        original(
            self,
            *args,
            accelerator="gpu" if gpus else "cpu",
            devices=gpus or 1,
            enable_progress_bar=False,
            enable_model_summary=False,
            **kwargs,
        )

    lightning.Trainer.__init__ = init  # type: ignore[method-assign]


def _make_current_epoch_settable() -> None:
    """Make `fit_loop.current_epoch` settable: before testing, the kit sets it to the best epoch."""
    from pytorch_lightning.loops.fit_loop import _FitLoop

    def set_epoch(loop: _FitLoop, epoch: int) -> None:
        progress: Any = loop.epoch_progress.current
        progress.completed = progress.processed = epoch

    current_epoch = property(lambda loop: loop.epoch_progress.current.completed, set_epoch)
    _FitLoop.current_epoch = current_epoch  # type: ignore[attr-defined]


def _move_epoch_end_to_hook(model_class: type, stage: str) -> None:
    """Turn `<stage>_epoch_end(outputs)` into today's hook without arguments, by keeping the outputs of the steps."""
    step, epoch_end = getattr(model_class, f"{stage}_step"), getattr(model_class, f"{stage}_epoch_end")
    kept = f"_{stage}_outputs"

    def keeping_step(self, batch, batch_idx) -> None:
        self.__dict__.setdefault(kept, []).append(step(self, batch, batch_idx))

    def on_epoch_end(self) -> None:
        epoch_end(self, self.__dict__.pop(kept, []))

    delattr(model_class, f"{stage}_epoch_end")  # pytorch-lightning 2 refuses models that have it
    setattr(model_class, f"{stage}_step", keeping_step)
    setattr(model_class, f"on_{stage}_epoch_end", on_epoch_end)


def _filter_events_faster() -> None:
    """Replace the loop of dcase_util in which event scores spend most of their time; the list is the same.

    The original converts every field name of every item to lower case, for every file of the task. Items of one
    container share their field names, so this one matches the names once per set of names.
    """
    from dcase_util.containers import ListDictContainer

    def filter_items(self, case_insensitive_fields: bool = True, **conditions) -> ListDictContainer:
        fold = str.lower if case_insensitive_fields else str
        plans: dict[tuple[str, ...], list] = {}  # field names of an item -> [(field, accepted values)]

        def plan(names: tuple[str, ...]) -> list:
            by_folded = {fold(name): name for name in names}
            wanted = []
            for field, value in conditions.items():
                name = by_folded.get(fold(field), by_folded.get(fold(field).replace("_", " ")))
                if name is not None:  # a missing field is not a condition
                    wanted.append((name, value if isinstance(value, list) else [value]))
            return wanted

        found = []
        for item in self:
            names = tuple(item)
            if names not in plans:
                plans[names] = plan(names)
            if all(item[name] in accepted for name, accepted in plans[names]):
                found.append(copy.deepcopy(item))
        return ListDictContainer(found)

    ListDictContainer.filter = filter_items
