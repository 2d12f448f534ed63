"""The names of other libraries that `train/` uses although they are not promised to stay, and where they were seen.

What enters: nothing. What leaves: `PRIVATE`, each name with its owner and what it is used for. Next: its test walks the
sources of `train/`: a private name that is used but not listed fails, and so does one that an upgrade took away, or
that an upgrade brought into a base class where a method of ours already has it.

Seen in: trl 1.16.0 with transformers 5.23.0, accelerate 1.15.0, torch 2.13.0 and ray 2.60.0, with which all tests run;
and in transformers 5.19.0, the oldest that pyproject.toml allows, all but those with a `since`.
"""

from typing import NamedTuple

TRAINER = "trl.trainer.sft_trainer:SFTTrainer"  # and its base, transformers' Trainer


class Private(NamedTuple):
    """A name that its library may change without a word."""

    name: str
    owner: str  # module, or module:Class
    used_for: str
    since: str = ""  # release of transformers that it was first seen in, where an older one, without it, is allowed


PRIVATE = (
    # Methods that ours override or call
    Private("_defer_fsdp_gradient_reduction", TRAINER, "passes of a step that is run again, sharded", "5.23"),
    Private("_get_dataloader", TRAINER, "a last round of batches that is filled with empty rows"),
    Private("_issue_warnings_after_load", TRAINER, "silence on tied weights when a run goes on"),
    Private("_prepare_inputs", TRAINER, "micro-batches on the device, before their pass and again for a second one"),
    Private("_remove_unused_columns", TRAINER, "the rows as the base class's own loader would see them"),
    Private("_run_epoch", TRAINER, "no step too many where the last checkpoint is continued"),
    Private("_save_checkpoint", TRAINER, "checksums of what was written"),
    Private("_save_rng_state", TRAINER, "`resume.json`, at the point before trainer_state.json is written"),
    Private("_set_signature_columns_if_needed", TRAINER, "columns that the collator needs"),
    Private("_wrap_model", TRAINER, "DDP's options, set just before"),
    # Attributes that ours read or set
    Private("_globalstep_last_logged", TRAINER, "log lines over as many steps as without an interruption"),
    Private("_metrics", TRAINER, "TRL's means since the last log line, in checkpoints"),
    Private("_signature_columns", TRAINER, "columns that the collator needs"),
    Private("_total_loss_scalar", TRAINER, "the mean loss of a whole run, in checkpoints"),
    Private("_total_train_tokens", TRAINER, "num_tokens, in checkpoints and for the speed"),
    Private("_tr_loss", TRAINER, "the losses since the last log line, in checkpoints"),
    Private("_n_gpu", "transformers.training_args:TrainingArguments", "one device a process"),
    Private("_attn_implementation", "transformers.configuration_utils:PreTrainedConfig", "which attention a model has"),
    Private("_tied_weights_keys", "transformers.modeling_utils:PreTrainedModel", "weights that may be missing"),
    # Without an underscore, and still nobody's promise
    Private("aux_loss_enabled", TRAINER, "a mixture of experts' own loss"),
    Private("current_gradient_accumulation_steps", TRAINER, "micro-batches of the step under way"),
    Private("is_distributed_loading_by_transformers", TRAINER, "who holds gradients back, sharded", "5.23"),
    Private("loss_is_scaled_for_ga", TRAINER, "losses that take the whole step's counts already"),
    Private("padding_free", TRAINER, "whether the collator lays documents end to end"),
    Private("router_aux_loss_coef", TRAINER, "a mixture of experts' own loss"),
    Private("label_mask", "trl.trainer.utils", "which positions the fused head predicts"),
    Private("log_probs", "trl.trainer.utils", "token losses, from the fused head"),
    Private("fused_lm_head", "trl.trainer.utils", "the argument that asks for it"),
    Private("add_fused_lm_head", "trl.trainer.utils", "what a pass holds, before there is a trainer"),
    Private("create_model_from_path", "trl.trainer.utils", "a model loaded as TRL loads it"),
    Private("SeedableRandomSampler", "accelerate.data_loader", "an order of documents that does not depend on ranks"),
    Private("sdpa_attention_forward", "transformers.integrations.sdpa_attention", "attention that is told lengths"),
    Private("ALL_MASK_ATTENTION_FUNCTIONS", "transformers.masking_utils", "masks, left out of an estimate"),
    # torch and ray
    Private("_orig_mod", "torch._dynamo.eval_frame:OptimizedModule", "DDP's wrapper within torch.compile's"),
    Private("_cdata", "torch.storage:UntypedStorage", "which storages are one, in an estimate"),
    Private("tree_leaves", "torch.utils._pytree", "tensors among an operation's results, in an estimate"),
    Private("TorchDispatchMode", "torch.utils._python_dispatch", "every operation of a pass, in an estimate"),
    Private("FakeTensorMode", "torch._subclasses.fake_tensor", "a pass without memory, in an estimate"),
    Private("_base_exc", "ray.train.v2._internal.exceptions", "the error behind a failed worker"),
)
