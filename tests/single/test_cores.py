"""Recurrent cores against torch's own layers, and against cells that see one episode at a time."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from hpcrl.models.cores import Core, make_core

ROWS, BATCH, INPUTS, SIZE = 7, 3, 5, 4

Kind = Literal["lstm", "gru"]
kinds = pytest.mark.parametrize("kind", ["lstm", "gru"])


def some_starts() -> Tensor:
    starts = torch.zeros(ROWS, BATCH, dtype=torch.bool)
    for row, column in ((0, 1), (2, 0), (3, 0), (3, 2), (ROWS - 1, 1)):
        starts[row, column] = True
    return starts


def a_core(kind: Kind) -> tuple[Core, Tensor, Tensor]:
    """A core in double precision, features [T, B, F] and a state [B, S]."""
    torch.manual_seed(1)
    core = make_core(kind, INPUTS, SIZE).double()
    features = torch.randn(ROWS, BATCH, INPUTS, dtype=torch.float64, requires_grad=True)
    return core, features, torch.randn(BATCH, core.state_size, dtype=torch.float64)


def row_after_row(core: Core, features: Tensor, state: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """What `Core.forward` promises, one environment and one row at a time, with torch's cells."""
    outputs, states = [], []
    for column in range(features.shape[1]):
        now = state[column : column + 1]
        for row in range(features.shape[0]):
            if starts[row, column]:
                now = torch.zeros_like(now)
            if isinstance(core.cell, nn.LSTMCell):
                hidden, cells = core.cell(features[row, column : column + 1], (now[:, :SIZE], now[:, SIZE:]))
                now = torch.cat([hidden, cells], 1)
            else:
                now = core.cell(features[row, column : column + 1], now)
            outputs.append(now[:, :SIZE])
            states.append(now)
    shape = (features.shape[1], features.shape[0], -1)
    return tuple(torch.cat(part).view(shape).transpose(0, 1) for part in (outputs, states))  # type: ignore[return-value]


@kinds
@pytest.mark.parametrize("begin", [False, True])
def test_values_and_gradients_are_those_of_cells(kind: Kind, begin: bool) -> None:
    core, features, state = a_core(kind)
    starts = some_starts() & begin
    output, states = core(features, state, starts)
    expected, expected_states = row_after_row(core, features, state, starts)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(states, expected_states)
    weighting = torch.randn_like(output)
    wanted = [features, *core.parameters()]
    gradients = torch.autograd.grad((output * weighting).sum(), wanted)
    expected_gradients = torch.autograd.grad((expected * weighting).sum(), wanted)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient)


@kinds
def test_gradients_are_those_of_differences(kind: Kind) -> None:
    core, features, state = a_core(kind)
    names = [name for name, _ in core.named_parameters()]

    def output(features: Tensor, *parameters: Tensor) -> Tensor:
        replaced = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(core, replaced, (features, state, some_starts()))[0]

    assert torch.autograd.gradcheck(output, (features, *core.parameters()))


@kinds
def test_without_starts_it_is_torchs_layer(kind: Kind) -> None:
    core, features, _ = a_core(kind)
    layer = (nn.LSTM if kind == "lstm" else nn.GRU)(INPUTS, SIZE)
    layer.load_state_dict({f"{name}_l0": value for name, value in core.cell.state_dict().items()})
    state = torch.zeros(BATCH, core.state_size)
    features = features.detach().float()
    output, states = core.float()(features, state, torch.zeros(ROWS, BATCH, dtype=torch.bool))
    expected, last = layer(features)
    torch.testing.assert_close(output, expected, atol=2e-6, rtol=1e-5)
    last = torch.cat(last, -1) if kind == "lstm" else last
    torch.testing.assert_close(states[-1], last[0], atol=2e-6, rtol=1e-5)


@kinds
def test_steps_follow_each_other_as_rows_do(kind: Kind) -> None:
    core, features, state = a_core(kind)
    starts = some_starts()
    output, states = core(features, state, starts)
    for row in range(ROWS):
        state = state.masked_fill(starts[row][:, None], 0)
        stepped, state = core.step(features[row], state)
        torch.testing.assert_close(stepped, output[row])
        torch.testing.assert_close(state, states[row])


@kinds
def test_states_and_the_first_state_have_no_gradient(kind: Kind) -> None:
    core, features, state = a_core(kind)
    output, states = core(features, state.requires_grad_(), some_starts())
    assert output.requires_grad and not states.requires_grad
    output.sum().backward()
    assert state.grad is None


@kinds
def test_inputs_and_outputs_may_be_changed_afterwards(kind: Kind) -> None:
    core, features, state = a_core(kind)
    given = state.clone()
    output, states = core(features, state, some_starts())
    (expected,) = torch.autograd.grad(output.sum(), features, retain_graph=True)
    assert torch.equal(state, given)
    kept = output.detach().clone()
    states.zero_()
    assert torch.equal(output, kept)
    assert torch.equal(torch.autograd.grad(output.sum(), features)[0], expected)


@kinds
def test_initial_weights(kind: Kind) -> None:
    core = make_core(kind, 6, 5)
    core.initialise(torch.Generator().manual_seed(3))
    for gate in core.cell.weight_hh.detach().split(5):
        torch.testing.assert_close(gate @ gate.t(), torch.eye(5), atol=1e-5, rtol=0)
    for gate in core.cell.weight_ih.detach().split(5):
        torch.testing.assert_close(gate @ gate.t(), torch.eye(5), atol=1e-5, rtol=0)
    biases = (core.cell.bias_ih + core.cell.bias_hh).detach()
    forget = torch.zeros_like(biases)
    if kind == "lstm":
        forget[5:10] = 1
    assert torch.equal(biases, forget)
    again = make_core(kind, 6, 5)
    again.initialise(torch.Generator().manual_seed(3))
    assert all(torch.equal(one, other) for one, other in zip(core.parameters(), again.parameters(), strict=True))


@kinds
def test_no_gradients_are_needed_to_act(kind: Kind) -> None:
    core = make_core(kind, INPUTS, SIZE)
    with torch.inference_mode():
        output, state = core.step(torch.randn(2, INPUTS), torch.zeros(2, core.state_size))
        rows, states = core(torch.randn(3, 2, INPUTS), state, torch.zeros(3, 2, dtype=torch.bool))
    assert output.shape == (2, core.num_features) and state.shape == (2, core.state_size)
    assert rows.shape == (3, 2, SIZE) and states.shape == (3, 2, core.state_size)
