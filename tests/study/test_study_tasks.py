"""Tasks are blinded, shuffled and balanced."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.study.tasks import Passage, make_tasks, order

SYSTEMS = ("ddpo", "dpo")


def stories(prompts: int, samples: int = 4) -> dict[tuple[str, str], dict[str, list[Passage]]]:
    return {
        (f"p{p:03}", f"Prompt {p}"): {name: [Passage(s, f"{name} {p} {s}") for s in range(samples)] for name in SYSTEMS}
        for p in range(prompts)
    }


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.data())
def test_balanced_for_all_and_for_each_annotator(prompts: int, people: int, data: st.DataObject) -> None:
    per_task = data.draw(st.integers(1, people))
    names = [f"a{n}" for n in range(people)]
    tasks = make_tasks(stories(prompts), SYSTEMS, 100, names, per_task, data.draw(st.integers(0, 9)))
    assert len({task.id for task in tasks}) == len(tasks) == prompts
    on_the_left = Counter(task.systems[0] for task in tasks)
    assert abs(on_the_left["ddpo"] - on_the_left["dpo"]) <= 1
    load = Counter(name for task in tasks for name in task.annotators)
    assert all(len(set(task.annotators)) == per_task for task in tasks)
    assert max(load.values()) - min(load[name] for name in names) <= per_task
    for name in names:
        left = Counter(task.systems[0] for task in tasks if name in task.annotators)
        assert abs(left["ddpo"] - left["dpo"]) <= per_task


def test_sets_hold_the_stories_of_one_system_shuffled() -> None:
    tasks = make_tasks(stories(40), SYSTEMS, 40, ["a"], 1, 0)
    for task in tasks:
        for system, told in zip(task.systems, task.sets, strict=True):
            assert {passage.text for passage in told} == {f"{system} {int(task.prompt_id[1:])} {s}" for s in range(4)}
    firsts = Counter(told[0].sample for task in tasks for told in task.sets)
    assert set(firsts) == {0, 1, 2, 3}


def test_same_seed_same_tasks_other_seed_others() -> None:
    made = [make_tasks(stories(30), SYSTEMS, 10, ["a", "b"], 1, seed) for seed in (0, 0, 1)]
    assert made[0] == made[1]
    assert {task.prompt_id for task in made[0]} != {task.prompt_id for task in made[2]}
    assert order(made[0], "a", 0) == order(made[1], "a", 0)
    assert sorted(order(made[0], "a", 0) + order(made[0], "b", 0)) == sorted(task.id for task in made[0])


def test_prompts_that_one_system_lacks_are_left_out() -> None:
    told = stories(3)
    del told["p001", "Prompt 1"]["dpo"]
    told["p002", "Prompt 2"]["ddpo"].pop()
    assert [task.prompt_id for task in make_tasks(told, SYSTEMS, 9, ["a"], 1, 0)] == ["p000"]
    with pytest.raises(ValueError, match="no prompt"):
        make_tasks(told, ("ddpo", "other"), 9, ["a"], 1, 0)
    with pytest.raises(ValueError, match="2 annotators a task"):
        make_tasks(told, SYSTEMS, 9, ["a"], 2, 0)
