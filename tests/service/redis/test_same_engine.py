"""What holds of the engine in one process holds of it with Redis: some of the same tests again.

Left out: those that look into files, and those about errors whose class does not travel (their code does).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.redis_server import RedisServer
from service.settings import Settings
from tests.service.conftest import TOY, engine  # noqa: F401
from tests.service.test_engine import (  # noqa: F401
    pytestmark,
    test_a_bad_filter_fails_its_own_request_only,
    test_a_client_that_leaves_withdraws_its_waiting_query,
    test_a_deadline_ends_the_wait,
    test_a_filter_holds_for_its_own_request_only,
    test_a_full_queue_refuses_with_a_time_to_come_back,
    test_a_loss_that_is_not_finite_is_undone_and_the_answer_still_comes,
    test_a_restored_snapshot_continues_bit_exactly,
    test_a_snapshot_travels_to_another_stream,
    test_a_stream_and_a_gallery_survive_a_restart,
    test_a_text_finds_the_item_of_the_same_text,
    test_an_embedding_is_answered_without_adaptation,
    test_an_empty_gallery_gives_no_hits,
    test_an_old_gathering_adapts_as_a_smaller_batch,
    test_another_method_starts_from_the_source_state,
    test_async_answers_at_once_and_adapts_in_the_background,
    test_full_batches_adapt_one_after_the_other_without_a_pause,
    test_gatherings_together_stay_below_their_limit,
    test_new_settings_keep_the_state,
    test_off_neither_reads_nor_makes_a_stream,
    test_reset_during_background_adaptation_wins,
    test_reset_gives_the_source_answers_again,
    test_results_stand_in_query_order_when_kinds_are_mixed,
    test_streams_beyond_the_limit_go_to_disk_and_come_back,
    test_sync_adapts_and_the_state_version_rises_with_each_batch,
    test_the_answer_can_wait_for_the_last_update,
)


@pytest.fixture
def settings(tmp_path: Path, server: RedisServer, namespace: str) -> Callable[..., Settings]:
    def make(**changes: Any) -> Settings:
        return Settings(
            **{
                **TOY,
                "data_folder": tmp_path / "data",
                "redis_url": server.url,
                "redis_namespace": namespace,
                "lease_s": 1.0,
                "redis_timeout_s": 1.0,
                **changes,
            }
        )

    return make
