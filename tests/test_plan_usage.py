"""Which document belongs where: usage logs, offline allocation, and the online policy against the optimum in hindsight."""

from __future__ import annotations

import itertools
import json
import math
import random

import numpy as np
import pytest
from hand_costs import lines

from memory3.errors import ConfigError, InputError, ReadError
from memory3.planner.allocation import allocate
from memory3.planner.figure import draw_policies
from memory3.planner.traffic import break_even, optimum, shuffled, simulate, zipf
from memory3.planner.usage import DocumentUsage, read_usage
from memory3.retention import RecallCounts, Retention, RetentionPolicy

# ---- logs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "document_id,count\nb,3\na,7\n\nb,2\n"),
        ("a.csv", "a,7\nb,5\n"),
        ("a.csv", "\ufeffuses,id,note\n7,a,x\n5,b,\n"),
        ("a.tsv", "document\trecalls\na\t7\nb\t5.0\n"),
        ("a.jsonl", '{"doc_id": "b", "count": 5}\n\n{"document_id": "a", "recalls": 7}\n'),
    ],
)
def test_a_log_is_read_and_added_up(name, text, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_usage(tmp_path / name) == [DocumentUsage("a", 7), DocumentUsage("b", 5)]


def test_references_of_a_document_are_optional(tmp_path):
    (tmp_path / "a.csv").write_text("document,count,references\na,1,4\nb,2,\n")
    assert read_usage(tmp_path / "a.csv") == [DocumentUsage("b", 2), DocumentUsage("a", 1, 4)]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "document,count\na,-1\n", "line 2: count is '-1': give a whole number from 0"),
        ("a.csv", "document,count\na,many\n", "line 2: count is 'many'"),
        ("a.csv", "document,count\na,1.5\n", "line 2: count is '1.5'"),
        ("a.csv", "document,count\na,nan\n", "line 2: count is 'nan'"),
        ("a.csv", "document,count\na,inf\n", "line 2: count is 'inf'"),
        ("a.csv", "document,count\n,3\n", "line 2 names no document"),
        ("a.csv", "a\n", "line 1 has 1 columns"),
        ("a.csv", "document,count,references\na,1,0\n", "references is '0': give a whole number from 1"),
        ("a.csv", b"\xff\xfe\x00", "cannot be read"),
        ("a.jsonl", '{"id": "a", "count": true}\n', "count is True"),
        ("a.jsonl", '{"id": "a"}\n', "count is None"),
        ("a.jsonl", "[1]\n", "line 1 is no JSON object"),
        ("a.jsonl", "{\n", "line 1 is no JSON"),
        ("a.csv", "document,count\n", "holds no usage"),
        ("a.txt", "a,1\n", r"\*.csv"),
        ("missing.csv", None, "No such file"),
    ],
)
def test_logs_that_cannot_be_used_say_why(name, text, said, tmp_path):
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=said) as refused:
        read_usage(tmp_path / name)
    assert isinstance(refused.value, ReadError) or "usage" in said or "csv" in said


# ---- offline -------------------------------------------------------------------------------------------------------------


def test_each_document_gets_its_cheapest_format_by_hand():
    # One reference: memory from 2 uses, weights from 90. Four: memory 40 + c < 6 c from 8 uses on.
    usage = [
        DocumentUsage("often", 200),
        DocumentUsage("some", 50),
        DocumentUsage("large", 7, 4),
        DocumentUsage("tie", 2),
        DocumentUsage("never", 0),
    ]
    made = allocate(usage, lines())
    assert made.formats == ("implicit", "explicit", "external", "external", "external")
    assert made.documents == {"implicit": 1, "explicit": 1, "external": 3}
    assert made.totals == {
        "cheapest": 100 + 60 + 42 + 12 + 0,
        "implicit": 100 * 8,
        "explicit": 80 + 259,
        "external": 6 * 259,
    }


def test_the_allocation_is_the_best_of_all_allocations():
    rng = random.Random(3)
    usage = [DocumentUsage(str(n), rng.randrange(120), rng.randrange(1, 4)) for n in range(6)]
    costs = lines()
    slow = min(
        sum(use.references * cost.write_flops + use.count * cost.read_flops for use, cost in zip(usage, chosen, strict=True))
        for chosen in itertools.product(costs.formats().values(), repeat=len(usage))
    )
    assert allocate(usage, costs).totals["cheapest"] == pytest.approx(slow)


def test_nothing_to_allocate():
    with pytest.raises(InputError, match="no document"):
        allocate([], lines())


def test_the_plot_of_policies(tmp_path):
    usage = [DocumentUsage("a", 200), DocumentUsage("b", 50), DocumentUsage("c", 0)]
    draw_policies([u.count for u in usage], allocate(usage, lines()).each, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


# ---- online --------------------------------------------------------------------------------------------------------------


def test_break_even_by_hand():
    assert break_even(lines()) == 2
    assert break_even(lines(explicit=(11, 1))) == 3
    assert break_even(lines(explicit=(0, 1))) == 1
    with pytest.raises(ConfigError, match="never pays"):
        break_even(lines(external=(0, 1)))


def test_a_simulation_by_hand():
    # a is text, then written at its second recall, then read; b and c are text.
    outcome = simulate("abaca", lines(), RetentionPolicy("auto", 2))
    assert outcome.flops == 6 + 6 + (10 + 1) + 6 + 1
    assert (outcome.written, outcome.dropped, outcome.stored, outcome.from_memory) == (1, 0, 1, 0.2)
    assert optimum("abaca", lines()) == (10 + 3) + 6 + 6
    # Where a lazy reference is encoded for every use, waiting saves no work.
    assert simulate("abaca", lines(), RetentionPolicy("auto", 2), lazy_as_text=False).flops == 11 + 11 + 11 + 11 + 1


def test_the_optimum_is_the_best_fixed_choice():
    traffic = [random.Random(5).randrange(5) for _ in range(40)]
    costs = lines(explicit=(20.0, 1.0))
    for capacity in (None, 0, 2):
        choices = [chosen for size in range(6) for chosen in itertools.combinations(range(5), size)]
        allowed = [chosen for chosen in choices if capacity is None or len(chosen) <= capacity]
        slow = min(
            sum(20 * (n in chosen) for n in range(5)) + sum(1 if n in chosen else 6 for n in traffic) for chosen in allowed
        )
        assert optimum(traffic, costs, capacity) == slow


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("write", [0.5, 3.0, 10.0, 11.3, 49.0])
def test_writing_at_break_even_costs_at_most_twice_the_optimum(seed, write):
    """Whatever the traffic: Zipf, all alike, one name for ever, and the worst case, names that stop right after they were
    written.
    """
    costs = lines(explicit=(write, 1.0))
    at = break_even(costs)
    rng = np.random.default_rng(seed)
    for traffic in (
        zipf(37, 500, 1.1, seed),
        zipf(37, 500, 0.0, seed),
        np.zeros(100, int),
        np.repeat(np.arange(20), at),
        np.repeat(np.arange(20), rng.integers(1, 2 * at + 1, 20)),
    ):
        online = simulate(traffic, costs, RetentionPolicy("auto", at)).flops
        assert optimum(traffic, costs) <= online + 1e-9
        assert online <= 2 * optimum(traffic, costs) + 1e-9


def test_the_bound_is_not_met_by_other_numbers():
    worst = np.repeat(np.arange(20), 9)
    costs = lines(explicit=(10.0, 1.0))
    assert simulate(worst, costs, RetentionPolicy("auto", 9)).flops > 2 * optimum(worst, costs)
    once = np.arange(20)
    assert simulate(once, lines(explicit=(40.0, 1.0)), RetentionPolicy("auto", 1)).flops > 2 * optimum(once, costs)


def test_a_budget_is_kept_and_what_is_recalled_most_stays():
    traffic = zipf(200, 5000, 1.2, seed=1)
    outcome = simulate(traffic, lines(), RetentionPolicy("auto", 2, disk_bytes=10 * 7), record_bytes=7)
    assert outcome.stored <= 10
    assert outcome.dropped == outcome.written - outcome.stored > 0
    without = simulate(traffic, lines(), RetentionPolicy("auto", 2))
    best = optimum(traffic, lines(), capacity=10)
    assert without.flops < outcome.flops < 1.5 * best
    assert simulate(traffic, lines(), RetentionPolicy("auto", 1, disk_bytes=6), record_bytes=7).written == 0


def test_memories_that_stopped_paying_give_way():
    early, late = np.repeat([1, 2], 20), np.repeat([3, 4], 60)
    policy = RetentionPolicy("auto", 2, disk_bytes=2)
    traffic = np.concatenate([early, np.random.default_rng(0).permutation(late)])
    outcome = simulate(traffic, lines(), policy)
    assert outcome.dropped >= 2
    assert outcome.from_memory > 0.8


def test_the_log_weight_is_the_sum_of_halved_recalls():
    counts, recalls = RecallCounts(half_life=3.0), [(0, 1), (1, 2), (4, 1), (9, 5)]
    for now, count in recalls:
        counts.add("a", now, count)
    slow = math.log2(sum(count * 2 ** (now / 3.0) for now, count in recalls))
    assert counts.log_weight("a") == pytest.approx(slow)
    assert counts.recalls == {"a": 9}
    assert counts.log_weight("b") == -math.inf


def test_surplus_by_hand():
    counts = RecallCounts(half_life=1.0)
    for name, now in (("a", 5), ("b", 1), ("c", 3), ("d", 2)):
        counts.add(name, now)
    retention = Retention(RetentionPolicy("auto", 1, disk_bytes=29), record_bytes=10)
    assert retention.surplus("ab", counts) == []
    assert retention.surplus("abcd", counts) == ["b", "d", "c"]  # 90% of two is one
    counts.add("b", 2.5)
    assert not retention.wants("b", counts)
    counts.add("b", 9)
    assert retention.wants("b", counts)
    assert not retention.wants("never", counts)


def test_zipf_draws_by_weight():
    counts = np.bincount(zipf(3, 60_000, 1.0, seed=2), minlength=3) / 60_000
    assert counts == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=0.01)


def test_a_usage_log_as_traffic_has_its_counts():
    traffic = shuffled([DocumentUsage("a", 5), DocumentUsage("b", 0), DocumentUsage("c", 2)], seed=4)
    assert np.bincount(traffic).tolist() == [5, 0, 2]
    assert list(traffic) != sorted(traffic)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: RetentionPolicy("later"), "'later' is unknown"),
        (lambda: RetentionPolicy("auto", 0), "after 0 recalls"),
        (lambda: RetentionPolicy("auto", 1, 0), "budget of 0 bytes"),
        (lambda: RetentionPolicy("now", 2), "needs the write policy auto"),
        (lambda: zipf(0, 5), "no traffic"),
        (lambda: zipf(5, 0), "no traffic"),
        (lambda: zipf(5, 5, -1.0), "exponent of -1.0"),
        (lambda: zipf(5, 5, math.nan), "exponent of nan"),
    ],
)
def test_nonsense_is_refused_with_the_reason(wrong, said):
    with pytest.raises(ConfigError, match=said):
        wrong()


def test_results_are_plain_json():
    json.dumps(allocate([DocumentUsage("a", 3)], lines()).totals)
