"""The report: figures against independent ones, verdicts by their rules, a page that holds all."""

import itertools
import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

import jem
from jem.data.arrays import from_arrays
from jem.data.ood_sets import gaussian_noise
from jem.data.splits import DataPart
from jem.evaluation.chains import VERDICTS
from jem.networks import mlp, small_cnn
from jem.report.measure import SCHEMA_VERSION, _training, measure
from jem.report.page import comparison_rows, render, render_comparison
from jem.report.samples import AFFORDABLE, _by_class, _labels, affordable, judge_of
from jem.report.subject import Subject
from jem.report.verdicts import verdicts
from jem.training.recipes import recipe_from

RUN = {
    "sentence": "A test & nothing <else>.",
    "command": "jem train",
    "control_command": "jem train --control",
    "version": "0",
    "config": {"seed": 0, "note": "<script>alert(1)</script>"},
}


pytestmark = pytest.mark.usefixtures("quick_judge")


def exact_logits(model, x):
    with torch.no_grad():
        return model.logits(x).double()


def subject(kind="image", trained=True, num_classes=3, control=True):
    rng = np.random.default_rng(0)
    shape = (8, 8) if kind == "image" else (4,)
    y = np.arange(240) % 3
    x = rng.uniform(0, 0.4, (240, *shape))
    x.reshape(240, -1)[np.arange(240), y] += 0.6
    splits = from_arrays(x, y, name="made up", seed=0)

    def model(recipe):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            make = small_cnn if kind == "image" else mlp
            network = make(splits.input_shape, num_classes, width=8)
        made = jem.JEM(network, classes=splits.classes, domain=splits.domain)
        if trained:
            trainer = jem.Trainer(made, recipe, device="cpu")
            trainer.fit(splits.train, splits.validation)
            chains.append(trainer.state.negatives.buffer.chains if recipe.generative else None)
        return made.eval()

    chains = []
    quick = {"epochs": 3, "num_chains": 16, "buffer_size": 32, "sample_steps": 3}
    own = model(recipe_from("fast", quick))
    other = model(recipe_from("plain", {"epochs": 3})) if control else None
    records = [
        {"kind": "step", "iteration": 0, "gap": 0.1, "seconds_data": 1.0, "seconds_update": 2.0},
        {"kind": "step", "iteration": 20, "gap": None, "seconds_data": 1.5, "seconds_update": 2.5},
        {"kind": "epoch", "iteration": 20, "valid_nll": 0.5},
        {"kind": "recovery", "iteration": 15, "back_to": 10},
    ]
    return Subject(
        own, splits, control=other, chains=chains[0] if chains else None, run=RUN, records=records
    )


@pytest.fixture(scope="module")
def measured(quick_judge):
    of = subject()
    of.ood_sets = {
        "gaussian noise": gaussian_noise(50, of.splits.input_shape, seed=0),
        "mine.npz": torch.zeros(20, *of.splits.input_shape),
    }
    return of, measure(of, num_bootstrap=50)


def test_figures_are_those_of_independent_libraries(measured):
    of, found = measured
    x, y = of.splits.test[:]
    logits = exact_logits(of.model, x)
    probabilities = logits.softmax(dim=1).numpy()
    row = found.figures["classification"]["rows"]["model"]
    assert row["num"] == len(x)
    assert row["accuracy"]["value"] == pytest.approx(accuracy_score(y, probabilities.argmax(1)))
    assert row["nll"]["value"] == pytest.approx(log_loss(y, probabilities))
    plain = exact_logits(of.control, x).argmax(1)
    difference = found.figures["classification"]["accuracy_difference"]
    assert difference["value"] == pytest.approx(
        accuracy_score(y, probabilities.argmax(1)) - accuracy_score(y, plain)
    )
    for entry in found.figures["ood"]["sets"]:
        scores = torch.cat([found.scores["test"], found.scores[entry["name"]]])
        truth = torch.arange(len(scores)) < len(x)
        assert entry["auroc"]["value"] == pytest.approx(roc_auc_score(truth, scores))
        threshold = found.figures["ood"]["threshold"]
        flagged = (found.scores[entry["name"]] < threshold).double().mean()
        assert entry["flagged"]["value"] == pytest.approx(float(flagged))


def test_near_and_far_and_seen_sets_are_told_apart(measured):
    sets = {row["name"]: row for row in measured[1].figures["ood"]["sets"]}
    assert sets["letters"]["kind"] == sets["rotated by 90 degrees"]["kind"] == "near"
    assert sets["photo patches"]["kind"] == "far"
    assert (sets["gaussian noise"]["kind"], sets["mine.npz"]["kind"]) == ("far", "given")
    assert [name for name, row in sets.items() if row["seen"]] == ["uniform noise"]


def test_pictured_inputs_are_the_ones_they_are_said_to_be(measured):
    of, found = measured
    scores = exact_logits(of.model, of.splits.test[:][0]).logsumexp(dim=1).sort().values
    for name, expected in (("most", scores.flip(0)), ("least", scores)):
        pictured = exact_logits(of.model, found.images[f"{name} likely test inputs"])
        torch.testing.assert_close(pictured.logsumexp(dim=1), expected[: len(pictured)])
    for name, images in found.images.items():
        if name.startswith("accepted although foreign"):
            passed = exact_logits(of.model, images).logsumexp(dim=1)
            assert (passed >= found.figures["ood"]["threshold"]).all()


def test_completions_are_counted_and_shown_as_they_are(measured):
    of, found = measured
    completions = found.figures["completions"]
    num = completions["num_inputs"]
    assert num == len(of.splits.test)
    rows = completions["rows"]
    assert list(rows) == ["original", "mean fill", "nearest neighbour", "one completion"]
    for row in rows.values():
        assert row["accuracy"]["low"] <= row["accuracy"]["value"] <= row["accuracy"]["high"]
        assert round(num * row["accuracy"]["value"], 6) % 1 == 0
    for entry in completions["differences"]:
        ours, others = (rows[entry[key]]["accuracy"]["value"] for key in ("name", "against"))
        assert entry["value"] == pytest.approx(ours - others)
    kinds = completions["pictures"]
    assert kinds == ["original", "kept", "mean fill", "nearest neighbour", "one completion"]
    strips = dict(zip(kinds, found.images["completions"].chunk(len(kinds)), strict=True))
    whole = strips.pop("original")
    for strip in strips.values():
        assert torch.equal(strip[:, :, :4], whole[:, :, :4])
        assert not torch.equal(strip[:, :, 4:], whole[:, :, 4:])
    assert (strips["kept"][:, :, 4:] == 0).all()  # grey, half way between -1 and 1


@pytest.mark.parametrize(
    ("shape", "moves", "expected"),
    [
        ((1, 8, 8), 200, 500),
        ((1, 28, 28), 200, AFFORDABLE // (200 * 28 * 28)),
        ((3, 28, 28), 200, AFFORDABLE // (200 * 28 * 28)),
        ((3, 96, 96), 200, 100),
        ((13,), 200, 500),
        ((1, 28, 28), 0, 500),
    ],
)
def test_large_images_are_moved_less_often_but_never_too_few(shape, moves, expected):
    assert affordable(shape, moves, 100, 500) == expected


def test_what_is_wanted_at_the_least_gives_way_to_the_most():
    assert affordable((3, 96, 96), 200, 1000, 500) == 500  # a hundred classes


def test_the_judge_learns_from_fewer_large_images(monkeypatch):
    of = subject(control=False)
    assert judge_of(of, seed=0).num_train == len(of.splits.train)
    monkeypatch.setattr("jem.report.samples.JUDGED_PIXELS", 50 * 8 * 8)
    assert judge_of(of, seed=0).num_train == 50


def test_classes_are_asked_for_as_often_as_their_frequency_says():
    frequencies = torch.tensor([0.5, 0.3, 0.2, 0.0])
    for seed in range(5):
        counts = torch.bincount(_labels(frequencies, 127, seed), minlength=4)
        assert counts.sum() == 127
        assert ((counts - 127 * frequencies).abs() < 1).all()
    assert not _labels(frequencies, 127, 0).equal(_labels(frequencies, 127, 1))


def test_shown_samples_are_those_measured_and_more_where_a_class_lacks_some():
    of = subject(trained=True, control=False)
    labels = torch.arange(60) % 2  # none of the last class
    drawn = torch.arange(60.0).view(60, 1, 1, 1).expand(60, 1, 8, 8)
    shown = _by_class(of.model, drawn, labels, seed=0)
    assert shown.shape == (30, 1, 8, 8)
    assert shown[:10].equal(drawn[0:20:2])
    assert shown[10:20].equal(drawn[1:20:2])
    torch.testing.assert_close(shown[20:], jem.sample(of.model, [2] * 10, seed=1))


def test_large_images_cost_fewer_samples_completions_and_chains(monkeypatch):
    of = subject(control=False)
    for name in ("FEWEST_SAMPLES", "FEWEST_COMPLETED", "FEWEST_CHAINS"):
        monkeypatch.setattr(f"jem.report.samples.{name}", 20)
    monkeypatch.setattr("jem.report.samples.AFFORDABLE", 0)
    found = measure(of, num_bootstrap=20).figures
    assert found["samples"]["fresh"]["samples"]["num"] == 30  # ten of each of three classes
    assert found["samples"]["chains"]["samples"]["num"] == 30
    assert found["completions"]["num_inputs"] == 20
    assert found["chains"]["num_chains"] == 20


def test_a_network_as_given_has_seen_nothing_and_was_not_trained():
    of = subject(kind="table", control=False)
    of.run = RUN | {"as_given": "0 updates were made"}
    looked_at = []
    measured = measure(of, num_bootstrap=20, progress=looked_at.append)
    found = measured.figures
    assert looked_at == ["classification and calibration", "foreign inputs", "corruption"]
    why = "nothing was trained: 0 updates were made"
    for name in ("samples", "completions", "chains"):
        assert found["left_out"][name] == why
        assert name not in found
    page = render(measured, None, title="as given")
    assert "What it draws" not in page
    assert "Nothing was trained: 0 updates were made." in page
    assert found["verdicts"][3]["because"] == why
    assert not any(row["seen"] for row in found["ood"]["sets"])
    behaved = found["verdicts"][4]
    assert (behaved["answer"], behaved["because"]) == ("cannot tell", why)
    of.run = RUN | {"as_given": ""}
    found = measure(of, num_bootstrap=20).figures
    sets = {row["name"]: (row["kind"], row["seen"]) for row in found["ood"]["sets"]}
    assert sets == {
        "uniform noise": ("far", True),
        "shuffled columns": ("near", False),
        "beyond the range": ("far", False),
    }
    assert found["verdicts"][2]["answer"] != "cannot tell"
    assert found["verdicts"][4]["answer"] != "cannot tell"


def test_report_is_plain_and_complete(measured):
    figures = measured[1].figures
    again = json.loads(json.dumps(figures, allow_nan=False))
    assert again["schema_version"] == SCHEMA_VERSION == 1
    assert set(again) == {
        "schema_version", "run", "data", "left_out", "classification", "ood", "samples",
        "completions", "chains", "corruption", "training", "verdicts",
    }  # fmt: skip
    assert again["left_out"] == {}
    assert again["training"]["recoveries"] == [{"iteration": 15, "back_to": 10}]
    assert again["training"]["seconds_by_phase"] == {"data": 2.5, "update": 4.5}
    assert again["data"]["sizes"]["test"] == 48


def test_tables_and_plain_models_leave_out_what_does_not_apply():
    found = measure(subject(kind="table", control=False), num_bootstrap=20).figures
    assert found["left_out"]["completions"] == "completions are of images"
    assert set(found["left_out"]) == {"completions", "corruption"}
    assert "accuracy_difference" not in found["classification"]
    untrained = measure(subject(trained=False, control=False), num_bootstrap=20).figures
    assert set(untrained["left_out"]) == {"samples", "completions", "chains"}
    assert untrained["ood"]["acceptance_rate"] == pytest.approx(0.95)
    assert "draws no samples" in untrained["left_out"]["samples"]


def test_one_class_and_too_few_calibration_inputs_have_reasons():
    alone = subject(num_classes=1, trained=False, control=False)
    few = DataPart(*alone.splits.calibration[:5])
    alone.splits = replace(alone.splits, calibration=few)
    found = measure(alone, num_bootstrap=20).figures
    assert "K = 1" in found["left_out"]["classification"]
    assert found["ood"]["acceptance_rate"] == pytest.approx(5 / 6)  # as much as five can promise
    assert [v["answer"] for v in found["verdicts"]][:2] == ["cannot tell", "cannot tell"]
    assert found["ood"]["num_calibration"] == 5


# -- verdicts -------------------------------------------------------------------------------------


def estimate(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


def figures(**changes):
    row = {"num": 100, "accuracy": estimate(0.9), "ece": estimate(0.02), "ece_if_calibrated": 0.03}
    made = {
        "classification": {
            "rows": {"model": row, "model, temperature": row, "plain": row},
            "accuracy_difference": estimate(0.0, -0.005, 0.005),
        },
        "ood": rejected({"name": "noise", "seen": False, "auroc": estimate(0.99, 0.98, 1.0)}),
        "samples": drawn(estimate(0.95, 0.93, 0.97), estimate(0.8, 0.7, 0.9)),
        "chains": {"verdict": "level", "meaning": "level"},
        "training": {"num_recoveries": 0, "steps": [{}], "epochs": []},
    }
    return made | changes


def rejected(*sets):
    return {"sets": list(sets), "num_test": 45}


def drawn(agreement, diversity, recall=0.6):
    samples = {"agreement": agreement, "diversity": diversity, "recall": estimate(recall)}
    return {"fresh": {"samples": {"num": 50} | samples, "real": {"recall": estimate(0.8)}}}


def completed(one, mean_fill, nearest, against_mean, against_nearest):
    names = ("one completion", "mean fill", "nearest neighbour", "original")
    rates = (one, mean_fill, nearest, 0.98)
    rows = {name: {"accuracy": estimate(rate)} for name, rate in zip(names, rates, strict=True)}
    differences = [
        {"name": "one completion", "against": name} | estimate(*value)
        for name, value in (("mean fill", against_mean), ("nearest neighbour", against_nearest))
    ]
    return {"rows": rows, "differences": differences, "num_inputs": 128}


def answers(**changes):
    return [verdict["answer"] for verdict in verdicts(figures(**changes))]


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [
        (-0.005, 0.005, "yes"),
        (0.01, 0.03, "yes"),
        (-0.05, -0.01, "no"),
        (-0.005, -0.001, "no"),
        (-0.08, 0.02, "cannot tell"),
    ],
)
def test_accuracy_is_judged_by_the_interval_of_the_difference(low, high, answer):
    found = figures()["classification"] | {"accuracy_difference": estimate(0.0, low, high)}
    assert answers(classification=found)[0] == answer


def test_verdicts_follow_their_rules():
    assert answers() == ["yes", "yes", "yes", "yes", "yes"]
    alone = {"rows": figures()["classification"]["rows"]}
    assert answers(classification=alone)[0] == "cannot tell"
    off = alone["rows"]["model"] | {"ece": estimate(0.05)}
    rows = alone["rows"] | {"model": off}
    assert answers(classification={"rows": rows})[1] == "partly"
    assert answers(classification={"rows": dict.fromkeys(rows, off)})[1] == "no"
    lost = {"verdict": "landscape", "meaning": "stuck"}
    once = {"num_recoveries": 1, "steps": [{}], "epochs": []}
    assert answers(training=once)[4] == "partly"
    assert answers(training=once, chains=lost)[4] == "no"
    nothing = {"num_recoveries": 0, "steps": [], "epochs": []}
    assert answers(training=nothing, chains=None)[4] == "cannot tell"
    assert answers(training=nothing | {"epochs": [{}]}, chains=None)[4] == "yes"


def test_a_foreign_set_is_told_apart_or_not_by_its_whole_interval():
    told, missed, open_ = (
        {"name": name, "seen": False, "auroc": estimate(0.95, *interval)}
        for name, interval in (
            ("noise", (0.96, 1.0)), ("letters", (0.8, 0.94)), ("beyond", (0.92, 1.0))
        )
    )  # fmt: skip
    seen = told | {"seen": True}
    for sets, answer in (
        ([told], "yes"),
        ([missed], "no"),
        ([open_], "cannot tell"),
        ([told, missed], "partly"),
        ([told, open_], "cannot tell"),
        ([missed, open_], "cannot tell"),
        ([told, missed, open_], "partly"),
        ([seen, missed], "no"),
        ([seen], "cannot tell"),
    ):
        assert answers(ood=rejected(*sets))[2] == answer
    because = verdicts(figures(ood=rejected(told, open_)))[2]["because"]
    assert because == (
        "told apart: noise; cannot tell with 45 test inputs: beyond, where the interval lies on "
        "both sides of 0.95"
    )


def test_low_recall_is_told_of_samples_that_are_right():
    right = estimate(0.95, 0.93, 0.97), estimate(0.8, 0.7, 0.9)
    low = verdicts(figures(samples=drawn(*right, recall=0.39)))[3]
    assert low["answer"] == "yes"
    assert low["because"].startswith("but they vary less than the data: recall, the share of real")
    assert "is 0.39, that of real inputs 0.80" in low["because"]
    assert "recall" not in verdicts(figures(samples=drawn(*right, recall=0.4)))[3]["because"]


@pytest.mark.parametrize(
    ("kind", "start", "answer", "advice"),
    [
        ("level", 0.1, "yes", "nothing"),
        ("overshoot", 0.9, "yes", "nothing, as long as"),
        ("overshoot", -2.0, "partly", "--noise-std up or --step-size down"),
        ("landscape", 0.1, "partly", "a smaller --generative-weight"),
        ("lag", 2.0, "partly", "--num-steps up"),
    ],
)
def test_what_to_do_about_chains_is_said(kind, start, answer, advice):
    gap = {"gap_start": estimate(start), "tolerance": 1.0}
    found = verdicts(figures(chains={"verdict": kind, "meaning": VERDICTS[kind]} | gap))[4]
    assert found["answer"] == answer
    assert f"; what to do: {advice}" in found["because"]


def test_recoveries_are_known_from_epochs_too():
    assert _training([{"kind": "epoch", "recoveries": n} for n in (0, 2)])["num_recoveries"] == 2
    assert _training([{"kind": "recovery", "iteration": 1, "back_to": 0}])["num_recoveries"] == 1
    assert _training([])["num_recoveries"] == 0


@pytest.mark.parametrize(
    ("agreement", "diversity", "answer"),
    [
        ((0.93, 0.97), (0.2, 0.4), "partly"),
        ((0.5, 0.7), (0.2, 0.4), "no"),
        ((0.55, 0.99), (0.2, 1.6), "cannot tell"),
        ((0.55, 0.99), (0.2, 0.4), "cannot tell"),
    ],
)
def test_samples_are_judged_by_whole_intervals(agreement, diversity, answer):
    samples = drawn(estimate(0.9, *agreement), estimate(0.9, *diversity))
    assert answers(samples=samples)[3] == answer


# -- the page -------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a test looks at: tags with attributes, and the order of headings."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def of(self, *tags):
        return [attributes for tag, attributes in self.tags if tag in tags]


@pytest.fixture(scope="module")
def page(measured):
    return render(measured[1], (torch.tensor(-1.0), torch.tensor(1.0)), title="A & B <run>")


def test_page_has_every_section_and_links_to_it(page):
    sections = [attributes["id"] for attributes in Page(page).of("section")]
    assert sections == [
        "answers", "classification", "ood", "samples", "completions", "corruption", "training",
        "again",
    ]  # fmt: skip
    links = [a["href"] for a in Page(page).of("a")]
    assert links == ["#main", *(f"#{name}" for name in sections)]


def test_page_loads_nothing_and_runs_nothing(page):
    parsed = Page(page)
    assert parsed.of("script", "iframe", "object", "embed") == []
    assert all(a["src"].startswith("data:image/png") for a in parsed.of("img"))
    assert [a["href"] for a in parsed.of("link")] == ["data:,"]
    assert "<script>alert" not in page  # what a person wrote is shown, not obeyed
    assert "A &amp; B &lt;run&gt;" in page
    references = [a[k] for _, a in parsed.tags for k in ("href", "xlink:href") if k in a]
    assert all(r.startswith(("#", "data:")) for r in references)


def test_page_is_labelled_for_those_who_do_not_see_it(page, measured):
    parsed = Page(page)
    assert all(a.get("alt") for a in parsed.of("img"))
    labelled = {a["aria-labelledby"] for a in parsed.of("div") if a.get("role") == "img"}
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert labelled <= set(ids)
    scaled = measured[1].figures["classification"]["temperature"]["improved"]
    assert len(labelled) == len(parsed.of("svg")) == 6 + scaled
    assert len(ids) == len(set(ids)), "ids must be unique across the figures of a page"
    headings = [int(tag[1]) for tag, _ in parsed.tags if tag in ("h1", "h2", "h3")]
    assert headings[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(headings))
    assert parsed.of("html")[0]["lang"] == "en"


def test_a_temperature_that_helped_has_a_column_and_one_left_at_1_has_none(measured):
    figures = measured[1].figures

    def made(improved):
        scaling = {"temperature": 1.5 if improved else 1.0, "improved": improved}
        found = figures["classification"] | {"temperature": scaling, "temperature_plain": scaling}
        of = replace(measured[1], figures=figures | {"classification": found})
        return render(of, None, title="temperature")

    scaled, left = made(True), made(False)
    for words in ("T = 1.500", "model, temperature", "plain, temperature", "same after temp"):
        assert words in scaled
        assert words not in left
    assert left.count("scaling did not help on the validation part: left at 1") == 2
    because = verdicts(figures | {"classification": figures["classification"] | {
        "temperature": {"improved": False}}})[1]["because"]  # fmt: skip
    assert "temperature scaling did not help" in because


def test_page_says_why_a_frechet_distance_is_missing_and_what_is_harder(measured):
    figures = measured[1].figures
    page = render(measured[1], None, title="few")
    width = figures["samples"]["fresh"]["num_features"]
    assert figures["samples"]["fresh"]["samples"]["frechet"]["value"] is None
    assert f"needs more than {width} inputs" in page
    assert "Classes that were left out of training are harder than these sets; bring" in page


def test_page_of_a_table_leaves_out_pictures(measured):
    found = measure(subject(kind="table", control=False), num_bootstrap=20)
    page = render(found, None, title="table")
    assert Page(page).of("img") == []
    assert "jem train --control" in page


def test_comparison_holds_the_figures_of_both(measured):
    figures = measured[1].figures
    other = measure(subject(trained=False, control=False), num_bootstrap=20).figures
    rows = dict(comparison_rows({"a": figures, "b": other}))
    assert rows["accuracy"][0] == figures["classification"]["rows"]["model"]["accuracy"]
    assert rows["fresh samples: variety within a class, 1 is par"][1] is None
    assert len(rows["AUROC, letters, higher is better"]) == 2
    filled = rows["lower half by one completion: of the right class, higher is better"]
    assert filled == [figures["completions"]["rows"]["one completion"]["accuracy"], None]
    page = render_comparison({"a": figures, "<b>": other}, title="two")
    assert "&lt;b&gt;" in page
    assert len(Page(page).of("section")) == 2


@pytest.mark.parametrize(
    ("against_mean", "against_nearest", "answer"),
    [
        ((0.2, 0.1, 0.3), (0.05, -0.05, 0.15), "yes"),
        ((0.2, 0.1, 0.3), (-0.15, -0.2, -0.1), "partly"),
        ((0.05, -0.05, 0.15), (-0.15, -0.2, -0.1), "cannot tell"),
        ((-0.2, -0.3, -0.1), (-0.4, -0.5, -0.3), "no"),
    ],
)
def test_completions_are_held_to_the_mean_and_to_the_nearest_input(
    against_mean, against_nearest, answer
):
    found = completed(0.7, 0.5, 0.8, against_mean, against_nearest)
    last = verdicts(figures(completions=found))[-1]
    assert (last["question"], last["answer"]) == ("Does it complete what is missing?", answer)
    assert "one completion 0.700, mean fill 0.500, nearest neighbour 0.800" in last["because"]
    assert len(verdicts(figures())) == 5  # nothing was completed, nothing is asked
