"""From settings to an index. Backends are imported when they are asked for."""

from __future__ import annotations

from index.base import BadSettings, IndexSettings, VectorIndex


def make_index(settings: IndexSettings, dimension: int, device: str | None = None) -> VectorIndex:
    """An empty index.

    Args:
        device: where the torch backend computes, such as "cpu" or "cuda:0"; the others do not look at it.

    Raises:
        BadSettings: the settings ask for what this installation lacks.
    """
    if settings.kind == "torch":
        from index.torch_backend import TorchIndex

        return TorchIndex(settings, dimension, device or "cpu")
    try:
        return _faiss_index(settings, dimension)
    except ImportError as error:
        raise BadSettings(
            f"index kind {settings.kind!r} needs FAISS, which is not installed: pip install 'attune[cpu]', "
            "or 'attune[gpu]' on a machine with an NVIDIA GPU; or choose index kind 'torch', which needs none"
        ) from error


def _faiss_index(settings: IndexSettings, dimension: int) -> VectorIndex:
    if settings.gpu:
        from index.faiss_gpu import GpuFlatIndex

        return GpuFlatIndex(settings, dimension)
    if settings.kind == "ivf":
        from index.ivf import IvfIndex

        return IvfIndex(settings, dimension)
    if settings.kind == "hnsw":
        from index.hnsw import HnswIndex

        return HnswIndex(settings, dimension)
    from index.flat import FlatIndex

    return FlatIndex(settings, dimension)
