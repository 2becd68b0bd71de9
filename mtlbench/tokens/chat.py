"""Chat templates: prompts as turns of a conversation, as lm-eval's ``HFLM`` renders them."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlbench.backbones.gguf import has_chat_template
from mtlbench.backbones.names import files_of
from mtlbench.errors import RequestError

logger = logging.getLogger(__name__)

Message = dict[str, str]
"""``role`` and ``content`` of a turn."""
_FILES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class ChatPrompts:
    """Renders conversations with the template of a tokenizer; training and evaluation use the same.

    Raises:
        RequestError: the tokenizer has no template.
    """

    tokenizer: Any

    def __post_init__(self) -> None:
        if not getattr(self.tokenizer, "chat_template", None):
            raise RequestError(_without(getattr(self.tokenizer, "name_or_path", "") or type(self.tokenizer).__name__))

    def __call__(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The conversation as text. It ends with the start of an answer, or, without ``add_generation_prompt``, inside
        its last turn, which the answer continues.

        As in ``HFLM``, the system turn is left out, with a warning, for templates that refuse one.
        """
        from jinja2 import TemplateError

        turns = list(messages)
        try:
            return self._rendered(turns, add_generation_prompt)
        except TemplateError as error:
            kept = [turn for turn in turns if turn["role"] != "system"]
            if len(kept) == len(turns):
                raise RequestError(f"The chat template cannot render a prompt: {error}.") from error
            logger.warning("the chat template takes no system turn (%s): prompts go without it", error)
            return self._rendered(kept, add_generation_prompt)

    @property
    def takes_system(self) -> bool:
        """Whether the template renders a system turn."""
        from jinja2 import TemplateError

        try:
            self._rendered([{"role": "system", "content": "a"}, {"role": "user", "content": "a"}], True)
        except TemplateError:
            return False
        return True

    def identity(self) -> str:
        """A text that changes with the prompts, for cache keys: an example, as templates may write today's date."""
        return json.dumps([self.tokenizer.chat_template, self([{"role": "user", "content": "a"}])])

    def _rendered(self, messages: list[Message], add_generation_prompt: bool) -> str:
        text: str = self.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text


def check_chat_template(model: str) -> None:
    """Fail early where the tokenizer of ``model`` has no chat template, as far as files on this machine tell.

    Of a hub id that is not cached nothing is known; a worker refuses it once its tokenizer is there.

    Raises:
        RequestError: it has none.
    """
    files = files_of(model)
    if files is not None and files.gguf is not None:
        found: bool | None = has_chat_template(files.folder / files.gguf)
    else:
        found = _in_cache(model) if files is None else _in_folder(files.folder)
    if found is False:
        raise RequestError(_without(model))


def _in_folder(folder: Path) -> bool:
    if any((folder / name).exists() for name in _FILES):
        return True
    config = folder / _CONFIG
    if not config.is_file():
        return False
    try:
        return bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))
    except (ValueError, AttributeError) as error:
        raise RequestError(f"{str(config)!r} is no JSON object: {error}. Download it again.") from error


def _in_cache(model: str) -> bool | None:
    """The same of a hub id in the local cache; ``None`` where that does not tell."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model, _CONFIG)
    if not isinstance(config, str):
        return None
    if _in_folder(Path(config).parent):
        return True
    # Neither a path nor None: the cache knows that the hub has no such file. None: it was never asked for.
    return None if try_to_load_from_cache(model, _FILES[0]) is None else False


def _without(model: str) -> str:
    return (
        f"--chat-template: the tokenizer of {model!r} has no chat template. Use an instruction-tuned backbone, such as "
        "`smollm2`, or omit --chat-template."
    )
