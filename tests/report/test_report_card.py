"""A model card holds the report's figures, and nothing of this machine."""

import copy
import json
import re

import pytest
import yaml

from jem.errors import RunFolderError
from jem.report.card import render_card, write_card
from jem.report.page import content_of

pytestmark = pytest.mark.usefixtures("quick_reference_classifier")


@pytest.fixture(scope="module")
def figures(measured):
    return content_of(measured[1])


def test_its_head_is_what_the_hub_reads(figures):
    head = yaml.safe_load(render_card(figures, "a: run").split("---\n")[1])
    assert head["pipeline_tag"] == "image-classification"
    (index,) = head["model-index"]
    assert index["name"] == "a: run"
    (result,) = index["results"]
    assert result["dataset"] == {"type": "made up", "name": "made up", "split": "test"}
    found = {(m["type"], m["name"].split(" (")[0]): m["value"] for m in result["metrics"]}
    wanted = {
        ("roc_auc", f"AUROC against {each['name']}"): each["auroc"]["value"]
        for each in figures["ood"]["sets"]
        if not each["used_in_training"]
    }
    assert ("roc_auc", "AUROC against mine.npz") in wanted
    of = figures["classification"]["model"]
    wanted["accuracy", "accuracy"] = of["before"]["accuracy"]
    for key, name in (
        ("nll", "negative log-likelihood in nats"),
        ("ece", "expected calibration error"),
    ):
        wanted[key, f"{name}, after temperature scaling"] = of["after"][key]
    assert found == wanted
    assert all("interval" in metric["name"] for metric in result["metrics"])


def test_it_says_what_was_measured_with_intervals_and_what_was_not(figures):
    card = render_card(figures, "run")
    for row in figures["summary"]:
        of = row["model"]
        if of["value"] is not None and of["low"] is not None:
            assert f"{of['value']:.4f} [{of['low']:.4f}, {of['high']:.4f}]" in card
    for count in (figures["ood"]["num_test"], figures["samples"]["fresh"]["samples"]["num"]):
        assert f"n = {count}" in card
    assert all(verdict["question"] in card for verdict in figures["verdicts"])
    assert "load_scorer" not in card  # there is no model.pt
    for files in (["model.pt"], ["model.pt", "model.safetensors"]):
        assert f'load_scorer("{files[-1]}")' in render_card(figures, "run", files)

    less = copy.deepcopy(figures) | {"samples": None, "classification": None}
    less["left_out"] = {"samples": "nothing was trained"}
    less["summary"] = [{"name": "ECE", "better": "lower", "model": less["summary"][0]["model"]}]
    card = render_card(less, "run")
    assert "- samples: nothing was trained." in card
    assert "plain classifier |" not in card
    assert "- A plain classifier beside it." in card


def test_names_of_the_user_break_no_table_and_show_no_folder(figures):
    hostile = copy.deepcopy(figures)
    hostile["classification"]["classes"][0]["name"] = "a|b\n<script>"
    hostile["ood"]["sets"][-1]["name"] = "/home/me/mine.npz"
    hostile["verdicts"][0]["because"] = "recognised: /home/me/mine.npz"
    hostile["run"]["config"]["network"] = {"classifier_spec": "my_net:trained"}
    card = render_card(hostile, "run", ["model.pt"])
    assert "/home" not in card
    assert "recognised: mine.npz" in card
    assert "| a\\|b \\<script\\> |" in card
    assert "my\\_net:trained builds it" in card
    for table in re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE):
        signs = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(signs) == 1, table


def test_it_lies_beside_its_report(figures, tmp_path):
    with pytest.raises(RunFolderError, match=r"report\.json"):
        write_card(tmp_path)
    (tmp_path / "report.json").write_text(json.dumps(figures))
    card = write_card(tmp_path).read_text()
    assert card == render_card(figures, tmp_path.name, ["report.json"])
