"""Attune's Python client: `from attune import Client`."""

from service.client import Adaptation, Answer, AsyncClient, AttuneError, Client, Hit
from service.version import VERSION

__all__ = ["Adaptation", "Answer", "AsyncClient", "AttuneError", "Client", "Hit", "__version__"]

__version__ = VERSION
