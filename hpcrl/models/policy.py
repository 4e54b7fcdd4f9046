"""The policy: an encoder, maybe a recurrent core, an action head and a value head; the same in actors and learners."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hpcrl.config import TrainConfig
from hpcrl.models.cores import Core, make_core
from hpcrl.models.encoders import OwnEncoder, make_encoder
from hpcrl.models.first_weights import HIDDEN_GAIN, orthogonal, scaled_normal
from hpcrl.models.frames import stack_sequence, stacked_space
from hpcrl.models.heads import make_head
from hpcrl.models.inputs import Inputs, Seen
from hpcrl.models.sequence import Evaluation, Sequence
from hpcrl.spaces import Task


class Policy(nn.Module):
    """Actor and critic, with encoders of their own or a shared one.

    Attributes:
        head: the distribution over actions.
        space: of what the policy sees: observations, stacked where frames are.
        state_size: S, numbers of an environment's recurrent state; 0 without a core.
        num_history: frames before the newest that it sees.
    """

    core: Core | None

    def __init__(self, task: Task, config: TrainConfig) -> None:
        super().__init__()
        self._frame = task.observation
        self.num_history = config.frame_stack - 1
        self.space = stacked_space(task.observation, config.frame_stack)
        self.inputs = Inputs(self.space, config.normalise_observations)
        is_shared = config.shared_encoder or config.core != "none" or bool(self.inputs.images)
        self.encoder = make_encoder(self.inputs, config)
        self.value_encoder = None if is_shared else make_encoder(self.inputs, config)
        width = self.encoder.num_features
        self.core = None if config.core == "none" else make_core(config.core, width, config.core_size)
        self.state_size = 0 if self.core is None else self.core.state_size
        width = width if self.core is None else self.core.num_features
        self.head = make_head(task.action, width)
        self.value_head = nn.Linear(width, 1)

    def initialise(self, seed: int) -> None:
        """First weights as the encoder has them, and zero biases; a function of `seed` alone.

        Where they are orthogonal those of the action head are small, so that actions are nearly uniform.
        """
        self._initialise(self, torch.Generator().manual_seed(seed))

    def _initialise(self, module: nn.Module, generator: torch.Generator) -> None:
        if isinstance(module, Core):
            module.initialise(generator)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            self._initialise_layer(module, generator)
        # A user's own encoder has its own way.
        elif not isinstance(module, OwnEncoder):
            for child in module.children():
                self._initialise(child, generator)

    def _initialise_layer(self, layer: nn.Linear | nn.Conv2d, generator: torch.Generator) -> None:
        if self.encoder.first_weights == "scaled_normal":
            scaled_normal(layer, generator)
        else:
            gain = 0.01 if layer is self.head else 1.0 if layer is self.value_head else HIDDEN_GAIN
            orthogonal(layer, gain, generator)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """What a policy without a core says of elements of `space`.

        Args:
            observation: [..., *space.shape].

        Returns:
            action parameters [..., P] and value float32 [...].
        """
        leading = observation.shape[: observation.dim() - len(self.space.shape)]
        seen = self.inputs(observation.reshape(-1, *self.space.shape))
        if self.value_encoder is None:
            output, value = self.encoder(seen, self.head, self.value_head)
        else:
            (output,), (value,) = self.encoder(seen, self.head), self.value_encoder(seen, self.value_head)
        parameters = self._masked(output, seen.mask)
        if len(leading) == 1:
            return parameters, value.squeeze(-1)
        return parameters.reshape(*leading, parameters.shape[-1]), value.reshape(leading)

    def over(self, sequence: Sequence) -> Evaluation:
        """What the policy says of a sequence: actions and values in its order, and the values of final observations."""
        time, num_envs = sequence.starts.shape
        rows = self._rows_of(sequence)
        parameters, values = self(rows) if self.core is None else self._remember(rows, sequence)
        split = time * num_envs
        return Evaluation(
            parameters[:split].view(time, num_envs, parameters.shape[-1]),
            values[:split].view(time, num_envs),
            values[split:],
        )

    def _rows_of(self, sequence: Sequence) -> Tensor:
        """All rows of a sequence and then its final observations, as elements of `space`."""
        if len(sequence.history):
            return stack_sequence(self._frame, sequence)
        if not len(sequence.final_observation):
            return sequence.observation.flatten(0, 1)
        return torch.cat([sequence.observation.flatten(0, 1), sequence.final_observation])

    def _remember(self, rows: Tensor, sequence: Sequence) -> tuple[Tensor, Tensor]:
        """Rows [T * B + F, ...] through encoder, core and heads; a final observation follows the state before it."""
        assert self.core is not None
        time, num_envs = sequence.starts.shape
        seen = self.inputs(rows)
        features = self.encoder.features(seen)
        split = time * num_envs
        output, states = self.core(
            features[:split].view(time, num_envs, features.shape[-1]), sequence.state, sequence.starts
        )
        output = output.flatten(0, 1)
        if len(sequence.final_index):
            t, b = sequence.final_index.unbind(1)
            last, _ = self.core.step(features[split:], states[t, b])
            output = torch.cat([output, last])
        parameters = self._masked(nn.functional.linear(output, self.head.weight, self.head.bias), seen.mask)
        return parameters, self.value_head(output).squeeze(-1)

    def _masked(self, output: Tensor, mask: Tensor | None) -> Tensor:
        parameters = self.head.parameters_of(output)
        return parameters if mask is None else self.head.masked(parameters, mask)

    @torch.inference_mode()
    def step(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """What the policy does next.

        Args:
            observation: [B, *space.shape].
            state: float32 [B, S], zeros where an episode begins.

        Returns:
            parameters [B, P] of the action distributions, and the state after this observation float32 [B, S].
        """
        seen = self.inputs(observation)
        parameters, state, _ = self.step_on(self.encoder.features(seen), seen, state)
        return parameters, state

    @torch.inference_mode()
    def step_and_value(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `step`, and the values float32 [B] of the observations."""
        seen = self.inputs(observation)
        parameters, state, features = self.step_on(self.encoder.features(seen), seen, state)
        return parameters, state, self.value_on(features, seen)

    def step_on(self, features: Tensor, seen: Seen, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`step` from the features float32 [B, F] of what is seen on; and those that the heads see."""
        if self.core is not None:
            features, state = self.core.step(features, state)
        parameters = self._masked(nn.functional.linear(features, self.head.weight, self.head.bias), seen.mask)
        return parameters, state, features

    def value_on(self, features: Tensor, seen: Seen) -> Tensor:
        """The values float32 [B] of what is seen, from the features that the heads see."""
        if self.value_encoder is not None:
            return self.value_encoder(seen, self.value_head)[0].squeeze(-1)
        return self.value_head(features).squeeze(-1)
