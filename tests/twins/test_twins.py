from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.twins import TWINS, Twin

TOLERANCE = 1e-5

Values = dict[str, np.ndarray]


def run_torch(twin: Twin, x: tuple[np.ndarray, ...]) -> tuple[list[np.ndarray], Values]:
    """Return the outputs, and the value of every call of every named module."""
    import torch

    module, calls, values = twin.torch(), Counter[str](), Values()

    def recorder(name: str) -> Callable[..., None]:
        def record(_module: Any, _inputs: Any, value: Any) -> None:
            values[_call_name(name, calls)] = value.numpy().copy()  # in-place layers may follow

        return record

    for name, layer in module.named_modules():
        if name:
            layer.register_forward_hook(recorder(name))
    with torch.no_grad():
        outputs = module(*map(torch.from_numpy, x))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [output.numpy() for output in outputs], values


def run_keras(model: Any, x: tuple[np.ndarray, ...]) -> tuple[list[np.ndarray], Values]:
    """Return the outputs, and the value of every call of every layer, in Keras's own layout."""
    calls, values = Counter[str](), Values()

    def record(owner: Any, prefix: str = "") -> None:
        for layer in owner.layers:
            if hasattr(layer, "layers"):
                record(layer, f"{prefix}{layer.name}/")
            layer.call = recorded(layer.call, prefix + layer.name)

    def recorded(call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            value = call(*args, **kwargs)
            values[_call_name(name, calls)] = np.asarray(value)
            return value

        return run

    record(model)
    outputs = model(list(x) if len(x) > 1 else x[0])
    outputs = outputs if isinstance(outputs, list) else [outputs]
    return [output.numpy() for output in outputs], values


def run_onnx(model: Any, x: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [port.name for port in session.get_inputs()]
    return session.run(None, dict(zip(names, x, strict=True)))


def _call_name(name: str, calls: Counter[str]) -> str:
    calls[name] += 1
    return f"{name}:{calls[name] - 1}" if calls[name] > 1 else name


def channels_first(twin: Twin, array: np.ndarray) -> np.ndarray:
    """Turn what a Keras layer gave; tokens are `(N, T, C)` everywhere."""
    is_tokens = twin.name == "vit" and array.ndim == 3
    return array if twin.name == "channels_first" or is_tokens else np.moveaxis(array, -1, 1)


def keras_layout(twin: Twin, x: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    return x if twin.name == "channels_first" else tuple(np.moveaxis(a, 1, -1) for a in x)


def distance(actual: np.ndarray, expected: np.ndarray) -> float:
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("package", ["keras", "tf_keras"])
def test_keras_twin_agrees_with_torch_in_outputs_and_matched_layers(
    twin: Twin, package: str
) -> None:
    x = twin.inputs(3)
    expected, torch_values = run_torch(twin, x)
    outputs, keras_values = run_keras(getattr(twin, package)(), keras_layout(twin, x))
    for output, reference in zip(outputs, expected, strict=True):
        assert distance(channels_first(twin, output), reference) < TOLERANCE
    for torch_name, keras_name in twin.matched.items():
        value = channels_first(twin, keras_values[keras_name])
        assert distance(value, torch_values[torch_name]) < TOLERANCE, torch_name


def test_onnx_twin_agrees_with_torch_at_any_batch_size(twin: Twin) -> None:
    for count in (1, 3):
        x = twin.inputs(count)
        for output, reference in zip(run_onnx(twin.onnx(), x), run_torch(twin, x)[0], strict=True):
            assert distance(output, reference) < TOLERANCE


def test_unoptimised_onnx_keeps_batch_normalisation() -> None:
    twin = TWINS["residual"]
    x = twin.inputs(3)
    folded, kept = ({n.op_type for n in twin.onnx(o).graph.node} for o in (True, False))
    assert "BatchNormalization" in kept - folded
    assert distance(run_onnx(twin.onnx(optimize=False), x)[0], run_torch(twin, x)[0][0]) < TOLERANCE


def test_activations_are_alive(twin: Twin) -> None:
    outputs, values = run_torch(twin, twin.inputs(8))
    for name, value in [*values.items(), *enumerate(outputs)]:
        assert (np.ptp(value, axis=0) > 0).mean() > 0.7, name  # over the batch


def test_final_activations_are_not_saturated(twin: Twin) -> None:
    outputs, _ = run_torch(twin, twin.inputs(8))
    for output, activation in zip(outputs, twin.activations, strict=True):
        if activation == "softmax":
            np.testing.assert_allclose(output.sum(axis=1), 1, rtol=1e-5)
        if activation:
            assert 0.01 < output.max() < 0.99


def test_relu6_meets_both_its_kinks() -> None:
    _, values = run_torch(TWINS["separable"], TWINS["separable"].inputs(8))
    for name, value in values.items():
        if name.endswith("relu"):
            assert (value == 0).any(), name
            assert (value == 6).any(), name


def test_inputs_and_weights_are_the_same_in_every_call(twin: Twin) -> None:
    for first, second in zip(twin.inputs(), twin.inputs(), strict=True):
        np.testing.assert_array_equal(first, second)
    first, second = twin.torch().state_dict(), twin.torch().state_dict()
    assert all(first[name].equal(second[name]) for name in first)


def test_layers_of_both_are_matched_unless_keras_fuses_their_activation(twin: Twin) -> None:
    x, model = twin.inputs(), twin.keras()
    _, torch_values = run_torch(twin, x)
    _, keras_values = run_keras(model, keras_layout(twin, x))
    for torch_name in torch_values.keys() - twin.matched.keys():
        keras_name = torch_name.replace(".", "/")
        if keras_name in keras_values:
            assert model.get_layer(keras_name).activation.__name__ in ("relu", "softmax")
