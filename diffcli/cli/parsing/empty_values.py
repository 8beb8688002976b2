"""Refuses an empty text as a value, as of `--data "$UNSET"`: as a path it would mean the working folder."""

from typing import Any

MAY_BE_EMPTY = {
    "prompt",
    "negative_prompt",
    "seed",
    "overrides",
    "std",
    "rate",
    "rdzv_endpoint",
}  # of these it is a text or nothing


def refuse_empty_values(command: Any, ctx: Any, args: list[str]) -> None:
    """Raises UserError for the first option or argument of a command line whose value is empty, but for MAY_BE_EMPTY."""
    if "" not in args and not any(word.endswith("=") for word in args):
        return
    typed, *_ = command.make_parser(ctx).parse_args(args=list(args))
    for param in command.get_params(ctx):
        values = typed.get(param.name)
        if "" in (values if isinstance(values, list | tuple) else [values]) and param.name not in MAY_BE_EMPTY:
            from diffcli.config import UserError

            flag = param.param_type_name == "option"
            name = max(param.opts, key=len) if flag else str(param.metavar or param.name.upper()).strip("[]")
            shown = f"{name} VALUE" if flag else f"a value for {name}"
            raise UserError(f"{name} '': is empty", f"type {shown}; where it is a path, the working folder is .")
