from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.errors import SpecError
from harness.findings.headline import headline
from harness.findings.ranking import rank, rung_scores
from harness.gan.hparams import HParams
from harness.report.study import build_report, study_context
from harness.spec.files import load_best, load_study_file
from harness.spec.resolved import with_budget
from harness.spec.study import BudgetSpec, PrunerSpec
from harness.store.records import StudyAttrs, StudyRecord, TrialAttrs, TrialRecord
from harness.text import heading, metric_label
from tests.conftest import ROOT

# A budget of its own: what the default study takes may change.
_FILE = load_study_file("mnist32")
SPEC = with_budget(
    _FILE.model_copy(
        update={
            "pruner": PrunerSpec(name="percentile"),
            "budget": BudgetSpec(trials=10, kimg=54, rungs=(12, 24)),
        }
    ),
    quick=False, trials=None, kimg=27.0,
)  # fmt: skip
START = datetime(2026, 1, 1)


def trial(number: int, state: str = "COMPLETE", value: float | None = None, **changes) -> TrialRecord:
    params = {"lr_g": 1e-3, "bn": ["paper", "all"][number % 2], "activation_g": ["relu", "leaky_relu"][number % 3 == 0]}
    attrs = {
        "folder": f"trials/mnist32/{number:05d}",
        "hparams": SPEC.hparams({**params, "batch_size": 16}).to_dict(),
        "protocol_hash": "p1",
        "scores": {"fid500": value, "kid500": 0.1, "is_mnv2_500": 1.5},
        "unavailable": {"is500": "no head"},
        "seed": 7,
        "score_s": 3.0,
        "reason": "" if state == "COMPLETE" else f"{state} | because",
        **changes.pop("attrs", {}),
    }
    made = TrialRecord(
        number=number, state=state, value=value, params=params, intermediate={3000: 50.0 + number, 9000: 40.0 + number},
        attrs=TrialAttrs.parse(attrs), started=START, ended=START + timedelta(seconds=20 + number),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def record(*trials: TrialRecord) -> StudyRecord:
    attrs = {
        "spec": json.dumps(SPEC.identity()),
        "description": "A description.",
        "dataset": {"name": "mnist", "images": 5000, "fingerprint": "f" * 64, "source": "mnist"},
        "target": 14,
        "environment": {"device": "cpu", "version.torch": "2"},
        "final_metric": "fid500",
        "rung_metric": "fid_mnv2_250",
    }
    return StudyRecord(name="mnist32", attrs=StudyAttrs.parse(attrs), trials=trials)


FULL = record(
    trial(0, value=60.0, attrs={"preset": "paper"}),
    trial(1, value=40.25),
    trial(2, value=50.0),
    trial(3, "PRUNED", 70.0),
    trial(
        4, "PRUNED", 1e4, intermediate={3000: 60.0, 3500: 1e4}, attrs={"diverged": True, "reason": "diverged: step 9"}
    ),
    trial(5, "FAIL", attrs={"reason": "RuntimeError: a | b\nc"}),
    trial(6, "WAITING", intermediate={}, started=None, ended=None),
)
FULL = dataclasses.replace(FULL, attrs=dataclasses.replace(FULL.attrs, target=5))


def test_every_command_of_a_report_says_where_the_images_come_from_if_they_are_a_persons(tmp_path):
    spec = {**FULL.attrs.spec, "data": {**FULL.attrs.spec["data"], "source": "folder"}}
    watched = dataclasses.replace(FULL.trials[1].attrs, watched={27000: {"sample_distance": 0.9}})
    first, best, *others = FULL.trials
    trials = (first, dataclasses.replace(best, attrs=watched), *others)
    mine = dataclasses.replace(FULL, trials=trials, attrs=dataclasses.replace(FULL.attrs, spec=spec))
    text = build_report(mine, tmp_path / "runs", tmp_path / "out", {}, "PED-ANOVA").read_text()
    assert "`harness audit mnist32 --data PATH` measures what is missing." in text


def test_the_papers_settings_are_named_where_they_were_pruned(tmp_path):
    paper, *others = FULL.trials
    pruned = record(dataclasses.replace(paper, state="PRUNED", value=None), *others)
    text = build_report(pruned, tmp_path / "runs", tmp_path / "out", {}, "PED-ANOVA").read_text()
    assert "Trial 0 (paper) was pruned at 9 kimg with FID of 250 images by MobileNetV2's features = 40; " in text
    assert "= 40; trial 1 had 41 there. One training seed each" in text


MANY = record(*(
    trial(
        n, "COMPLETE" if n % 2 else "PRUNED", 40.0 + n, intermediate={3000: 50.0 + n, 9000: 40.0 + n},
        params={"lr_g": 1e-3 * (n + 1), "bn": ["paper", "all"][n % 2], "batch_size": 16, "activation_g": "relu"},
    )
    for n in range(10)
))  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for item in FULL.trials[:5]:
        folder = tmp_path / "runs" / item.attrs.folder
        folder.mkdir(parents=True)
        pixels = np.full((32, 32, 3), item.number * 20, np.uint8)
        Image.fromarray(pixels).save(folder / "grid-000027000.png")
        row = {"loss_d": 1.0, "loss_g": 2.0, "logit_real": 0.5, "logit_fake": -0.5}
        (folder / "curve.json").write_text(json.dumps([{"kimg": k, **row} for k in (1.0, 2.0)]))
    return tmp_path / "runs"


def test_same_input_same_bytes_and_all_sections(root, tmp_path):
    importances = {"lr_g": 0.7, "bn": 0.3}
    build_report(FULL, root, tmp_path / "a", importances, "PED-ANOVA")
    build_report(FULL, root, tmp_path / "b", importances, "PED-ANOVA")
    first = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert set(first) == {
        "report.md", "report.html", "report.json", "best.toml", "rungs.png", "grid-1.png", "step-1.png",
        "trial-0.png", "trial-1.png", "trial-2.png", "trial-3.png", "trial-4.png",
    }  # fmt: skip
    assert b"<p>|" not in first["report.html"], "a table that no reader of Markdown takes for one"
    text = first["report.md"].decode()
    for expected in (
        "# mnist32: which DCGAN for 5,000 images at 32 px?\n\n6 trials · ",
        "**Best, unconfirmed: trial 1 with FID of 500 images = 40.2 after 27 kimg (1,688 generator updates).**",
        "The best published one, trial 0 (paper), has 60. One training seed each",
        "trial 1: lr_g 0.001 · ",
        " · slope_d 0.2 · 27 kimg, 1,688 generator updates",
        "Next:\n\n```\nharness confirm mnist32\nharness audit mnist32\nharness generate --study mnist32 --best -n 64",
        "| 1 | 1 | 40.2 | 1.5 | 0.1 | 27 | 1,688 | 21 |",
        "| 3 | 0 (paper) | 60 |",
        "> **Small samples.** With 500 generated images",
        "| 4 | diverged | 3 | diverged: step 9 |",
        "| 5 | failed | 9 | RuntimeError: a \\| b c | 55 | – |",
        "In its original form, Inception Score of 500 images is unavailable: no head.",
        "All trials, with their parameters: 6</summary>",
        "harness train --config reports/mnist32/best.toml",
        "5 of 5 trials finished, 27 kimg each",
        "trainings in float32, rungs in float32, final scores in float32",
        "| device | cpu |",
    ):
        assert expected in text, expected
    for name in first:
        if name.endswith(".png"):
            assert f"({name})" in text, "every figure is shown"
            assert Image.open(tmp_path / "a" / name).mode in ("RGB", "RGBA")


def test_figures_have_a_light_background_of_their_own(root, tmp_path):
    for name in "ab":
        build_report(MANY, root, tmp_path / name, {"lr_g": 1.0}, "PED-ANOVA")
    assert all(path.read_bytes() == (tmp_path / "b" / path.name).read_bytes() for path in (tmp_path / "a").iterdir())
    corner = Image.open(tmp_path / "a" / "rungs.png").convert("RGBA").getpixel((1, 1))
    assert corner == (255, 255, 255, 255)
    for name in ("parameter-1", "parallel"):
        assert '<g id="patch_1">' in (drawing := (tmp_path / "a" / f"{name}.svg").read_text())
        assert "fill: #ffffff" in drawing.split('<g id="axes_1">')[0]


def scored(*scores: float) -> StudyRecord:
    """A study of finished trials with these scores, at the first rung and at the end."""
    return record(*(
        dataclasses.replace(t, value=score, intermediate={3000: score})
        for t, score in zip(MANY.trials, scores, strict=False)
    ))  # fmt: skip


@pytest.mark.parametrize(
    "study",
    [
        record(),
        scored(40.0),
        scored(40.0, 41.0, 42.0),
        record(*(trial(n, "PRUNED", 1e4, attrs={"diverged": True}) for n in range(9))),
        record(*(trial(n, "FAIL", intermediate={}) for n in range(9))),
        scored(*range(40, 49), 1e9),
        scored(*[40.0] * 10),
        scored(*[0.0] * 9, 5.0),
        scored(*np.linspace(-0.001, 0.02, 10).tolist()),
    ],
    ids=["none", "one", "three", "all diverged", "all failed", "an outlier", "equal", "zeros", "KID near zero"],
)
def test_whatever_a_study_has_its_page_is_whole(study, root, tmp_path):
    shares = {"lr_g": 0.5, "bn": 0.3, "slope_g": 0.2}
    text = build_report(study, root, tmp_path / "out", shares, "PED-ANOVA").read_text()
    page = (tmp_path / "out" / "report.html").read_text()
    drawn = {path.name for path in (tmp_path / "out").iterdir() if path.suffix in (".png", ".svg")}
    assert set(re.findall(r"\]\((\S+\.(?:png|svg))\)", text)) == drawn
    assert ("parallel.svg" in drawn) == (sum(bool(rung_scores(t)) for t in study.trials) >= 8)
    assert "<p>|" not in page and "no image" not in page
    for tag in ("details", "div", "table"):
        assert len(re.findall(f"<{tag}[ >]", page)) == page.count(f"</{tag}>")
    assert not re.search(r"\b(nan|inf|None)\b", text)


def test_trade_offs_are_drawn_from_eight_trials_on_and_an_outlier_does_not_flatten_them(root, tmp_path):
    spec = {**MANY.attrs.spec, "objectives": ["score", "seconds"]}
    several = dataclasses.replace(MANY, attrs=dataclasses.replace(MANY.attrs, spec=spec))
    for n, drawn in ((7, False), (9, True)):
        trials = [
            dataclasses.replace(t, state="COMPLETE", value=score, values=(score, 100.0 - t.number))
            for t, score in zip(MANY.trials[:n], (1e6, *range(40, 50)), strict=False)
        ]
        text = build_report(
            dataclasses.replace(several, trials=tuple(trials)), root, tmp_path / "out", {}, "x"
        ).read_text()
        assert ("![Trade-offs](tradeoff.png)" in text) == (tmp_path / "out" / "tradeoff.png").is_file() == drawn
        section = text.split("## Trade-offs")[1].split("\n## ")[0]
        assert ("the orange ones, with their numbers" in section) == drawn
        assert f"{n - 1} of {n} finished trials are on the front" in section


def test_the_best_is_seen_next_to_real_images_and_over_its_training(root, tmp_path):
    folder = root / FULL.trials[1].attrs.folder
    for step, shade in ((0, 10), (3000, 90)):
        Image.fromarray(np.full((265, 265, 3), shade, np.uint8)).save(folder / f"grid-{step:09d}.png")
    real = np.full((265, 265, 3), 200, np.uint8)
    out = tmp_path / "out"
    text = build_report(FULL, root, out, {}, "PED-ANOVA", real=real).read_text()
    assert (
        "| real images | trial 1 |\n|---|---|\n| ![Real images](real.png) | ![Samples of trial 1](grid-1.png) |" in text
    )
    steps = [
        f"| {n} | ![After {n} updates](step-{place}.png) |" for place, n in enumerate(("0", "188", "1,688"), start=1)
    ]
    assert "\n".join(steps) in text
    assert [Image.open(out / f"step-{place}.png").getpixel((0, 0))[0] for place in (1, 2, 3)] == [10, 90, 20]
    assert Image.open(out / "step-1.png").size == (265, 34), "a row of eight images with their borders"
    assert np.array_equal(np.asarray(Image.open(out / "real.png")), real)


def test_pictures_of_trials_leave_the_page_small_and_a_damaged_one_leaves_it_whole(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (521, 521, 3), dtype=np.uint8)
    many = record(*(trial(n, value=40.0 + n) for n in range(20)))
    for item in many.trials:
        folder = tmp_path / item.attrs.folder
        folder.mkdir(parents=True)
        Image.fromarray(noise).save(folder / "grid-000027000.png")
    (tmp_path / many.trials[3].attrs.folder / "grid-000027000.png").write_bytes(b"\x89PNG\r\n\x1a\n, and no more")
    text = build_report(many, tmp_path, tmp_path / "out", {}, "PED-ANOVA").read_text()
    kept = list((tmp_path / "out").glob("trial-*.png"))
    assert 8 < len(kept) < 12 and sum(path.stat().st_size for path in kept) <= 2**20
    assert f"Those of {20 - len(kept)} trials are left out to keep the page small." in text
    assert (tmp_path / "out" / "report.html").stat().st_size < 4e6, "of noise; photographs take less"
    assert "trial-3.png" not in text


def test_a_study_without_a_finished_trial_has_a_report(root, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "best.toml").write_text("# of an earlier study")
    for study in (record(), record(FULL.trials[3], FULL.trials[5])):
        path = build_report(study, root, tmp_path / "out", {}, "PED-ANOVA")
        assert "**No usable trial: none" in path.read_text()
        assert not (tmp_path / "out" / "best.toml").exists()


def test_pictures_of_an_earlier_page_are_removed_and_a_persons_own_stay(root, tmp_path):
    out = tmp_path / "out"
    build_report(FULL, root, out, {}, "PED-ANOVA")
    former = {path.name for path in out.glob("*.png")}
    (out / "mine.png").write_bytes(b"a person's")
    (out / "grid-holiday.png").write_bytes(b"a person's")
    build_report(record(), root, out, {}, "PED-ANOVA")
    assert former and {path.name for path in out.glob("*.png")} == {"mine.png", "grid-holiday.png"}


def test_a_study_of_which_only_a_recipe_has_a_rung_score_has_a_report(tmp_path):
    attrs = {"recipe": "svhn32", "variant": "as_coded", "preset": "svhn32"}
    recipe = dataclasses.replace(trial(0, value=60.0, attrs=attrs), params={})
    begun = trial(1, "RUNNING", intermediate={}, ended=None)
    build_report(record(recipe, begun), tmp_path / "runs", tmp_path / "out", {}, "PED-ANOVA")
    recipes = [dataclasses.replace(recipe, number=n) for n in range(8)]
    build_report(record(*recipes, begun), tmp_path / "runs", tmp_path / "out", {"bn": 1.0}, "PED-ANOVA")
    assert (tmp_path / "out" / "rungs.png").is_file() and not list((tmp_path / "out").glob("*.svg"))


def test_a_trial_without_files_still_has_a_report(tmp_path):
    text = build_report(FULL, tmp_path / "gone", tmp_path / "out", {}, "PED-ANOVA").read_text()
    assert "| 1 | 1 | 40.2 |" in text
    assert "grid-" not in text


def test_best_toml_is_read_back(root, tmp_path):
    build_report(FULL, root, tmp_path / "a", {}, "PED-ANOVA")
    path = tmp_path / "a" / "best.toml"
    best = load_best(path)
    assert HParams.from_params(best.hparams.params()).to_dict() == FULL.trials[1].attrs.hparams
    assert (best.training.seed, best.training.kimg) == (7, 27.0)
    with pytest.raises(SpecError, match="hparams.image_size") as caught:
        path.write_text(
            path.read_text().replace("image_size = 32", "image_size = 48").replace("seed = 7", 'seed = "a"')
        )
        load_best(path)
    assert "training.seed" in caught.value.problem
    assert best.score == {"metric": "fid500", "value": 40.25, "protocol_hash": "p1"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [(("channels = 1", "channels = 3"), "hparams.channels"), (('widths_g = "auto"', 'widths_g = "64"'), "widths_g")],
)
def test_a_best_toml_whose_networks_do_not_fit_is_refused(root, tmp_path, change, expected):
    build_report(FULL, root, tmp_path / "a", {}, "PED-ANOVA")
    path = tmp_path / "a" / "best.toml"
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(SpecError, match=expected):
        load_best(path)


def test_scores_of_other_protocols_are_not_ranked():
    other = [trial(7, value=1.0, attrs={"protocol_hash": "old"})]
    board = rank(record(*FULL.trials[:3], *other))
    assert [t.number for t in board.trials] == [1, 2, 0]
    assert (board.protocol_hash, board.left_out) == ("p1", (7,))


def test_scores_of_other_protocols_are_in_no_figure_and_no_comparison(root, tmp_path):
    old = {"protocol_hash": "old", "preset": "paper"}
    trials = [dataclasses.replace(t, attrs=dataclasses.replace(t.attrs, preset="")) for t in FULL.trials[:3]]
    mixed = record(*trials, trial(7, value=1.0, attrs=old))
    assert [row["trial"].number for row in study_context(mixed, rank(mixed))["board"]] == [1, 2, 0]
    assert "paper" not in headline(mixed).reason
    first, second, *others = MANY.trials
    second = dataclasses.replace(second, attrs=dataclasses.replace(second.attrs, protocol_hash="old"))
    build_report(record(first, second, *others), root, tmp_path / "out", {}, "x")
    drawing = (tmp_path / "out" / "parallel.svg").read_text()
    finals = [", final " in label for label in sorted(re.findall("<title>(trial .*?)</title>", drawing))]
    assert finals == [False, False, False, True, False, True, False, True, False, True]


def test_divergence_and_pruning_never_lead():
    assert [t.number for t in rank(FULL).trials] == [1, 2, 0]
    assert FULL.best is FULL.trials[1]


@pytest.mark.parametrize(
    ("name", "label", "head"),
    [
        ("fid500", "FID of 500 images", "FID"),
        ("kid10k", "KID of 10,000 images", "KID"),
        ("fid_mnv2_250", "FID of 250 images by MobileNetV2's features", "FID, MobileNetV2"),
        ("recall_inception_1k", "recall of 1,000 images by Inception's features", "recall, Inception"),
        ("fid2k_bf16", "FID of 2,000 images in bf16", "FID, bf16"),
        ("is20", "Inception Score of 20 images", "Inception Score"),
        ("something", "something", "something"),
    ],
)
def test_metrics_have_names_in_words(name, label, head):
    assert (metric_label(name), heading(name)) == (label, head)


def test_a_matplotlibrc_of_the_current_folder_changes_no_figure(tmp_path):
    code = (
        "import hashlib; from harness.report import plots\n"
        "@plots.own_style()\n"
        "def drawn():\n"
        "    figure, (axes,) = plots.new_figure(3, 2)\n"
        "    axes.set_title('FID')\n"
        "    return plots.to_png(figure)\n"
        "print(hashlib.sha256(drawn()).hexdigest())"
    )
    environment, seen = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}, set()
    for settings in ("", "text.usetex: True\naxes.titlesize: 30\nsavefig.bbox: tight\n"):
        (tmp_path / "matplotlibrc").write_text(settings)
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        seen.add(done.stdout)
    assert len(seen) == 1
