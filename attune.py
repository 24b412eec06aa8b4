"""Attune's Python client: `from attune import Client`."""

from service.client import (
    Adaptation,
    Answer,
    AsyncClient,
    AttuneError,
    Classified,
    ClassifyAnswer,
    Client,
    Completeness,
    Hit,
    Label,
    Part,
    StreamedAnswer,
)
from service.version import VERSION

__all__ = [
    "Adaptation",
    "Answer",
    "AsyncClient",
    "AttuneError",
    "Classified",
    "ClassifyAnswer",
    "Client",
    "Completeness",
    "Hit",
    "Label",
    "Part",
    "StreamedAnswer",
    "__version__",
]

__version__ = VERSION
