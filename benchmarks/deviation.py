"""Deviation weights of 100,000 prompts x 6 responses x 384 dimensions: ours against a double loop per prompt.

The peer goes through the prompts one by one as published code does: every distance of two responses by itself, then min-max and
scaling in Python. Both run whole, in this process, on the same vectors, and their distances must agree to 1e-6. Ours runs three
times and the best counts (the first touches fresh memory); the peer is long enough for once. Prints a table; exits 1 where a
target is missed.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import numpy as np
from tqdm import tqdm

from components.weight.deviation import mean_distances, weights

TARGET_SPEED, TARGET_GIB = 50, 2.0


def vectors(rows: int, width: int, seed: int) -> np.ndarray:
    """Random unit vectors, float32, made in pieces."""
    rng = np.random.default_rng(seed)
    result = np.empty((rows, width), np.float32)
    for start in range(0, rows, 60_000):
        piece = rng.standard_normal((min(60_000, rows - start), width), dtype=np.float32)
        result[start : start + len(piece)] = piece / np.linalg.norm(piece, axis=1, keepdims=True)
    return result


def double_loop(embeddings: np.ndarray, prompts: int, responses: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean cosine distance of each response to its prompt's others, and its weight, pair by pair and prompt by prompt."""
    distances, delta = np.empty(len(embeddings)), np.empty(len(embeddings))
    for prompt in tqdm(range(prompts), desc="double loop", mininterval=5):
        own = embeddings[prompt * responses : (prompt + 1) * responses]
        means = []
        for i in range(responses):
            others = [1 - np.dot(own[i], own[j]) for j in range(responses) if i != j]
            means.append(sum(others) / len(others))
        low, high = min(means), max(means)
        scaled = [(value - low) / (high - low) for value in means]
        average = sum(scaled) / responses
        rows = slice(prompt * responses, (prompt + 1) * responses)
        distances[rows], delta[rows] = means, [value / average for value in scaled]
    return distances, delta


def peak_gib() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--responses", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    size = parser.parse_args()
    starts = np.arange(size.prompts) * size.responses
    embeddings = vectors(size.prompts * size.responses, size.width, 0)
    before = peak_gib()
    times = []
    for _ in range(3):
        began = time.perf_counter()
        fast = mean_distances(embeddings, starts)
        delta = weights(fast, fast, starts, "semantic")
        times.append(time.perf_counter() - began)
    ours, memory = min(times), peak_gib()
    began = time.perf_counter()
    slow, slow_delta = double_loop(embeddings, size.prompts, size.responses)
    theirs = time.perf_counter() - began
    error = float(np.abs(fast - slow).max())
    assert np.allclose(delta, slow_delta, atol=1e-3)
    print(f"{size.prompts:,} prompts x {size.responses} responses x {size.width} dimensions, float32")
    print(f"{'':14}{'seconds':>10}{'responses/s':>14}")
    for name, seconds in (("double loop", theirs), ("ours", ours)):
        print(f"{name:14}{seconds:10.2f}{len(fast) / seconds:14,.0f}")
    print(f"ratio {theirs / ours:.0f}x (target {TARGET_SPEED}x); largest difference {error:.1e}")
    print(f"peak memory {memory:.2f} GiB, of it {before:.2f} GiB before ours (target {TARGET_GIB} GiB)")
    return 0 if theirs / ours >= TARGET_SPEED and memory < TARGET_GIB and error < 1e-6 else 1


if __name__ == "__main__":
    sys.exit(main())
