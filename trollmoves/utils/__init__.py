"""Helpers without knowledge of file transfer, and the functions for scripts that earlier versions had here."""

from trollmoves.utils.script_functions import (
    clean_url,
    gen_dict_contains,
    gen_dict_extract,
    get_local_ips,
    is_file_local,
    translate_dict,
    translate_dict_item,
    translate_dict_value,
)

__all__ = [
    "clean_url",
    "gen_dict_contains",
    "gen_dict_extract",
    "get_local_ips",
    "is_file_local",
    "translate_dict",
    "translate_dict_item",
    "translate_dict_value",
]
