"""Label maps of image files: which files are written where, which are finished, and what stays as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from maskmed_zoo import files
from maskmed_zoo.arguments import INTEGER, expect_several
from maskmed_zoo.data.case import Case
from maskmed_zoo.data.formats import DEFAULT, ending_of, written_endings
from maskmed_zoo.data.inputs import input_cases
from maskmed_zoo.data.predicted import Form, PredictedFolder, files_of
from maskmed_zoo.errors import ArgumentError, DataError
from maskmed_zoo.inference.pipeline import Image, Job, Steps, Work, work_through
from maskmed_zoo.inference.predictor import Predictor
from maskmed_zoo.inference.write import Prediction, check_targets, clear_abandoned, is_finished, write_prediction
from maskmed_zoo.memory import within_memory


class Predicting:
    """The cases of the inputs and their label maps, as `Predictor.files` takes them; making one checks them all."""

    def __init__(
        self,
        predictor: Predictor,
        inputs: str | Path | Sequence[str | Path],
        out: str | Path,
        *,
        overwrite: bool = False,
        probabilities: bool = False,
        npz: bool = False,
        part: tuple[int, int] = (1, 1),
    ) -> None:
        number, parts = _checked_part(part)
        given = [inputs] if isinstance(inputs, str | Path) else [*inputs]
        if not all(isinstance(path, str | Path) for path in given):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ArgumentError("inputs: expected paths of images or folders of them; for arrays there is segment()")
        cases = input_cases([files.usable(Path(path), DataError) for path in given], predictor.channels)
        if not cases:
            raise ArgumentError("no inputs: give image files, or folders of them")
        forms: list[Form] = [*(["nifti"] if probabilities else []), *(["npz"] if npz else [])]
        has_instances = predictor.recipe.data.instances is not None
        self.predictor, self.overwrite, self.forms = predictor, overwrite, forms
        self.made_of: dict[str, Any] = {"settings": predictor.settings, "probabilities": forms}
        self.kinds: dict[str, Any] = self.made_of | {"with_instances": has_instances}
        jobs = [Job(*pair) for pair in zip(cases, _targets(files.usable(Path(out)), cases), strict=True)]
        _refuse_clashes(jobs, with_instances=has_instances, probabilities=forms)
        self.jobs = jobs[number - 1 :: parts]
        self.folder = jobs[0].target.parent
        self.others = f"the others are in {self.folder}"
        targets = [job.target for job in self.jobs]
        check_targets(targets, predictor.weights_sha256, overwrite=overwrite, **self.kinds)

    def run(self, progress: Callable[[int, int], None] | None = None, *, rank: int = 0, size: int = 1) -> Work:
        """Segment them, or every `size`-th from `rank` on; what cannot be used is in `failures`."""
        jobs = self.jobs[rank::size]
        work = Work(len(jobs), progress or (lambda *_: None))
        was_there = self.folder.exists()
        clear_abandoned(self.folder)
        record = PredictedFolder(self.folder)
        left = [job for job in jobs if self.overwrite or not self._is_finished(record, job)]
        for _ in range(len(jobs) - len(left)):
            work.settle()
        if left:
            files.make_folder(self.folder)
        before = {job.target: _identity(job.target) for job in left if job.target.exists()}

        def is_done(job: Job) -> bool:  # by another process, since
            is_new = job.target.exists() and before.get(job.target) != _identity(job.target)
            is_candidate = is_new or not self.overwrite
            return is_candidate and self._is_finished(PredictedFolder(self.folder), job)

        try:
            work_through(left, Steps(is_done, self._computed, self._write), work)
        finally:
            if left and not was_there:
                with suppress(OSError):
                    self.folder.rmdir()  # where nothing came of it
        return work

    def _is_finished(self, record: PredictedFolder, job: Job) -> bool:
        return is_finished(record, job.target, self.predictor.weights_sha256, **self.kinds)

    def _computed(self, image: Image) -> Prediction:
        return self.predictor.segment(*image, probabilities=bool(self.forms))

    def _write(self, job: Job, prediction: Prediction) -> None:
        predictor = self.predictor
        with within_memory(f"case '{job.case.identifier}'"):
            write_prediction(
                job.target,
                prediction,
                predictor.labels,
                predictor.weights_sha256,
                overwrite=self.overwrite,
                **self.made_of,
            )


def _checked_part(part: tuple[int, int]) -> tuple[int, int]:
    expect_several("part", part, INTEGER, "(i, n), the i-th of n shares", length=2)
    if not 1 <= part[0] <= part[1]:
        raise ArgumentError(f"part: expected (i, n) with 1 <= i <= n, the i-th of n shares, got {tuple(part)}")
    return part


def _targets(out: Path, cases: Sequence[Case]) -> list[Path]:
    """The label map to write for each case: `out` itself for one case, or in the folder `out`."""
    out = out.resolve() if ".." in out.parts else out  # below a folder that is not there yet, no path is seen as it is
    is_folder, endings = out.is_dir(), written_endings()
    single = ending_of(out, endings) is not None and not is_folder
    if ending_of(out) and not single and not is_folder:
        raise DataError(
            f"{out}: label maps are written as {' or '.join(endings)}; give such a name "
            f"({out.name.removesuffix(ending_of(out) or '')}{DEFAULT}), or a folder"
        )
    if single and len(cases) != 1:
        raise DataError(f"{out}: one output file for {len(cases)} inputs; give a folder")
    if not single and out.exists() and not is_folder:
        raise DataError(f"{out}: is a file; give a folder, or a name ending in {DEFAULT} for one input")
    return [out] if single else [out / f"{case.identifier}{DEFAULT}" for case in cases]


def _refuse_clashes(jobs: Sequence[Job], **kinds: Any) -> None:
    """Raise `DataError` if two cases share a file to write, or one is an image to read, under whatever name."""
    outputs = [path for job in jobs for path in files_of(job.target, **kinds)]
    images = {_identity(path) for job in jobs for path in job.case.images}
    for path in outputs:
        if path.exists() and _identity(path) in images:
            raise DataError(f"{path}: is an input, a prediction never replaces one; give another output")
    twice = next((path for path, count in Counter(outputs).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{twice}: two inputs would be written to the same file; predict them into different folders")


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
