"""The report: figures against independent ones, verdicts by their rules, a page that holds all."""

import itertools
import json
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

import jem
from jem.data.arrays import from_arrays
from jem.evaluation import judge
from jem.evaluation.corruption import corruption_curves
from jem.evaluation.report import SCHEMA_VERSION, Subject, logits_of, measure
from jem.evaluation.report_page import comparison_rows, render, render_comparison
from jem.evaluation.verdicts import verdicts
from jem.networks import mlp, small_cnn
from jem.training.recipe import recipe_from

RUN = {
    "sentence": "A test & nothing <else>.",
    "command": "jem train",
    "control_command": "jem train --control",
    "version": "0",
    "config": {"seed": 0, "note": "<script>alert(1)</script>"},
}


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


@pytest.fixture(scope="module", autouse=True)
def quick_judge():
    """Judges that learn for a moment: what they find does not matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "FEWEST_UPDATES", 20)
        patch.setattr(judge, "EPOCHS", 1)
        yield


@pytest.fixture(scope="module")
def measured(quick_judge):
    of = subject()
    return of, measure(of, num_bootstrap=50)


def test_figures_are_those_of_independent_libraries(measured):
    of, found = measured
    x, y = of.splits.test[:]
    logits = logits_of(of.model, x)
    probabilities = logits.softmax(dim=1).numpy()
    row = found.figures["classification"]["rows"]["model"]
    assert row["num"] == len(x)
    assert row["accuracy"]["value"] == pytest.approx(accuracy_score(y, probabilities.argmax(1)))
    assert row["nll"]["value"] == pytest.approx(log_loss(y, probabilities))
    plain = logits_of(of.control, x).argmax(1)
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
    assert [name for name, row in sets.items() if row["seen"]] == ["uniform noise"]


def test_pictured_inputs_are_the_ones_they_are_said_to_be(measured):
    of, found = measured
    scores = logits_of(of.model, of.splits.test[:][0]).logsumexp(dim=1).sort().values
    for name, expected in (("most", scores.flip(0)), ("least", scores)):
        pictured = logits_of(of.model, found.images[f"{name} likely test inputs"])
        torch.testing.assert_close(pictured.logsumexp(dim=1), expected[: len(pictured)])
    for name, images in found.images.items():
        if name.startswith("accepted although foreign"):
            passed = logits_of(of.model, images).logsumexp(dim=1)
            assert (passed >= found.figures["ood"]["threshold"]).all()


def test_report_is_plain_and_complete(measured):
    figures = measured[1].figures
    again = json.loads(json.dumps(figures, allow_nan=False))
    assert again["schema_version"] == SCHEMA_VERSION == 1
    assert set(again) == {
        "schema_version", "run", "data", "left_out", "classification", "ood", "samples", "chains",
        "corruption", "training", "verdicts",
    }  # fmt: skip
    assert again["left_out"] == {}
    assert again["training"]["recoveries"] == [{"iteration": 15, "back_to": 10}]
    assert again["training"]["seconds_by_phase"] == {"data": 2.5, "update": 4.5}
    assert again["data"]["sizes"]["test"] == 48


def test_tables_and_plain_models_leave_out_what_does_not_apply():
    found = measure(subject(kind="table", control=False), num_bootstrap=20).figures
    assert set(found["left_out"]) == {"corruption"}
    assert "accuracy_difference" not in found["classification"]
    untrained = measure(subject(trained=False, control=False), num_bootstrap=20).figures
    assert set(untrained["left_out"]) == {"samples", "chains"}
    assert "draws no samples" in untrained["left_out"]["samples"]


def test_one_class_and_too_few_calibration_inputs_have_reasons():
    alone = subject(num_classes=1, trained=False, control=False)
    alone.splits.calibration.x.resize_(5, 1, 8, 8)
    object.__setattr__(alone.splits.calibration, "y", alone.splits.calibration.y[:5])
    found = measure(alone, num_bootstrap=20).figures
    assert "K = 1" in found["left_out"]["classification"]
    assert "needs at least 19 calibration inputs, but got 5" in found["left_out"]["threshold"]
    assert [v["answer"] for v in found["verdicts"]][:2] == ["cannot tell", "cannot tell"]
    assert "flagged" not in found["ood"]["sets"][0]


def test_corruption_starts_at_the_clean_figures_and_flags_more():
    of = subject(control=False)
    x, y = of.splits.test[:]
    detector = jem.OODDetector(of.model).fit(of.splits.calibration[:][0])
    rows = corruption_curves(of.model, x, y, detector=detector, kinds=("noise",))
    clean = jem.calibration_report(logits_of(of.model, x).softmax(1), y, num_bootstrap=0)
    assert [row["severity"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert rows[0]["accuracy"] == clean.accuracy
    assert rows[0]["flagged"] == pytest.approx(float(detector.is_ood(x).double().mean()))
    assert rows[5]["log_density"] < rows[0]["log_density"]
    assert corruption_curves(of.model, x, y, kinds=("blur",))[0]["flagged"] is None


# -- verdicts -------------------------------------------------------------------------------------


def estimate(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


def figures(**changes):
    row = {"num": 100, "accuracy": estimate(0.9), "ece": estimate(0.02), "ece_if_calibrated": 0.03}
    made = {
        "classification": {
            "rows": {"model": row, "model, temperature": row, "plain": row},
            "accuracy_difference": estimate(0.0, -0.01, 0.01),
        },
        "ood": {"sets": [{"name": "noise", "auroc": estimate(0.99, 0.98, 1.0)}]},
        "samples": {
            "fresh": {
                "samples": {"num": 50, "agreement": estimate(0.95), "diversity": estimate(0.8)}
            }
        },
        "chains": {"verdict": "level", "meaning": "level"},
        "training": {"recoveries": []},
    }
    return made | changes


def answers(**changes):
    return [verdict["answer"] for verdict in verdicts(figures(**changes))]


def test_verdicts_follow_their_rules():
    assert answers() == ["yes", "yes", "yes", "yes", "yes"]
    worse = figures()["classification"] | {"accuracy_difference": estimate(-0.03, -0.05, -0.01)}
    assert answers(classification=worse)[0] == "no"
    alone = {"rows": figures()["classification"]["rows"]}
    assert answers(classification=alone)[0] == "cannot tell"
    off = alone["rows"]["model"] | {"ece": estimate(0.05)}
    rows = alone["rows"] | {"model": off}
    assert answers(classification={"rows": rows})[1] == "partly"
    assert answers(classification={"rows": dict.fromkeys(rows, off)})[1] == "no"
    missed = {"name": "letters", "auroc": estimate(0.96, 0.94, 0.98)}
    told = figures()["ood"]["sets"][0]
    assert answers(ood={"sets": [told, missed]})[2] == "partly"
    assert answers(ood={"sets": [missed]})[2] == "no"
    alike = {"num": 50, "agreement": estimate(0.95), "diversity": estimate(0.3)}
    assert answers(samples={"fresh": {"samples": alike}})[3] == "partly"
    assert answers(training={"recoveries": [{}]})[4] == "partly"
    lost = {"verdict": "landscape", "meaning": "stuck"}
    assert answers(training={"recoveries": [{}]}, chains=lost)[4] == "no"


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
        "answers", "classification", "ood", "samples", "corruption", "training", "again",
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


def test_page_is_labelled_for_those_who_do_not_see_it(page):
    parsed = Page(page)
    assert all(a.get("alt") for a in parsed.of("img"))
    labelled = {a["aria-labelledby"] for a in parsed.of("div") if a.get("role") == "img"}
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert labelled <= set(ids)
    assert len(labelled) == len(parsed.of("svg")) == 7
    assert len(ids) == len(set(ids)), "ids must be unique across the figures of a page"
    headings = [int(tag[1]) for tag, _ in parsed.tags if tag in ("h1", "h2", "h3")]
    assert headings[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(headings))
    assert parsed.of("html")[0]["lang"] == "en"


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
    page = render_comparison({"a": figures, "<b>": other}, title="two")
    assert "&lt;b&gt;" in page
    assert len(Page(page).of("section")) == 2
