"""Web addresses as people write them, with spaces and letters of all languages, in the form that can be asked for."""

import re
import string
from urllib.parse import quote

BREAKS = re.compile(r"[\t\r\n]")  # which the URL Standard (whatwg.org) takes out of an address


def encoded(address: str) -> str:
    """An address of which spaces and what is not ASCII are percent-encoded; what is encoded already stays as it is."""
    return quote(BREAKS.sub("", address).strip().encode(errors="ignore"), safe=string.punctuation)
