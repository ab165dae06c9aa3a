"""What heareval 2021.1.3 and hearvalidator 2021.0.2 expect of other libraries, put in place from outside.

Their files stay as published; each function here says which expectation it meets. Written against pytorch-lightning
2.6, torch 2.13, setuptools 84 and dcase_util 0.2.20.
"""

import contextlib
import copy
import functools
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Empty `tensorflow` and `pkg_resources` modules while the kit is imported, where the real ones are not installed.

    The kit imports tensorflow for `tf.Module` and, where torch sees a GPU, `tf.test.is_gpu_available`. dcase_util
    imports pkg_resources (gone from setuptools 82), and calls it only in functions that the kit does not use. They
    leave `sys.modules` afterwards, so that no other library takes them for the real thing.
    """
    tensorflow = types.ModuleType("tensorflow")
    tensorflow.__spec__ = importlib.machinery.ModuleSpec("tensorflow", None)  # torch._dynamo looks for it
    tensorflow.Module = type("Module", (), {})
    tensorflow.test = types.SimpleNamespace(is_gpu_available=lambda *args, **kwargs: True)
    missing = {
        module.__name__: module
        for module in (tensorflow, types.ModuleType("pkg_resources"))
        if importlib.util.find_spec(module.__name__) is None
    }
    sys.modules.update(missing)
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


def patch_predictions() -> None:
    """Let `heareval.predictions` train and test on pytorch-lightning 2. Call it once, after its import."""
    from heareval.predictions import task_predictions

    _accept_gpus_argument()
    _make_current_epoch_settable()
    for stage in ("validation", "test"):
        _move_epoch_end_to_hook(task_predictions.AbstractPredictionModel, stage)
    _filter_events_faster()


def patch_device_name() -> None:
    """`heareval.gpu_max_mem.device_name` decodes what today's pynvml already returns as text."""
    import torch
    from heareval import gpu_max_mem

    if torch.cuda.is_available():
        gpu_max_mem.device_name = torch.cuda.get_device_name


def _accept_gpus_argument() -> None:
    """`Trainer(gpus=...)` became `accelerator` and `devices`. The bar is left out: it would fill the log files."""
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

    lightning.Trainer.__init__ = init


def _make_current_epoch_settable() -> None:
    """Before its test the kit sets `fit_loop.current_epoch`, to choose the post-processing of the best epoch."""
    from pytorch_lightning.loops.fit_loop import _FitLoop

    def set_epoch(loop: _FitLoop, epoch: int) -> None:
        loop.epoch_progress.current.completed = loop.epoch_progress.current.processed = epoch

    _FitLoop.current_epoch = property(lambda loop: loop.epoch_progress.current.completed, set_epoch)


def _move_epoch_end_to_hook(model_class: type, stage: str) -> None:
    """`<stage>_epoch_end(outputs)` became a hook without arguments, so the outputs of the steps are kept until then."""
    step, epoch_end = getattr(model_class, f"{stage}_step"), getattr(model_class, f"{stage}_epoch_end")
    kept = f"_{stage}_outputs"

    def keeping_step(self, batch, batch_idx) -> None:
        self.__dict__.setdefault(kept, []).append(step(self, batch, batch_idx))

    def on_epoch_end(self) -> None:
        epoch_end(self, self.__dict__.pop(kept, []))

    delattr(model_class, f"{stage}_epoch_end")  # its presence is an error to pytorch-lightning 2
    setattr(model_class, f"{stage}_step", keeping_step)
    setattr(model_class, f"on_{stage}_epoch_end", on_epoch_end)


def _filter_events_faster() -> None:
    """Event scores spend most of their time in one loop of dcase_util; this one gives the same list.

    The original spells every field name of every item in lower case, for every file of the task. Items of one
    container share their field names, so here the names are matched once per set of names.
    """
    from dcase_util.containers import ListDictContainer

    def filter_items(self, case_insensitive_fields: bool = True, **conditions) -> ListDictContainer:
        fold = str.lower if case_insensitive_fields else str
        plans = {}  # field names of an item -> [(field, accepted values)]

        def plan(names: tuple[str, ...]) -> list:
            by_folded = {fold(name): name for name in names}
            wanted = []
            for field, value in conditions.items():
                name = by_folded.get(fold(field), by_folded.get(fold(field).replace("_", " ")))
                if name is not None:  # a field that an item lacks is no condition on it
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
