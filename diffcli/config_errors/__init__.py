"""Messages for configs that pydantic refuses."""

from diffcli.config_errors.explaining import demand, explain

__all__ = ["demand", "explain"]
