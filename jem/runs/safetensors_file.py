"""A model file without pickle, in the format safetensors: what model hubs ask for.

Tensors are stored as they are; the plain values around them as JSON in the head of the file. What
is read is what `torch.load` would give.
"""

import importlib
import json
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jem.errors import InputError, RunFolderError

SUFFIX = ".safetensors"
_TENSOR, _TUPLE = "__tensor__", "__tuple__"  # JSON has neither


def to_safetensors(state: dict[str, Any]) -> bytes:
    """Turn tensors and plain values, nested in dicts, lists and tuples, into bytes of a file.

    Raises:
        InputError: If the package safetensors is missing.
    """
    library, tensors = _library(), dict[str, Tensor]()

    def plain(value: Any, name: str) -> Any:  # noqa: ANN401
        if isinstance(value, Tensor):  # a copy, for tensors may share memory, and must not here
            tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
            return {_TENSOR: name}
        if isinstance(value, dict):
            return {key: plain(item, f"{name}.{key}") for key, item in value.items()}
        if isinstance(value, list | tuple):
            items = [plain(item, f"{name}.{i}") for i, item in enumerate(value)]
            return {_TUPLE: items} if isinstance(value, tuple) else items
        return value

    text = json.dumps({key: plain(value, key) for key, value in state.items()})
    checksum = _checksum(text, library.save(tensors))
    content: bytes = library.save(tensors, metadata={"jem": text, "checksum": checksum})
    return content


def from_safetensors(path: Path) -> dict[str, Any]:
    """Read what `to_safetensors` made: tensors on the CPU, and plain values.

    Raises:
        InputError: If the package safetensors is missing.
        RunFolderError: If the file is missing or damaged, or this package did not write it.
    """
    library = _library()
    try:
        content = path.read_bytes()
        about = json.loads(content[8 : _end_of_head(content)]).get("__metadata__", {})
        if "jem" not in about:
            raise ValueError("it is not a model file: `jem.save` writes one")
        if about["checksum"] != _checksum(about["jem"], content):
            raise ValueError("the checksum does not match")
        tensors = library.load(content)

        def whole(found: dict[str, Any]) -> Any:  # noqa: ANN401
            if found.keys() == {_TENSOR}:
                return tensors[found[_TENSOR]]
            return tuple(found[_TUPLE]) if found.keys() == {_TUPLE} else found

        state: dict[str, Any] = json.loads(about["jem"], object_hook=whole)
        return state
    except Exception as error:  # a damaged file can fail in any way at all
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise RunFolderError(f"cannot read {path}: {reason.splitlines()[0][:200]}") from error


def _library() -> Any:  # noqa: ANN401
    try:
        return importlib.import_module("safetensors.torch")
    except ImportError as error:
        raise InputError(
            "such files need the package 'safetensors': pip install 'jem-classifier[hub]'"
        ) from error


def _end_of_head(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def _checksum(text: str, content: bytes) -> str:
    """Of the plain values and of the bytes of all tensors: the format has none of its own."""
    return str(zlib.crc32(content[_end_of_head(content) :], zlib.crc32(text.encode())))
