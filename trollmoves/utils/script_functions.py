"""Functions for scripts: hosts of URLs, and nested dictionaries and lists, as in the data of messages."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any
from urllib.parse import ParseResult, urlparse

from trollmoves.net import hosts


def clean_url(url: str | ParseResult) -> str:
    """Return scheme, host and path of a URL, without login and port."""
    parsed = urlparse(url) if isinstance(url, str) else url
    host = parsed.hostname or ""
    return ParseResult(parsed.scheme, f"[{host}]" if ":" in host else host, parsed.path, "", "", "").geturl()


def get_local_ips() -> list[str]:
    """Return the IPv4 addresses of this host."""
    return [address for address in hosts.own_addresses() if ":" not in address]


def is_file_local(urlobj: ParseResult) -> bool:
    """Return True if a parsed URL is a path, a ``file`` URL, or has the name or an address of this host."""
    return urlobj.scheme in ("", "file") or hosts.is_local(urlobj.hostname)


def gen_dict_extract(var: Any, key: str) -> Iterator[Any]:
    """Yield the values of ``key`` in a dictionary and in all dictionaries and lists in it."""
    for found in gen_dict_contains(var, key):
        yield found[key]


def gen_dict_contains(var: Any, key: str) -> Iterator[dict[str, Any]]:
    """Yield a dictionary and all dictionaries in it that contain ``key``."""
    if isinstance(var, dict):
        if key in var:
            yield var
        for value in var.values():
            for item in value if isinstance(value, list) else [value]:
                yield from gen_dict_contains(item, key)


def translate_dict_value(var: Any, key: str, callback: Callable[[str, Any], Any]) -> Any:
    """Return a copy in which each value of ``key`` is replaced by ``callback(key, value)``."""
    if not isinstance(var, dict):
        return var
    return {
        name: callback(name, value)
        if name == key
        else _in_items(value, lambda item: translate_dict_value(item, key, callback))
        for name, value in var.items()
    }


def translate_dict_item(var: Any, key: str, callback: Callable[[dict[str, Any], str], dict[str, Any]]) -> Any:
    """Return a copy in which each dictionary that contains ``key`` is replaced by ``callback(dictionary, key)``.

    The dictionaries and lists in it are kept, in translated form.
    """
    if not isinstance(var, dict):
        return var
    translated: dict[str, Any] = {}
    for name, value in var.items():
        if name == key:
            translated |= callback(var, name)
        elif isinstance(value, dict | list) or key not in var:
            translated[name] = _in_items(value, lambda item: translate_dict_item(item, key, callback))
    return translated


def translate_dict(var: Any, keys: Collection[str], callback: Callable[..., Any], **kwargs: Any) -> Any:
    """Return a copy in which each dictionary with one of ``keys`` is ``callback(dictionary, **kwargs)``."""
    if not isinstance(var, dict):
        return var
    if any(key in var for key in keys):
        return callback(var, **kwargs)
    return {
        name: _in_items(value, lambda item: translate_dict(item, keys, callback, **kwargs))
        for name, value in var.items()
    }


def _in_items(value: Any, translate: Callable[[Any], Any]) -> Any:
    """Return the translation of a value, of a list that of its items."""
    return list(map(translate, value)) if isinstance(value, list) else translate(value)
