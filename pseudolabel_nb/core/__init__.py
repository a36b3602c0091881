"""What every other module stands on: errors and registries, dataclasses as JSON, files, random streams, progress."""
from .bounds import bounded, check_bounds, one_of
from .errors import Registry, UserError, first_of, lookup, register
from .files import PART, append_jsonl, read_json, read_jsonl, replacing, write_bytes, write_json, write_text
from .dataclass_json import from_dict, replace_fields, to_dict
from .monitor import hearing_interrupts, overseeing, process_number, progress, stop_if_asked
from .streams import random_stream, seed_shared, seed_torch

__all__ = ["PART", "Registry", "UserError", "append_jsonl", "bounded", "check_bounds", "first_of", "from_dict",
           "hearing_interrupts", "lookup", "one_of", "overseeing", "process_number", "progress", "random_stream",
           "read_json", "read_jsonl", "register", "replace_fields", "replacing", "seed_shared", "seed_torch",
           "stop_if_asked", "to_dict", "write_bytes", "write_json", "write_text"]
