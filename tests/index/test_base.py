from __future__ import annotations

import pytest

from index import BadSettings, FingerprintMismatch, GalleryError, IndexSettings


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "annoy"},
        {"nlist": -1},
        {"nprobe": 0},
        {"nprobe": 2.5},
        {"hnsw_m": 1},
        {"hnsw_m": True},
        {"ef_search": 0},
        {"ef_construction": 0},
        {"train_from": 0},
        {"coarse": "int4"},
        {"rerank": -1},
        {"gpu": 1},
        {"gpu": True, "kind": "ivf"},
    ],
)
def test_setting_out_of_range_is_refused_by_name(wrong):
    with pytest.raises(BadSettings, match=f"index setting {next(iter(wrong))} must be"):
        IndexSettings(**wrong)


def test_settings_survive_their_plain_form():
    settings = IndexSettings(kind="hnsw", hnsw_m=16, ef_search=99)
    assert IndexSettings.from_dict(settings.to_dict()) == settings


def test_unknown_setting_is_refused():
    with pytest.raises(BadSettings, match="nprobes"):
        IndexSettings.from_dict({"nprobes": 3})


def test_mismatch_keeps_both_fingerprints():
    error = FingerprintMismatch(expected="mine", found="theirs")
    assert isinstance(error, GalleryError)
    assert (error.expected, error.found) == ("mine", "theirs")
    assert "'theirs'" in str(error)
