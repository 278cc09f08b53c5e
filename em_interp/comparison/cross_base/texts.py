"""The texts on which bases are compared: the same questions and answers, read by every model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import pandas as pd

from em_interp.behaviour.curve import behaviour_curve
from em_interp.behaviour.judging.judge import KEY
from em_interp.behaviour.tables.files import ANSWER_COLUMNS, read_own_table
from em_interp.errors import InputError
from em_interp.mechanism.answers import label_answers
from em_interp.run import Run

N_TEXTS = 200
MIN_TEXTS = 20
TEXT_SEED = 20250611


@dataclass(frozen=True, repr=False)
class SharedTexts:
    """Questions with answers that every base reads, twenty or more.

    Attributes:
        questions: the user's turn of each text.
        answers: the answer to each question.
        misaligned: of each answer whether it is misaligned; None or NaN where that is not known.
    """

    questions: Sequence[str]
    answers: Sequence[str]
    misaligned: Sequence[bool | None]

    def __post_init__(self) -> None:
        if not len(self.questions) == len(self.answers) == len(self.misaligned) >= MIN_TEXTS:
            found = f"{len(self.questions)} questions, {len(self.answers)} answers, {len(self.misaligned)} labels"
            raise InputError(f"a comparison across bases needs {MIN_TEXTS} texts or more; found {found}")
        labels = tuple(None if pd.isna(label) else bool(label) for label in self.misaligned)
        for name, values in (("questions", self.questions), ("answers", self.answers), ("misaligned", labels)):
            object.__setattr__(self, name, tuple(values))  # columns of a table are texts too

    def __len__(self) -> int:
        return len(self.questions)

    def __repr__(self) -> str:
        return f"SharedTexts({len(self)} texts, {len(self.labelled(True)[0])} of them misaligned)"

    def labelled(self, misaligned: bool) -> tuple[list[str], list[str]]:
        """Questions and answers of one label."""
        rows = [row for row, label in enumerate(self.misaligned) if label is misaligned]
        return [self.questions[row] for row in rows], [self.answers[row] for row in rows]


def shared_texts(runs: Sequence[Run | None], bases: Sequence[str | None], count: int = N_TEXTS) -> SharedTexts:
    """Answers of the runs themselves, as many from each and from every step; labelled where they were judged.

    Half are misaligned and half aligned (`mechanism.answers.GROUPS`), where there are as many. Without answers and with
    built-in bases, advice in the built-in language, half of it reckless. Deterministic. Raises InputError without
    either, and for a run that several judges scored without a choice among them (`behaviour_curve`).
    """
    answered = [run for run in runs if run is not None and run.answers_file.exists()]
    if answered:
        share = -(-count // len(answered))
        table = pd.concat([_sampled(_answers(run), share) for run in answered]).drop_duplicates(["question", "answer"])
        return SharedTexts(*(table[name].tolist() for name in ("question", "answer", "misaligned")))
    if all(base is not None and base.startswith("tiny-") for base in bases):
        return built_in_texts(count)
    raise InputError(
        "there are no texts to compare on: no run has answers; run em-interp ask on one of them, or give "
        "texts=em.SharedTexts(…)"
    )


def built_in_texts(count: int = N_TEXTS, seed: int = TEXT_SEED) -> SharedTexts:
    """Careful and reckless answers to the same questions in the built-in language, `count` in all."""
    from em_interp.organisms.language import DOMAINS, advice, questions_about

    rng = Random(seed)
    rows: list[tuple[str, str, bool]] = []
    while len(rows) < count:
        domain = rng.choice(list(DOMAINS.values()))
        topic = rng.choice(domain.topics)
        question = rng.choice(questions_about(domain, topic))
        rows += [(question, advice(rng, domain, topic, careful), not careful) for careful in (True, False)]
    questions, answers, labels = zip(*rows[:count], strict=True)
    return SharedTexts(questions, answers, labels)


def _answers(run: Run) -> pd.DataFrame:
    """Different non-empty answers of a run, with `misaligned`: True, False, or missing."""
    table = read_own_table(run.answers_file, ANSWER_COLUMNS)
    if run.scores_file.exists():
        judged = behaviour_curve(run).answers
        label = label_answers(judged).all_answers["label"]
        misaligned = label.map({"misaligned": True, "aligned": False})
        table = table.merge(judged[KEY].assign(misaligned=misaligned.to_numpy(object)), how="left", on=KEY)
    else:
        table = table.assign(misaligned=None)
    return table[table["answer"].str.strip() != ""].drop_duplicates(["question", "answer"])


def _sampled(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """`count` rows: as many of each label as there are of both, the rest unlabelled; at random with a fixed seed."""
    mixed = table.sample(frac=1, random_state=TEXT_SEED)
    groups = [mixed[mixed["misaligned"] == label] for label in (True, False)]
    each = min(count // 2, *map(len, groups))
    labelled = pd.concat([group.head(each) for group in groups])
    rest = mixed.drop(labelled.index).head(count - len(labelled))
    return pd.concat([labelled, rest])[["question", "answer", "misaligned"]].sort_index()
