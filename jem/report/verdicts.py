"""One-line answers to what a stranger asks of a run, each by a stated rule from its figures."""

from __future__ import annotations

from typing import Any

from jem.evaluation.fidelity.completion import MEAN_FILL, NEAREST, ONE_DRAW, ORIGINAL

Figures = dict[str, Any]
Verdict = dict[str, str]

TOLERATED_LOSS = 0.01
"""Loss of accuracy, in shares, that still counts as none."""

WELL_TOLD = 0.95
"""AUROC from which on a foreign set counts as told apart, by its whole interval."""

LOW_RECALL = 0.5
"""Recall of samples, over that of real inputs, below which they vary less than the data."""

ADVICE = {
    "level": "nothing",
    "lag": "--num-steps up or --learning-rate down",
    "landscape": "a smaller --generative-weight or a larger --energy-l2",
    "overshoot": "--noise-std up or --step-size down",
    "settled": "nothing, as long as samples are drawn with the run's own number of moves",
}
"""What to do about chains, by what was found of them."""


def verdicts(figures: Figures) -> list[Verdict]:
    """Answer five questions, and a sixth where inputs were completed.

    Args:
        figures: What `jem.report.measure.measure` found.

    Returns:
        For each `question` an `answer` ("yes", "no", "partly" or "cannot tell"), `because` with
        the figures, and the `rule` that decided.
    """
    completes = [_completes(figures["completions"])] if "completions" in figures else []
    return [
        _accurate(figures.get("classification")),
        _believable(figures.get("classification")),
        _rejects(figures["ood"]),
        _draws(figures.get("samples"), figures.get("left_out", {}).get("samples")),
        _behaved(figures),
        *completes,
    ]


def _verdict(question: str, answer: str, because: str, rule: str) -> Verdict:
    return {"question": question, "answer": answer, "because": because, "rule": rule}


def _accurate(found: Figures | None) -> Verdict:
    question = "Is it as accurate as a plain classifier?"
    rule = (
        "no if the 95 % interval of the paired difference on the test part lies below 0; else yes "
        f"if it lies above -{100 * TOLERATED_LOSS:g} points; otherwise it cannot be told"
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
    )
    if found.get("temperature", {}).get("improved", True):
        because += (
            f"after temperature {after['ece']['value']:.4f} "
            f"(below {after['ece_if_calibrated']:.4f}); n = {before['num']}"
        )
    else:
        because += f"where temperature scaling did not help; n = {before['num']}"
    answer = "yes" if calibrated(before) else "partly" if calibrated(after) else "no"
    return _verdict(question, answer, because, rule)


def _rejects(found: Figures) -> Verdict:
    question = "Does it know foreign inputs?"
    rule = (
        f"told apart: the whole interval of the AUROC is at least {WELL_TOLD}; not told apart: "
        "all of it lies below; otherwise it cannot be told of the set; sets of a kind that "
        "training held against the data do not count"
    )
    unseen = [row for row in found["sets"] if not row["seen"]]
    if not unseen:
        return _verdict(question, "cannot tell", "every foreign set was seen in training", rule)
    names: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    for row in unseen:
        names[_above(row["auroc"], WELL_TOLD)].append(row["name"])
    told, missed, open_ = names[True], names[False], names[None]
    because = f"told apart: {_listed(told)}"
    if missed:
        because += f"; not told apart: {_listed(missed)}"
    if open_:
        because += (
            f"; cannot tell with {found['num_test']} test inputs: {_listed(open_)}, where the "
            f"interval lies on both sides of {WELL_TOLD}"
        )
    if told and missed:
        return _verdict(question, "partly", because, rule)
    answer = "cannot tell" if open_ else "yes" if told else "no"
    return _verdict(question, answer, because, rule)


def _draws(found: Figures | None, why: str | None) -> Verdict:
    question = "Does it draw what it is asked for?"
    rule = (
        "right: at least 90 % of fresh samples are of the class asked for, by an independent "
        "network; varied: at least half as much as real inputs; each by its whole interval. They "
        f"vary less than the data if their recall is below {LOW_RECALL:g} of that of real inputs"
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
    answer = ("no", "partly", "yes")[answers.count(True)]
    if None in answers:
        answer = "cannot tell"
    recall, real = row["recall"]["value"], found["fresh"]["real"]["recall"]["value"]
    if recall is not None and real is not None and recall < LOW_RECALL * real:
        because = (
            f"{'but ' if answer == 'yes' else ''}they vary less than the data: recall, the share "
            f"of real variety that they reach, is {recall:.2f}, that of real inputs {real:.2f}; "
            + because
        )
    return _verdict(question, answer, because, rule)


def _completes(found: Figures) -> Verdict:
    question = "Does it complete what is missing?"
    rule = (
        "how often an independent network finds the right class in one completion, without being "
        "told it: yes where that is oftener than in the mean filled in and no less often than in "
        "the nearest training input; partly where it is oftener than in the mean filled in; "
        "each beyond chance"
    )
    rows = found["rows"]
    gain = {row["against"]: row for row in found["differences"] if row["name"] == ONE_DRAW}
    names = (ONE_DRAW, MEAN_FILL, NEAREST, ORIGINAL)
    shares = ", ".join(f"{name} {rows[name]['accuracy']['value']:.3f}" for name in names)
    because = f"accuracy of {shares} (n = {found['num_inputs']})"
    better = _above(gain[MEAN_FILL], 0.0)
    if better is None:
        return _verdict(question, "cannot tell", because, rule)
    worse_than_nearest = gain[NEAREST]["high"] < 0
    answer = ("partly" if worse_than_nearest else "yes") if better else "no"
    return _verdict(question, answer, because, rule)


def _above(figure: Figures, bar: float) -> bool | None:
    """Whether a figure's interval lies above a bar, below it, or on both sides (None)."""
    if figure["low"] is None:
        return None
    return True if figure["low"] >= bar else False if figure["high"] < bar else None


def _behaved(figures: Figures) -> Verdict:
    question = "Did training behave?"
    rule = (
        "yes without recoveries and with chains that were level with the data in energy when "
        "training ended, and run on do not end above it; partly if one holds; without chains, "
        "recoveries alone decide"
    )
    training, chains = figures["training"], figures.get("chains")
    recoveries = training["num_recoveries"]
    because = f"{recoveries} recoveries from divergence"
    if recoveries:
        because += " (where accuracy suffered: a smaller --learning-rate)"
    if why := figures.get("run", {}).get("as_given"):
        return _verdict(question, "cannot tell", f"nothing was trained: {why}", rule)
    if not training["steps"] and not training["epochs"] and chains is None:
        return _verdict(question, "cannot tell", "the run kept no records", rule)
    if chains is None:
        return _verdict(question, "yes" if not recoveries else "partly", because, rule)
    found = chains["verdict"]
    if found == "overshoot" and abs(chains["gap_start"]["value"]) <= chains["tolerance"]:
        found = "settled"  # level when training ended: far below temperature 1 moves go downhill
    because += f"; {chains['meaning']}; what to do: {ADVICE[found]}"
    holds = (recoveries == 0) + (found in ("level", "settled"))
    return _verdict(question, ("no", "partly", "yes")[holds], because, rule)


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"
