"""Attune's Python client: `from attune import Client`."""

from service.client import (
    Adaptation,
    Answer,
    AsyncClient,
    AttuneError,
    Classified,
    ClassifyAnswer,
    Client,
    Hit,
    Label,
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
    "Hit",
    "Label",
    "StreamedAnswer",
    "__version__",
]

__version__ = VERSION
