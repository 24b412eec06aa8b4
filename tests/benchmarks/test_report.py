"""Reports from small made-up runs."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report.__main__ import main
from benchmarks.report.markdown import escape, markdown
from benchmarks.report.page import page
from benchmarks.report.sections import Section, headings, names_of, sections_of
from benchmarks.report.tables import Table, overview_table, shift_table, summary_table
from benchmarks.runs import FORMAT, Run

RECALL = {
    ("source", "clean"): 80.0,
    ("source", "fog:5"): 20.0,
    ("source", "snow:5"): 40.0,
    ("tcr", "clean"): 79.8,
    ("tcr", "fog:5"): 30.0,
    ("tcr", "snow:5"): 39.0,
}
HOSTILE = "<script>alert(1)</script>"


def stream(method: str, shift: str, **more: Any) -> dict[str, Any]:
    recall = RECALL.get((method, shift), 50.0)
    batch = {"size": 4, "recall": {"r1": recall}, "drift": {"modality_gap": 0.4, "uniformity": 0.9}}
    return {
        "direction": "i2t",
        "seed": 0,
        "shift": shift,
        "method": method,
        "queries": 8,
        "metrics": {"r1": recall, "r5": 90.0, "r10": 95.0, "map": recall + 1},
        "ms_per_batch": 10.0 if method == "source" else 65.0,
        "statuses": {"skipped" if method == "source" else "applied": 2},
        "batches": [batch, batch],
        **more,
    }


def document(**more: Any) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "protocol": "online",
        "made_at": "2026-01-02T03:04:05+00:00",
        "encoder": {"name": "toy", "fingerprint": "f", "dtype": "fp32"},
        "data": {"name": "scenes", "split": "test", "digest": "d"},
        "settings": {"batch": 64, "limit": None},
        "methods": {"source": {}, "tcr": {"steps": 3}},
        "asked": {
            "seeds": [0],
            "shifts": ["clean", "fog:5", "snow:5", "OCR:7"],
            "methods": ["source", "tcr"],
        },
        "results": [stream(method, shift) for method, shift in RECALL],
        **more,
    }


def sections(*documents: dict[str, Any]) -> list[Section]:
    return sections_of([Run.model_validate(one) for one in documents])


def lines(table: Table) -> dict[str, list[str]]:
    return {line.label: [cell.text for cell in line.cells] for line in table.lines}


def test_a_table_has_the_papers_layout_with_mean_clean_and_cost() -> None:
    (section,) = sections(document())
    table = shift_table(section)
    assert table.title == "R@1 in percent, severity 5"
    assert list(table.headings) == ["Fog", "Snow", "Avg.", "Clean", "Cost"]
    assert lines(table) == {
        "source": ["20.0", "40.0", "30.0", "80.0", "1.0x"],
        "tcr": ["30.0", "39.0", "34.5", "79.8", "6.5x"],
    }
    source, tcr = table.lines
    assert [cell.best for cell in source.cells] == [False, True, False, True, False]
    assert [cell.best for cell in tcr.cells] == [True, False, True, False, False]
    assert tcr.cells[2].gain == pytest.approx(4.5)


def test_a_method_that_lacks_a_shift_has_no_mean() -> None:
    results = [stream(method, shift) for method, shift in RECALL if (method, shift) != ("tcr", "snow:5")]
    (section,) = sections(document(results=results))
    assert lines(shift_table(section))["tcr"] == ["30.0", "-", "-", "79.8", "6.5x"]
    assert section.missing == 1
    assert "Not finished: 1 streams" in markdown([section], {})


def test_seeds_are_averaged_before_and_their_spread_is_shown() -> None:
    other = [{**stream(*key), "seed": 1, "metrics": {"r1": RECALL[key] + 2}} for key in RECALL]
    (section,) = sections(document(results=[*document()["results"], *other]))
    # 34.5 and 36.5: mean 35.5, standard deviation of two values 2 apart sqrt(2).
    assert lines(shift_table(section))["tcr"] == ["31.0", "40.0", "35.5 ±1.4", "80.8 ±1.4", "6.5x"]


def test_cost_is_measured_within_a_run_only() -> None:
    faster = document(
        results=[stream("source", "fog:5", ms_per_batch=1.0)], methods={"source": {}}, made_at="later"
    )
    alone = document(results=[stream("tcr", "fog:5")], methods={"tcr": {"steps": 3}})
    (section,) = sections(faster, alone)
    assert lines(shift_table(section)) == {"source": ["20.0", "1.0x"], "tcr": ["30.0", "-"]}


def test_the_same_method_with_other_settings_is_a_row_of_its_own() -> None:
    again = document(methods={"tcr": {"steps": 1}}, results=[stream("tcr", "fog:5"), stream("tcr", "snow:5")])
    (section,) = sections(document(), again)
    assert [row.label for row in section.rows.values()] == ["source", "tcr steps=3", "tcr steps=1"]


def test_a_later_run_replaces_the_same_stream() -> None:
    later = document(results=[stream("tcr", "fog:5", metrics={"r1": 33.0})])
    (section,) = sections(document(), later)
    assert lines(shift_table(section))["tcr"][0] == "33.0"


def test_protocols_directions_batches_and_data_stand_apart() -> None:
    found = sections(
        document(protocol="made_up"),
        document(protocol="tiny", settings={"batch": 4, "limit": None}),
        document(protocol="tiny", settings={"batch": 1, "limit": None}),
        document(results=[*document()["results"], stream("source", "OCR:7", direction="t2i")]),
        document(data={"name": "photos", "digest": "e"}),
    )
    assert names_of(found) == [
        "One shift a stream, image to text, scenes test, batch 64",
        "One shift a stream, text to image, scenes test, batch 64",
        "One shift a stream, image to text, photos, batch 64",
        "Tiny batches, image to text, scenes test, batch 4",
        "Tiny batches, image to text, scenes test, batch 1",
        "Made up, image to text, scenes test, batch 64",
    ]
    assert lines(overview_table(found))[names_of(found)[0]] == ["30.0", "34.5"]


def test_clean_queries_alone_are_their_own_headline() -> None:
    results = [stream("source", "clean"), stream("tcr", "clean")]
    (section,) = sections(document(protocol="long_clean", results=results))
    assert lines(shift_table(section)) == {"source": ["80.0", "1.0x"], "tcr": ["79.8", "6.5x"]}
    assert summary_table(section).headings[0] == "clean R@1"
    assert lines(overview_table([section])) == {"Long and clean, image to text": ["80.0", "79.8"]}


def test_what_all_shifts_share_is_said_once() -> None:
    assert headings(["mm:fog:3", "mm:jpeg_compression:3"]) == (
        {"mm:fog:3": "Fog", "mm:jpeg_compression:3": "JPEG"},
        "severity 3, in the style of COCO-C",
    )
    assert headings(["fog:3", "mm:fog:5", "odd"]) == (
        {"fog:3": "Fog 3", "mm:fog:5": "mm Fog 5", "odd": "odd"},
        "",
    )


def coco(shift: str, **more: Any) -> dict[str, Any]:
    return document(
        encoder={"name": "Salesforce/blip-itm-base-coco", "fingerprint": "f"},
        data={"name": "coco", "split": "test", "digest": "d"},
        results=[stream("source", shift), stream("tcr", shift)],
        **more,
    )


@pytest.mark.parametrize(
    ("shift", "more"),
    [("mm:fog:5", {}), ("fog:5", {"settings": {"batch": 64, "limit": None, "corrupted_on_disk": True}})],
)
def test_published_numbers_stand_beside_ours_where_the_setting_is_the_same(
    shift: str, more: dict[str, Any]
) -> None:
    (section,) = sections(coco(shift, **more))
    table = shift_table(section)
    assert [line.label for line in table.lines] == ["source", "source, published", "tcr", "tcr, published"]
    assert lines(table)["source, published"] == ["57.0", ""]
    assert lines(table)["tcr, published"] == ["71.0", ""]
    assert "ICLR 2025" in table.note
    assert not any(cell.best for line in table.lines if line.published for cell in line.cells)
    assert len(shift_table(section, "r5").lines) == 2


@pytest.mark.parametrize(
    "other",
    [
        coco("fog:5"),
        coco("mm:fog:3"),
        coco("mm:fog:5", settings={"batch": 64, "limit": 100}),
        coco("mm:fog:5", settings={"batch": 16, "limit": None}),
        coco("mm:fog:5", protocol="continual"),
        coco("mm:fog:5", gallery={"name": "other", "digest": "g"}),
        {**coco("mm:fog:5"), "encoder": {"name": "blip-itm-large-flickr", "fingerprint": "f"}},
        {**coco("mm:fog:5"), "data": {"name": "flickr8k", "split": "test", "digest": "d"}},
    ],
)
def test_published_numbers_of_another_setting_are_left_out(other: dict[str, Any]) -> None:
    (section,) = sections(other)
    assert [line.label for line in shift_table(section).lines] == ["source", "tcr"]


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        self.attributes += attrs


def hostile() -> dict[str, Any]:
    """Every text that a run can bring holds markup."""
    made = document(
        protocol=HOSTILE,
        made_at=f"2026 {HOSTILE}",
        encoder={"name": HOSTILE, "fingerprint": HOSTILE, "dtype": HOSTILE},
        data={"name": HOSTILE, "split": '" onload="alert(1)', "digest": "d"},
        methods={HOSTILE: {"$\\frac": HOSTILE}},
        settings={HOSTILE: HOSTILE, "batch": HOSTILE},
        machine={"gpu": HOSTILE},
    )
    made["results"] = [
        stream(method, shift, direction=HOSTILE, variant="`|[x](javascript:y)", statuses={HOSTILE: 1})
        for method in ("source", HOSTILE, "$\\frac{")
        for shift in (HOSTILE, "$x:5")
    ]
    return made


def test_what_a_run_says_is_text_on_the_page() -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.report.plots import plots_of

    found = sections(hostile(), document())
    text = page(found, {number: plots_of(section) for number, section in enumerate(found)})
    tags = Tags(text)
    assert tags.found.count("script") == 1
    assert {"svg", "table"} <= set(tags.found)
    assert not {"img", "iframe", "link", "object"} & set(tags.found)
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    links = {value for name, value in tags.attributes if name in ("href", "src")}
    assert all(str(link).startswith("#") for link in links)


def test_what_a_run_says_is_text_in_markdown() -> None:
    text = markdown(sections(hostile()), {})
    assert not re.search(r"(?<!\\)<", text)
    assert not re.search(r"(?<!\\)\[x", text)
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("| ")}
    assert len(columns) == 2
    assert escape("a\nb|c") == "a b\\|c"


def run_files(folder: Path, *documents: dict[str, Any]) -> list[str]:
    paths = [folder / f"{number}.json" for number in range(len(documents))]
    for path, one in zip(paths, documents, strict=True):
        path.write_text(json.dumps(one))
    return [str(path) for path in paths]


def test_the_command_writes_markdown_a_page_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "deep" / "out"
    paths = run_files(tmp_path, document(), document(protocol="continual"))
    assert main([*paths, "--out", str(out)]) == 0
    assert str(out / "index.html") in capsys.readouterr().out
    pictures = sorted(path.name for path in out.glob("*.png"))
    kinds = ("bars", "cost", "drift", "stream", "streams")
    assert pictures == [f"{number}_{kind}.png" for number in ("01", "02") for kind in kinds]
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    text = (out / "report.md").read_text()
    assert "| tcr | **30.0** | 39.0 | **34.5** | 79.8 | 6.5x |" in text
    assert "## Continual, image to text" in text
    assert all(f"({name})" in text for name in pictures)
    html = (out / "index.html").read_text()
    assert html.count("<svg") == len(pictures)
    assert "var(--tcr)" in html
    assert "ef7" not in "".join(re.findall(r"#[0-9a-f]{6}\b", html.split("</style>", 1)[1]))


def test_a_run_without_batches_still_has_its_tables(tmp_path: Path) -> None:
    results = [stream(*key, batches=[], ms_per_batch=None) for key in RECALL]
    out = tmp_path / "out"
    assert main([*run_files(tmp_path, document(results=results)), "--out", str(out)]) == 0
    assert "| tcr | **30.0** |" in (out / "report.md").read_text()
    assert {path.name for path in out.glob("*.png")} <= {"01_bars.png"}


def test_without_matplotlib_the_tables_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    out = tmp_path / "out"
    assert main([*run_files(tmp_path, document()), "--out", str(out)]) == 0
    assert "matplotlib" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == ["index.html", "report.md"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ('{"format": "attune-retrieval/1"}', "encoder: Field required"),
        (json.dumps(document(results=[])), "hold no stream yet"),
    ],
)
def test_a_file_that_is_no_run_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path, out = tmp_path / "run.json", tmp_path / "out"
    path.write_text(text)
    assert main([str(path), "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
