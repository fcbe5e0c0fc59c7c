"""The graphs of the twins hold what the frameworks themselves say of them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graph.networks import FRAMEWORKS, adapter, graph, values
from tests.twins import TWINS

NAMES = sorted(TWINS)
both = pytest.mark.parametrize("framework", FRAMEWORKS)
every = pytest.mark.parametrize("name", NAMES)


def leaves(name: str, framework: str) -> list[str]:
    """The framework's layer calls that hold no other call."""
    names = [layer.name for layer in adapter(name, framework).layers]
    separator = "." if framework == "torch" else "/"
    bases = [name.split(":")[0] for name in names]
    return [
        name
        for name, base in zip(names, bases, strict=True)
        if not any(other.startswith(base + separator) for other in bases)
    ]


@both
@every
def test_every_leaf_layer_is_there_by_name(name: str, framework: str) -> None:
    assert set(leaves(name, framework)) <= {layer.name for layer in graph(name, framework)}


@both
@every
def test_containers_are_paths(name: str, framework: str) -> None:
    found = graph(name, framework)
    containers = {container.name for container in found.containers}
    everything = {layer.name for layer in adapter(name, framework).layers}
    assert everything - set(leaves(name, framework)) == containers
    assert {part for layer in found for part in layer.path} <= containers


@both
@every
def test_parameters_are_the_frameworks_own_count(name: str, framework: str) -> None:
    found = graph(name, framework)
    if framework == "torch":
        module = adapter(name, framework).module
        assert found.parameters == sum(p.numel() for p in module.parameters())
    else:
        model = adapter(name, framework).model
        assert found.parameters + found.statistics == model.count_params()


@both
@every
def test_every_layer_has_its_native_value_in_onnxruntime(name: str, framework: str) -> None:
    found, x = graph(name, framework), TWINS[name].inputs(3)
    names = [*leaves(name, framework), *(p.name for p in adapter(name, framework).outputs)]
    native = adapter(name, framework).run(x, names)
    fetched = values(found, x)
    for layer in names:
        assert fetched[layer].shape == native[layer].shape, layer
        distance = np.abs(fetched[layer] - native[layer]).max()
        assert distance <= 1e-4 * np.abs(native[layer]).max(), layer


@both
@every
def test_shapes_are_those_of_the_values(name: str, framework: str) -> None:
    found, x = graph(name, framework), TWINS[name].inputs(3)
    for layer, value in values(found, x).items():
        assert found[layer].shape == (None, *value.shape[1:]), layer
        size = value[0].size * np.dtype(found[layer].dtype).itemsize
        assert found[layer].activation_bytes == size, layer


@both
@every
def test_multiply_adds_are_known_everywhere(name: str, framework: str) -> None:
    assert None not in [layer.multiply_adds for layer in graph(name, framework)]


@pytest.mark.parametrize("framework", ["keras", "tf_keras"])
@every
def test_multiply_adds_are_the_same_in_both_frameworks(name: str, framework: str) -> None:
    ours, theirs = graph(name, "torch"), graph(name, framework)
    assert ours.multiply_adds == theirs.multiply_adds
    assert ours.parameters == theirs.parameters


@both
@every
def test_layers_come_after_what_they_read(name: str, framework: str) -> None:
    seen: set[str] = set()
    for layer in graph(name, framework):
        assert set(layer.inputs) <= seen, layer.name
        assert layer.inputs or layer.kind == "Input", layer.name
        seen.add(layer.name)
    for layer in graph(name, framework):
        assert layer.outputs or layer.kind == "Output", layer.name
