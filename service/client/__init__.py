"""The Python client: `Client`, and `AsyncClient` with the same methods to await.

    from attune import Client

    with Client("http://127.0.0.1:8080") as client:
        answer = client.retrieve(text="a red circle", k=5)
        print(answer.hits[0].id, answer.adaptation.status)
        client.retrieve({"text": "the same in blue", "image": "circle.png"})  # one composed query

    for line in client.classify_stream({"audio": wav, "image": jpeg} for wav, jpeg in camera):
        print(line.index, line.result().label)

Both raise `AttuneError`. Needs httpx, and websockets for streams of samples.
"""

from __future__ import annotations

from service.client.asynchronous import AsyncClient
from service.client.blocking import Client
from service.client.types import (
    Adaptation,
    Answer,
    AttuneError,
    Classified,
    ClassifyAnswer,
    Completeness,
    Hit,
    Label,
    Part,
    StreamedAnswer,
)

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
]
