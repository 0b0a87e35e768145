"""Gating with capacity once more, a token at a time in float64, from the papers' text and from the reference code's.

A group at a time: `logits[S][E]`, `real[S]`, `draws[S]` or None where all second choices count. Each function returns
(combine `[S, E, C]`, dispatch `[S, E, C]`, auxiliary loss, share of each token's choices without a place).
"""

import numpy as np


def gates_of(logits):
    shifted = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def best_two(gate):
    first = max(range(len(gate)), key=lambda e: gate[e])
    return first, max((e for e in range(len(gate)) if e != first), key=lambda e: gate[e])


def paper(logits, real, capacity, draws=None):
    """Lepikhin et al. 2020, algorithm 1, line by line; S in its means is the number of tokens that are no padding."""
    gates, (count, experts) = gates_of(logits), np.shape(logits)
    tokens = [s for s in range(count) if real[s]]
    combine, places = np.zeros((count, experts, capacity)), np.zeros((count, experts, capacity), int)
    c, missed = np.zeros(experts, int), np.zeros(count)
    means = gates[tokens].mean(axis=0)
    for s in tokens:
        e1, e2 = best_two(gates[s])
        g1 = gates[s, e1] / (gates[s, e1] + gates[s, e2])
        if c[e1] < capacity:
            combine[s, e1, c[e1]], places[s, e1, c[e1]] = g1, 1
        else:
            missed[s] = 1
        c[e1] += 1
    loss = sum(c[e] / len(tokens) * means[e] for e in range(experts)) / experts
    for s in tokens:
        e1, e2 = best_two(gates[s])
        g2 = gates[s, e2] / (gates[s, e1] + gates[s, e2])
        wanted = draws is None or 2 * g2 > draws[s]
        if c[e2] < capacity and wanted:
            combine[s, e2, c[e2]], places[s, e2, c[e2]] = g2, 1
        missed[s] = (missed[s] + (wanted and c[e2] >= capacity)) / (1 + wanted)
        c[e2] += 1
    return combine, places, loss, missed


def code(logits, real, capacity, draws=None):
    """lingvo's and Mesh TensorFlow's top-2 gating: what is drawn out goes before places are counted."""
    gates, (count, experts) = gates_of(logits), np.shape(logits)
    tokens = [s for s in range(count) if real[s]]
    combine, places = np.zeros((count, experts, capacity)), np.zeros((count, experts, capacity), int)
    missed, chosen, queues = np.zeros(count), {}, [[] for _ in range(experts)]
    for s in tokens:
        e1, e2 = best_two(gates[s])
        total = gates[s, e1] + gates[s, e2] + 1e-9
        chosen[s] = [(e1, gates[s, e1] / total)]
        if draws is None or draws[s] < gates[s, e2] / total / 0.5:
            chosen[s].append((e2, gates[s, e2] / total))
    density = np.array([sum(chosen[s][0][0] == e for s in tokens) for e in range(experts)]) / len(tokens)
    loss = np.mean(density * gates[tokens].mean(axis=0)) * experts**2
    for rank in (0, 1):
        for s in tokens:
            if rank < len(chosen[s]):
                e, gate = chosen[s][rank]
                if len(queues[e]) < capacity:
                    combine[s, e, len(queues[e])], places[s, e, len(queues[e])] = gate, 1
                    queues[e].append(s)
                else:
                    missed[s] += 1 / len(chosen[s])
    return combine, places, loss, missed


def switch(logits, real, capacity, draws=None):
    """Fedus et al. 2021, section 2.2: the likeliest expert, weighted by its probability; the loss of equation 4."""
    gates, (count, experts) = gates_of(logits), np.shape(logits)
    tokens = [s for s in range(count) if real[s]]
    combine, places = np.zeros((count, experts, capacity)), np.zeros((count, experts, capacity), int)
    taken, missed = np.zeros(experts, int), np.zeros(count)
    for s in tokens:
        e = max(range(experts), key=lambda e: gates[s, e])
        if taken[e] < capacity:
            combine[s, e, taken[e]], places[s, e, taken[e]] = gates[s, e], 1
        else:
            missed[s] = 1
        taken[e] += 1
    loss = experts * sum(taken[e] / len(tokens) * gates[tokens, e].mean() for e in range(experts))
    return combine, places, loss, missed
