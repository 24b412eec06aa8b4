from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from structlog.testing import capture_logs

from service.http.app import create_app
from service.settings import Settings
from tests.service.http.fake_engine import FakeEngine


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def settings() -> Settings:
    return Settings()


@pytest.fixture
async def http(engine: FakeEngine, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application around the fake engine."""
    transport = httpx.ASGITransport(create_app(settings, engine))
    async with httpx.AsyncClient(transport=transport, base_url="http://attune") as client:
        yield client


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Log lines are kept, not printed: structlog's default for a traceback takes seconds to lay out."""
    with capture_logs():
        yield
