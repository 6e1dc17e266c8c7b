"""The trainer: TRL's, with packed batches, reference log-probabilities from a table, and a weight per pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from trl import DPOTrainer

from components.models.packed import completion_logps, prepare
from components.train import losses
from components.train.batches import LikeLength
from components.train.examples import collate_pairs, collate_stories
from components.train.fit import Watched

if TYPE_CHECKING:
    from datasets import Dataset

Batch = dict[str, Any]


class PackedTrainer(Watched, DPOTrainer):
    """TRL's trainer on batches that compute no padding; subclasses say what is learned from them.

    The loss of a step is the mean over all items of the step (pairs, or completion tokens), however they are spread over
    batches and processes.
    """

    collate: Callable[[list[dict[str, Any]]], Batch]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, data_collator=type(self).collate, **kwargs)
        # The examples carry their reference log-probabilities: no second model, no second adapter.
        if "ref" in getattr(self.model, "peft_config", {}):
            self.model.delete_adapter("ref")
        prepare(self.model)
        self.loss_is_scaled_for_ga = True
        self._items = torch.tensor(0)

    def count(self, batch: Batch) -> int:
        """The number of items over which the loss is a mean."""
        raise NotImplementedError

    def losses(self, logps: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Unreduced losses of a batch, whose sum over the step is divided by the number of items; records metrics."""
        raise NotImplementedError

    def record(self, **values: torch.Tensor) -> None:
        """Averages each (examples,) tensor over the processes, for the next line of the log."""
        mode = "train" if self.model.training else "eval"
        for name, value in values.items():
            self._metrics[mode][name].append(self.accelerator.gather_for_metrics(value.detach().float()).mean().item())

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> tuple[list[Any], None]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        items = torch.tensor(sum(self.count(batch) for batch in batches), device=device)
        self._items = self.accelerator.gather(items).sum()
        return batches, None

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        # Tokenised already, by the functions that also counted lengths and computed the reference.
        del args, kwargs
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = self.train_dataset.column_names

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LikeLength:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        # Nothing is padded, so a batch may hold examples of any length.
        return LikeLength([0] * len(dataset), self._train_batch_size, self.args.seed)

    def _compute_loss(self, model: Any, inputs: Batch, return_outputs: bool) -> torch.Tensor:
        if return_outputs:
            raise ValueError("this trainer computes log-probabilities of completions alone, there are no logits to return")
        logps = completion_logps(model, inputs["packed"])
        tokens = self.accelerator.gather(torch.tensor(inputs["packed"]["input_ids"].numel(), device=logps.device)).sum()
        # In the state, which checkpoints keep.
        self.state.num_input_tokens_seen += int(tokens)
        self._metrics["train"]["num_tokens"] = [self.state.num_input_tokens_seen]
        # DDP takes the mean of the processes' gradients; the sum over all of them is wanted.
        return self.losses(logps, inputs).sum() * (self.args.world_size / self._items)


class SFTPackedTrainer(PackedTrainer):
    """Next-token loss on completions: the mean over completion tokens."""

    collate = staticmethod(collate_stories)
    _tag_names = ("trl", "sft")
    _name = "SFT"

    def count(self, batch: Batch) -> int:
        return len(batch["packed"]["targets"])

    def losses(self, logps: torch.Tensor, batch: Batch) -> torch.Tensor:
        self.record(nll_per_token=-logps.sum()[None] / self.count(batch))
        return -logps


class DiversifiedDPOTrainer(PackedTrainer):
    """DPO in which each pair has a weight: DDPO (Chung et al. 2025, arXiv 2503.17126); with weights of 1, DPO.

    (In the history of TRL the letters DDPO mean something else: denoising diffusion policy optimisation.)
    """

    collate = staticmethod(collate_pairs)
    _tag_names = ("trl", "dpo", "diversified-dpo")
    _name = "Diversified DPO"

    def count(self, batch: Batch) -> int:
        return len(batch["weight"])

    def losses(self, logps: torch.Tensor, batch: Batch) -> torch.Tensor:
        chosen, rejected = logps.chunk(2)
        rewards = losses.implicit_rewards(
            chosen, rejected, batch["ref_chosen_logps"], batch["ref_rejected_logps"], self.args.beta
        )
        plain, weights = losses.dpo(rewards), batch["weight"]
        self.record(
            unweighted_loss=plain,
            zero_weight_share=(weights == 0).float(),
            **{
                "logps/chosen": chosen,
                "logps/rejected": rejected,
                "rewards/chosen": rewards.chosen,
                "rewards/rejected": rewards.rejected,
                "rewards/margins": rewards.chosen - rewards.rejected,
                "rewards/accuracies": (rewards.chosen > rewards.rejected).float(),
            },
        )
        return losses.diversified(plain, weights)
