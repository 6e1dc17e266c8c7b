"""DPO training of the same pairs with our packed trainer and with TRL's DPOTrainer at its best settings.

TRL gets its fused output head, a precomputed reference and pairs that are tokenised already; ours gets what a run of the
pipeline gets; both get bfloat16 where the hardware has it. Each trains in a process of its own, on the same pairs in the same
order. Prints real tokens per second (padding does not count), peak memory, and the ratios, also with the reference included
over 1 and 3 epochs.

Both must compute the same: in float32, on a few pairs, the losses of each step agree to 1e-4. Nothing in bfloat16 agrees like
that, so there our log-probabilities must be no farther from those in float32 than TRL's, and the losses no farther from one
another than such errors explain. Exits 1 where that is not so, or a target is missed.

    python benchmarks/train.py                                  # sample stories, SmolLM2-135M, LoRA r 16 on all linear layers
    python benchmarks/train.py stories.jsonl.gz                 # your own
    python benchmarks/train.py --shape llama-3.1-8b             # one GPU; random weights, LoRA r 128 on q and v; no network
    python benchmarks/train.py --scaling                        # ours alone, on 1, 4 and 16 times the pairs
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import numpy as np

from components.models.params import Params as Models

SHAPES: dict[str, dict[str, int]] = {
    "llama-3.1-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
    }
}
# Speed and memory against TRL, by device.
TARGETS = {"cpu": (3.0, 0.4), "cuda": (1.8, 1.0)}
# What is trained on in float32 as well: few and short pairs, at a rate at which two or three steps change the losses.
EXACT_PAIRS = 6
EXACT = {"batch_size": 2, "learning_rate": 1e-4}
BETA = 0.1
# How far losses may differ: float32 holds a log-probability of a thousand nats to 6e-5, and of tiny gradients, Adam's first
# step takes the sign alone.
_FLOAT32 = 1e-4
# Dense bfloat16 FLOP/s by the makers' data sheets.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


def make_pairs(stories: Path, count: int, max_tokens: int, seed: int) -> list[dict[str, list[int]]]:
    """Token ids of `count` random pairs of different scores, through our own ingest."""
    from components.contracts import RESPONSES
    from components.ingest.params import Params as Ingest
    from components.ingest.step import run
    from components.models.language import load_tokenizer, token_ids
    from components.weight.pairs import by_gap

    models = Models(max_tokens=max_tokens)
    with tempfile.TemporaryDirectory() as scratch:
        responses = Path(scratch) / "responses.parquet"
        run(ingest=Ingest(), models=models, raw=stories, responses=responses, rejects=Path(scratch) / "rejects.parquet")
        rows = RESPONSES.read(responses).to_pylist()
    prompts: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        prompts.setdefault(row["prompt_id"], []).append(row)
    rng = np.random.default_rng(seed)
    tokenizer = load_tokenizer(models)
    pairs = []
    for own in prompts.values():
        for winner, loser in by_gap(np.array([row["score"] for row in own]), 5, rng):
            prompt, chosen = token_ids(tokenizer, own[winner]["prompt"], own[winner]["response"])
            rejected = token_ids(tokenizer, own[loser]["prompt"], own[loser]["response"])[1]
            pairs.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    chosen_rows = rng.permutation(len(pairs))[:count]
    return [pairs[row] for row in chosen_rows]


def build_model(shape: str | None, dtype: str) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    if shape is None:
        from components.models.language import load_model

        return get_peft_model(load_model(Models(dtype=dtype)), LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    from transformers import AutoModelForCausalLM, LlamaConfig

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPES[shape]), dtype=getattr(torch, dtype))
    return get_peft_model(model, LoraConfig(r=128, lora_alpha=256, target_modules=["q_proj", "v_proj"]))


def work(side: str, job: dict[str, Any]) -> dict[str, Any]:
    """Trains in this process, on the pairs of `job["train"]`; returns seconds, losses, peak memory and the log-probabilities of
    the reference, [chosen, rejected] of each pair (TRL: of those trained on)."""
    import torch
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from components.models.language import load_tokenizer
    from components.models.packed import prepare
    from components.reference.step import _batches, _logps
    from components.train.batches import Batches, divide
    from components.train.outlook import count_tokens
    from components.train.trainer import DiversifiedDPOTrainer

    cuda = torch.cuda.is_available()
    pairs, model = job["pairs"], build_model(job["shape"], job["dtype"])
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            times.append(-time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            times[-1] += time.perf_counter()

    class TRL(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    class Ours(DiversifiedDPOTrainer):
        def get_train_dataloader(self) -> Batches:
            size, lengths = job["batch_size"], self._lengths
            starts = range(0, len(lengths), size)
            steps = [divide(lengths[start : start + size], self._tokens_per_pass, 1)[0] for start in starts]
            passes = [[[start + place for place in one] for one in step] for start, step in zip(starts, steps, strict=True)]
            return Batches(self.train_dataset, cast(Any, InOrder(passes)), type(self).collate)

    class InOrder(list[Any]):
        """As TRL's side: the pairs as they come."""

        def set_epoch(self, epoch: int) -> None:
            pass

    arguments = {
        "per_device_train_batch_size": job["batch_size"],
        "activation_checkpointing": job["checkpointing"],
        "num_train_epochs": 1,
        "beta": BETA,
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "max_length": job["max_tokens"],
        "bf16": job["dtype"] == "bfloat16",
        "use_cpu": not cuda,
        "optim": "adamw_torch_fused",
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "dataloader_pin_memory": cuda,
    }
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        if side == "trl":
            args = DPOConfig(output_dir=folder, precompute_ref_log_probs=True, **arguments)
            trainer: Any = TRL(
                model,
                args=args,
                train_dataset=Dataset.from_list([pairs[number] for number in job["train"]]),
                processing_class=load_tokenizer(Models()),
            )
            reference = time.perf_counter() - began
            known = [[row["ref_chosen_logps"], row["ref_rejected_logps"]] for row in trainer.train_dataset]
        else:
            prepare(model)
            model.eval()
            texts = {f"{i} {s}": (p["prompt_ids"], p[f"{s}_ids"]) for i, p in enumerate(pairs) for s in ("chosen", "rejected")}
            order = sorted(texts, key=lambda name: -sum(map(len, texts[name])))
            logps: dict[str, float] = {}
            for names in _batches(order, texts):
                logps |= zip(names, _logps(model, [texts[name] for name in names]), strict=True)
            reference = time.perf_counter() - began
            known = [[logps[f"{i} chosen"], logps[f"{i} rejected"]] for i in range(len(pairs))]
            rows = [
                pairs[i]
                | {"ref_chosen_logps": known[i][0], "ref_rejected_logps": known[i][1], "weight": 1.0, "chosen_id": str(i)}
                for i in job["train"]
            ]
            dataset = Dataset.from_list(rows)
            trainer = Ours(
                model,
                args=DPOConfig(output_dir=folder, **arguments),
                train_dataset=dataset,
                processing_class=load_tokenizer(Models()),
                lengths=count_tokens(dataset).examples.tolist(),
                tokens_per_pass=job["tokens_per_pass"],
            )
        trainer.add_callback(Clock())
        trainer.train()
    memory = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry and "grad_norm" in entry]
    parameters = sum(p.numel() for p in trainer.model.parameters() if not p.requires_grad)
    return {
        "steps": times,
        "reference": reference,
        "losses": losses,
        "logps": known,
        "gib": memory / 2**30,
        "parameters": parameters,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
    }


def real_tokens(pairs: list[dict[str, list[int]]]) -> list[int]:
    """Tokens of each pair that are not padding: both completions, each behind the prompt."""
    return [2 * len(p["prompt_ids"]) + len(p["chosen_ids"]) + len(p["rejected_ids"]) for p in pairs]


def report(results: dict[str, dict[str, Any]], job: dict[str, Any]) -> bool:
    """Prints the table; whether the targets are met and the losses agree."""
    lengths = real_tokens(job["pairs"])
    tokens = int(np.sum(lengths))
    size = job["batch_size"]
    # The first step touches fresh memory.
    counted = int(np.sum(lengths[size:]))
    seconds = {side: sum(results[side]["steps"][1:]) for side in ("trl", "ours")}
    epoch = {side: seconds[side] * tokens / counted for side in seconds}
    print(f"\n{len(lengths)} pairs, {tokens:,} real tokens, {size} pairs a step; {results['ours']['device']}, {job['dtype']}")
    row = "{:8}{:>12}{:>14}{:>12}{:>12}{:>12}"
    print(row.format("", "tokens/s", "reference s", "1 epoch s", "3 epochs s", "peak GiB"))
    whole = {side: [results[side]["reference"] + n * epoch[side] for n in (1, 3)] for side in seconds}
    for side in ("trl", "ours"):
        result = results[side]
        numbers = [result["reference"], *whole[side], result["gib"]]
        print(row.format(side, f"{counted / seconds[side]:.0f}", *(f"{number:.1f}" for number in numbers)))
    ours, trl = results["ours"], results["trl"]
    speed, memory = seconds["trl"] / seconds["ours"], ours["gib"] / trl["gib"]
    ratios = [speed, trl["reference"] / ours["reference"], *(a / b for a, b in zip(whole["trl"], whole["ours"], strict=True))]
    print(row.format("ratio", *(f"{ratio:.2f}x" for ratio in ratios), f"{memory:.2f}x"))
    wanted_speed, wanted_memory = TARGETS["cpu" if ours["device"] == "cpu" else "cuda"]
    print(f"targets: {wanted_speed}x tokens/s, {wanted_memory}x memory")
    if peak := next((value for name, value in PEAKS.items() if name in ours["device"]), None):
        # Frozen weights: 2 FLOP a parameter and token forward, 2 backward; recomputation does not count.
        used = 4 * ours["parameters"] * counted / seconds["ours"]
        print(f"MFU {used / peak:.1%} (4 N FLOP a token; peak {peak / 1e12:.0f} TFLOP/s)")
    agree = same(results, job)
    return bool(speed >= wanted_speed and memory <= wanted_memory and agree)


def same(results: dict[str, dict[str, Any]], job: dict[str, Any]) -> bool:
    """Prints how far apart the two sides are, and each from float32; whether they compute the same."""
    losses = {side: np.array(result["losses"]) for side, result in results.items()}
    exact = float(np.abs(losses["ours float32"] - losses["trl float32"]).max())
    moved = float(np.ptp(losses["trl float32"]))
    print(f"float32: losses of {len(losses['trl float32'])} steps, which move by {moved:.3f}, differ by {exact:.1e} at most")
    if job["dtype"] == "float32":
        whole = float(np.abs(losses["ours"] - losses["trl"]).max())
        print(f"float32: losses of the steps of the table differ by {whole:.1e} at most")
        return max(exact, whole) < _FLOAT32
    truth = np.array(results["ours float32"]["logps"])
    errors = {side: float(np.sqrt(np.mean((np.array(results[side]["logps"]) - truth) ** 2))) for side in ("trl", "ours")}
    print(
        f"bfloat16: log-probabilities of {truth.size} completions are {errors['trl']:.2f} nats (TRL) and {errors['ours']:.2f} "
        "(ours) from those in float32, root mean square"
    )
    # Before the first step, policy and reference are the same to both, in any precision.
    apart = (losses["ours"] - losses["trl"])[1:]
    # The slope of a pair's loss is beta / 2, and in its margin are the errors of four log-probabilities on either side.
    of_step = BETA * float(np.hypot(errors["ours"], errors["trl"])) / job["batch_size"] ** 0.5
    of_mean = of_step / len(apart) ** 0.5
    print(
        f"bfloat16: losses differ by {np.abs(apart).max():.3f} in a step at most, {abs(apart.mean()):.3f} in the mean; by "
        f"these errors alone the standard deviations were {of_step:.3f} and {of_mean:.3f}"
    )
    # Errors of 32 completions are estimates, whose ratio is known to a fifth.
    return exact < _FLOAT32 and errors["ours"] < 1.5 * errors["trl"] and bool(abs(apart.mean()) < 3 * of_mean)


def run_in_process(side: str, job: dict[str, Any]) -> dict[str, Any]:
    """`work` in a process of its own, so that its peak memory is its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        subprocess.run([sys.executable, __file__, "--work", side, str(file)], check=True)
        result: dict[str, Any] = json.loads(Path(f"{file}.{side}").read_text(encoding="utf-8"))
    return result


def scaling(job: dict[str, Any]) -> None:
    """Prints tokens/s and peak memory for 1, 4 and 16 times the pairs: cost grows with tokens, memory does not grow."""
    rows = []
    for times in (1, 4, 16):
        pairs = job["pairs"] * times
        larger = job | {"pairs": pairs, "train": list(range(len(pairs)))}
        result = run_in_process("ours", larger)
        counted = sum(real_tokens(larger["pairs"])[job["batch_size"] :])
        rows.append((times, len(larger["pairs"]), counted / sum(result["steps"][1:]), result["gib"]))
    print(f"\n{'data':>6}{'pairs':>8}{'tokens/s':>10}{'peak GiB':>10}")
    for times, pairs, speed, gib in rows:
        print(f"{times:>5}x{pairs:>8}{speed:>10.0f}{gib:>10.1f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stories", type=Path, nargs="?", default=Path("data/sample/stories.jsonl"))
    parser.add_argument("--pairs", type=int, help="default: 16; of --scaling, the smallest number: two steps")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--tokens-per-pass", type=int, default=2048, help="ours: train.tokens_per_pass")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, for both")
    parser.add_argument("--scaling", action="store_true", help="ours alone, on 1, 4 and 16 times the pairs")
    parser.add_argument("--work", nargs=2, metavar=("SIDE", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        side, file = given.work
        job = json.loads(Path(file).read_text(encoding="utf-8"))
        Path(f"{file}.{side}").write_text(json.dumps(work(side, job)), encoding="utf-8")
        return 0
    if given.pairs and given.pairs <= given.batch_size:
        parser.error("--pairs: the first step is not counted, so there must be more pairs than one step has.")
    pairs = make_pairs(given.stories, given.pairs or (2 * given.batch_size if given.scaling else 16), given.max_tokens, 0)
    job = {
        "pairs": pairs,
        "train": list(range(len(pairs))),
        "dtype": Models().precision,
        "learning_rate": 1e-5,
        "batch_size": given.batch_size,
        "max_tokens": given.max_tokens,
        "shape": given.shape,
        "checkpointing": given.checkpointing,
        "tokens_per_pass": given.tokens_per_pass,
    }
    if given.scaling:
        scaling(job)
        return 0
    results = {side: run_in_process(side, job) for side in ("trl", "ours")}
    shortest = np.argsort(real_tokens(pairs), kind="stable")[:EXACT_PAIRS].tolist()
    exact = job | EXACT | {"train": shortest, "dtype": "float32"}
    results |= {f"{side} float32": run_in_process(side, exact) for side in ("trl", "ours")}
    return 0 if report(results, job) else 1


if __name__ == "__main__":
    sys.exit(main())
