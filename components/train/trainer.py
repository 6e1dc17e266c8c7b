"""The trainer: TRL's, with packed sequences, reference log-probabilities from a table, and a weight per pair."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from trl import DPOTrainer

from components.models.packed import completion_logps, prepare
from components.train import losses
from components.train.batches import Batches, Steps
from components.train.examples import collate_pairs, collate_stories
from components.train.fit import Watched
from components.train.sharding import shard
from components.train.throughput import Meter

if TYPE_CHECKING:
    from datasets import Dataset

Batch = dict[str, Any]


class PackedTrainer(Watched, DPOTrainer):
    """TRL's trainer on sequences that are not padded; subclasses say what is learned from them.

    A batch of the loader is all that this process does in a step: a list of passes through the model (see `Steps`), whose
    gradients add up. The loss of a step is the mean over all its items (pairs, or completion tokens), however they are spread
    over passes and processes.
    """

    collate: Callable[[list[dict[str, Any]]], Batch]
    # Whether an example of weight 0 has no gradient, so that it needs no backward pass.
    weight_zero_is_nothing = False
    # Narrower than what a Trainer may have in general.
    args: Any
    model: Any
    train_dataset: Any

    def __init__(
        self, model: Any, *, lengths: Sequence[int], tokens_per_pass: int, sharded: bool = False, **kwargs: Any
    ) -> None:
        """
        Args:
            lengths: tokens of each example of the dataset.
            sharded: whether the processes share the frozen weights (see `shard`); the model is then given on the CPU.
        """
        # What Transformers calls so: it neither moves nor wraps the model, and averages the gradients of what is not sharded.
        model.is_distributed_loading_by_transformers = sharded
        super().__init__(model, data_collator=type(self).collate, **kwargs)
        # The examples carry their reference log-probabilities: no second model, no second adapter.
        if "ref" in getattr(self.model, "peft_config", {}):
            self.model.delete_adapter("ref")
        prepare(self.model)
        self._lengths, self._tokens_per_pass = lengths, tokens_per_pass
        # Several processes must go forward and back side by side, whatever the weights of each one's pairs.
        self._spares = self.weight_zero_is_nothing and self.args.world_size == 1
        self._meter = Meter(self.model)
        if sharded:
            shard(self.model, self.args.device)
        self.loss_is_scaled_for_ga = True
        self._items = torch.tensor(0)
        self._sums: dict[str, torch.Tensor] = {}

    def count(self, batch: Batch) -> int:
        """The number of items over which the loss is a mean."""
        raise NotImplementedError

    def losses(self, logps: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Unreduced losses of a pass, whose sum over the step is divided by the number of items; records metrics."""
        raise NotImplementedError

    def record(self, **values: torch.Tensor) -> None:
        """Adds (examples,) tensors to what the next line of the log has the means of, over all passes and processes."""
        for name, value in values.items():
            value = value.detach().double()
            self._sums[name] = self._sums.get(name, 0) + torch.stack([value.sum(), value.new_tensor(value.numel())])

    def means(self) -> dict[str, float]:
        """The means of what was recorded since the last call, over all processes."""
        if not self._sums:
            return {}
        sums, numbers = self.accelerator.reduce(torch.stack(list(self._sums.values())), "sum").T.tolist()
        means = {name: s / max(n, 1) for name, s, n in zip(self._sums, sums, numbers, strict=True)}
        self._sums.clear()
        return means

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self.means() | self._meter.read(self.args.world_size) | {"num_tokens": self.state.num_input_tokens_seen}
        super().log(logs, start_time)

    def get_train_dataloader(self) -> Batches:
        args = self.args
        apart = np.array(self.train_dataset["weight"]) == 0 if self._spares else None
        steps = Steps(
            *(self._lengths, self._train_batch_size, self._tokens_per_pass, args.seed, args.world_size, args.process_index),
            apart=apart,
        )
        return Batches(self.train_dataset, steps, type(self).collate, pin_memory=args.dataloader_pin_memory)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], None]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        passes = [(one, spared) for batch in batches for one, spared in zip(batch, self._spared(batch), strict=True)]
        sizes = torch.tensor([[self.count(one), *one["size"]] for one, _ in passes], device=device).sum(0)
        self._items, *size = self.accelerator.reduce(sizes, "sum")
        forward_only = np.sum([one["size"] for one, spared in passes if spared] or [[0, 0, 0]], axis=0)
        self._meter.add([int(number) for number in size], forward_only.tolist())
        # In the state, which checkpoints keep.
        self.state.num_input_tokens_seen += int(size[0])
        return batches, None

    def _spared(self, batch: list[Batch]) -> list[bool]:
        """Which passes of a step go forward alone: never the last, as the optimiser skips weights without any gradient."""
        return [self._spares and number < len(batch) and not one["weight"].any() for number, one in enumerate(batch, 1)]

    def training_step(self, model: Any, inputs: list[Batch], *args: Any, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        """The gradients of all passes; the processes exchange them in the last one."""
        total = torch.zeros((), device=self.args.device)
        for number, (one, spared) in enumerate(zip(inputs, self._spared(inputs), strict=True), 1):
            if spared:
                total += self.watched(self._forward, model, one)
                continue
            last = number == len(inputs)
            self.accelerator.gradient_state._set_sync_gradients(last)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                total += super().training_step(model, one, *args, **kwargs)
        return total

    def _forward(self, model: Any, inputs: Batch) -> torch.Tensor:
        """The loss of a pass whose gradient is 0, for what is logged."""
        model.train()
        with torch.no_grad(), self.compute_loss_context_manager():
            loss: torch.Tensor = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        # Tokenised already, by the functions that also counted lengths and computed the reference.
        del args, kwargs
        return dataset

    def _compute_loss(self, model: Any, inputs: Batch, return_outputs: bool) -> torch.Tensor:
        if return_outputs:
            raise ValueError("this trainer computes log-probabilities of completions alone, there are no logits to return")
        logps = completion_logps(model, inputs["packed"])[: inputs["sequences"]]
        # DDP takes the mean of the processes' gradients; the sum over all of them is wanted.
        return self.losses(logps, inputs).sum() * (self.args.world_size / self._items)


class SFTPackedTrainer(PackedTrainer):
    """Next-token loss on completions: the mean over completion tokens."""

    collate = staticmethod(collate_stories)
    _tag_names = ["trl", "sft"]  # noqa: RUF012
    _name = "SFT"

    def count(self, batch: Batch) -> int:
        return int(batch["completion_tokens"].sum())

    def losses(self, logps: torch.Tensor, batch: Batch) -> torch.Tensor:
        self.record(nll_per_token=-logps / batch["completion_tokens"])
        return -logps


class PairsTrainer(PackedTrainer):
    """What the objectives on pairs have in common: the loss is a mean over pairs, each of which has a weight."""

    collate = staticmethod(collate_pairs)
    weight_zero_is_nothing = True

    def count(self, batch: Batch) -> int:
        return len(batch["weight"])

    def means(self) -> dict[str, float]:
        """Also the effective sample size of the pairs as a share of their number, (sum w)^2 / (n sum w^2)."""
        means = super().means()
        if "weight" in means:
            weight, squares = means.pop("weight"), means.pop("weight_squared")
            # A step may hold pairs of weight 0 alone.
            means["effective_sample_share"] = weight**2 / squares if squares else 0.0
        return means

    def record_pairs(
        self, plain: torch.Tensor, batch: Batch, logps: losses.Sides, rewards: losses.Sides, **more: torch.Tensor
    ) -> None:
        weights = batch["weight"]
        self.record(
            unweighted_loss=plain,
            weight=weights,
            weight_squared=weights.double() ** 2,
            zero_weight_share=(weights == 0).float(),
            **{
                "logps/chosen": logps.chosen,
                "logps/rejected": logps.rejected,
                "rewards/chosen": rewards.chosen,
                "rewards/rejected": rewards.rejected,
                "rewards/margins": rewards.chosen - rewards.rejected,
                "rewards/accuracies": (rewards.chosen > rewards.rejected).float(),
            },
            **more,
        )


class DiversifiedDPOTrainer(PairsTrainer):
    """DPO in which each pair has a weight: DDPO (Chung et al. 2025, arXiv 2503.17126); with weights of 1, DPO.

    (In the history of TRL the letters DDPO mean something else: denoising diffusion policy optimisation.)
    """

    _tag_names = ["trl", "dpo", "diversified-dpo"]  # noqa: RUF012
    _name = "Diversified DPO"

    def losses(self, logps: torch.Tensor, batch: Batch) -> torch.Tensor:
        sides = losses.Sides(*logps.chunk(2))
        rewards = losses.implicit_rewards(
            sides.chosen, sides.rejected, batch["ref_chosen_logps"], batch["ref_rejected_logps"], self.args.beta
        )
        plain = losses.dpo(rewards)
        self.record_pairs(plain, batch, sides, rewards)
        return losses.diversified(plain, batch["weight"])


class DiversifiedORPOTrainer(PairsTrainer):
    """ORPO in which each pair has a weight: DORPO (Chung et al. 2025); with weights of 1, ORPO (Hong et al. 2024).

    There is no reference. What is logged as rewards are lambda times the mean log-probabilities, as in TRL.
    """

    _tag_names = ["trl", "orpo", "diversified-orpo"]  # noqa: RUF012
    _name = "Diversified ORPO"

    def losses(self, logps: torch.Tensor, batch: Batch) -> torch.Tensor:
        # TRL's name of lambda.
        odds_weight = self.args.beta
        means = losses.Sides(*(logps / batch["completion_tokens"]).chunk(2))
        ratio = losses.log_odds_ratio(*means)
        plain = losses.orpo(means.chosen, ratio, odds_weight)
        rewards = losses.Sides(*(odds_weight * side for side in means))
        more = {"nll_per_token": -means.chosen, "log_odds_ratio": ratio}
        self.record_pairs(plain, batch, losses.Sides(*logps.chunk(2)), rewards, **more)
        return self.weighted(plain, means.chosen, ratio, batch["weight"])

    def weighted(
        self, plain: torch.Tensor, chosen_means: torch.Tensor, ratio: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        del chosen_means, ratio
        return losses.diversified(plain, weights)


class ReleasedDORPOTrainer(DiversifiedORPOTrainer):
    """DORPO as the code released with Chung et al. 2025 has it; see `losses.dorpo_released`."""

    _name = "Diversified ORPO, as released"
    weight_zero_is_nothing = False

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], None]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        total = torch.cat([one["weight"] for batch in batches for one in batch]).sum().to(device)
        self._mean_weight = self.accelerator.reduce(total, "sum") / self._items
        return batches, None

    def weighted(
        self, plain: torch.Tensor, chosen_means: torch.Tensor, ratio: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        del plain
        return losses.dorpo_released(chosen_means, ratio, weights, self._mean_weight, self.args.beta)
