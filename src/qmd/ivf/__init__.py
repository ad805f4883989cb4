"""A Faiss-like vector index in PyTorch, one code on CPU, CUDA, ROCm and DirectML."""

from qmd.errors import MissingExtra

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise MissingExtra("qmd.ivf (the vector index)", "torch") from error

from qmd.ivf.index import *  # noqa: F403
from qmd.ivf.index import __all__  # noqa: F401
