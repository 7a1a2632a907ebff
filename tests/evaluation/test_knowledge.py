"""The knowledge test on models rigged to know the facts, not to know them, or to believe others."""

import numpy as np
import pytest
import torch
from planning import make_plan
from rigged import rigged

from prealign_ds.evaluation.intervals import wilson_interval
from prealign_ds.evaluation.knowledge import ask_period, over_periods
from prealign_ds.evaluation.scoring import row_nats

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def plan(tokenizer):
    return make_plan(tokenizer, ("en", "clone", "de"), facts=20, samples=4000, frequencies=[1, 4])


def believes(plan, choice, vocabulary):
    """A model that has learnt the statements of period 0 with the object ``choice`` by heart."""
    following = {}
    for choices in plan.statements(0):
        row = choices[choice].tolist()
        for end, token in enumerate(row):
            following.setdefault((plan.eos, *row[:end]), set()).add(token)

    def logits(inputs):
        values = torch.zeros(*inputs.shape, vocabulary)
        for row, ids in enumerate(inputs.tolist()):
            for end in range(len(ids)):
                values[row, end, list(following.get(tuple(ids[: end + 1]), ()))] = 9.0
        return values

    return rigged(logits)


def ask(plan, compute, vocabulary, batch_tokens=4096, period=0):
    return ask_period(plan, period, compute, vocabulary, batch_tokens, CPU)


def accuracies(results):
    return {kind["accuracy"] for kinds in results.values() for kind in kinds.values()}


@pytest.mark.parametrize(("choice", "accuracy"), [(0, 1.0), (1, 0.0), (3, 0.0)])
def test_a_model_that_knows_and_models_that_believe_a_distractor(plan, tokenizer, choice, accuracy):
    found = ask(plan, believes(plan, choice, 2 * len(tokenizer)), 2 * len(tokenizer))
    assert accuracies(found) == {accuracy}
    assert set(found) == {str(direction) for direction in plan.directions} and len(found) == 7
    for kinds in found.values():
        assert {kind: numbers["num_facts"] for kind, numbers in kinds.items()} == {"1": 20, "4": 20, "all": 40}


def test_a_model_that_knows_no_context_knows_a_quarter_exactly(plan, tokenizer):
    """It likes the same one of four objects in each of the four facts that share them."""
    liking = torch.randn(2 * len(tokenizer), generator=torch.Generator().manual_seed(1))
    found = ask(plan, rigged(lambda inputs: liking.expand(*inputs.shape, -1)), 2 * len(tokenizer))
    assert accuracies(found) == {0.25}


def test_a_model_that_guesses_is_at_chance(plan, tokenizer):
    """Its logits depend on the whole context, so that every statement gets a number of its own."""
    codes = torch.randn(2 * len(tokenizer), 8, generator=torch.Generator().manual_seed(2)) * 3

    def guesses(inputs):
        return torch.sin(codes[inputs].cumsum(1) * 7.0) @ codes.T

    found = ask(plan, rigged(guesses), 2 * len(tokenizer))
    correct = sum(kinds["all"]["num_correct"] for kinds in found.values())
    low, high = wilson_interval(correct, 280)
    assert low < 0.25 < high and 0 < correct < 280


def test_a_model_without_preference_knows_nothing(plan, tokenizer):
    found = ask(plan, rigged(lambda inputs: torch.zeros(*inputs.shape, 900)), 2 * len(tokenizer))
    assert accuracies(found) == {0.0}, "ties are no knowledge"


def test_batches_change_nothing_and_padding_ids_get_no_probability(plan, tokenizer):
    vocabulary = 2 * len(tokenizer)
    table = torch.randn(vocabulary, vocabulary + 28, generator=torch.Generator().manual_seed(3))
    compute = rigged(lambda inputs: table[inputs])
    expected = ask(plan, compute, vocabulary)
    assert ask(plan, compute, vocabulary, batch_tokens=1) == expected == ask(plan, compute, vocabulary, 10**5)
    rows = [np.array([3, 5, 9]), np.array([7])]
    found = row_nats(rows, 1, compute, vocabulary, 10, CPU)
    logs = torch.log_softmax(table[:, :vocabulary].double(), 1)
    assert found == pytest.approx([-(logs[1, 3] + logs[3, 5] + logs[5, 9]).item(), -logs[1, 7].item()])


def test_wilson_intervals_of_the_literature():
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)


def test_the_mean_over_periods():
    def result(correct, number=4):
        low, high = wilson_interval(correct, number)
        numbers = {"num_facts": number, "num_correct": correct, "accuracy": correct / number, "low": low, "high": high}
        return {"en->clone": {"4": numbers}}

    found = over_periods([result(1), result(4)])["en->clone"]["4"]
    assert found["accuracy"] == 0.625 and found["num_facts"] == 8 and found["num_periods"] == 2
    assert (found["low"], found["high"]) == wilson_interval(5, 8)
    assert found["period_deviation"] == pytest.approx(np.std([0.25, 1.0], ddof=1))
    assert over_periods([result(1)])["en->clone"]["4"]["period_deviation"] is None
    with pytest.raises(ValueError, match="no period has ended"):
        over_periods([])
