"""One-line answers to what a stranger asks of a run, each by a stated rule from its figures."""

from __future__ import annotations

from typing import Any

Figures = dict[str, Any]
Verdict = dict[str, str]

TOLERATED_LOSS = 0.01
"""Loss of accuracy, in shares, that still counts as none."""

WELL_TOLD = 0.95
"""AUROC above which a foreign set counts as told apart, by the low end of its interval."""


def verdicts(figures: Figures) -> list[Verdict]:
    """Answer the five questions.

    Args:
        figures: What `jem.evaluation.report.measure` found.

    Returns:
        For each `question` an `answer` ("yes", "no", "partly" or "cannot tell"), `because` with
        the figures, and the `rule` that decided.
    """
    return [
        _accurate(figures.get("classification")),
        _believable(figures.get("classification")),
        _rejects(figures["ood"]),
        _draws(figures.get("samples"), figures.get("left_out", {}).get("samples")),
        _behaved(figures),
    ]


def _verdict(question: str, answer: str, because: str, rule: str) -> Verdict:
    return {"question": question, "answer": answer, "because": because, "rule": rule}


def _accurate(found: Figures | None) -> Verdict:
    question = "Is it as accurate as a plain classifier?"
    rule = (
        "yes if the 95 % interval of the paired difference on the test part lies above "
        f"-{100 * TOLERATED_LOSS:g} points, no if it lies below 0, otherwise it cannot be told"
    )
    if found is None:
        return _verdict(question, "cannot tell", "there are no classes", rule)
    accuracy = found["rows"]["model"]["accuracy"]["value"]
    own = f"accuracy {accuracy:.4f} (n = {found['rows']['model']['num']})"
    if "accuracy_difference" not in found:
        return _verdict(question, "cannot tell", f"{own}; no plain control was trained", rule)
    gain = found["accuracy_difference"]
    because = (
        f"{own}, plain {found['rows']['plain']['accuracy']['value']:.4f}: difference "
        f"{100 * gain['value']:+.2f} points [{100 * gain['low']:+.2f}, {100 * gain['high']:+.2f}]"
    )
    if gain["low"] > 0:
        return _verdict(question, "yes", f"more accurate: {because}", rule)
    if gain["high"] < 0:
        return _verdict(question, "no", f"less accurate: {because}", rule)
    if gain["low"] >= -TOLERATED_LOSS:
        return _verdict(question, "yes", f"as far as can be told: {because}", rule)
    return _verdict(question, "cannot tell", because, rule)


def _believable(found: Figures | None) -> Verdict:
    question = "Can its probabilities be believed?"
    rule = (
        "yes if the ECE is below what 95 % of perfectly calibrated classifiers show on as many "
        "inputs; partly if it is after temperature scaling"
    )
    if found is None:
        return _verdict(question, "cannot tell", "there are no probabilities", rule)
    before, after = found["rows"]["model"], found["rows"]["model, temperature"]
    if before["ece_if_calibrated"] is None:
        return _verdict(question, "cannot tell", "no bootstrap replicates were drawn", rule)

    def calibrated(row: Figures) -> bool:
        return bool(row["ece"]["value"] <= row["ece_if_calibrated"])

    because = (
        f"ECE {before['ece']['value']:.4f} (calibrated: below {before['ece_if_calibrated']:.4f}), "
        f"after temperature {after['ece']['value']:.4f} "
        f"(below {after['ece_if_calibrated']:.4f}); n = {before['num']}"
    )
    answer = "yes" if calibrated(before) else "partly" if calibrated(after) else "no"
    return _verdict(question, answer, because, rule)


def _rejects(found: Figures) -> Verdict:
    question = "Does it know foreign inputs?"
    rule = (
        f"told apart: the low end of the AUROC's interval is at least {WELL_TOLD}; sets "
        "of a kind that training held against the data do not count"
    )
    unseen = [row for row in found["sets"] if not row["seen"]]
    told = {row["name"]: row["auroc"]["low"] >= WELL_TOLD for row in unseen}
    if not told:
        return _verdict(question, "cannot tell", "every foreign set was seen in training", rule)
    missed = [name for name, well in told.items() if not well]
    because = f"told apart: {_listed([name for name, well in told.items() if well])}"
    if missed:
        because += f"; not told apart: {_listed(missed)}"
    answer = "yes" if not missed else "no" if len(missed) == len(told) else "partly"
    return _verdict(question, answer, because, rule)


def _draws(found: Figures | None, why: str | None) -> Verdict:
    question = "Does it draw what it is asked for?"
    rule = (
        "right: at least 90 % of fresh samples are of the class asked for, by an independent "
        "network; varied: at least half as much as real inputs; each by its whole interval"
    )
    if found is None:
        return _verdict(question, "cannot tell", why or "it draws no samples", rule)
    row = found["fresh"]["samples"]
    agreement, diversity = row["agreement"], row["diversity"]
    if agreement["value"] is None or diversity["value"] is None:
        return _verdict(question, "cannot tell", "too few samples", rule)
    because = (
        f"{agreement['value']:.1%} are of the class asked for; their variety within a class is "
        f"{diversity['value']:.2f} of that of real inputs (n = {row['num']})"
    )
    answers = (_above(agreement, 0.9), _above(diversity, 0.5))
    if None in answers and False not in answers:
        return _verdict(question, "cannot tell", because, rule)
    return _verdict(question, ("no", "partly", "yes")[answers.count(True)], because, rule)


def _above(figure: Figures, bar: float) -> bool | None:
    """Whether a figure's interval lies above a bar, below it, or on both sides (None)."""
    if figure["low"] is None:
        return None
    return True if figure["low"] >= bar else False if figure["high"] < bar else None


def _behaved(figures: Figures) -> Verdict:
    question = "Did training behave?"
    rule = "yes without recoveries and with chains level with the data; partly if one holds"
    recoveries = len(figures["training"]["recoveries"])
    chains = figures.get("chains")
    because = f"{recoveries} recoveries from divergence"
    if why := figures.get("run", {}).get("as_given"):
        return _verdict(question, "cannot tell", f"nothing was trained: {why}", rule)
    if not figures["training"]["steps"] and chains is None:
        return _verdict(question, "cannot tell", "the run kept no records", rule)
    if chains is None:
        return _verdict(question, "yes" if not recoveries else "partly", because, rule)
    because += f"; {chains['meaning']}"
    holds = (recoveries == 0) + (chains["verdict"] == "level")
    return _verdict(question, ("no", "partly", "yes")[holds], because, rule)


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"
