"""The platform that vLLM would have chosen, with an elastic scheduler and worker by default."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import vllm.platforms

from kvcached_vllm.attach import attach, chosen_by_user

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.platforms.interface import Platform


def _vanilla_platform() -> type[Platform]:
    """The class that vLLM's own detection finds, as if we were not installed."""
    found = [plugin() for plugin in vllm.platforms.builtin_platform_plugins.values()]
    names = [name for name in found if name is not None]
    name = names[0] if len(names) == 1 else "vllm.platforms.interface.UnspecifiedPlatform"
    return resolve_name(name)  # type: ignore[no-any-return]


class _Elastic:
    """Puts our classes where vLLM has its defaults; a user's own choice stays."""

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        """Lets vLLM settle the configuration, then attaches to it."""
        user_choice = chosen_by_user(vllm_config)
        super().check_and_update_config(vllm_config)  # type: ignore[misc]
        attach(vllm_config, user_choice)


def _build() -> Any:
    vanilla = _vanilla_platform()
    return type("ElasticPlatform", (_Elastic, vanilla), {"__module__": __name__})


ElasticPlatform = _build()
