"""A run on disk: what goes on from it ends with the same bits, and nothing else goes on from it."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.build import random_model

from refimpl.config import ModelConfig
from refimpl.errors import DataError, LoracleError
from refimpl.formats.files import write_safetensors
from refimpl.loading.adapter_folder import load_adapter
from refimpl.training import session as sessions
from refimpl.training.arguments import TrainingArguments
from refimpl.training.checkpoint import STATE_FILE, describe, load_checkpoint, save_checkpoint, steps_done
from refimpl.training.examples import Example, Task
from refimpl.training.gradient_ops import GRADIENTS
from refimpl.training.loop import train
from refimpl.training.lora_config import LoraConfig
from refimpl.training.output import adapter_folder, write_output
from refimpl.training.session import Session
from refimpl.training.state import TrainingState
from refimpl.weights import Model

CONFIG = ModelConfig(
    vocab_size=13,
    hidden_size=12,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
)
ARGUMENTS = TrainingArguments(epochs=3, learning_rate=1e-2, batch_tokens=12, seed=3)


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model(CONFIG, seed=5, dtype="float32")


def drawn_examples(seed: int, count: int) -> list[Example]:
    rng = np.random.default_rng(seed)
    return [Example(rng.integers(0, CONFIG.vocab_size, n).tolist(), [True] * n) for n in rng.integers(2, 9, count)]


TASKS = [
    Task("echo", LoraConfig(r=2, target_modules=("q_proj", "up_proj")), drawn_examples(1, 5), drawn_examples(2, 2)),
    Task("other", LoraConfig(r=3, lora_dropout=0.3, use_rslora=True, rank_pattern={"v_proj": 1}), drawn_examples(3, 8)),
]


def states_of(model: Model) -> list[TrainingState]:
    states: list[TrainingState] = []
    train(model, TASKS, ARGUMENTS, on_step=states.append)
    return states


def same_bits(one: TrainingState, other: TrainingState) -> bool:
    left, right = one.arrays(), other.arrays()
    return (
        list(left) == list(right)
        and all(left[name].tobytes() == right[name].tobytes() for name in left)
        and one.record() == other.record()
    )


def test_what_goes_on_from_disk_ends_with_the_same_bits(model: Model, tmp_path: Path) -> None:
    states = states_of(model)
    description = describe(model, TASKS, ARGUMENTS)
    for cut in (1, len(states) // 2, len(states) - 1):
        save_checkpoint(tmp_path / "run", states[cut - 1], description, 12.5)
        state, seconds = load_checkpoint(tmp_path / "run", describe(model, TASKS, ARGUMENTS))
        assert same_bits(state, states[cut - 1]) and seconds == 12.5
        assert same_bits(train(model, TASKS, ARGUMENTS, state=state), states[-1])
    assert [file.name for file in (tmp_path / "run").iterdir()] == [STATE_FILE]
    assert steps_done(tmp_path / "run")["echo"] == (
        min(cut, states[-1].tasks["echo"].steps),
        states[-1].tasks["echo"].steps,
    )


def with_task(**changes: Any) -> list[Task]:
    return [dataclasses.replace(TASKS[0], **changes), TASKS[1]]


def with_argument(**changes: Any) -> TrainingArguments:
    return dataclasses.replace(ARGUMENTS, **changes)


OTHER_RANK = dataclasses.replace(TASKS[0].config, r=4)


def with_weight(model: Model) -> Model:
    norm = model.norm.copy()
    norm[0] += 1
    return dataclasses.replace(model, norm=norm)


OTHER_RUNS: dict[str, tuple[Any, str]] = {
    "learning rate": (lambda m: (m, TASKS, with_argument(learning_rate=0.5)), "was 0.01 and is now 0.5 (--lr)"),
    "epochs": (lambda m: (m, TASKS, with_argument(epochs=4)), "epochs was 3 and is now 4 (--epochs)"),
    "rank": (lambda m: (m, with_task(config=OTHER_RANK), ARGUMENTS), "echo: r was 2 and is now 4 (--rank)"),
    "examples": (lambda m: (m, with_task(examples=drawn_examples(9, 5)), ARGUMENTS), "echo: examples was '5, sha256"),
    "order": (lambda m: (m, with_task(examples=TASKS[0].examples[::-1]), ARGUMENTS), "echo: examples was"),
    "held out": (lambda m: (m, with_task(held_out=()), ARGUMENTS), "(--data, --held-out, --max-length or --cut)"),
    "no task": (lambda m: (m, TASKS[:1], ARGUMENTS), "['echo', 'other'] and is now ['echo'] (--data, in this order)"),
    "another name": (lambda m: (m, with_task(name="ecco"), ARGUMENTS), "and is now ['ecco', 'other']"),
    "another order": (lambda m: (m, TASKS[::-1], ARGUMENTS), "['echo', 'other'] and is now ['other', 'echo']"),
    "dtype": (lambda m: (dataclasses.replace(m, dtype="float64"), TASKS, ARGUMENTS), "(--dtype)"),
    "base": (lambda m: (with_weight(m), TASKS, ARGUMENTS), "(--model)"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER_RUNS)
def test_another_run_does_not_go_on_from_it_and_the_difference_is_named(
    case: str, model: Model, tmp_path: Path
) -> None:
    change, words = OTHER_RUNS[case]
    first: list[TrainingState] = []
    with pytest.raises(StopIteration):
        train(model, TASKS, ARGUMENTS, on_step=stop_after(1, first))
    save_checkpoint(tmp_path, first[-1], describe(model, TASKS, ARGUMENTS), 0)
    with pytest.raises(DataError) as error:
        load_checkpoint(tmp_path, describe(*change(model)))
    assert str(error.value).startswith(f"{tmp_path}: is a run of something else: ") and words in str(error.value)


def stop_after(count: int, states: list[TrainingState], error: type[BaseException] = StopIteration) -> Any:
    def on_step(state: TrainingState) -> None:
        states.append(state)
        if len(states) == count:
            raise error

    return on_step


def test_files_that_are_no_state(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no run to go on with"):
        load_checkpoint(tmp_path, {})
    (tmp_path / STATE_FILE).write_bytes(b"\x08" + bytes(20))
    with pytest.raises(DataError, match="cannot be read"):
        load_checkpoint(tmp_path, {})
    write_safetensors(tmp_path / STATE_FILE, {"x": np.zeros(1)})
    with pytest.raises(DataError, match="is no state of a training run"):
        steps_done(tmp_path)


def test_a_write_that_fails_leaves_the_state_before_it(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[TrainingState] = []
    with pytest.raises(StopIteration):
        train(model, TASKS, ARGUMENTS, on_step=stop_after(2, states))
    description = describe(model, TASKS, ARGUMENTS)
    save_checkpoint(tmp_path, states[0], description, 0)

    def full(file: Path, *rest: Any) -> None:
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("refimpl.training.checkpoint.write_safetensors", full)
    with pytest.raises(DataError, match="cannot be written"):
        save_checkpoint(tmp_path, states[1], description, 0)
    assert same_bits(load_checkpoint(tmp_path, description)[0], states[0])
    assert [file.name for file in tmp_path.iterdir()] == [STATE_FILE]


def test_an_interrupt_leaves_the_last_state_and_the_session_goes_on(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = states_of(model)[-1]
    description = describe(model, TASKS, ARGUMENTS)
    session = Session(tmp_path / "run", description)
    seen: list[TrainingState] = []

    def interrupted(on_step: Any, state: TrainingState | None) -> TrainingState:
        return train(model, TASKS, ARGUMENTS, on_step=on_step, state=state)

    with pytest.raises(KeyboardInterrupt):
        session.run(interrupted, stop_after(3, seen, KeyboardInterrupt))
    assert "--resume" in capsys.readouterr().err
    again = Session(tmp_path / "run", description)
    again.resume("cpu")
    assert again.state is not None and same_bits(again.state, seen[-1]) and again.seconds > 0
    shown: list[TrainingState] = []
    assert same_bits(again.run(interrupted, shown.append), expected)
    assert same_bits(shown[0], seen[-1])


def test_whoever_reads_while_a_state_is_written_reads_the_one_before(model: Model, tmp_path: Path) -> None:
    states: list[TrainingState] = []
    with pytest.raises(StopIteration):
        train(model, TASKS, ARGUMENTS, on_step=stop_after(2, states))
    save_checkpoint(tmp_path, states[0], {}, 0)
    with open(tmp_path / STATE_FILE, "rb") as reader:
        before = (tmp_path / STATE_FILE).read_bytes()
        save_checkpoint(tmp_path, states[1], {}, 0)
        assert reader.read() == before != (tmp_path / STATE_FILE).read_bytes()


def test_the_seconds_of_a_run_are_those_of_all_its_parts(model: Model, tmp_path: Path) -> None:
    states: list[TrainingState] = []
    with pytest.raises(StopIteration):
        train(model, TASKS, ARGUMENTS, on_step=stop_after(2, states))
    session = Session(tmp_path, describe(model, TASKS, ARGUMENTS))
    save_checkpoint(tmp_path, states[-1], session.description, 1000.0)
    session.resume("cpu")
    session.run(lambda on_step, state: train(model, TASKS, ARGUMENTS, on_step=on_step, state=state), lambda state: None)
    assert 1000 < session.seconds < 1600


def test_a_state_is_saved_every_now_and_then(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "CHECKPOINT_SECONDS", 0.0)
    session = Session(tmp_path / "run", describe(model, TASKS, ARGUMENTS))
    states: list[TrainingState] = []

    def killed(on_step: Any, state: TrainingState | None) -> TrainingState:
        def kill_later(state: TrainingState) -> None:
            on_step(state)
            if len(states) == 3:
                raise SystemError("killed")

        return train(model, TASKS, ARGUMENTS, on_step=kill_later)

    with pytest.raises(SystemError):
        session.run(killed, states.append)
    assert same_bits(load_checkpoint(tmp_path / "run", session.description)[0], states[-1])


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_run(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    count = 0

    def full_at_first(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 1:
            raise OSError("No space left on device")
        write_safetensors(*arguments)

    monkeypatch.setattr(sessions, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("refimpl.training.checkpoint.write_safetensors", full_at_first)
    session = Session(tmp_path / "run", describe(model, TASKS, ARGUMENTS))
    last = session.run(
        lambda on_step, state: train(model, TASKS, ARGUMENTS, on_step=on_step, state=state), lambda state: None
    )
    assert same_bits(last, states_of(model)[-1])
    assert same_bits(load_checkpoint(tmp_path / "run", session.description)[0], last)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: no checkpoint: ") and "No space left on device" in line


def test_a_loss_that_is_no_number_keeps_the_last_good_state_and_its_adapters(model: Model, tmp_path: Path) -> None:
    states: list[TrainingState] = []

    def cross_entropy(*arguments: Any) -> Any:
        losses, gradient = GRADIENTS.cross_entropy(*arguments)
        return (losses * np.nan if len(states) == 3 else losses), gradient

    broken = dataclasses.replace(GRADIENTS, cross_entropy=cross_entropy)
    description = describe(model, TASKS, ARGUMENTS)
    session = Session(tmp_path / "run", description)
    with pytest.raises(LoracleError, match=r"echo: the loss of step 4 is nan; .*run/adapter has what was good"):
        session.run(
            lambda on_step, state: train(model, TASKS, ARGUMENTS, on_step=on_step, state=state, gradient_ops=broken),
            states.append,
        )
    state, _ = load_checkpoint(tmp_path / "run", description)
    assert same_bits(state, states[1])  # the loss of the state after it was never seen
    for name in state.tasks:
        adapter = load_adapter(tmp_path / "run" / "adapter" / name, model.config)
        for module, tensors in state.adapter(name).lora.items():
            assert (adapter.lora[module].A == tensors.A).all() and (adapter.lora[module].B == tensors.B).all()


def test_what_a_run_leaves_is_loaded_again_bit_for_bit(model: Model, tmp_path: Path) -> None:
    state = states_of(model)[-1]
    renamed = TrainingState({"default": state.tasks["echo"], "other": state.tasks["other"]})
    write_output(tmp_path / "out", renamed, {"seconds": 1})
    names = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*") if file.is_file()}
    peft = {"adapter_config.json", "adapter_model.safetensors"}
    assert names == {*peft, *(f"other/{name}" for name in peft), "loss.svg", "training.json"}
    for name in renamed.tasks:
        adapter, trained = load_adapter(adapter_folder(tmp_path / "out", name), model.config), renamed.adapter(name)
        assert adapter.config == trained.config
        for module, tensors in trained.lora.items():
            assert (adapter.lora[module].A == tensors.A).all() and (adapter.lora[module].B == tensors.B).all()
    with pytest.raises(LoracleError, match="is there already"):
        write_output(tmp_path / "out", renamed, {})
