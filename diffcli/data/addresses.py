"""Converts web addresses with spaces and letters of all languages to the form that can be requested."""

import re
import string
from urllib.parse import quote

BREAKS = re.compile(r"[\t\r\n]")  # which the URL Standard (whatwg.org) takes out of an address


def encoded(address: str) -> str:
    """An address with spaces and non-ASCII characters percent-encoded; encoded parts stay unchanged."""
    return quote(BREAKS.sub("", address).strip().encode(errors="ignore"), safe=string.punctuation)
