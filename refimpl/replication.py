"""layer_replication: a deeper model whose layers are a base's, read more than once.

    [[0, 4], [2, 5]]      layers 0 1 2 3 | 2 3 4, numbered 0 to 6: half-open runs of the base's

An adapter on such a model has LoRA of its own in each of the seven, which is what makes two copies of one layer differ
(PEFT, as upscaling to 120B models was done). The copies share the base's arrays, and each has keys and values of its
own. The model is another one than the base: no batch can hold requests for both.
"""

from collections.abc import Sequence
from dataclasses import replace

from .config import ModelConfig
from .errors import ConfigError
from .weights import Model

Runs = Sequence[Sequence[int]]


def replicated(model: Model, runs: Runs) -> Model:
    """Return the model whose layers are these runs (first, one past the last) of the model's own, without a copy.

    ConfigError, one line, as in replicated_config."""
    config = replicated_config(model.config, runs)
    return replace(model, config=config, layers=tuple(model.layers[i] for i in layers_of(config.layer_replication)))


def replicated_config(config: ModelConfig, runs: Runs) -> ModelConfig:
    """Return the config of such a model: what differs from layer to layer goes where its layer goes.

    ConfigError for a run that is empty or not within the model, and for layers that read another one's keys."""
    layers = config.num_hidden_layers
    for run in runs:
        if len(run) != 2 or not 0 <= run[0] < run[1] <= layers:
            raise ConfigError(f"layer_replication: {list(run)} is no run of layers of a base that has {layers}")
    if config.layer_replication:
        raise ConfigError("layer_replication: the layers of this model are replicated already")
    if config.hidden_size_per_layer_input or any(kind.kv_from is not None for kind in config.layers):
        raise ConfigError("layer_replication: layers of this base know their place (Gemma 4), and cannot be re-read")
    order = layers_of(runs)
    return replace(
        config,
        num_hidden_layers=len(order),
        layers=tuple(config.layers[i] for i in order) if config.layers else (),
        layer_replication=tuple((int(start), int(stop)) for start, stop in runs),
    )


def layers_of(runs: Runs) -> list[int]:
    """Return which layer of the base each layer of the deeper model is."""
    return [i for start, stop in runs for i in range(start, stop)]
