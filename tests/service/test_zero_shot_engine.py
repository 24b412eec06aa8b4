"""Classification by labels given as texts: the dual encoder, adapted with the retrieval methods."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import torch

from service.batches.labels import LabelSide, LabelSides, sentence
from service.engine import Engine, running_engine
from service.errors import BadRequest, Conflict, ServiceError
from service.messages import ClassifyAnswer, ClassifyRequest, Sample
from service.settings import Settings
from tests.service.test_engine import settled_version
from tests.toy import ToyEncoder, picture, sound
from tests.toy import sentence as words

pytestmark = pytest.mark.anyio

LABELS = ("cat", "dog on a boat", "river", "stone house", "bird")
TEMPLATE = "a photo of {}"


def pictures(count: int, start: int = 0) -> tuple[Sample, ...]:
    return tuple(Sample(pixels=picture(start + n)) for n in range(count))


@pytest.fixture
async def engine(settings: Callable[..., Settings]) -> AsyncIterator[Engine]:
    async with running_engine(settings(), encoder=ToyEncoder()) as running:
        yield running


async def classify(engine: Engine, samples: tuple[Sample, ...], **more: Any) -> ClassifyAnswer:
    asked: dict[str, Any] = {"labels": LABELS, "template": TEMPLATE, "top": 5, **more}
    return await engine.classify(ClassifyRequest(samples=samples, **asked))


def rows(answer: ClassifyAnswer) -> torch.Tensor:
    """[B, C] in the label list's order."""
    table = [{score.index: score.probability for score in sample.labels} for sample in answer.samples]
    return torch.tensor([[row[index] for index in range(len(row))] for row in table])


def expected(
    samples: tuple[Sample, ...], parameters: dict[str, torch.Tensor] | None = None, labels: Any = LABELS
) -> torch.Tensor:
    encoder = ToyEncoder()
    text, image = encoder.towers["text"], encoder.towers["image"]
    sides = text.encode(text.prepare([TEMPLATE.replace("{}", label) for label in labels]))
    features = image.encode(image.prepare([sample.pixels for sample in samples]), parameters)
    return (features @ sides.T / encoder.temperature).softmax(-1)


def gallery(labels: Any = LABELS, template: str = TEMPLATE) -> str:
    digest = hashlib.sha256(json.dumps([template, list(labels)]).encode()).hexdigest()
    return f"labels:{digest[:24]}"


async def test_probabilities_are_a_softmax_over_all_labels(engine: Engine) -> None:
    samples = pictures(4)
    answer = await classify(engine, samples, adapt="off")
    torch.testing.assert_close(rows(answer), expected(samples))
    assert (answer.model, answer.parts[0].adaptation.direction) == ("toy", "image->text")
    cut = await classify(engine, samples, adapt="off", top=1)
    assert [sample.labels[0] for sample in cut.samples] == [sample.labels[0] for sample in answer.samples]
    assert cut.samples[0].missing == ()


async def test_texts_are_classified_too(engine: Engine) -> None:
    samples = tuple(Sample(text=label) for label in LABELS)
    answer = await classify(engine, samples, adapt="off", template="{}", top=1)
    assert [sample.labels[0].label for sample in answer.samples] == list(LABELS)
    mixed = await classify(engine, (samples[0], *pictures(1)), adapt="off")
    assert [part.adaptation.direction for part in mixed.parts] == ["text->text", "image->text"]


async def test_sync_adapts_with_the_retrieval_method(engine: Engine) -> None:
    await classify(engine, pictures(16), adapt="sync", stream="s")
    described = await settled_version(engine, "s", 1)
    (track,) = described["tracks"]
    assert (track["gallery"], track["direction"], track["applied"]) == (gallery(), "image->text", 1)
    state = engine._backend.streams.find("s").tracks[f"{gallery()}/image->text"].state
    assert state.method == "tcr"
    answer = await classify(engine, pictures(2, 50), adapt="async", stream="s")
    torch.testing.assert_close(rows(answer), expected(pictures(2, 50), state.parameters))
    assert not torch.allclose(rows(answer), expected(pictures(2, 50)))


async def test_gathered_samples_adapt_to_their_own_labels(engine: Engine) -> None:
    others = (*LABELS, "cloud")
    await asyncio.gather(
        classify(engine, pictures(16), adapt="async", stream="s"),
        classify(engine, pictures(16), adapt="async", stream="s", labels=others),
    )
    described = await settled_version(engine, "s", 2)
    assert {track["gallery"]: track["applied"] for track in described["tracks"]} == {
        gallery(): 1,
        gallery(others): 1,
    }


async def test_another_set_template_or_order_of_labels_has_a_track_of_its_own(engine: Engine) -> None:
    changes: list[dict[str, Any]] = [{}, {"labels": LABELS[::-1]}, {"labels": LABELS[:4]}, {"template": "{}"}]
    for change in changes:
        await classify(engine, pictures(1), adapt="async", stream="s", **change)
    described = await engine.describe_stream("s")
    assert len({track["gallery"] for track in described["tracks"]}) == 4


async def test_a_stream_adapts_to_sixteen_label_sets(engine: Engine) -> None:
    for number in range(16):
        await classify(engine, pictures(1), adapt="async", stream="s", labels=("cat", f"dog {number}"))
    with pytest.raises(Conflict) as refusal:
        await classify(engine, pictures(1), adapt="async", stream="s", labels=("cat", "one more"))
    assert refusal.value.code == "too_many_label_sets"
    assert len((await engine.describe_stream("s"))["tracks"]) == 16
    # Both directions of a known set, the source model, and other streams go on.
    known = ("cat", "dog 3")
    await classify(engine, (Sample(text="x"),), adapt="async", stream="s", labels=known)
    await classify(engine, pictures(1), adapt="off", stream="s", labels=("cat", "one more"))
    await classify(engine, pictures(1), adapt="async", stream="t", labels=("cat", "one more"))


async def test_the_guard_watches_label_tracks(settings: Callable[..., Settings]) -> None:
    async with running_engine(settings(guard={"policy": "warn"}), encoder=ToyEncoder()) as engine:
        await classify(engine, pictures(16), adapt="sync")
        (track,) = (await settled_version(engine, "default", 1))["tracks"]
        assert (track["guard"]["policy"], track["guard"]["batches"]) == ("warn", 1)


async def test_states_on_labels_survive_a_restart(settings: Callable[..., Settings]) -> None:
    async with running_engine(settings(), encoder=ToyEncoder()) as engine:
        await classify(engine, pictures(16), adapt="sync", stream="s")
        await settled_version(engine, "s", 1)
        learned = await classify(engine, pictures(2), adapt="async", stream="s")
    async with running_engine(settings(), encoder=ToyEncoder()) as engine:
        assert torch.equal(
            rows(await classify(engine, pictures(2), adapt="async", stream="s")), rows(learned)
        )


@pytest.mark.parametrize(
    ("samples", "changes", "code"),
    [
        ((Sample(fbank=sound(0)),), {}, "unsupported_modality"),
        ((Sample(fbank=sound(0), pixels=picture(0)),), {}, "unsupported_modality"),
        ((Sample(),), {}, "bad_sample"),
        ((Sample(text="x", pixels=picture(0)),), {}, "bad_sample"),
        ((Sample(pixels=picture(0)[:, :2]),), {}, "bad_sample"),
        (pictures(1), {"labels": ()}, "bad_labels"),
        (pictures(1), {"labels": ("cat", "cat")}, "bad_labels"),
        (pictures(1), {"labels": ("cat", " ")}, "bad_labels"),
        (pictures(1), {"template": "no place"}, "bad_labels"),
        (pictures(1), {"top": 0}, "bad_request"),
    ],
)
async def test_bad_input_changes_nothing(
    engine: Engine, samples: tuple[Sample, ...], changes: dict[str, Any], code: str
) -> None:
    with pytest.raises(ServiceError) as refusal:
        await classify(engine, samples, **changes)
    assert refusal.value.code == code
    assert await engine.list_streams() == []


async def test_a_stream_name_is_checked(engine: Engine) -> None:
    with pytest.raises(BadRequest):
        await classify(engine, pictures(1), stream="../up")


def test_a_template_cannot_reach_into_objects() -> None:
    assert sentence("{0.__class__} {} {}", "cat") == "{0.__class__} cat cat"


def encoded(sides: LabelSides, labels: Any) -> LabelSide:
    slices = sides.encode("{}", labels)
    while True:
        try:
            next(slices)
        except StopIteration as ended:
            return ended.value


def test_label_texts_are_encoded_once_and_the_longest_unused_leave() -> None:
    encoder = ToyEncoder()
    tower = encoder.towers["text"]
    sides = LabelSides(encoder, batch_size=2)  # type: ignore[arg-type]
    first = encoded(sides, LABELS)
    assert tower.forwards == 3
    assert sides.holds("{}", LABELS)
    assert encoded(sides, list(LABELS)) is first
    for number in range(32):
        encoded(sides, (words(number),))
    assert tower.forwards == 35
    assert not sides.holds("{}", LABELS)
    assert encoded(sides, LABELS) is not first


async def test_while_many_labels_are_encoded_others_are_answered_and_none_of_the_stream_overtakes(
    settings: Callable[..., Settings],
) -> None:
    encoder, gate, order = ToyEncoder(), threading.Semaphore(0), list[str]()
    tower, many = encoder.towers["text"], tuple(f"label {words(n)} {n}" for n in range(40))
    encode = tower.encode

    def gated(*arguments: Any) -> torch.Tensor:
        assert gate.acquire(timeout=30)
        return encode(*arguments)

    async with running_engine(settings(), encoder=encoder) as engine:
        await classify(engine, pictures(1), adapt="off")  # these labels are held now
        tower.encode = gated  # type: ignore[method-assign]

        async def ask(name: str, **about: Any) -> None:
            await classify(engine, pictures(2), **about)
            order.append(name)

        big = asyncio.create_task(ask("big", stream="s", adapt="async", labels=many))
        await asyncio.sleep(0)
        later = asyncio.create_task(ask("later", stream="s", adapt="async"))
        other = asyncio.create_task(ask("other", stream="t", adapt="async"))
        while engine._submitter.depth() < 4:  # both wait, behind the first slice
            await asyncio.sleep(0.001)
        gate.release()  # one slice of three
        await asyncio.wait_for(other, 30)
        assert order == ["other"]
        gate.release(2)
        await asyncio.wait_for(asyncio.gather(big, later), 30)
        assert order == ["other", "big", "later"]
        assert await asyncio.wait_for(classify(engine, pictures(3), stream="s", labels=many), 30)
