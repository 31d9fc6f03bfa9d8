"""What a Hugging Face folder says of beginnings, ends and sampling <-> `Speaking`; the ids `transformers` names."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from temaki.base import config as config_door
from temaki.base import files
from temaki.base.errors import ConfigError, FormatError, TokenizerError
from temaki.formats.opened import Opened, Speaking
from temaki.tokens import hf_added, hf_fields
from temaki.tokens.frame import Frame

CONFIG = "config.json"
GENERATION = "generation_config.json"
TOKENIZER = "tokenizer.json"
PIECES = "tokenizer.model"
SETTINGS = hf_fields.CONFIG
LIMIT = 1 << 24
"""Bytes up to which a JSON file of settings is read."""
LARGEST = 1 << 28
"""Bytes up to which a tokenizer is read."""
BOUNDARY = "<|endoftext|>"
"""What stands between documents at home: the beginning and the end where nothing else is said."""
ADVICE = ("temperature", "top_k", "top_p")


def read(folder: Path, config: Mapping[str, Any]) -> Speaking:
    """How the model of a folder wants to be asked; `config` is its config.json. Raises FormatError."""
    where = folder / GENERATION
    found = files.read_json(where, FormatError, LIMIT) if where.is_file() else {}
    told = found if found.get("eos_token_id") is not None else config
    stop = told.get("eos_token_id")
    said: dict[str, Any] = {
        "front": list(_front(folder, config)),
        "stop": stop if isinstance(stop, list) else [] if stop is None else [stop],
    }
    if found.get("do_sample") is True:
        said |= {key: found[key] for key in ADVICE if found.get(key) not in (None, 0)}
    if found.get("repetition_penalty") not in (None, 1):
        said["repetition_penalty"] = found["repetition_penalty"]
    try:
        return config_door.read(Speaking, said)
    except ConfigError as error:
        named = f"{where} or {CONFIG}" if where.is_file() else folder / CONFIG
        raise FormatError(f"{named} is not understood: {error.what}") from None


def _front(folder: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that the folder's tokenizer puts before a text; none where it cannot be read (told later)."""
    if not (folder / TOKENIZER).is_file():
        return _front_of_pieces(folder, config)
    try:
        found = files.read_json(folder / TOKENIZER, TokenizerError, LARGEST)
        special: dict[str, int] = {}
        for each in hf_fields.listed(found.get("added_tokens") or [], "added_tokens"):
            token = hf_fields.part(each, "an added token")
            if isinstance(token.get("content"), str) and type(token.get("id")) is int and token["id"] >= 0:
                special[token["content"]] = token["id"]
        return tuple(special[text] for text in hf_added.read_frame(found.get("post_processor"), special, ()).before)
    except TokenizerError:
        return ()


def _front_of_pieces(folder: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """The same where there is a SentencePiece model alone: the beginning, unless the settings say otherwise."""
    bos = _told(config.get("bos_token_id"))
    if bos is None or not (folder / PIECES).is_file():
        return ()
    where = folder / SETTINGS
    settings = files.read_json(where, TokenizerError, LIMIT) if where.is_file() else {}
    return () if settings.get("add_bos_token") is False else (bos,)


@dataclass(frozen=True)
class Ids:
    """What `transformers` wants to know."""

    bos: int | None
    eos: tuple[int, ...]
    pad: int | None


def completed(opened: Opened) -> Speaking:
    """Its own speaking; a model trained at home begins and ends with the boundary, or as its chat template ends."""
    home = opened.format == "native" and "source" not in opened.settings and opened.speaking == Speaking()
    if not home or opened.tokenizer is None or BOUNDARY not in opened.tokenizer.special:
        return opened.speaking
    special = opened.tokenizer.special
    boundary = special[BOUNDARY]
    end = special.get(opened.chat.names.get("eos_token", BOUNDARY), boundary) if opened.chat is not None else boundary
    return Speaking(front=(boundary,), stop=(boundary,) if end == boundary else (end, boundary))


def ids(opened: Opened, speaking: Speaking) -> Ids:
    """The ids of a model's boundaries."""
    special = opened.tokenizer.special if opened.tokenizer is not None else {}
    named = opened.chat.names if opened.chat is not None else {}
    bos, pad = (_told(opened.facts.get(f"{name}_token_id")) for name in ("bos", "pad"))
    if bos is None:
        bos = speaking.front[0] if speaking.front else special.get(named.get("bos_token", BOUNDARY))
    if pad is None:
        pad = special.get(named.get("pad_token", BOUNDARY), speaking.stop[0] if speaking.stop else None)
    return Ids(bos, speaking.stop, pad)


def framed(frame: Frame, speaking: Speaking, special: Mapping[str, int]) -> Frame:
    """The frame with what the model wants in front, so that their tokenizer puts it there by itself."""
    texts = {id: text for text, id in special.items()}
    if frame.before or not speaking.front or any(id not in texts for id in speaking.front):
        return frame
    return replace(frame, before=tuple(texts[id] for id in speaking.front))


def in_config(found: Ids) -> dict[str, Any]:
    """The keys of config.json, null where there is none: left out, they would be those of the family's first model."""
    eos: Any = found.eos[0] if len(found.eos) == 1 else list(found.eos) or None
    return {"bos_token_id": found.bos, "eos_token_id": eos, "pad_token_id": found.pad}


def generation(found: Ids, speaking: Speaking) -> dict[str, Any]:
    """The content of generation_config.json."""
    told = {key: value for key, value in vars(speaking).items() if key in ADVICE and value}
    penalty = {} if speaking.repetition_penalty is None else {"repetition_penalty": speaking.repetition_penalty}
    told_ids = {key: value for key, value in in_config(found).items() if value is not None}
    return {**told_ids, **({"do_sample": True, **told} if told else {}), **penalty}


def name_tokens(folder: Path, found: Ids, special: Mapping[str, int], context: int | None) -> None:
    """Complete the tokenizer's settings with the names of its boundaries. Raises OSError."""
    texts = {id: text for text, id in special.items()}
    named = {"bos_token": found.bos, "eos_token": next(iter(found.eos), None), "pad_token": found.pad}
    told: dict[str, Any] = {key: texts[id] for key, id in named.items() if id is not None and id in texts}
    if context is not None:
        told["model_max_length"] = context
    settings = files.read_json(folder / SETTINGS, TokenizerError, LIMIT)
    files.write_text(folder / SETTINGS, json.dumps({**told, **settings}, indent=1, ensure_ascii=False) + "\n")


def _told(id: object) -> int | None:
    return id if type(id) is int and id >= 0 else None
