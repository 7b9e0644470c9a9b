"""Whether an endpoint wants a key, and where it is. Light: asked before anything starts, and again by each client."""

import ipaddress
import os
from urllib.parse import urlsplit

from pipeline.config import Endpoint
from pipeline.errors import JudgeError


def secret(endpoint: Endpoint) -> str:
    """The key; empty where none is needed. A local server gets one only where the config names a variable for it:
    OpenAI's own is not for everyone on the network."""
    local = is_local(endpoint.base_url)
    if local and endpoint.api_key_env == Endpoint.model_fields["api_key_env"].default:
        return ""
    key = os.environ.get(endpoint.api_key_env, "")
    if not key and not local:
        raise JudgeError(
            f"{endpoint.base_url} needs a key and the environment variable {endpoint.api_key_env!r} is empty;"
            " set it, or name another with api_key_env"
        )
    return key


def is_local(base_url: str) -> bool:
    """Whether the address is of this machine or a private network: no name with a dot, or a private number."""
    host = urlsplit(base_url).hostname or ""
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".localhost"))
    return number.is_private or number.is_loopback
