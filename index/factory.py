"""From settings to an index. Backends are imported when they are asked for."""

from __future__ import annotations

from index.base import IndexSettings, VectorIndex


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
