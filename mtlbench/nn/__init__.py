"""The layer toolkit of method authors: ``from mtlbench import nn``. docs/nn.md describes the names of ``__all__``.

They load on first use, so that importing the toolkit loads no torch. The modules below may be arranged anew.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtlbench.nn.attachments import (
        attach_module,
        attach_state,
        find_module,
        find_state,
        get_module,
        get_state,
        remove_module,
    )
    from mtlbench.nn.blocks.adapters import Adapter, AdapterBank, adapter_forward
    from mtlbench.nn.blocks.branching import BranchingLinear, TaskGradients, branch_counts, group_tasks
    from mtlbench.nn.blocks.hypernet import GeneratedAdapter, Hypernet, StackHypernet
    from mtlbench.nn.blocks.shifts import TaskShift, add_task_shift, norm_names, restore_norm_dtypes, unfreeze_norms
    from mtlbench.nn.blocks.sublayers import (
        AfterBlock,
        AfterLinear,
        Sublayer,
        block_width,
        ends_block,
        find_sublayers,
        insert_after,
        layer_of,
    )
    from mtlbench.nn.linears import projection_names, replace_module, select_linears
    from mtlbench.nn.losses import hidden_state_mse, kl_divergence, load_balance, routing_report, task_means
    from mtlbench.nn.low_rank.dora import DoraFactors, DoraLinear, MergedDoraLinear, export_dora, merge_dora
    from mtlbench.nn.low_rank.dropout import dropout_mask, dropout_seed
    from mtlbench.nn.low_rank.expert_block import ExpertBlock, ExpertShape, adapt_blocks
    from mtlbench.nn.low_rank.export import export_lora
    from mtlbench.nn.low_rank.fused import Factors, LowRankBranch, fused_low_rank, gated_product
    from mtlbench.nn.low_rank.layer import (
        BatchRows,
        FactorsFunction,
        LowRankLinear,
        MergedLinear,
        adapt,
        merge_low_rank,
    )
    from mtlbench.nn.low_rank.masks import ParameterMasks
    from mtlbench.nn.low_rank.rank_budget import RankBudget, RankSchedule, TripletLinear
    from mtlbench.nn.low_rank.skills import (
        ExpertDropoutLinear,
        SkillRouter,
        SkillUsage,
        init_router_logits,
        init_skills,
        mix_skills,
        mixing_weights,
        router_name,
        select_skills,
    )
    from mtlbench.nn.parameters import kaiming_uniform, optimizer_groups, seeded_generator
    from mtlbench.nn.prefixes.attention import gated_prefix_attention
    from mtlbench.nn.prefixes.encoders import DirectPrefix, ReparameterisedPrefix, TaskPrefixes
    from mtlbench.nn.prefixes.export import export_prefix, save_merged
    from mtlbench.nn.prefixes.fast_slow import FastSlowPrompts
    from mtlbench.nn.prefixes.inject import (
        GatedPrefix,
        PrefixShape,
        PrefixSlots,
        StaticPrefix,
        StaticTaskPrefixes,
        attach_prefix,
        prefixes_of_rows,
    )
    from mtlbench.nn.prefixes.nas import PREFIX_OPERATIONS, PrefixNAS, PrefixOperation, SearchedLayer
    from mtlbench.nn.prefixes.prompts import PromptProjections
    from mtlbench.nn.prefixes.search import ArchitectureSearch, SearchSchedule
    from mtlbench.nn.row_sums import report
    from mtlbench.nn.soft_prompts.prompt import (
        PromptInput,
        PromptSource,
        SoftPrompt,
        attach_soft_prompt,
        export_prompt,
        soft_prompt_of,
    )
    from mtlbench.nn.soft_prompts.sources import (
        FactoredPrompts,
        MixedPrompts,
        StaticPrompts,
        TablePrompts,
        TransferPrompts,
        prompt_similarity,
        transfer_weights,
    )
    from mtlbench.nn.soft_prompts.start import init_prompts, prompt_learning_rate

__all__ = [
    "PREFIX_OPERATIONS",
    "Adapter",
    "AdapterBank",
    "AfterBlock",
    "AfterLinear",
    "ArchitectureSearch",
    "BatchRows",
    "BranchingLinear",
    "DirectPrefix",
    "DoraFactors",
    "DoraLinear",
    "ExpertBlock",
    "ExpertDropoutLinear",
    "ExpertShape",
    "FactoredPrompts",
    "Factors",
    "FactorsFunction",
    "FastSlowPrompts",
    "GatedPrefix",
    "GeneratedAdapter",
    "Hypernet",
    "LowRankBranch",
    "LowRankLinear",
    "MergedDoraLinear",
    "MergedLinear",
    "MixedPrompts",
    "ParameterMasks",
    "PrefixNAS",
    "PrefixOperation",
    "PrefixShape",
    "PrefixSlots",
    "PromptInput",
    "PromptProjections",
    "PromptSource",
    "RankBudget",
    "RankSchedule",
    "ReparameterisedPrefix",
    "SearchSchedule",
    "SearchedLayer",
    "SkillRouter",
    "SkillUsage",
    "SoftPrompt",
    "StackHypernet",
    "StaticPrefix",
    "StaticPrompts",
    "StaticTaskPrefixes",
    "Sublayer",
    "TablePrompts",
    "TaskGradients",
    "TaskPrefixes",
    "TaskShift",
    "TransferPrompts",
    "TripletLinear",
    "adapt",
    "adapt_blocks",
    "adapter_forward",
    "add_task_shift",
    "attach_module",
    "attach_prefix",
    "attach_soft_prompt",
    "attach_state",
    "block_width",
    "branch_counts",
    "dropout_mask",
    "dropout_seed",
    "ends_block",
    "export_dora",
    "export_lora",
    "export_prefix",
    "export_prompt",
    "find_module",
    "find_state",
    "find_sublayers",
    "fused_low_rank",
    "gated_prefix_attention",
    "gated_product",
    "get_module",
    "get_state",
    "group_tasks",
    "hidden_state_mse",
    "init_prompts",
    "init_router_logits",
    "init_skills",
    "insert_after",
    "kaiming_uniform",
    "kl_divergence",
    "layer_of",
    "load_balance",
    "merge_dora",
    "merge_low_rank",
    "mix_skills",
    "mixing_weights",
    "norm_names",
    "optimizer_groups",
    "prefixes_of_rows",
    "projection_names",
    "prompt_learning_rate",
    "prompt_similarity",
    "remove_module",
    "replace_module",
    "report",
    "restore_norm_dtypes",
    "router_name",
    "routing_report",
    "save_merged",
    "seeded_generator",
    "select_linears",
    "select_skills",
    "soft_prompt_of",
    "task_means",
    "transfer_weights",
    "unfreeze_norms",
]

_NAMES = {
    "attachments": "attach_module attach_state find_module find_state get_module get_state remove_module",
    "linears": "projection_names replace_module select_linears",
    "losses": "hidden_state_mse kl_divergence load_balance routing_report task_means",
    "blocks.adapters": "Adapter AdapterBank adapter_forward",
    "blocks.branching": "BranchingLinear TaskGradients branch_counts group_tasks",
    "blocks.hypernet": "GeneratedAdapter Hypernet StackHypernet",
    "blocks.shifts": "TaskShift add_task_shift norm_names restore_norm_dtypes unfreeze_norms",
    "blocks.sublayers": "AfterBlock AfterLinear Sublayer block_width ends_block find_sublayers insert_after layer_of",
    "low_rank.dora": "DoraFactors DoraLinear MergedDoraLinear export_dora merge_dora",
    "low_rank.dropout": "dropout_mask dropout_seed",
    "low_rank.expert_block": "ExpertBlock ExpertShape adapt_blocks",
    "low_rank.export": "export_lora",
    "low_rank.fused": "Factors LowRankBranch fused_low_rank gated_product",
    "low_rank.layer": "BatchRows FactorsFunction LowRankLinear MergedLinear adapt merge_low_rank",
    "low_rank.masks": "ParameterMasks",
    "low_rank.rank_budget": "RankBudget RankSchedule TripletLinear",
    "low_rank.skills": "ExpertDropoutLinear SkillRouter SkillUsage init_router_logits init_skills mix_skills "
    "mixing_weights router_name select_skills",
    "row_sums": "report",
    "parameters": "kaiming_uniform optimizer_groups seeded_generator",
    "prefixes.attention": "gated_prefix_attention",
    "prefixes.encoders": "DirectPrefix ReparameterisedPrefix TaskPrefixes",
    "prefixes.export": "export_prefix save_merged",
    "prefixes.fast_slow": "FastSlowPrompts",
    "prefixes.inject": "GatedPrefix PrefixShape PrefixSlots StaticPrefix StaticTaskPrefixes attach_prefix "
    "prefixes_of_rows",
    "prefixes.nas": "PREFIX_OPERATIONS PrefixNAS PrefixOperation SearchedLayer",
    "prefixes.prompts": "PromptProjections",
    "prefixes.search": "ArchitectureSearch SearchSchedule",
    "soft_prompts.prompt": "PromptInput PromptSource SoftPrompt attach_soft_prompt export_prompt soft_prompt_of",
    "soft_prompts.sources": "FactoredPrompts MixedPrompts StaticPrompts TablePrompts TransferPrompts prompt_similarity "
    "transfer_weights",
    "soft_prompts.start": "init_prompts prompt_learning_rate",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mtlbench.nn' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"mtlbench.nn.{_HOMES[name]}"), name)
    globals()[name] = found  # the next use does not come here
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
