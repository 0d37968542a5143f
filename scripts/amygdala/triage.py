"""What a person should look at first: each vector's faults by name, and one line in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

from amygdala.errors import shown
from amygdala.measures import FEW_DRAWS, LEVEL

FEW_TRAIN, FEW_HELD_OUT = 20, 10  # texts a side: with fewer, intervals are too wide to say anything
LABEL_WORD, LABEL_WORD_OTHERS = 0.6, 0.1  # a word of so many positives and so few negatives is a label, or a template
TELLS_LABEL, LEANS = 0.8, 0.65  # AUC of something else than the rows: by itself, and where the projection follows it
FOLLOWS = 0.5  # |r| of the projection with it where the label is known
FOLLOWS_GROUPS = 0.3  # share of the projection's variance, where the label is known
ONE_SCENE = 0.9
SAME_TEXTS = 0.8
SAME_DIRECTION = 0.98
REDUNDANT = 0.9
ONE_NEURON = 0.6
FRAGMENTED = 0.4
LESS_THAN_OTHERS = 0.8
ALIKE = 0.01  # median distance of rows from their mean over its length
UNSTABLE = 0.3
ONE_TEXT = 0.9  # cosine of the difference of means with that without one text
REACHED = 0.05  # share of the vectors of shuffled labels
CLEAN = "clean"


@dataclass(frozen=True)
class Flag:
    """A fault: its name, why in words, and texts (excerpts) that show it. serious: the vector is not to be used as it is."""

    name: str
    why: str
    serious: bool = True
    texts: list[str] = field(default_factory=list)


def few_examples(counts: Mapping[str, Mapping[str, int]]) -> list[Flag]:
    """counts: {split: {polarity: number}}"""
    least = {"train": FEW_TRAIN, "held_out": FEW_HELD_OUT}
    short = [
        f"{number} {split.replace('_', '-')} {side}s"
        for split, sides in counts.items()
        for side, number in sides.items()
        if number < least[split]
    ]
    return [Flag("too few examples", f"only {', '.join(short)}: every figure is rough")] if short else []


def widened(value: float, low: float, looks: int) -> float:
    """The lower end of an interval at LEVEL, moved to where it holds for the highest of `looks` figures (Bonferroni, by normal
    quantiles): the best of many layers lies above chance more often than one of them.
    """
    tail = (1 - LEVEL) / 2
    return value - (value - low) * NormalDist().inv_cdf(1 - tail / looks) / NormalDist().inv_cdf(1 - tail)


def told_apart(figures: Mapping[str, Any], looks: int = 1) -> list[Flag]:
    """Whether held-out texts are told apart at all, and the right way round. looks: layers of which this is the best."""
    held_out, trained = figures["held_out"], figures["train_auc"]
    if trained is not None and trained < 0.5:
        return [Flag("flipped", f"AUC {trained:.2f} on its own training texts: the vector points away from its emotion")]
    if held_out["interval"] is None:
        return [Flag("not measured", "no two held-out texts on both sides")]
    low, high = held_out["interval"]
    numbers = f"held-out AUC {held_out['auc']:.2f}, interval {low:.2f} to {high:.2f}"
    if high < 0.5:
        return [Flag("flipped", f"{numbers}: the vector points away from its emotion")]
    if low > 0.5 >= (wider := widened(held_out["auc"], low, looks)):
        why = f"{numbers}, from {wider:.2f} on where it is allowed for that it is the best of {looks} layers: that holds 0.5"
        return [Flag("chance", why)]
    if low <= 0.5:
        return [Flag("chance", f"{numbers} holds 0.5: held-out texts are not told apart")]
    shuffled = figures["shuffled"]
    if shuffled and shuffled["draws"] >= FEW_DRAWS and shuffled["reached"] > REACHED:
        # no fault by itself: where the label is what texts vary by most, vectors of any labels lie along it, either way round
        share, reached = f"{shuffled['reached']:.0%} of {shuffled['draws']}", f"{held_out['auc']:.2f}"
        why = f"{share} vectors trained on shuffled labels reach {reached} too"
        return [Flag("unspecific", why, serious=False)]
    return []


def label_left(texts: Mapping[str, Any]) -> list[Flag]:
    """A word that gives the label away: a tag line that was not cut, a template, a signature."""
    found = []
    for entry in texts["words"]:
        if entry["positive"] >= LABEL_WORD and entry["negative"] <= LABEL_WORD_OTHERS:
            of_sides = f"{entry['positive']:.0%} of the positives, {entry['negative']:.0%} of the negatives"
            why = f"{shown(entry['word'])} stands in {of_sides}"
            found.append(Flag("label in the text", why, texts=[entry["example"]]))
            break
    return found


def confounded(texts: Mapping[str, Any], figures: Mapping[str, Any]) -> list[Flag]:
    """Something else than the emotion tells the sides apart. What the projection follows, but the sides share, is no
    confounder: rows of any text go with its length to some degree.
    """
    found = []
    projection = figures["projection"]
    for name, value in texts["label_auc"].items():
        if name == "scenario":
            continue  # one_scene
        if name == "source":
            tells = 0.5 if value is None else value  # of folds that were not counted: below 0.5 is chance
            follows, number, least = projection[name]["explained"], "share of its variance", FOLLOWS_GROUPS
        else:
            tells = 0.5 if value is None else max(value, 1 - value)
            follows, number, least = projection[name]["r_within"], "r", FOLLOWS
        does = follows is not None and abs(follows) >= least
        words = name.replace("_", " ")
        goes = [f"the projection follows it within the sides ({number} {follows:.2f})"] if does else []
        if tells >= TELLS_LABEL or (does and tells >= LEANS):
            shown_texts = [text for text in texts["longest"].values() if text] if name == "length" else []
            why = " and ".join([f"it tells the label with AUC {value:.2f}", *goes])
            found.append(Flag(f"confounded ({words})", why, texts=shown_texts))
        elif does:
            found.append(Flag(f"follows {words}", f"{goes[0]}, though it does not tell the label", serious=False))
    return found


def one_scene(texts: Mapping[str, Any], figures: Mapping[str, Any]) -> list[Flag]:
    scenarios = texts["scenarios"]
    found = []
    if scenarios["share"] is not None and scenarios["share"] >= ONE_SCENE:
        why = f"{scenarios['share']:.0%} of the positives are of the scenario {shown(scenarios['largest'])}"
        found.append(Flag("one scenario", f"{why}: the vector may be that scene"))
    explained = figures["projection"]["scenarios_of_positives"]
    if explained is not None and explained >= FOLLOWS:
        found.append(Flag("confounded (scenario)", f"{explained:.0%} of the positives' projections is between scenarios"))
    return found


def like_others(emotion: str, cross: Mapping[str, Any], together: Mapping[str, Mapping[str, float]]) -> list[Flag]:
    """Another emotion with the same texts or the same direction, or all others together.

    cross: the emotion's figures across emotions at one layer; together: {emotion: {other: share of its positives}}.
    """
    found = []
    for other, share in together.get(emotion, {}).items():
        if min(share, together.get(other, {}).get(emotion, 0.0)) >= SAME_TEXTS:
            found.append(
                Flag("same texts", f"{share:.0%} of its positives are positives of {shown(other)} too, and the reverse")
            )
            break
    ridge = cross["ridge"]
    # less what as many random directions would make up: all of it, where there are as many emotions as dimensions
    if ridge["r2"] is not None and ridge["r2"] - ridge["chance"] > REDUNDANT * (1 - ridge["chance"]):
        names = ", ".join(f"{shown(name)} {weight:+.2f}" for name, weight in ridge["coefficients"][:3])
        found.append(Flag("redundant", f"the other vectors make up {ridge['r2']:.0%} of it ({names})"))
    elif cross["nearest"] and cross["nearest"][0][1] >= SAME_DIRECTION:
        name, value = cross["nearest"][0]
        found.append(Flag("redundant", f"cosine {value:.3f} with {shown(name)}"))
    return found


def of_the_rows(figures: Mapping[str, Any]) -> list[Flag]:
    found = []
    spread = figures["relative_spread"]
    if spread is not None and spread < ALIKE:
        why = f"half of the rows lie within {spread:.2%} of their mean's length from it, as those of a template's token do"
        found.append(Flag("rows alike", why))
    neuron = figures["neuron"]
    if "cosine" in neuron and abs(neuron["cosine"]) > ONE_NEURON:
        found.append(Flag("one-neuron", f"cosine {neuron['cosine']:.2f} with what MLP neuron {neuron['index']} writes"))
    for side, text in figures["furthest"].items():
        turned = None if text is None else text["cosine_without"]
        if text is not None and turned is not None and turned < ONE_TEXT:
            held = f"{text['share']:.0%} of their variance"
            why = (
                f"without one {side} of {text['texts']} ({held}) the difference of means would have cosine {turned:.2f} with it"
            )
            found.append(Flag("one text", why, texts=[text["text"]]))
    half = figures["split_half_cosine"]
    if half is not None and half < UNSTABLE:
        found.append(Flag("unstable", f"vectors from two halves of the texts have cosine {half:.2f}"))
    share, others = (figures["spectrum"][name] for name in ("first_component", "first_component_of_negatives"))
    if share is not None and others is not None and share < min(FRAGMENTED, LESS_THAN_OTHERS * others):
        why = f"the positives' first principal component holds {share:.0%} of their variance, as many negatives' {others:.0%}"
        texts = [outlier["text"] for outlier in figures["outliers"]]
        found.append(Flag("fragmented", why, serious=False, texts=texts))
    return found


def triage(
    emotion: str,
    texts: Mapping[str, Any],
    figures: Mapping[str, Any],
    cross: Mapping[str, Any],
    together: Mapping[str, Mapping[str, float]],
    looks: int = 1,
) -> list[Flag]:
    """All faults of one vector, the gravest first. looks: the number of layers, where this is the best of them."""
    found = [
        *few_examples(texts["used"]),
        *told_apart(figures, looks),
        *label_left(texts),
        *one_scene(texts, figures),
        *confounded(texts, figures),
        *like_others(emotion, cross, together),
        *of_the_rows(figures),
    ]
    return sorted(found, key=lambda flag: not flag.serious)


def verdict(flags: Sequence[Flag]) -> str:
    """The gravest fault's name, or clean where none is serious."""
    return next((flag.name for flag in flags if flag.serious), CLEAN)


def line(flags: Sequence[Flag], figures: Mapping[str, Any]) -> str:
    """One line in words."""
    value, interval = figures["held_out"]["auc"], figures["held_out"]["interval"]
    measured = f" (held-out AUC {value:.2f}, {interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
    told = [f"{flag.name}: {flag.why}" for flag in flags]
    return "; ".join([f"{CLEAN}{measured}", *told] if verdict(flags) == CLEAN else told)
