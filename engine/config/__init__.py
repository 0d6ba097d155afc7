"""One typed tree of settings. `serve_config.yaml` (`args:`) fills it, then command-line flags.

A default lives in its field and nowhere else; help text is printed from here. Sizes that are found at start-up
(threads, devices) form new values and are never written back.
"""

from __future__ import annotations

from engine.config.cores import usable_cores
from engine.config.gateway import GatewaySettings, HttpOptions
from engine.config.generator import AutoscalingSettings, GeneratorSettings, WeightFormat
from engine.config.retriever import FollowUps, RetrieverSettings
from engine.config.router import AbstainSettings, RouterSettings
from engine.config.serve_file import APP_IMPORT_PATH, ServeFile, read_serve_file
from engine.config.tree import EngineConfig, Profile, group_in, parse_config

__all__ = [
    "APP_IMPORT_PATH",
    "AbstainSettings",
    "AutoscalingSettings",
    "EngineConfig",
    "FollowUps",
    "GatewaySettings",
    "GeneratorSettings",
    "HttpOptions",
    "Profile",
    "RetrieverSettings",
    "RouterSettings",
    "ServeFile",
    "WeightFormat",
    "group_in",
    "parse_config",
    "read_serve_file",
    "usable_cores",
]
