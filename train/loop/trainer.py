"""The trainer: TRL's `SFTTrainer` with an objective that is exact over the whole optimizer step.

What enters: a model, a `GOConfig`, an objective, data sets of `train.data`. What leaves: a trained model and, at every
logging step, the curves of the paper's figures 1 and 2. Every forward pass goes through the base class's own
`compute_loss`, so its metrics, its fused LM head and its traps are TRL's; for an objective that `is_base_trainers`, its
loss is too.

How one optimizer step travels:

    get_batch_samples   fetches its micro-batches, counts tokens over all of them and all ranks, and where the objective
                        decides something over the step, sums what its losses are expected to be
    compute_loss        once a micro-batch: forward pass, `Tokens`, sums; then one of two ways to the loss:
      _plain_loss         weights from tokens and counts alone; nothing else to do
      _deciding_loss      weights under a guess of the decision; with the last micro-batch the truth is known, and
                          those that ran under another decision are run again for the difference (`_correction`)
    log                 reads the curves of the steps since the last line

The bookkeeping is `step.py`, the guess `expected_loss.py`, checkpoints `resume.py`.
"""

from contextlib import nullcontext
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from common.errors import raise_together
from train.data.collate import COUNTS, EXTRA_KEYS, IGNORED_LABEL, GroupCollator
from train.data.counts import Counts
from train.data.held_out import TOKEN_NUMBER
from train.data.plan import GroupPlan
from train.data.rows import TOKEN_COLUMNS
from train.data.sampler import FilledDataset, filled_order
from train.loop.anchor import Anchor
from train.loop.devices import check_processes, one_device
from train.loop.expected_loss import TokenLosses
from train.loop.held_out import HeldOutLosses
from train.loop.isolation import check_isolation
from train.loop.references import ReferenceCheck
from train.loop.replay import random_state, replayed
from train.loop.resume import ResumableTrainer
from train.loop.sharding import arm_gradient_exchange, keep_sums_exact, share_buckets
from train.loop.state import RunState
from train.loop.step import Redone, Step, begin_step, wrong_batches
from train.objectives.amounts import amounts_of
from train.objectives.base import Moment, Objective
from train.objectives.tokens import Sums, Tokens, group_sums, lay_out, with_losses
from train.reports.curves import Curves
from train.reports.speed import Speed, SpeedCallback
from train.settings.config import GOConfig
from train.settings.refusals import parallelism_problems


class GOTrainer(ResumableTrainer):
    """SFT-GO: supervised fine-tuning with group optimization, or with any other registered objective.

    Args:
        model: the model, already loaded.
        args: the configuration.
        objective: what is minimised, with its settings.
        plan: how the rows' tokens got into groups.
        train_dataset: rows of `input_ids`, `supervised` and what the plan adds.
        eval_dataset: the same, or None.
        processing_class: the tokenizer that the rows were made with.
        peft_config: as in TRL.
        callbacks: as in TRL.
        compute_loss_func: as in TRL with an objective that is the base trainer's; refused with the others, which it
            would bypass.

    Raises:
        UserError: settings that contradict each other or would bypass the objective.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: GOConfig,
        objective: Objective,
        plan: GroupPlan,
        train_dataset: Any,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        compute_loss_func: Any = None,
    ):
        """Check the settings and set TRL's trainer up."""
        problems = args.problems_with(objective)
        if compute_loss_func is not None and not objective.is_base_trainers:
            problems.append(f"compute_loss_func would bypass objective {objective.name}; pass none.")
        raise_together(problems)
        one_device(args)
        self.objective, self.plan = objective, plan
        args.dataset_kwargs = {"skip_prepare_dataset": True}  # the rows are tokenized and cut already
        if args.padding_free and not args.packing:
            args.max_length = None  # TRL refuses a length that it would not enforce; loading has enforced it
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            peft_config=peft_config,
            callbacks=callbacks,
            compute_loss_func=compute_loss_func,
        )
        check_processes(args, self.accelerator)
        if not objective.is_base_trainers:  # accelerate may have been configured elsewhere than in the arguments
            raise_together(parallelism_problems(self.accelerator.parallelism_config) + self._deepspeed_problems())
        # A batch has more tensors than TRL's; from pinned memory, the host need not wait for any of them to arrive.
        self.accelerator.dataloader_config.non_blocking |= args.dataloader_pin_memory
        keep_sums_exact(self.accelerator)
        if self.padding_free:
            check_isolation(self.model, self.data_collator, self.accelerator.autocast)
        # TRL refuses a collator of one's own with padding-free batches, so its own is wrapped after the fact.
        self.data_collator = GroupCollator(
            self.data_collator, plan, objective.select_over, amounts_of(objective, plan.num_groups)
        )
        if not objective.is_base_trainers:
            self.loss_is_scaled_for_ga = True  # weights already take the whole step's counts
        self.anchor = Anchor(self.model, self.accelerator) if "divergence" in objective.asks else None
        num_ids = self.model.get_input_embeddings().num_embeddings
        self.run_state = RunState(
            objective, Curves(objective, plan.column is not None, plan.num_groups), TokenLosses(num_ids, args.device)
        )
        self.held_out = HeldOutLosses()
        self.reference_check = ReferenceCheck() if plan.dynamic else None
        if self.reference_check is not None:
            self.add_callback(self.reference_check)
        self.speed = Speed()
        self.add_callback(SpeedCallback(self))
        self._step: Step | None = None

    def _deepspeed_problems(self) -> list[str]:
        """DeepSpeed counts backward passes to know when a step is over, so none can be added to a step."""
        splits = self.args.gradient_accumulation_steps > 1 and self.objective.decides(Moment())
        if not self.is_deepspeed_enabled or not splits:
            return []
        return [
            "--deepspeed: with accumulated micro-batches, DeepSpeed cannot run those again whose decision (such as the "
            "worst group) was guessed wrong. Use FSDP2 (--fsdp true), --gradient_accumulation_steps 1, or an objective "
            "that decides nothing over the step."
        ]

    def _wrap_model(self, *arguments, **keywords):
        model = super()._wrap_model(*arguments, **keywords)
        share_buckets(self.accelerator)  # the base class has just set DDP's options
        return model

    @property
    def _num_ranks(self) -> int:
        return self.accelerator.num_processes

    @property
    def curves(self) -> Curves:
        """The curves since the last log line."""
        return self.run_state.curves

    @property
    def redone(self) -> Redone:
        """How often a guess was wrong."""
        return self.run_state.redone

    @property
    def moment(self) -> Moment:
        """Where in the run the next step is."""
        return Moment(self.state.global_step, self.state.max_steps)

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values, reduction="sum") if self._num_ranks > 1 else values

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        own = ("supervised", *TOKEN_COLUMNS, TOKEN_NUMBER)
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, *own]))

    def _get_dataloader(
        self, dataset, description, batch_size, sampler_fn=None, is_training=False, dataloader_key=None
    ):
        """Complete the last round of batches over the ranks with empty rows; the base class repeats documents there."""
        args = self.args
        is_exact = not args.dataloader_drop_last and args.train_sampling_strategy != "batch_rebalance"
        if self._num_ranks > 1 and is_exact and isinstance(dataset, Dataset):
            rows = self._remove_unused_columns(dataset, description)
            seed = args.seed if args.data_seed is None else args.data_seed
            dataset = FilledDataset(rows)
            sampler_fn = filled_order(
                sampler_fn(rows), rows, batch_size * self._num_ranks, seed, lambda: self.state.epoch or 0
            )
        return super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Fetch the micro-batches of one optimizer step and count its tokens before any forward pass."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        moment, expected = self.moment, []
        if self.objective.decides(moment) and len(batches) > 1:
            self.run_state.token_losses.fade()
            expected = [self._expected_sums(batch) for batch in batches]
        counts = [Counts(*batch[COUNTS]) for batch in batches]
        self._step = begin_step(
            self.objective, batches, counts, moment, expected, self._num_ranks, self._sum_over_ranks, device
        )
        return batches, num_items

    def _expected_sums(self, batch: dict[str, Any]) -> Sums:
        """Return what a micro-batch's sums will be if each token's loss is what its id's were."""
        batch = self._prepare_inputs(batch)
        labels = batch["labels"][:, 1:].flatten()
        supervised = labels != IGNORED_LABEL
        loss = self.run_state.token_losses.expected(labels.clamp(min=0)) * supervised
        unknown = {name: torch.zeros_like(loss) for name in self.objective.asks}
        return self._sums(self._tokens(loss, supervised, batch, unknown))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return one micro-batch's share of the step's loss; sums for the curves are kept on the way."""
        extra = {key: inputs.pop(key, None) for key in EXTRA_KEYS}
        if not self.model.training:
            result, _, tokens = self._forward(model, inputs, extra, return_outputs, num_items_in_batch)
            if extra.get(TOKEN_NUMBER) is not None:
                self.held_out.add(self.state.global_step, extra[TOKEN_NUMBER], tokens.loss, tokens.supervised)
            self.curves.add_evaluation(self._sums(tokens), Counts(*extra[COUNTS]))
            return result
        way = self._deciding_loss if self.objective.decides(self._step.moment) else self._plain_loss
        loss = way(model, inputs, extra, num_items_in_batch)
        return (loss, None) if return_outputs else loss

    def _forward(self, model, inputs, extra, return_outputs, num_items) -> tuple[Any, Any, Tokens]:
        """Run the base class's `compute_loss`; return what it returns, the model's fused outputs, and the tokens."""
        seen = []

        def recorded(*args, **kwargs):
            seen.append(model(*args, **kwargs))
            return seen[-1]

        with self.anchor.recording() if self.anchor else nullcontext():
            result = super().compute_loss(recorded, inputs, return_outputs=return_outputs, num_items_in_batch=num_items)
        outputs = next(outputs for outputs in reversed(seen) if getattr(outputs, "log_probs", None) is not None)
        return result, outputs, self._observed(outputs, inputs, extra)

    def _observed(self, outputs: Any, inputs: dict[str, Any], extra: dict[str, Any]) -> Tokens:
        """Put what a forward pass gave beside what the batch knows: position j - 1 of the outputs predicts token j."""
        more = {}
        if "entropy" in self.objective.asks:
            more["entropy"] = outputs.entropy.detach().float().flatten()
        if self.anchor is not None:
            more["divergence"] = self.anchor.divergence(inputs, outputs.label_mask).flatten()
        tokens = self._tokens(-outputs.log_probs.float().flatten(), outputs.label_mask.flatten(), extra, more)
        if self.reference_check is not None and self.model.training:
            self.reference_check.add(tokens)
        return tokens

    def _tokens(self, loss: Tensor, supervised: Tensor, extra: dict[str, Any], more: dict[str, Tensor]) -> Tokens:
        tokens = lay_out(supervised, extra, self.plan.num_groups)
        return with_losses(tokens, extra, self.objective.select_over, loss, **more)

    def _sums(self, tokens: Tokens) -> Sums:
        groups, own = group_sums(tokens), self.objective.statistics(tokens)
        return Sums(groups, groups[:0] if own is None else own)

    def _plain_loss(self, model, inputs, extra, num_items) -> Tensor:
        """The loss of an objective whose weights follow from the tokens and the step's counts."""
        step, objective = self._step, self.objective
        is_last = step.is_last
        base_loss, outputs, tokens = self._forward(model, inputs, extra, False, num_items)
        step.sums.append(self._sums(tokens))
        if objective.is_plain_mean(step.moment) and (num_items is not None or objective.is_base_trainers):
            loss = base_loss
        else:
            loss = self._scaled(objective.loss(tokens, step.counts, None, step.moment), outputs)
        if is_last:
            sums = step.finish(self._sum_over_ranks)[0] if objective.keeps_state else step.local_sums()
            self._end_step(sums, is_reduced=objective.keeps_state)
        return loss

    def _deciding_loss(self, model, inputs, extra, num_items) -> Tensor:
        """The loss of an objective whose weights follow from what the whole step decides, such as its worst group."""
        step, objective = self._step, self.objective
        is_last, is_split = step.is_last, step.num_batches > 1
        labels = inputs["labels"][:, 1:].flatten()
        if is_split and not is_last:
            step.random_states.append(random_state(self.args.device))
        # Until the truth is known, the last pass must not arm the gradient exchange: others may have to run before it.
        with self._no_sync(model) if is_split and is_last else nullcontext():
            base_loss, outputs, tokens = self._forward(model, inputs, extra, False, num_items)
        step.sums.append(self._sums(tokens))
        if is_split:
            self.run_state.token_losses.learn(labels.clamp(min=0), tokens.loss.detach(), tokens.supervised)
        if not is_last:
            step.guesses.append(step.guess())
            return self._scaled(objective.loss(tokens, step.counts, step.guesses[-1], step.moment), outputs)
        sums, guessed = step.finish(self._sum_over_ranks)
        decision = objective.decide(sums, step.counts, step.moment)
        loss = self._scaled(objective.loss(tokens, step.counts, decision, step.moment), outputs)
        self._end_step(sums, is_reduced=True)
        if not is_split:
            return loss
        wrong = wrong_batches(guessed, decision, self._num_ranks)
        self.redone.note(len(wrong))
        if not wrong:
            arm_gradient_exchange(model, loss)
            return loss
        with self._no_sync(model):
            self.accelerator.backward(loss)
        loss = loss.detach()
        del base_loss, outputs, tokens  # free the pass's activations before the others run again
        return loss + self._correction(model, step, wrong, decision)

    def _end_step(self, sums: Sums, is_reduced: bool) -> None:
        """Keep a finished step's sums, and let the objective take them in."""
        step = self._step
        if self.objective.keeps_state:
            self.objective.advance(sums, step.counts)
        self.curves.add_step(sums, step.counts, step.moment, is_reduced)

    def _no_sync(self, model) -> Any:
        """Return the context in which backward passes keep their gradients to this rank, as the base class does."""
        if getattr(self, "is_distributed_loading_by_transformers", False):
            return self._defer_fsdp_gradient_reduction()
        return self.accelerator.no_sync(model)

    def _correction(self, model, step: Step, wrong: list[int], decision: Tensor) -> Tensor:
        """Return what the micro-batches run under a wrong guess lack: the sum of loss(truth) - loss(guess).

        The backward pass of all but the last one is run here; the caller's, of the last one, exchanges the gradients.
        """
        total = torch.zeros((), device=self.args.device)
        for index in wrong:
            inputs = dict(self._prepare_inputs(step.batches[index]))
            extra = {key: inputs.pop(key, None) for key in EXTRA_KEYS}
            is_last = index == wrong[-1]
            exchange = nullcontext() if is_last else self._no_sync(model)
            with replayed(step.random_states[index], self.args.device), exchange:
                with self.anchor.recording() if self.anchor else nullcontext():
                    outputs = model(**inputs, use_cache=False, fused_lm_head=True)
                tokens = self._observed(outputs, inputs, extra)
                right, guessed = (
                    self.objective.loss(tokens, step.counts, under, step.moment)
                    for under in (decision, step.guesses[index])
                )
                difference = (right - guessed) * self._num_ranks
                if not is_last:
                    self.accelerator.backward(difference)
                    difference = difference.detach()
            total = total + difference
        return total

    def _scaled(self, loss: Tensor, outputs: Any) -> Tensor:
        """Undo the mean over ranks that data parallelism takes of gradients, and add a mixture of experts' own loss."""
        loss = loss * self._num_ranks
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / self.current_gradient_accumulation_steps
        return loss

    def forget_evaluation(self) -> None:
        """Drop what an evaluation has left for its log line."""
        self.curves.flush_evaluation(lambda values: values, self.moment)
        self._metrics["eval"].clear()

    def tokens_so_far(self) -> tuple[int, int]:
        """Return all ranks' tokens so far, without padding, and the supervised ones of the last step; no wait."""
        return int(self._total_train_tokens), self._step.counts.supervised

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the curves to what the base class logs."""
        if self.model.training:
            logs.update(self.curves.flush_steps(self._sum_over_ranks))
            logs.update(self.speed.flush())
            if self.objective.decides(Moment()) and self.args.gradient_accumulation_steps > 1:
                logs["redone_steps"] = self.redone.num_redone_steps
        else:
            logs.update(self.curves.flush_evaluation(self._sum_over_ranks, self.moment))
        super().log(logs, start_time)
