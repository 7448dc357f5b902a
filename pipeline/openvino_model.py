"""A model's pass by OpenVINO, for a CPU: the numbers of torch's within fp32's rounding.

On AMD it is twice as fast: MKL, by which torch multiplies, does without AVX-512 there (docs/decisions/0046). It comes
with ``raysight[openvino]``.
"""

from __future__ import annotations

import importlib.util
import threading
import warnings
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.compiling import Network


_HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}


def serves(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether OpenVINO is installed, and computes this: fp32 or bf16 on a CPU."""
    return device.type == "cpu" and dtype in _HINTS and importlib.util.find_spec("openvino") is not None


class _Traced(torch.nn.Module):
    def __init__(self, network: Network, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model  # whose weights the trace is to find
        self._network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._network(images)


class OpenVINOModel:
    """A network of floats, image by image: no size of batch is faster, and any will do.

    Threads may call at once. Each compiles at its first call, for as many threads as torch gives it; what OpenVINO
    shares between callers, it lets one after another have.

    Args:
        network: (n, 3, H, W) float32 to tensors (n, …), by torch on the CPU.
        model: whose weights it uses, in float32; what becomes of the model later does not matter.
        height: H.
        width: W.
        dtype: what is computed in.

    Raises:
        UsageError: OpenVINO does not know something that the network does.
    """

    def __init__(self, network: Network, model: torch.nn.Module, height: int, width: int, dtype: torch.dtype) -> None:
        import openvino

        self._core = openvino.Core()
        self._graph = _convert(network, model, (1, 3, height, width))
        self._dtype = dtype
        self._own = threading.local()

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``network``, from ``dtype`` to ``dtype``; the tensors are the caller's own."""
        features, embeddings = zip(*map(self._pass, images.float().contiguous()), strict=True)
        return torch.cat(features).to(self._dtype), torch.cat(embeddings).to(self._dtype)

    def _pass(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self._request().infer([image.numpy()[None]], share_inputs=True)
        features, embedding = (torch.from_numpy(found[number]) for number in range(2))
        return features, embedding

    def _request(self) -> Any:
        if not hasattr(self._own, "request"):
            settings = {
                "INFERENCE_PRECISION_HINT": _HINTS[self._dtype],
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "NUM_STREAMS": 1,
                # The first cores of the machine would be everybody's.
                "ENABLE_CPU_PINNING": False,
            }
            self._own.request = self._core.compile_model(self._graph, "CPU", settings).create_infer_request()
        return self._own.request


def _convert(network: Network, model: torch.nn.Module, shape: tuple[int, int, int, int]) -> Any:
    """OpenVINO's graph of a network, which shares the model's weights.

    By the parts of ``openvino.convert_model``, which itself sends statistics of its use to its makers.
    """
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    frontend = FrontEndManager().load_by_framework("pytorch")
    with warnings.catch_warnings(), torch.inference_mode(mode=False), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.jit.trace is deprecated, and says what it takes for constant
        traced = _Traced(network, model).eval()
        try:
            decoder = TorchScriptPythonDecoder(
                traced, example_input=torch.zeros(shape), trace_kwargs={"check_trace": False}
            )
            graph = frontend.convert(frontend.load(decoder))
        except Exception as error:  # whatever torch's trace or OpenVINO's frontend objects to
            line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise UsageError(f"--compile: OpenVINO cannot take this model over: {line.strip()}") from error
    graph.reshape({0: list(shape)})
    return graph
