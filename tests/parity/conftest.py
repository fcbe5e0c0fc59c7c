"""The libraries that are compared with, imported with the help of stand-ins."""

from __future__ import annotations

from typing import Any

import pytest

from .peers import stand_ins


@pytest.fixture(scope="session")
def pytorch_grad_cam() -> Any:
    """Import pytorch-grad-cam."""
    with stand_ins():
        import pytorch_grad_cam
    return pytorch_grad_cam


@pytest.fixture(scope="session")
def tf_keras_vis() -> Any:
    """Import tf-keras-vis, its Grad-CAM, modifiers and scores."""
    with stand_ins():
        import tf_keras_vis.gradcam
        import tf_keras_vis.utils.model_modifiers
        import tf_keras_vis.utils.scores
    return tf_keras_vis
