"""Frame rates of clips. Imports nothing heavy."""

from typing import Annotated

from pydantic import Field

FrameRate = Annotated[float, Field(gt=0, le=1000)]  # frames per second; no film that is shown to people has more
