"""The same network in two frameworks is the same graph, transposes and padding left out."""

from __future__ import annotations

import networkx
import pytest

from pellucid.graph.layers import GraphLayer, LayerGraph
from pellucid.graph.simplifying import collapsed, computing_only, split_activations
from tests.graph.networks import graph
from tests.twins import TWINS

# Containers of the PyTorch twin that are one layer in Keras.
ONE_LAYER = {
    "vit": ["block1.attention", "block2.attention"],
    "separable": ["separable"],
}


def alike(one: dict, other: dict) -> bool:
    return all(one[key] == other[key] for key in ("stem", "parameters", "multiply_adds", "size"))


def comparable(graph: LayerGraph) -> networkx.DiGraph:
    found = computing_only(split_activations(graph)).to_networkx()
    for name, fields in found.nodes(data=True):
        kind: str = fields["kind"]
        fields["stem"] = kind[:-2] if kind[-2:] in ("1D", "2D", "3D") else kind
        if fields["kind"] in ("Input", "Output"):
            fields["parameters"] = fields["multiply_adds"] = 0
        fields["size"] = sorted(n for n in fields["shape"][1:] if n != 1)
        assert isinstance(name, str)
    return found


@pytest.mark.parametrize("framework", ["keras", "tf_keras"])
@pytest.mark.parametrize("name", sorted(TWINS))
def test_keras_and_torch_give_isomorphic_graphs(name: str, framework: str) -> None:
    ours = comparable(collapsed(graph(name, "torch"), ONE_LAYER.get(name, [])))
    theirs = comparable(graph(name, framework))
    assert networkx.is_isomorphic(ours, theirs, node_match=alike)


def test_a_different_network_is_not_isomorphic() -> None:
    one = comparable(graph("plain", "torch"))
    assert not networkx.is_isomorphic(one, comparable(graph("fused", "torch")), node_match=alike)


def test_collapsing_keeps_totals_and_connections() -> None:
    whole = graph("residual", "torch")
    small = collapsed(whole, ["stage", "block1"])
    assert small.parameters == whole.parameters
    assert small.multiply_adds == whole.multiply_adds
    assert [layer.name for layer in small] == [
        "input", "conv", "norm", "relu", "block1", "stage", "gap", "flatten", "dense", "softmax",
        "output",
    ]  # fmt: skip
    assert small["stage"].inputs == ("block1",)
    assert small["stage"].shape == (None, 12, 8, 8)
    assert not small.containers


def test_fused_activations_become_layers() -> None:
    split = split_activations(graph("fused", "keras"))
    assert split["conv1 (ReLU)"].inputs == ("conv1",)
    assert split["conv1"].outputs == ("conv1 (ReLU)",)
    assert split["pool1"].inputs == ("conv1 (ReLU)",)


def chain(*kinds: str) -> LayerGraph:
    layers = []
    for index, kind in enumerate(kinds):
        before = (str(index - 1),) if index else ()
        after = (str(index + 1),) if index + 1 < len(kinds) else ()
        layers.append(GraphLayer(str(index), kind, inputs=before, outputs=after))
    return LayerGraph(tuple(layers))


def test_leaving_out_bridges_the_gap() -> None:
    small = computing_only(chain("Input", "Pad2D", "Permute", "Conv2D", "Output"))
    assert [layer.kind for layer in small] == ["Input", "Conv2D", "Output"]
    assert small["3"].inputs == ("0",)
    assert small["0"].outputs == ("3",)
