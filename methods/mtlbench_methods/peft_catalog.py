"""What is known of peft's tuners and cannot be read from peft: papers, starting points, what cannot work here."""

from __future__ import annotations

from typing import Final

PAPERS: Final = {
    "ADAMSS": "Zheng et al. 2025, openreview 8ZdWmpYxT0",
    "BEFT": "arXiv:2509.15974",
    "BOFT": "Liu et al. 2024, arXiv:2311.06243",
    "C3A": "arXiv:2407.19342",
    "DEFT": "Kumar et al. 2025, NeurIPS 38",
    "DELORA": "arXiv:2503.18225",
    "FOURIERFT": "Gao et al. 2024, arXiv:2405.03003",
    "FROD": "doi:10.1609/aaai.v40i31.39813",
    "GLORA": "Chavan et al. 2023, arXiv:2306.07967",
    "GRALORA": "arXiv:2505.20355",
    "HIRA": "Huang et al. 2025, openreview TwJrTz9cRS",
    "HRA": "Yuan et al. 2024, arXiv:2405.17484",
    "IA3": "Liu et al. 2022, arXiv:2205.05638",
    "LN_TUNING": "Zhao et al. 2024, arXiv:2312.11420",
    "LOHA": "Hyeon-Woo et al. 2022, arXiv:2108.06098",
    "LOKR": "Yeh et al. 2024, arXiv:2309.14859",
    "MISS": "arXiv:2409.15371",
    "OFT": "Qiu et al. 2023, arXiv:2306.07280",
    "OSF": "arXiv:2504.07097",
    "PEANUT": "arXiv:2410.01870",
    "PSOFT": "arXiv:2505.11235",
    "PVERA": "arXiv:2512.07703",
    "RANDLORA": "Albert et al. 2025, arXiv:2502.00987",
    "ROAD": "Liao and Monz 2024, arXiv:2409.00119",
    "SHIRA": "arXiv:2406.13175",
    "SUPERTUNING": "arXiv:2607.09287",
    "TINYLORA": "arXiv:2602.04118",
    "UNILORA": "arXiv:2506.00799",
    "VBLORA": "Li et al. 2024, arXiv:2405.15179",
    "VERA": "Kopiczko et al. 2024, arXiv:2310.11454",
    "WAVEFT": "arXiv:2505.12532",
}
"""Tuners with a short name, and where they were published."""

EXAMPLES: Final = {
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 100},
    "MISS": {"r": 8},
    "PSOFT": {"r": 8},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 4},
    "VBLORA": {"vector_length": 8},
    "WAVEFT": {"n_frequency": 64},
}
"""Settings that fit projections 32 to 64 wide, where peft's defaults do not."""

_BY_RANK = (
    "DEFT", "DELORA", "GLORA", "HIRA", "HRA", "LOHA", "LOKR", "LORA", "MISS", "PEANUT", "PSOFT", "PVERA",
    "SUPERTUNING", "VERA",
)  # fmt: skip
SIZES: Final = {
    **dict.fromkeys(_BY_RANK, "r"),
    **dict.fromkeys(("FOURIERFT", "WAVEFT"), "n_frequency"),
    "TINYLORA": "u",
    "UNILORA": "theta_d_length",
}
"""The option with which the number of trained parameters rises. Others have none that may be any whole number, or
cannot be counted without weights."""

ELSEWHERE: Final = frozenset({"C3A", "FOURIERFT", "FROD", "UNILORA", "VBLORA"})
"""Tuners that do not start at the backbone: random updates, and in FRoD weights rebuilt from their decomposition."""

MOVING: Final = frozenset({("DEFT", "para"), ("HRA", "apply_GS")})
"""Options that take a tuner away from the backbone at the start, as every option named ``init...`` may."""

QUANTIZED: Final = frozenset({"IA3", "LN_TUNING", "LORA", "PVERA", "RANDLORA", "ROAD"})
"""Tuners with layers for quantised linears of every kind, or none over linears; others compute with the weights."""

OWN_TARGETS: Final = frozenset({"BEFT", "IA3"})
"""Tuners defined by which projections they touch; peft knows them by architecture."""

_FUSED = ("qkv_proj", "query_key_value", "c_attn", "Wqkv", "kv_b_proj")
VALUES: Final = ("v_proj", "v", *_FUSED)
KEYS_AND_VALUES: Final = ("k_proj", "k", *VALUES)
"""Last parts of names of projections that make values, or keys too; some make both, or queries as well."""

_PROMPT = (
    "it puts virtual tokens before the input inside peft's own forward call, which training and scoring here bypass"
)
_ALONE = "its layers work only inside peft's own forward call, which training and scoring here bypass"
REFUSED: Final = {
    "ADALORA": "its budget is allocated by a call after every step that peft leaves to the caller. Take adalora",
    "ADAPTION_PROMPT": _PROMPT,
    "CARTRIDGE": _PROMPT,
    "CPT": _PROMPT,
    "LILY": "its router averages over every row and position of a batch, so a row's score depends on the others",
    "MULTITASK_PROMPT_TUNING": _PROMPT,
    "POLY": "peft wants task ids as an argument of the model's call. Take poly",
    "PREFIX_TUNING": _PROMPT,
    "PROMPT_TUNING": _PROMPT,
    "P_TUNING": _PROMPT,
    "SHADOW": _ALONE,
    "TRAINABLE_TOKENS": "it trains embeddings of chosen tokens, and no projection",
    "XLORA": "it mixes LoRA adapters that were trained before, and there are none",
}
"""Tuners that cannot be a method here, and why."""
PROMPT_LEARNING: Final = _PROMPT
"""Why any tuner of peft's prompt-learning kind is refused, newer ones too."""

_FROZEN = "the backbone's own parameters stay frozen"
_TARGET = "projections are chosen with target"
_ASA = "adaptive subspaces change what is trained along the way, and are off"
_READABLE = "an export must be readable anywhere"
HIDDEN: Final = {
    "asa_importance_beta": _ASA,
    "asa_schedule_exponent": _ASA,
    "asa_target_subspaces": _ASA,
    "asa_uncertainty_beta": _ASA,
    "bias": _FROZEN,
    "boft_n_butterfly_factor": "it needs an extension that peft builds for CUDA, and falls back to 1 without it",
    "ensure_weight_tying": _FROZEN,
    "exclude_modules": _TARGET,
    "fan_in_fan_out": "every projection here is a plain linear",
    "feedforward_modules": _TARGET,
    "final_warmup": _ASA,
    "generator_seed": "noise comes from the training's own generator",
    "init_warmup": _ASA,
    "layers_pattern": _TARGET,
    "layers_to_transform": _TARGET,
    "mask_interval": _ASA,
    "megatron_core": "the backbone is not a Megatron model",
    "modules_to_save": _FROZEN,
    "progressbar": "progress is shown by the harness",
    "qalora_group_size": "the backbone is not quantised",
    "runtime_offload_base_weight": "the backbone's weights are shared between cells",
    "sample_at_inference": "evaluation must be repeatable",
    "save_indices": _READABLE,
    "save_only_topk_weights": _READABLE,
    "save_precomputed_indices": _READABLE,
    "save_projection": _READABLE,
    "target_modules": _TARGET,
    "target_parameters": _TARGET,
    "use_asa": _ASA,
    "use_qalora": "the backbone is not quantised",
}
"""Fields of peft's configurations that are no settings here, and why."""

DATA_STARTS: Final = frozenset({"corda", "eva", "loftq", "lora_ga"})
"""Starting points of LoRA that need data, gradients or quantised weights before peft can compute them."""
