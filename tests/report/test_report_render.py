"""The pages of reports hold what was measured, and load nothing from anywhere."""

import itertools
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

import jem
from jem.evaluation.likelihood import LogPartition, LogPartitionPoint
from jem.evaluation.robustness import RobustnessPoint, RobustnessReport
from jem.evaluation.statistics import UNKNOWN, Estimate, Interval
from jem.report.measure import measure
from jem.report.page import comparison_rows, read_report, render, render_comparison
from jem.report.verdicts import summary

pytestmark = pytest.mark.usefixtures("quick_reference_classifier")

SECTIONS = [
    "answers", "classification", "ood", "samples", "completions", "corruption", "training",
    "glossary", "again",
]  # fmt: skip


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
    assert [attributes["id"] for attributes in Page(page).of("section")] == SECTIONS
    assert [a["href"] for a in Page(page).of("a")] == ["#main", *(f"#{n}" for n in SECTIONS)]


@pytest.mark.parametrize("mislead", [True, False])
def test_attacks_have_a_section_where_they_were_made(measured, page, mislead):
    def share(value):
        return Estimate(value, 0.01, value - 0.02, value + 0.02)

    points = [
        RobustnessPoint(eps, share(0.9), share(0.8), share(0.7), None, UNKNOWN, UNKNOWN)
        for eps in (0.0, 8 / 255)
    ]
    unit = "the range of a pixel"
    attack = RobustnessReport("linf", unit, 40, points, {}, mislead, share(0.05), 0, 0)
    with_attack = render(replace(measured[1], attack=attack), None, title="attacked")
    assert "attacks" in [section["id"] for section in Page(with_attack).of("section")]
    assert "#attacks" in [a["href"] for a in Page(with_attack).of("a")]
    assert "8/255" in with_attack
    assert "Langevin steps (n" not in with_attack  # no refinement was measured
    assert ("Do not believe this accuracy" in with_attack) == mislead
    assert "attacks" not in page


def point(beta, bits, *, trusted=True, crossed=False):
    interval = Interval(-2.0, -1.0)
    cost = Estimate(bits, 0.01, bits - 0.02, bits + 0.02)
    return LogPartitionPoint(beta, -1.5, interval, crossed, 99.0, 0.6, trusted, cost)


def likelihood(base, at_one, chosen, *, doubt="", saving=1.0):
    most = Estimate(saving, 0.01, saving - 0.02, saving + 0.02)
    points = [point(0.0, base), point(0.5, (base + at_one.bits_per_dim.value) / 2)]
    numbers = {"levels": 256, "num_test": 40, "num_chains": 192, "num_steps": 400}
    return LogPartition(
        points, at_one, chosen, doubt, most, "uniform noise", temperature=1.0, **numbers
    )


@pytest.mark.parametrize(
    ("found", "said", "not_said"),
    [
        (
            likelihood(8.0, point(1.0, 7.0), point(2.0, 6.5)),
            [
                "less than under uniform noise",
                "inverse temperature 2,",
                "6.500 bits",
                "2 (chosen)",
            ],
            ["Do not believe", "hardly more than"],
        ),
        (
            likelihood(8.0, point(1.0, 8.5), point(0.0, 8.0), saving=0.01),
            [
                "more than uniform noise",
                "worse than no network",
                "hardly more than uniform noise",
            ],
            ["Do not believe", "At the inverse temperature"],
        ),
        (
            likelihood(8.0, point(1.0, 7.99), None, saving=0.2),
            ["not clearly more or less than under uniform noise"],
            ["worse than", "hardly more", "chosen on validation"],
        ),
        (
            likelihood(
                8.0,
                point(1.0, 5.0, trusted=False, crossed=True),
                point(0.0, 8.0),
                doubt="the bracket crossed",
            ),
            ["Do not believe the figures of the model as it was trained:", "no: bounds crossed"],
            ["as it was trained a test input costs", "less than under"],
        ),
    ],
)
def test_likelihoods_have_a_section_that_says_what_they_are_worth(
    measured, page, found, said, not_said
):
    text = render(replace(measured[1], likelihood=found), None, title="bits")
    assert "likelihood" in [section["id"] for section in Page(text).of("section")]
    assert "#likelihood" in [a["href"] for a in Page(text).of("a")]
    section = text[text.index('<section id="likelihood"') : text.index('<section id="training"')]
    assert section.index("can save at most") < section.index("<table>")
    for words in said:
        assert words in section
    for words in not_said:
        assert words not in section
    assert 'id="likelihood"' not in page


def test_page_needs_nothing_from_anywhere_and_runs_nothing(page):
    parsed = Page(page)
    assert parsed.of("script", "iframe", "form", "object", "embed") == []
    assert all(a["src"].startswith("data:image/png;base64,") for a in parsed.of("img"))
    assert [a["href"] for a in parsed.of("link")] == ["data:,"]
    assert "<script>alert" not in page  # what a user wrote is shown, not obeyed
    assert "A &amp; B &lt;run&gt;" in page
    references = [a[k] for _, a in parsed.tags for k in ("href", "xlink:href") if k in a]
    assert all(r.startswith(("#", "data:")) for r in references)


def test_page_is_labelled_for_those_who_do_not_see_it(page, measured):
    parsed = Page(page)
    assert all(a.get("alt") for a in parsed.of("img"))
    labelled = {a["aria-labelledby"] for a in parsed.of("div") if a.get("role") == "img"}
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert labelled <= set(ids)
    scaled = measured[1].classification.model.improved
    assert len(labelled) == len(parsed.of("svg")) == 6 + scaled
    assert len(ids) == len(set(ids)), "ids must be unique across the figures of a page"
    headings = [int(tag[1]) for tag, _ in parsed.tags if tag in ("h1", "h2", "h3")]
    assert headings[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(headings))
    assert parsed.of("html")[0]["lang"] == "en"


def test_a_temperature_that_helped_has_a_column_and_one_left_at_1_has_none(measured):
    report = measured[1]

    def page(improved):
        temperature = 1.5 if improved else 1.0
        found = report.classification
        both = (
            replace(each, temperature=temperature, improved=improved)
            for each in (found.model, found.control)
        )
        model, control = both
        found = replace(found, model=model, control=control)
        return render(replace(report, classification=found), None, title="temperature")

    scaled, left = page(improved=True), page(improved=False)
    for words in ("T = 1.500", "model, temperature", "plain classifier, temperature"):
        assert words in scaled
        assert words not in left
    assert left.count("because scaling did not help") == 2


def test_page_names_classes_and_mistakes(measured, page, monkeypatch):
    monkeypatch.setattr("jem.plotting.svg", lambda *_: "<svg></svg>")  # which takes seconds
    report = measured[1]
    found, classes = report.classification, report.data.classes
    worst = found.mistakes[0]
    assert f"{worst.source}: {worst.true}, taken for {worst.predicted}" in page
    assert all(f'alt="samples of {name}"' in page for name in classes)
    many = replace(found, classes=found.classes * 7)
    crowded = render(replace(report, classification=many), None, title="many classes")
    assert "Confusion matrix" in page
    assert "Confusion matrix" not in crowded
    assert f"{worst.true} taken for {worst.predicted} (" in crowded


def test_page_says_why_a_frechet_distance_is_missing(measured):
    assert measured[1].samples.fresh.samples.num <= 64
    assert "needs more than 64 inputs" in render(measured[1], None, title="few")


def test_page_of_a_table_as_given_leaves_out_pictures_and_samples(make_subject):
    of = make_subject(kind="table", control=False, as_given="0 updates were made")
    page = render(measure(of), None, title="table")
    assert Page(page).of("img") == []
    assert "jem train --control" in page
    assert "Nothing was trained: 0 updates were made." in page
    assert "samples" not in [a["id"] for a in Page(page).of("section")]


def test_the_summary_holds_the_figures_of_model_and_control(measured):
    report = measured[1]
    rows = {row.name: row for row in summary(report)}
    accuracy, found = rows["accuracy"], report.classification
    assert accuracy.model.value == found.model.before.accuracy
    assert (accuracy.model.low, accuracy.model.high) == found.model.before.intervals["accuracy"]
    assert accuracy.control.value == found.control.before.accuracy
    assert rows["ECE after temperature scaling"].model.value == found.model.after.ece
    noise = rows["AUROC, uniform noise (used in training)"]
    assert (noise.model, noise.control) == (
        report.ood.sets[0].auroc, report.ood.sets[0].control_auroc
    )  # fmt: skip
    assert rows["samples of the class asked for"].control is None


def test_a_comparison_puts_the_summaries_of_runs_side_by_side(measured, tmp_path, make_subject):
    plain = make_subject(trained=False, control=False)
    reports = {}
    for name, of in (("a", measured[0]), ("<b>", plain)):
        folder = tmp_path / str(len(reports))
        jem.write_report(of.model, of.splits, folder, control=of.control, run=of.run)
        reports[name] = read_report(folder / "report.json")
    rows = {name: cells for name, _, cells in comparison_rows(reports)}
    assert rows["accuracy"] == [report["summary"][0]["model"] for report in reports.values()]
    assert rows["variety of samples, real inputs = 1"][1] is None
    assert all(rows["AUROC, uniform noise (used in training)"])  # by the first run alone
    assert "AUROC, uniform noise" not in rows
    page = render_comparison(reports, title="two")
    assert "&lt;b&gt;" in page
    assert len(Page(page).of("section")) == 2


def test_what_is_written_is_what_is_returned(tmp_path):
    data = jem.data.load("iris", seed=0)
    model = jem.JEM(jem.networks.mlp(data.input_shape, 3, width=4), classes=data.classes)
    content = jem.write_report(
        model, data, tmp_path / "page", title="Mine & theirs", ood_sets={"zeros": data.test.x * 0}
    )
    assert read_report(tmp_path / "page" / "report.json") == content
    assert "zeros" in [row["name"] for row in content["ood"]["sets"]]
    page = (tmp_path / "page" / "report.html").read_text()
    assert "Mine &amp; theirs" in page
