"""Composed queries and calibrated galleries through Redis: some of the tests of one process again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from service.engine import Engine, running_engine
from service.settings import Settings
from tests.service.conftest import fill
from tests.service.test_calibrated_engine import (  # noqa: F401
    ITEMS,
    fill_mixed,
    pytestmark,
    test_a_request_of_all_kinds_is_answered_in_order,
    test_anchors_of_a_gallery_without_calibration_are_refused,
    test_answers_say_what_each_query_had_and_how_sure_the_rest_is,
    test_composed_queries_of_pictures_are_the_mean_of_both,
    test_hits_say_what_the_item_had,
    test_queries_of_all_kinds_share_a_track_and_texts_leave_the_pictures_tower_alone,
    test_the_canaries_of_an_anchor_track_are_those_of_all_kinds,
)
from tests.toy import ToyEncoder


@pytest.fixture
async def engine(redis_settings: Callable[..., Settings]) -> AsyncIterator[Engine]:
    async with running_engine(redis_settings(), encoder=ToyEncoder()) as running:
        await fill(running, items=ITEMS)
        await fill_mixed(running)
        yield running
