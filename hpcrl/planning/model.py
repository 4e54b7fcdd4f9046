"""How fast a layout is, by closed formulas: actors and learners as two stations that turns go round between.

A *turn* is the larger of a round (an unroll of every actor, E columns) and a batch (C columns). It is acted for D_A
seconds and learned from for D_L seconds, and N of them may be under way at once. With the rates a = 1 / D_A and
b = 1 / D_L, and r = a / b, a closed queue of two exponential servers makes

    X = a (1 - r^m) / (1 - r^(m+1))   turns per second, with m = N.

Times here are nearly constant, which stretches the queue: m = 1 + (N - 1) 2 / (c_A^2 + c_L^2), with the coefficients of
variation of both stations (the two-moment diffusion approximation of queues). Limits: N = 1, lockstep, makes
1 / (D_A + D_L) whatever the variation; without variation and N >= 2 it is min(a, b); many turns make min(a, b) too.
docs/scaling.md says what is in D_A and D_L, and what is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

from hpcrl.planning.allreduce import hierarchical
from hpcrl.planning.costs import Costs
from hpcrl.planning.setups import GRADIENT_SLOTS, Setup

#: Numbers that travel with a gradient (hpcrl.algorithms.loss.STATISTICS).
_STATISTICS_BYTES = 44
#: What an agreement of the learners sends each of them, at most some cache lines.
_AGREEMENT_BYTES = 40
#: A large message asks its receiver first, and hears from it.
_HANDSHAKE = 3
_EAGER_BYTES = 64 * 1024
#: Variation of a station at least; 0 would make an infinite power.
_LEAST_VARIATION = 1e-3
#: Parts of acting that are the actor's own work.
WORK = ("environments", "inference", "weights copies")
_MOST_POWER = 700.0
#: No time at all, where one divides by it.
_INSTANT_S = 1e-9


@dataclass(frozen=True)
class Prediction:
    """What a layout would do.

    Attributes:
        env_steps_per_s: over all actors.
        lag_mean: updates between acting and learning.
        actor_utilisation, learner_utilisation: share of their time that they work (a hosted rank is both).
        bound_by: what takes most of the time of what sets the pace.
        core_hours_per_million: core-hours for a million env steps.
        parts: seconds of a turn, by what takes them.
    """

    env_steps_per_s: float
    lag_mean: float
    actor_utilisation: float
    learner_utilisation: float
    bound_by: str
    core_hours_per_million: float
    parts: dict[str, float]


def predict(setup: Setup, costs: Costs) -> Prediction:
    """The model's answer for one layout."""
    if setup.is_asynchronous:
        return _predict_asynchronous(setup, costs)
    rounds, batches = setup.turn / setup.num_envs, setup.turn / setup.batch_envs
    acting = {name: seconds * rounds for name, seconds in acting_parts(setup, costs).items()}
    learning = {name: seconds * batches for name, seconds in learning_parts(setup, costs).items()}
    works, learns = sum(acting[name] for name in WORK), sum(learning.values())
    travels = (sum(acting.values()) - works) / rounds
    # In lockstep every message is waited for, as a part of the turn.
    tokens, network = setup.tokens, 0.0 if setup.in_lockstep else network_s(setup, costs)
    # Who is ahead of the others waits for the slowest of all only as often as slots are used up.
    deviation = acting_deviation(setup, costs) * rounds
    stragglers = expected_maximum(setup.actors if setup.in_rounds else 1) * deviation / math.sqrt(tokens)
    waits = 0.0
    if setup.in_lockstep and not setup.is_hosted:
        waits = nap_overshoot(works + travels, costs.nap_s) + nap_overshoot(learns, costs.nap_s)
    acts, answers = max(_INSTANT_S, works + stragglers), answering_s(setup, costs) * rounds if setup.central else 0.0
    if setup.central:
        # Nobody answers while the learner computes a gradient.
        rate, waiting = 1 / (max(acts, answers) + learns), 0.0
        acts = 1 / rate
    else:
        variation = (deviation / acts) ** 2 / (1 if setup.in_rounds else setup.actors)
        first, second = acts, max(learns, network)
        if not setup.in_rounds:
            # Actors that share no connection are not held up by those that do.
            far = setup.far_share
            first, second = 1 / ((1 - far) / acts + far / max(acts, network)), learns
        rate, waiting = closed_queue(first, second, tokens, variation, travels + waits)
    lag = _lag(setup, rate, acts / rounds + travels, waiting)
    parts = {**acting, "stragglers": stragglers, "waiting": waits, **learning}
    paced = acting if setup.in_lockstep else {name: acting[name] for name in WORK}
    bound = _bound_by(setup, {**paced, "stragglers": stragglers}, learning, network)
    steps = rate * setup.turn * setup.unroll_length
    busy, learner_busy = works * rate, (learns + answers) * rate
    if setup.is_hosted:
        busy = learner_busy = busy + learner_busy
    return _made(setup, steps, lag, busy, learner_busy, bound, parts)


def _made(
    setup: Setup, steps: float, lag: float, acting: float, learning: float, bound: str, parts: Mapping[str, float]
) -> Prediction:
    core_hours = setup.cores / steps * 1e6 / 3600
    return Prediction(steps, lag, min(1.0, acting), min(1.0, learning), bound, core_hours, dict(parts))


def closed_queue(
    first_s: float, second_s: float, tokens: float, variation: float, delay_s: float = 0.0
) -> tuple[float, float]:
    """Turns per second of two stations that `tokens` turns go round between, and the turns that wait for the second.

    Args:
        first_s, second_s: seconds of a turn at each.
        variation: sum of their squared coefficients of variation.
        delay_s: seconds on the way, where turns don't get in each other's way.
    """
    first_s, second_s = max(first_s, _INSTANT_S), max(second_s, _INSTANT_S)
    if tokens == 1:
        return 1 / (first_s + second_s + delay_s), 0.0
    stretch = 2 / max(variation, _LEAST_VARIATION)
    power = 1 + (tokens - 1) * stretch
    ratio = second_s / first_s
    logarithm = math.log(ratio)
    if abs(logarithm) * power < 1e-9:
        rate, held = power / (power + 1) / first_s, power / 2
    else:
        rate = -_less_one(logarithm * power) / -_less_one(logarithm * (power + 1)) / first_s
        held = ratio / (1 - ratio) - (power + 1) / _less_one(-logarithm * (power + 1))
    # Turns can't go round faster than they do where none waits.
    rate = min(rate, 1 / first_s, 1 / second_s, tokens / (first_s + second_s + delay_s))
    return rate, max(0.0, held - rate * second_s) / stretch


def _less_one(exponent: float) -> float:
    """e^x - 1, of exponents that would be too large the largest."""
    return math.expm1(min(exponent, _MOST_POWER))


def expected_maximum(count: float) -> float:
    """Mean of the largest of `count` standard normal numbers: Phi^-1((n - 0.375) / (n + 0.25)), Blom 1958."""
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25)) if count > 1 else 0.0


def nap_overshoot(waited_s: float, nap_s: float) -> float:
    """Seconds by which a polite wait is late on average: half of its last sleep, which grows as half of the wait."""
    return min(nap_s, 0.5 * waited_s) / 2


# The parts of a turn


def acting_parts(setup: Setup, costs: Costs) -> dict[str, float]:
    """Seconds of an unroll of the actor that sets the pace, by what takes them, up to where its learner has it."""
    steps, columns = setup.unroll_length, setup.pace_envs
    if setup.central:
        # Half of the environments step while the answer for the others is on its way.
        link = costs.net if setup.is_far else costs.node
        answer = 2 * link.latency_s + costs.inference(setup.learner_envs / 2)
        halves = 2 if columns > 1 else 1
        stepping = costs.step(columns) + (halves - 1) * costs.step.fixed
        inference = max(0.0, halves * answer - (stepping if halves > 1 else 0.0))
    else:
        stepping, inference = costs.step(columns), costs.inference(columns)
    parts = {"environments": steps * stepping, "inference": steps * inference + costs.unroll(columns)}
    parts["weights copies"] = 0.0 if setup.is_hosted else costs.weights_bytes / costs.copy_bytes_per_s
    if not setup.is_hosted:
        parts["weights transport"] = _fetch_s(setup, costs)
        parts["unroll transport"] = _sending_s(setup, costs)
    return parts


def acting_deviation(setup: Setup, costs: Costs) -> float:
    """Standard deviation of the seconds of an unroll: a sum of T independent steps of as many columns."""
    return costs.step_sd_s * math.sqrt(setup.unroll_length * setup.pace_envs)


def answering_s(setup: Setup, costs: Costs) -> float:
    """Seconds that a learner answers during one unroll of its actors, two halves a step."""
    return 2 * setup.unroll_length * costs.inference(setup.learner_envs / 2)


def unroll_nbytes(setup: Setup, costs: Costs, columns: float) -> float:
    """Bytes of an unroll of so many columns."""
    return costs.unroll_bytes(setup.unroll_length * columns)


def message_s(costs: Costs, nbytes: float) -> float:
    """Seconds of a message between nodes; a large one asks first."""
    trips = _HANDSHAKE if nbytes > _EAGER_BYTES else 1
    return (trips - 1) * costs.net.latency_s + costs.net(nbytes)


def _sending_s(setup: Setup, costs: Costs) -> float:
    """Until an unroll is there: through memory at once, between nodes one after the other in lockstep."""
    if not setup.is_far:
        return costs.node.latency_s
    nbytes = unroll_nbytes(setup, costs, setup.pace_envs)
    queue = setup.far_unrolls if setup.in_rounds else 1
    return message_s(costs, nbytes) + (queue - 1) * nbytes / costs.net.bytes_per_s


def _fetch_s(setup: Setup, costs: Costs) -> float:
    """Until weights that were published can be read: at once on a node, one node after the other elsewhere."""
    if not setup.is_far:
        return 0.0
    copy = costs.weights_bytes / costs.copy_bytes_per_s
    queue = setup.far_nodes if setup.in_rounds else 1
    return copy + message_s(costs, costs.weights_bytes) + (queue - 1) * costs.weights_bytes / costs.net.bytes_per_s


def learning_parts(setup: Setup, costs: Costs) -> dict[str, float]:
    """Seconds of one batch at the learner that has most, by what takes them."""
    columns = setup.learner_columns
    rows = columns * setup.unroll_length * setup.pass_share
    batch_bytes = unroll_nbytes(setup, costs, columns)
    parts = {
        "unroll copies": 0.0 if setup.is_hosted and setup.actors == 1 else batch_bytes / costs.copy_bytes_per_s,
        "gradient": setup.passes * (costs.gradient(rows) + costs.apply_s),
        "allreduce": setup.passes * allreduce_s(setup, costs, costs.weights_bytes + _STATISTICS_BYTES),
        "publication": costs.weights_bytes / costs.copy_bytes_per_s,
    }
    agreements = 1 if setup.in_rounds else 2
    parts["allreduce"] += agreements * allreduce_s(setup, costs, _AGREEMENT_BYTES)
    return parts


def allreduce_s(setup: Setup, costs: Costs, nbytes: float) -> float:
    """Seconds of a sum over all learners."""
    return hierarchical(setup.learner_nodes, setup.node_learners, nbytes, costs.node, costs.net)


def network_s(setup: Setup, costs: Costs) -> float:
    """Seconds that the busiest node's connection is taken by unrolls or by weights during a turn."""
    columns = setup.num_envs / setup.actors
    arriving = setup.far_unrolls * unroll_nbytes(setup, costs, columns) * setup.turn / setup.num_envs
    # A node that is busy with one publication gets the newest next, never a queue, but for lockstep.
    leaving = setup.far_nodes * costs.weights_bytes * setup.turn / setup.batch_envs if setup.in_rounds else 0.0
    return max(arriving, leaving) / costs.net.bytes_per_s


def _lag(setup: Setup, rate: float, under_way_s: float, waiting: float) -> float:
    """Updates between acting and learning on average, by Little's law: columns that are acted, travel or wait.

    In lockstep only the batches of one round are apart; several updates from a batch add to the lag of the first.

    Args:
        rate: turns per second.
        under_way_s: seconds from the weights of an unroll to its arrival.
        waiting: turns that have arrived.
    """
    epochs = (setup.passes - 1) / 2 if setup.pass_share == 1 else 0.0
    per_turn = setup.turn / setup.batch_envs
    if setup.in_lockstep:
        return (per_turn - 1) / 2 * setup.passes + epochs
    # Columns wait until theirs is a whole batch.
    together = setup.in_rounds or setup.central
    forming = 0.0 if together else max(0.0, setup.batch_envs - setup.pace_envs) / 2 / setup.turn
    updates = setup.passes * per_turn * (rate * under_way_s + waiting + forming)
    return min(updates, setup.most_lag) + epochs


def _bound_by(setup: Setup, acting: Mapping[str, float], learning: Mapping[str, float], network: float) -> str:
    """The largest part of what sets the pace: of the whole turn in lockstep, else of the slower station."""
    if setup.in_lockstep or setup.is_hosted:
        candidates: Mapping[str, float] = {**acting, **learning}
    elif network > max(sum(acting.values()), sum(learning.values())):
        return "unroll transport" if setup.far_unrolls else "weights transport"
    else:
        candidates = max(acting, learning, key=lambda parts: sum(parts.values()))
    largest = max(candidates, key=lambda name: candidates[name])
    return "learner" if largest == "gradient" and not setup.is_hosted else largest


# Gradients that travel instead of unrolls


def worker_s(setup: Setup, costs: Costs) -> dict[str, float]:
    """Seconds of one gradient of a worker, by what takes them."""
    rows = setup.unroll_length * setup.pace_envs
    acting = acting_parts(setup, costs)
    parts = {name: acting[name] for name in WORK}
    nbytes, copy = costs.weights_bytes, costs.weights_bytes / costs.copy_bytes_per_s
    parts["gradient"] = costs.gradient(rows)
    parts["gradient transport"] = copy + (message_s(costs, nbytes / setup.learners) if setup.is_far else 0.0)
    return parts


def owner_s(setup: Setup, costs: Costs) -> float:
    """Seconds of one gradient at an owner: its shard's step and its publication."""
    whole = costs.apply_s + 2 * costs.weights_bytes / costs.copy_bytes_per_s
    return whole / setup.learners


def shard_network_s(setup: Setup, costs: Costs) -> float:
    """Seconds that the busiest node's connection is taken by one gradient of every worker on another node."""
    return setup.far_unrolls * setup.node_learners * costs.weights_bytes / setup.learners / costs.net.bytes_per_s


def _predict_asynchronous(setup: Setup, costs: Costs) -> Prediction:
    """Workers and owners as two stations; a worker waits only where two gradients of its own are on their way."""
    parts, applying = worker_s(setup, costs), owner_s(setup, costs)
    cycle = max(_INSTANT_S, sum(parts.values()))
    if setup.is_hosted:
        # An owner among them applies the gradients of all, between its own steps.
        cycle += applying * setup.learners
    tokens = setup.actors * (GRADIENT_SLOTS + 1)
    network, far = shard_network_s(setup, costs), setup.far_share
    # Workers that share no connection with an owner's others are not held up by it.
    alone = 1 / ((1 - far) / cycle + far / max(cycle, network))
    variation = (acting_deviation(setup, costs) / cycle) ** 2
    rate, waiting = closed_queue(alone / setup.actors, applying, tokens, variation)
    steps = rate * setup.num_envs / setup.actors * setup.unroll_length
    # What a worker sent before it fetched is applied meanwhile, as are those of all others.
    lag = min(rate * (max(cycle, tokens / setup.actors * network * far) + applying) + waiting, tokens)
    bound = max(parts, key=lambda name: parts[name])
    if max(network, applying * setup.actors) > cycle:
        bound = "gradient transport" if network > applying * setup.actors else "parameter owner"
    busy = rate * cycle / setup.actors
    learning = busy if setup.is_hosted else rate * applying
    return _made(setup, steps, lag, busy, learning, bound, {**parts, "parameter owner": applying})
