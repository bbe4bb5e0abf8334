"""Which ways of spreading a model over devices can be read, and which are refused by name."""

from __future__ import annotations

from lightning_cx.callbacks._trainer import Callback, Trainer, tensor_parallel_size

REFUSED = {
    "FSDPStrategy": "flattens the parameters of a module into one, in which layers cannot be told apart: use "
    "ModelParallelStrategy, whose fully_shard keeps them apart",
    "DeepSpeedStrategy": "runs the backward in an engine of its own, on parameters that it has cut in pieces: use "
    "DDPStrategy, or ModelParallelStrategy with fully_shard",
    "XLAStrategy": "runs graphs that a compiler has made, of which no node can be read: train on CPU or GPU",
    "SingleDeviceXLAStrategy": "runs graphs that a compiler has made, of which no node can be read: train on CPU or "
    "GPU",
}


def check_strategy(trainer: Trainer, callback: Callback, keeps_weights: bool = False) -> None:
    """Refuse a strategy under which a callback cannot do what it promises.

    Args:
        trainer: About to fit.
        callback: Ours.
        keeps_weights: Whether it keeps a copy of the weights.

    Raises:
        ValueError: If it cannot; the message names the strategy and says what to do.
    """
    who = type(callback).__name__
    names = [kind.__name__ for kind in type(trainer.strategy).__mro__]
    for name in names:
        if name in REFUSED:
            raise ValueError(f"{who} does not work under {name}, which {REFUSED[name]}; or leave {who} out.")
    if tensor_parallel_size(trainer) > 1:
        raise ValueError(
            f"{who} does not work under tensor parallelism, where a process holds a part of every layer's examples and "
            f"none of them whole: use fully_shard alone (tensor_parallel_size=1), or leave {who} out."
        )
    if keeps_weights and "ModelParallelStrategy" in names:
        raise ValueError(
            f"{who}(restore_best=True) keeps a copy of the weights, which no process of a sharded module has whole: "
            "pass restore_best=False, and keep the best weights by ModelCheckpoint(monitor='stopping/risk')."
        )
