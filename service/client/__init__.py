"""The Python client: `Client`, and `AsyncClient` with the same methods to await.

    from attune import Client

    with Client("http://127.0.0.1:8080") as client:
        answer = client.retrieve(text="a red circle", k=5)
        print(answer.hits[0].id, answer.adaptation.status)

Both raise `AttuneError`. Needs httpx only.
"""

from __future__ import annotations

from service.client.asynchronous import AsyncClient
from service.client.blocking import Client
from service.client.types import Adaptation, Answer, AttuneError, Hit

__all__ = ["Adaptation", "Answer", "AsyncClient", "AttuneError", "Client", "Hit"]
