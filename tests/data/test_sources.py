"""Several data sets of one training: which cases train and validate, and what they are called."""

from __future__ import annotations

from pathlib import Path

from maskmed_zoo.data.sources import open_sources
from tests.conftest import make_dataset, refusal


def test_folds_and_whole_data_sets(dataset: Path, partial: Path) -> None:
    (one,) = open_sources(dataset)
    assert (one.title, one.splits(1)) == ("Boxes", one.dataset.splits(1))
    first, second = open_sources([str(dataset), f"{partial}@all"])
    assert first == one
    assert (second.title, second.prefix) == ("Partial@all", "")
    assert second.splits(99) == (second.dataset.cases, ())
    assert open_sources(Path(dataset)) == open_sources([dataset]) == (one,)
    odd = make_dataset(dataset.with_name("odd@all"))
    assert not open_sources(odd)[0].is_whole


def test_cases_of_one_name_are_told_apart(dataset: Path, partial: Path, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "Other", cases=2)
    sources = open_sources([dataset, partial, other])
    names = [[source.name_of(case) for case in source.dataset.cases] for source in sources]
    assert names[0] == [f"case_0{i}" for i in range(4)]
    assert names[1] == [f"part_0{i}" for i in range(3)]
    assert names[2] == ["Other_case_00", "Other_case_01"]
    same = make_dataset(tmp_path / "elsewhere" / "Other", cases=2)
    assert "an earlier data set has a case 'Other_case_00' too" in refusal(open_sources, [dataset, other, same])


def test_refusals(dataset: Path, partial: Path, tmp_path: Path) -> None:
    assert "given twice" in refusal(open_sources, [dataset, partial / ".." / dataset.name])
    assert "no data set validates" in refusal(open_sources, f"{dataset}@all")
    assert "no data set validates" in refusal(open_sources, [])
    assert "nowhere: no such folder" in refusal(open_sources, [dataset, f"{tmp_path / 'nowhere'}@all"])


def test_record_says_how_a_data_set_takes_part(dataset: Path, partial: Path) -> None:
    complete, some = open_sources([dataset, f"{partial}@all"])
    assert complete.record(complete.dataset.cases) == {
        "name": "Boxes",
        "cases": "fold",
        "prefix": "",
        "labels": {"background": 0, "left": 1, "right": 2},
        "annotated": {},
    }
    record = some.record(some.dataset.cases[:2])
    assert (record["cases"], record["annotated"]) == (
        "all",
        {"part_00": ["left", "right"], "part_01": ["right", "third"]},
    )
