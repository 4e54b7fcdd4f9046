"""The owner of a shard of the global network: applies gradients as they arrive, and publishes what comes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hpcrl.activity import Phase
from hpcrl.algorithms.optimizers import make_optimizer
from hpcrl.cluster.pushes import Push, PushReceiver
from hpcrl.cluster.waiting import Waiter
from hpcrl.cluster.weights import Control, WeightsPublisher
from hpcrl.config import A3CConfig
from hpcrl.metrics import RangeReducer
from hpcrl.roles.boundary import Boundary, decide, due_at_start
from hpcrl.roles.updates import coefficients
from hpcrl.signals import Requests


class ParameterOwner:
    """One shard of the weights and of the optimizer's statistics, which all workers share.

    Mnih et al. 2016, arXiv:1602.01783, section 4: asynchronous updates with shared statistics of RMSProp (or Adam).
    All of it is local.

    Args:
        config: of the run.
        first: float32 [n], copied by `start`.
        receivers: one for each worker.
        publisher: of this shard.
        is_lead: whether this owner decides for all ranks when they meet.
        requests, waiter: of the rank.

    Attributes:
        optimizer: of this shard.
        version: gradients applied, over all starts of the run.
        env_steps: environment steps in them.
        applied: gradients applied since this start.
        lag: updates between the weights that a gradient was computed from and those that it was applied to.
    """

    def __init__(
        self,
        config: A3CConfig,
        first: Tensor,
        receivers: Sequence[PushReceiver],
        publisher: WeightsPublisher,
        is_lead: bool,
        requests: Requests,
        waiter: Waiter,
    ) -> None:
        self._config = config
        self._first = first.detach()
        self._weights = self._first.clone().requires_grad_()
        self.optimizer = make_optimizer(self._weights, config)
        self._receivers, self._publisher, self._is_lead = list(receivers), publisher, is_lead
        self._requests, self._waiter = requests, waiter
        self.version = self.env_steps = self.applied = 0
        self.lag = RangeReducer()
        self.boundaries = 0
        self._due = Boundary.NONE
        self._stop = self._save = self._is_closed = False
        self._steps_decided = 0

    def start(self) -> None:
        """Take the first weights, and publish them."""
        with torch.no_grad():
            self._weights.copy_(self._first)
        self._steps_decided = self.env_steps
        if self._is_lead:
            self._announce(due_at_start(self._config, self.env_steps))
        self._publish()

    def serve(self) -> bool:
        """Apply what has arrived, one gradient of each worker at most, and publish once; whether there was anything.

        Does nothing from `close_boundary` to `reopen`: what the ranks do together is about one state of the weights.
        """
        if self._is_closed:
            return False
        # Another worker is asked first each time.
        self._receivers.append(self._receivers.pop(0))
        arrived = [(receiver, push) for receiver in self._receivers if (push := receiver.poll()) is not None]
        if not arrived:
            return False
        before = self.version
        with self._waiter.activity.during(Phase.LEARNING):
            for receiver, push in arrived:
                self._apply(push)
                receiver.release()
            if self.version > before:
                self._waiter.activity.beat(update=self.version)
                self._waiter.activity.enter(Phase.PUBLISHING)
                self._look_ahead()
                self._publish()
        return True

    def _apply(self, push: Push) -> None:
        header = push.header
        self._stop |= bool(header.stop_requested)
        self._save |= bool(header.save_requested)
        if not header.steps:
            return
        self.lag.add(self.version - header.version)
        self.optimizer.learning_rate = coefficients(self._config, self.env_steps).learning_rate
        self._weights.grad = torch.from_numpy(push.gradient)
        self.optimizer.step()
        self.version += 1
        self.env_steps += header.steps
        self.applied += 1

    def _look_ahead(self) -> None:
        """Note wishes that reached this rank; the lead decides on them, and on what the run's counters make due."""
        self._stop |= self._requests.stop is not None
        self._save |= self._requests.take_save()
        if self._is_lead and not self._due:
            self._announce(self._decide())

    def _decide(self) -> Boundary:
        return decide(self._config, self._steps_decided, self.env_steps, self._stop, self._save)

    def _announce(self, due: Boundary) -> None:
        self._due = due
        self.boundaries += bool(due)

    def _publish(self) -> None:
        # Workers carry the wishes of the other owners to the lead.
        flags = self._due if self._is_lead else self._wishes()
        # Numbered by version, so that who counts publications counts updates.
        control = Control(self.version, self.version, int(flags), self.env_steps, self.boundaries)
        self._publisher.offer(control, self._weights.detach().numpy())

    def _wishes(self) -> Boundary:
        stop = Boundary.SAVE | Boundary.STOP if self._stop else Boundary.NONE
        return stop | (Boundary.SAVE if self._save else Boundary.NONE)

    def has_received(self, sent: Mapping[int, int]) -> bool:
        """Whether as many messages have come as each worker, by its rank, has sent."""
        return all(receiver.received == sent[receiver.worker] for receiver in self._receivers)

    def close_boundary(self) -> Boundary:
        """What this owner wants all ranks to do, now that every gradient is applied; forgets the wishes, and rests."""
        flags = self._due
        if self._stop or self._save or (self._is_lead and self.env_steps > self._steps_decided):
            flags |= self._decide() if self._is_lead else self._wishes()
        self.boundaries += not self._is_lead
        self._due = Boundary.NONE
        self._stop = self._save = False
        self._steps_decided = self.env_steps
        self._is_closed = True
        return flags

    def reopen(self) -> None:
        """Go on applying what arrives: this rank is through with what all did together."""
        self._is_closed = False

    @property
    def sent_bytes(self) -> int:
        """Bytes of weights sent to other nodes so far."""
        return self._publisher.sent_bytes
