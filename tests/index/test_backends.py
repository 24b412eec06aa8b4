"""One contract over every backend, against the exact reference."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index import BadSettings, BadVector, IndexSettings, make_index
from index.exact import disagreement, exact_search, recall
from index.faiss_library import faiss

# Set so that the approximate ones look at everything and must be exact.
BACKENDS = {
    "flat": IndexSettings(kind="flat"),
    "ivf, not yet trained": IndexSettings(kind="ivf"),
    "ivf": IndexSettings(kind="ivf", train_from=80, nlist=2, nprobe=2),
    "hnsw": IndexSettings(kind="hnsw", hnsw_m=64, ef_search=1024, ef_construction=256),
    "torch bf16": IndexSettings(kind="torch", rerank=4096),
    "torch fp32": IndexSettings(kind="torch", coarse="fp32"),
}
D = 8


@pytest.fixture(params=BACKENDS.values(), ids=BACKENDS.keys())
def empty(request):
    return make_index(request.param, D)


def check(index, queries, k, allowed=None):
    """The index answers exactly, and holds the rows that it says."""
    found = index.search(queries, k, allowed=allowed)
    matrix = np.array(index.matrix())
    assert disagreement(matrix, queries, found, k=k, allowed=allowed) is None
    assert found[0].dtype == np.float32
    assert found[1].dtype == np.int64


@pytest.mark.parametrize("batch", [1, 2, 3, 17])
@pytest.mark.parametrize("k", [1, 10])
def test_search_agrees_with_the_reference(empty, unit, batch, k):
    empty.add(unit(120))
    check(empty, unit(batch, seed=9), k)


@pytest.mark.parametrize("batch", [1, 2, 3, 17])
@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
def test_search_with_allowed_positions_agrees_with_the_reference(empty, unit, batch, share):
    empty.add(unit(150))
    allowed = np.random.default_rng(4).random(150) < share
    check(empty, unit(batch, seed=9), 10, allowed)


@pytest.mark.parametrize("batch", [1, 5])
def test_nothing_allowed_gives_pads_only(empty, unit, batch):
    empty.add(unit(100))
    scores, positions = empty.search(unit(batch), 3, allowed=np.zeros(100, dtype=bool))
    assert positions.tolist() == [[-1, -1, -1]] * batch
    assert np.isneginf(scores).all()


@pytest.mark.parametrize("batch", [1, 5])
def test_k_beyond_the_size_gives_every_row_once(empty, unit, batch):
    empty.add(unit(90))
    scores, positions = empty.search(unit(batch, seed=3), 1000)
    assert scores.shape == (batch, 90)
    assert all(sorted(row) == list(range(90)) for row in positions.tolist())


def test_empty_index_answers_with_nothing(empty, unit):
    scores, positions = empty.search(unit(4), 10)
    assert scores.shape == positions.shape == (4, 0)
    assert len(empty) == 0
    assert empty.matrix().shape == (0, D)


def test_no_queries_give_no_answers(empty, unit):
    empty.add(unit(90))
    scores, positions = empty.search(unit(0), 10)
    assert scores.shape == positions.shape == (0, 10)


def test_single_row_is_found(empty, unit):
    empty.add(unit(1))
    scores, positions = empty.search(unit(1), 5)
    assert positions.tolist() == [[0]]
    assert scores[0, 0] == pytest.approx(1.0, abs=1e-6)


def test_equal_scores_come_in_order_of_position(empty):
    rows = np.eye(D, dtype=np.float32)[[3, 0, 3, 1, 3, 3]]
    empty.add(rows)
    _, positions = empty.search(np.eye(D, dtype=np.float32)[[3] * 4], 4)
    assert positions.tolist() == [[0, 2, 4, 5]] * 4


def test_vectors_keep_their_bits_in_any_shape(empty, unit):
    rows = unit(100)
    empty.add(rows)
    positions = np.array([[5, 99], [0, 5]])
    assert np.array_equal(empty.vectors(positions), rows[positions])
    assert empty.vectors(np.empty((0, 3), dtype=np.int64)).shape == (0, 3, D)


@pytest.mark.parametrize("position", [-1, 100])
def test_vectors_refuse_positions_outside(empty, unit, position):
    empty.add(unit(100))
    with pytest.raises(IndexError):
        empty.vectors(np.array([0, position]))


def test_matrix_is_a_read_only_view(empty, unit):
    empty.add(unit(100))
    matrix = empty.matrix()
    assert np.shares_memory(matrix, empty.matrix())
    with pytest.raises(ValueError, match="read-only"):
        matrix[0, 0] = 1.0
    empty.add(unit(1, seed=5))  # The view does not lock the index itself.
    assert len(empty) == 101


def test_wrong_width_is_refused_and_nothing_added(empty, unit):
    empty.add(unit(90))
    with pytest.raises(BadVector, match="8 numbers"):
        empty.add(unit(2, dimension=7))
    with pytest.raises(BadVector, match="8 numbers"):
        empty.search(unit(2, dimension=9), 3)
    with pytest.raises(BadVector):
        empty.search(unit(1)[0], 3)
    assert len(empty) == 90


def test_senseless_k_and_mask_are_refused(empty, unit):
    empty.add(unit(90))
    with pytest.raises(ValueError, match="k must be"):
        empty.search(unit(1), 0)
    with pytest.raises(ValueError, match="allowed must be"):
        empty.search(unit(1), 3, allowed=np.ones(89, dtype=bool))


def test_removing_nothing_changes_nothing(empty, unit):
    empty.add(unit(90))
    empty.remove(np.empty(0, dtype=np.int64))
    empty.replace(np.empty(0, dtype=np.int64), unit(0))
    assert np.array_equal(empty.matrix(), unit(90))


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["add", "replace", "remove", "search"]),
        st.integers(0, 1000),
        st.integers(1, 60),
    ),
    min_size=1,
    max_size=8,
)


@pytest.mark.parametrize("name", BACKENDS)
@given(changes=CHANGES)
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
def test_any_sequence_of_changes_equals_the_same_on_a_plain_matrix(name, changes):
    index = make_index(BACKENDS[name], D)
    rows = np.random.default_rng(0).standard_normal((70, D)).astype(np.float32)
    index.add(rows)
    for kind, seed, count in changes:
        random = np.random.default_rng(seed)
        fresh = random.standard_normal((count, D)).astype(np.float32)
        chosen = random.permutation(len(rows))[:count]
        if kind == "add":
            index.add(fresh)
            rows = np.concatenate((rows, fresh))
        elif kind == "replace":
            index.replace(chosen, fresh[: len(chosen)])
            rows[chosen] = fresh[: len(chosen)]
        elif kind == "remove":
            index.remove(chosen)
            rows = np.delete(rows, chosen, axis=0)
        check(index, fresh[:4], 5, random.random(len(rows)) < 0.7 if seed % 2 else None)
        assert np.array_equal(index.matrix(), rows)


def clustered(count, *, seed=0):
    """Rows around 20 centres, as galleries are."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((20, 16))
    rows = centres[random.integers(0, 20, count)] + 0.3 * random.standard_normal((count, 16))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_ivf_visits_as_many_lists_as_the_call_asks_for():
    index = make_index(IndexSettings(kind="ivf", train_from=1000, nlist=20, nprobe=1), 16)
    index.add(clustered(1500))
    queries = clustered(50, seed=1)
    _, expected = exact_search(index.matrix(), queries, 10)
    assert recall(index.search(queries, 10)[1], expected) < 1
    assert recall(index.search(queries, 10, effort=20)[1], expected) == 1


def test_ivf_answers_in_full_when_the_visited_lists_hold_too_few():
    index = make_index(IndexSettings(kind="ivf", train_from=200, nlist=5, nprobe=1), 16)
    index.add(clustered(220))
    queries = clustered(6, seed=1)
    found = index.search(queries, 200)
    assert disagreement(np.array(index.matrix()), queries, found, k=200) is None


def test_ivf_is_trained_at_its_size_and_again_when_it_has_grown_fourfold():
    index = make_index(IndexSettings(kind="ivf", train_from=100), 16)
    index.add(clustered(99))
    assert not index.trained
    index.add(clustered(1, seed=1))
    assert index.trained
    assert index.lists == 2  # 100 rows at 39 a list
    index.add(clustered(299, seed=2))
    assert index.lists == 2
    index.add(clustered(1, seed=3))
    assert index.lists == 10  # 400 rows


def test_hnsw_stays_good_while_a_third_of_its_rows_come_and_go():
    index = make_index(IndexSettings(kind="hnsw", hnsw_m=16), 16)
    index.add(clustered(900))
    index.remove(np.arange(0, 150))
    index.replace(np.arange(100, 200), clustered(100, seed=5))
    index.add(clustered(100, seed=6))
    queries = clustered(50, seed=1)
    _, expected = exact_search(index.matrix(), queries, 10)
    assert recall(index.search(queries, 10, effort=200)[1], expected) > 0.95


def test_what_was_removed_leaves_the_lists_and_a_quarter_of_the_graph_at_most():
    rows = clustered(400)
    lists = make_index(IndexSettings(kind="ivf", train_from=100), 16)
    graph = make_index(IndexSettings(kind="hnsw"), 16)
    for index in (lists, graph):
        index.add(rows)
        index.replace(np.arange(50), clustered(50, seed=1))
        index.remove(np.arange(10, 250))
        assert len(index) == 160
    assert lists._lists.ntotal == 160
    assert graph._graph.ntotal <= 160 / 0.75


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_large_masked_search_answers_allowed_rows_only(kind):
    """Above 2,048 allowed rows, where the approximate search runs with a selector."""
    index = make_index(IndexSettings(kind=kind, train_from=1000, nlist=20, nprobe=20), 16)
    index.add(clustered(5000))
    index.remove(np.array([0, 4999, 17]))
    allowed = np.random.default_rng(3).random(len(index)) < 0.6
    queries = clustered(20, seed=1)
    scores, positions = index.search(queries, 10, allowed=allowed)
    _, expected = exact_search(index.matrix(), queries, 10, allowed=allowed)
    assert allowed[positions].all()
    assert recall(positions, expected) > 0.95
    own = np.einsum("bkd,bd->bk", index.vectors(positions), queries)
    assert np.allclose(own, scores, atol=1e-5)


def test_torch_takes_many_queries_in_several_passes(monkeypatch, unit):
    monkeypatch.setattr("index.torch_backend._PASS_SCORES", 250)
    index = make_index(IndexSettings(kind="torch"), D)
    index.add(unit(100))
    check(index, unit(7, seed=2), 5)  # 2 queries a pass


@pytest.mark.parametrize("shared", [True, False])
def test_torch_looks_for_candidates_among_the_rows_as_they_are_now(unit, shared):
    """Of 500 rows 40 are scored again, so the first pass must know of each change.

    Without shared memory, as on a GPU, the second pass has a copy of its own.
    """
    index = make_index(IndexSettings(kind="torch"), D)
    index._fine._shares_memory = shared
    index.add(unit(500))
    (query,) = unit(1, seed=4)
    index.search(query[None], 1)
    index.replace(np.array([250]), query[None])
    assert index.search(query[None], 1)[1].tolist() == [[250]]
    index.remove(np.arange(100, 200))
    assert index.search(query[None], 1)[1].tolist() == [[150]]
    index.remove(np.array([150]))
    assert index.search(query[None], 1)[0][0, 0] < 0.999
    index.add(query[None])
    assert index.search(query[None], 1)[1].tolist() == [[399]]


def test_torch_refuses_a_device_that_is_not_there():
    with pytest.raises(BadSettings, match="cannot use device 'nowhere'"):
        make_index(IndexSettings(kind="torch"), D, device="nowhere")


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="this FAISS knows GPUs")
def test_gpu_without_a_faiss_for_it_says_what_to_do():
    with pytest.raises(BadSettings, match="extra 'gpu'"):
        make_index(IndexSettings(gpu=True), D)


def test_gpu_copy_follows_the_master(monkeypatch, unit):
    """Our side of it only: FAISS's CPU index stands in for the one on the GPU."""
    from index.faiss_gpu import GpuFlatIndex

    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(faiss, "GpuIndexFlatIP", lambda _, d: faiss.IndexFlatIP(d), raising=False)
    index = make_index(IndexSettings(gpu=True), D)
    assert isinstance(index, GpuFlatIndex)
    assert index.search(unit(2), 3)[1].shape == (2, 0)
    index.add(unit(50))
    check(index, unit(4, seed=1), 5)
    index.remove(np.array([3, 40]))
    check(index, unit(4, seed=1), 5)
    index.replace(np.array([7]), unit(1, seed=8))
    check(index, unit(4, seed=1), 5)
    check(index, unit(4, seed=1), 5, np.arange(48) % 3 == 0)
    assert np.array_equal(index.vectors(np.array([7])), unit(1, seed=8))
    assert index.matrix().shape == (48, D)
    assert index.dimension == D


def test_a_missing_faiss_is_named_with_the_remedy() -> None:
    code = (
        "import sys; sys.modules['faiss'] = None\n"
        "from index.base import BadSettings, IndexSettings\n"
        "from index.factory import make_index\n"
        "make_index(IndexSettings(kind='torch'), 8)\n"
        "try:\n    make_index(IndexSettings(), 8)\n"
        "except BadSettings as error:\n    print(error)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=120
    )
    assert "attune[cpu]" in done.stdout
