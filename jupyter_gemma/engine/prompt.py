"""From a request to what the decoder reads: token ids, and media at their places.

The template writes one placeholder for each picture and clip; here each becomes begin + n placeholders + end,
with n soft tokens of the picture or clip behind them (Gemma 4's expansion).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from jupyter_gemma.engine.media import MediaConfig, Picture, picture_budget, read_clip, read_picture
from jupyter_gemma.engine.template import Template
from jupyter_gemma.engine.tokenizer import Tokenizer
from jupyter_gemma.errors import PromptTooLong, UnsupportedInput
from jupyter_gemma.model.config import ModelConfig
from jupyter_gemma.model.decoder import Prompt, SoftTokens
from jupyter_gemma.types import AudioPart, ImagePart, Message, Request, Usage, VideoPart

#: Soft tokens of one video frame unless the request names a budget (Gemma 4's video processor).
FRAME_BUDGET = 70
CLIP_SECONDS = 30.0

MediaT = TypeVar("MediaT")


_TURN_STARTS = ("<|turn>", "<start_of_turn>")


@dataclass(frozen=True)
class BuiltPrompt:
    """What the decoder reads, its tokens by modality, and what tells it from other prompts.

    ``keys``: int64 [T], the token ids, but for a soft token a negative number made of the picture or clip it belongs
    to and its place there: two prompts whose keys agree up to a place are the same up to there. ``questions``: where
    the user's turns begin.
    """

    prompt: Prompt
    usage: Usage
    keys: torch.Tensor
    questions: tuple[int, ...] = ()
    adapter: str = ""

    def with_adapter(self, adapter: str) -> BuiltPrompt:
        """The same prompt, to be computed with an adapter ("": none): nothing of it is shared with other adapters."""
        if not adapter:
            return self
        keys = self.keys.clone()
        keys[0] = -int.from_bytes(hashlib.blake2b(adapter.encode(), digest_size=7).digest(), "big") - 1
        soft = tuple(replace(media, adapter=adapter) for media in self.prompt.soft)
        return replace(self, prompt=replace(self.prompt, soft=soft), keys=keys, adapter=adapter)


@dataclass(frozen=True)
class PromptBuilder:
    """Knows one model's tokenizer, template and media; builds prompts for it."""

    config: ModelConfig
    tokenizer: Tokenizer
    template: Template
    media: MediaConfig
    context_length: int

    def build(self, request: Request) -> BuiltPrompt:
        """Render, tokenise and expand.

        Raises:
            UnsupportedInput: media this model cannot take. BadImage, BadAudio: media that cannot be read.
            PromptTooLong: no room is left for an answer; says what takes the room.
        """
        pictures = iter(list(self._pictures(request)))
        clips = iter(list(self._clips(request.messages)))
        ids: list[int] = []
        soft: list[SoftTokens] = []
        image_id, audio_id = self.config.ids.image, self.config.ids.audio
        for token in self.tokenizer.encode(self.render(request)):
            if token == image_id:
                self._expand_picture(_next(pictures, "pictures"), ids, soft)
            elif token == audio_id:
                self._expand_clip(_next(clips, "clips"), ids, soft)
            else:
                ids.append(token)
        if any(True for _ in pictures) or any(True for _ in clips):
            raise UnsupportedInput(
                "This model's chat template leaves out a picture or clip of the request.",
                "Send fewer of them, or use another model.",
            )
        prompt = Prompt(torch.tensor(ids), tuple(soft))
        built = BuiltPrompt(prompt, _count(ids, soft), prompt_keys(prompt), self._questions(ids))
        self._check_length(built)
        return built

    def render(self, request: Request) -> str:
        """The text of the prompt, a placeholder for each picture and clip."""
        return self.template.render(request.messages, tools=request.tools, thinking=request.thinking)

    def _questions(self, ids: Sequence[int]) -> tuple[int, ...]:
        starts = {self.tokenizer.special.get(text) for text in _TURN_STARTS}
        turns = (place for place, token in enumerate(ids) if token in starts)
        return tuple(place for place in turns if self.tokenizer.decode(ids[place + 1 : place + 5]).startswith("user"))

    def _pictures(self, request: Request) -> Iterator[Picture]:
        for message in request.messages:
            for part in message.parts:
                if isinstance(part, ImagePart):
                    yield self._picture(part.data, picture_budget(request.image_tokens, self.media.image_budget))
                elif isinstance(part, VideoPart):
                    budget = request.image_tokens or min(FRAME_BUDGET, self.media.image_budget)
                    for frame in part.frames:
                        yield self._picture(frame.data, picture_budget(budget, self.media.image_budget))

    def _picture(self, data: bytes, budget: int) -> Picture:
        vision = self.config.vision
        if vision is None:
            raise UnsupportedInput("This model takes text only, not pictures.", _OTHER_MODEL)
        return read_picture(data, patch=vision.patch, budget=budget, positions=vision.positions)

    def _clips(self, messages: Sequence[Message]) -> Iterator[torch.Tensor]:
        for message in messages:
            for part in message.parts:
                if isinstance(part, AudioPart):
                    if self.config.audio is None:
                        raise UnsupportedInput("This model takes text only, not sound.", _OTHER_MODEL)
                    yield self._clip(part.data)

    def _clip(self, data: bytes) -> torch.Tensor:
        media = self.media
        return read_clip(
            data,
            frame=media.frame,
            rate=media.rate,
            multiple=media.multiple,
            centered=media.centered,
            max_seconds=CLIP_SECONDS,
        )

    def _expand_picture(self, picture: Picture, ids: list[int], soft: list[SoftTokens]) -> None:
        marks = self.config.ids
        ids.extend(_present(marks.image_begin))
        soft.append(SoftTokens(len(ids), patches=picture.patches, positions=picture.positions))
        ids.extend(_present(marks.image) * len(picture.patches))
        ids.extend(_present(marks.image_end))

    def _expand_clip(self, frames: torch.Tensor, ids: list[int], soft: list[SoftTokens]) -> None:
        marks = self.config.ids
        ids.extend(_present(marks.audio_begin))
        soft.append(SoftTokens(len(ids), frames=frames))
        ids.extend(_present(marks.audio) * len(frames))
        ids.extend(_present(marks.audio_end))

    def _check_length(self, built: BuiltPrompt) -> None:
        usage = built.usage
        if usage.prompt_tokens < self.context_length:
            return
        raise PromptTooLong(
            f"The prompt has {usage.prompt_tokens} tokens ({usage.text_tokens} of text, {usage.image_tokens} of "
            f"pictures, {usage.audio_tokens} of sound); this model's context holds {self.context_length}.",
            "Send fewer rows or pictures, start a new conversation, or raise context_length if the model allows it.",
        )


_OTHER_MODEL = "Use a multimodal model, for example -m demo."


def _present(token: int | None) -> list[int]:
    return [] if token is None else [token]


def _next(media: Iterator[MediaT], what: str) -> MediaT:
    try:
        return next(media)
    except StopIteration:
        raise UnsupportedInput(
            f"The prompt has more placeholders than {what}.", "Remove the placeholder text from the prompt."
        ) from None


def _count(ids: Sequence[int], soft: Sequence[SoftTokens]) -> Usage:
    images = sum(media.count for media in soft if media.patches is not None)
    sounds = sum(media.count for media in soft if media.frames is not None)
    return Usage(text_tokens=len(ids) - images - sounds, image_tokens=images, audio_tokens=sounds)


def prompt_keys(prompt: Prompt) -> torch.Tensor:
    """See :class:`BuiltPrompt`."""
    keys = prompt.ids.clone()
    for soft in prompt.soft:
        keys[soft.offset : soft.offset + soft.count] = torch.arange(soft.count) - _digest(soft)
    return keys


def _digest(soft: SoftTokens) -> int:
    """A number of 61 bits, large enough for the places in it, made of all that the model sees of ``soft``."""
    digest = hashlib.blake2b(digest_size=8)
    for values in (soft.patches, soft.positions, soft.frames):
        if values is not None:
            digest.update(str(tuple(values.shape)).encode())
            digest.update(values.contiguous().numpy().data)
    return (int.from_bytes(digest.digest(), "big") >> 3) + (1 << 32)


def piece(prompt: Prompt, start: int, end: int) -> Prompt:
    """The tokens from ``start`` to ``end`` as a prompt of their own, with the parts of the media that lie there."""
    touched = (soft for soft in prompt.soft if soft.offset < end and start < soft.offset + soft.count)
    return Prompt(prompt.ids[start:end], tuple(_cut(soft, start, end) for soft in touched))


def _cut(soft: SoftTokens, start: int, end: int) -> SoftTokens:
    first = max(start - soft.offset, 0)
    part = slice(first, end - soft.offset)
    values = (soft.patches, soft.positions, soft.frames)
    patches, positions, frames = (None if rows is None else rows[part] for rows in values)
    return replace(soft, offset=soft.offset + first - start, patches=patches, positions=positions, frames=frames)


def chunk_end(prompt: Prompt, start: int, size: int) -> int:
    """Where the next chunk of a prompt ends: about ``size`` tokens on, and never inside a picture.

    The patches of a picture see each other in both directions, so they are read in one pass.
    """
    end = min(start + size, len(prompt.ids))
    for soft in prompt.soft:
        last = soft.offset + soft.count
        if soft.patches is not None and soft.offset < end < last:
            # Stop before the picture if that moves us on, else take it whole.
            return soft.offset if soft.offset > start else last
    return end


def whole(prompt: Prompt, length: int) -> int:
    """The greatest length, at most ``length``, that cuts no picture."""
    inside = (soft.offset for soft in prompt.soft if soft.patches is not None and 0 < length - soft.offset < soft.count)
    return min(inside, default=length)
