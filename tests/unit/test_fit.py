"""Any folder of images: what a study needs of it, what fits, and whose description is shown."""

from __future__ import annotations

import pytest

from harness.errors import DataError, SpecError
from harness.scoring.protocol import make_protocol
from harness.spec.files import described_elsewhere, load_study_file, parse_study
from harness.spec.fit import few_images, require_images, with_all_images
from harness.spec.resolved import with_stored_choices
from tests.conftest import ROOT, TINY_STUDY

PHOTOS = ("photos32", "photos64")


def refusal(study, n, n_held_out=0):
    with pytest.raises(DataError) as caught:
        require_images(study, n, n_held_out)
    return caught.value


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("n", [50, 301, 12_000])
def test_photos_fit_any_folder_of_fifty_images(name, n):
    for study in (load_study_file(name), load_study_file(name).quickened()):
        require_images(study, n, 0)
        counted, said = with_all_images(study, n, 0)
        assert {counted.scoring.final.n_reference, counted.scoring.rung.n_reference} == {min(n, 10_000)}
        whole = f"all {n:,}" if n <= 10_000 else "10,000 of 12,000"
        assert said == [f"{kind} scores compare with {whole} images" for kind in ("final", "rung")]


def test_forty_nine_are_refused_and_every_reason_is_named():
    error = refusal(load_study_file("photos32"), 49)
    assert error.problem.splitlines() == [
        "49 usable images are too few for study photos32:",
        '  scoring.final.reference is "all", for which 50 images are needed; there are 49',
        '  scoring.rung.reference is "all", for which 50 images are needed; there are 49',
    ]
    assert "A DCGAN needs at least 50 images" in error.hint


def test_all_that_does_not_fit_is_named_at_once_with_values_and_flags():
    error = refusal(load_study_file("celeba32_small"), 100)
    assert error.problem.splitlines() == [
        "100 usable images are too few for study celeba32_small:",
        "  space.batch_size reaches 128: at most 100",
        '  scoring.final.reference is 500 images: at most 100, or "all"',
        '  scoring.rung.reference is 500 images: at most 100, or "all"',
    ]
    assert "QUICK" not in error.hint, "its batches are as large"
    error = refusal(load_study_file("celeba32_small"), 301)
    assert error.hint.startswith(
        "--quick (QUICK=1) fits. photos32 and photos64 fit any 50 images or more; `harness new"
    )


def test_held_out_images_are_counted_on_their_own():
    text = TINY_STUDY.replace("channels = 1", "channels = 1\nheld_out = 0.2").replace(
        "reference = 24", 'reference = "all"\nsplit = "held_out"', 1
    )
    study = parse_study("held", text, shown_as="held")
    error = refusal(study, 200, 40)
    assert 'scoring.final.reference is "all", for which 50 held-out images are needed; there are 40' in error.problem
    counted, said = with_all_images(study, 200, 60)
    assert counted.scoring.final.reference == 60
    assert said == ["final scores compare with all 60 held-out images"]


def test_all_is_a_number_in_the_study_and_in_its_protocol():
    """What was started keeps its number, and its file with "all" has not drifted from it."""
    study = load_study_file("photos32")
    counted, _ = with_all_images(study, 301, 0)
    assert counted.spec_hash != study.spec_hash
    assert with_stored_choices(study, counted.identity()).identity() == counted.identity()
    protocol = make_protocol(
        counted.scoring.final, weights_sha256="", fingerprint="", split_rule="", resize="", versions={}
    )
    assert (protocol.reference_images, protocol.kid_subset_size) == (301, 301)


@pytest.mark.parametrize("value", ['"some"', "10", "3.5", "true"])
def test_reference_is_a_number_or_all(value):
    text = TINY_STUDY.replace("reference = 24", f"reference = {value}", 1)
    with pytest.raises(SpecError, match="scoring.final.reference: found"):
        parse_study("wrong", text, shown_as="wrong")


def test_few_images_are_said_with_what_helps():
    assert "diffaugment" not in few_images(load_study_file("photos32"), 301), "searched"
    assert 'diffaugment = "color,translation,cutout" in [fixed] helps' in few_images(load_study_file("mnist32"), 301)
    assert few_images(load_study_file("mnist32"), 1000) == ""


def test_a_description_is_never_that_of_other_images():
    text = (ROOT / "search_spaces" / "celeba32_small.toml").read_text()
    copied = parse_study("photos", text.replace('source = "celeba"', 'source = "folder"'), shown_as="photos")
    assert described_elsewhere(copied) == "celeba32_small"
    assert described_elsewhere(load_study_file("celeba32_small").quickened()) == "celeba32_small-quick"
    for name in PHOTOS:
        assert described_elsewhere(load_study_file(name)) == ""
    mine = parse_study("mine", (ROOT / "search_spaces" / "photos32.toml").read_text(), shown_as="mine")
    assert described_elsewhere(mine) == "", "photographs of your own are what they are"
