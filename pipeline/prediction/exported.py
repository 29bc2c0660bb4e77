"""A whole model as others load it: TorchScript, and ONNX where its packages are there (extra `onnx`).

Each comes with what it says of images that were given, by the runtime that will load it, so that whoever writes it can compare. Images
(b, channels, size, size) in 0-1 to probabilities (b, classes); b is free.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.prediction.bundled import WholeModel

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONNX_INPUT, ONNX_OUTPUT = "images", "probabilities"
TRACED_IMAGES = 2
"""A batch of one would be taken for the only size there is."""


@dataclass(frozen=True)
class Exported:
    """`content` of the file; `probabilities` (b, classes) that it gives for the images."""

    content: bytes
    probabilities: NDArray[np.float32]


def as_torchscript(model: WholeModel, images: torch.Tensor) -> Exported:
    """The trace of a batch of one, asked about all of `images`."""
    content = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        # Of numbers that a trace fixes: what it says is of another batch than was traced.
        warnings.simplefilter("ignore")
        module = torch.jit.trace(model.eval(), images[:1], check_trace=False)
        torch.jit.save(module, content)
        content.seek(0)
        return Exported(content.getvalue(), torch.jit.load(content)(images).numpy())


def require_onnx() -> None:
    """ConfigError where a package is missing: said before any work."""
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(f"ONNX needs {', '.join(missing)}: pip install 'radloop[onnx]'")


def as_onnx(model: WholeModel, images: torch.Tensor) -> Exported:
    """By PyTorch's exporter, asked by ONNX Runtime; ConfigError for a network that ONNX cannot say."""
    import onnxruntime

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model.eval(),
                (images[:TRACED_IMAGES],),
                input_names=[ONNX_INPUT],
                output_names=[ONNX_OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        content = program.model_proto.SerializeToString()
    except Exception as error:  # PyTorch's exporter raises what it likes
        raise ConfigError(f"ONNX cannot say this network (PyTorch's exporter raised {type(error).__name__})") from error
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return Exported(content, session.run([ONNX_OUTPUT], {ONNX_INPUT: images.numpy()})[0])
