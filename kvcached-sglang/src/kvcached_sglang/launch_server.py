"""SGLang's server with an elastic KV cache, where SGLang has no plugins yet.

    python -m kvcached_sglang.launch_server --model-path MODEL ...

Takes the arguments of ``sglang.launch_server``. Later versions load the plugin by themselves; there
this is the same as ``sglang.launch_server``.
"""

from __future__ import annotations

import os
import runpy
import sys
import warnings

from kvcached_sglang import (
    NotElastic,
    enabled,
    installed_sglang,
    launched,
    peer_installed,
    required,
    say_once,
)


def main() -> int:
    """Serves until it is stopped; the exit status."""
    try:
        if (stop := _refusal()) is not None:
            print(f"kvcached: {stop}", file=sys.stderr)
            return 2
        elastic = enabled()
    except NotElastic as error:
        print(error, file=sys.stderr)
        return 2
    if not elastic or not _needs_launcher():
        if not elastic:
            say_once("kvcached: vanilla: ENABLE_KVCACHED=false")
        warnings.filterwarnings("ignore", message=".*launch_server.*")
        runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)
        return 0
    _serve()
    return 0


def _refusal() -> str | None:
    installed = installed_sglang()
    if installed is None:
        return "SGLang is not installed here, or does not tell its version"
    if (peer := peer_installed()) is not None:
        return peer
    if required() and not enabled():
        return "KVCACHED_REQUIRED=true, but ENABLE_KVCACHED=false"
    from kvcached_sglang import versions  # the peer would have replaced what it imports

    return None if versions.needs_launcher(installed) else versions.reason(installed)


def _needs_launcher() -> bool:
    from kvcached_sglang import versions

    return versions.needs_launcher(installed_sglang() or "")


def _serve() -> None:
    from sglang.srt.entrypoints.http_server import launch_server
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_process_tree

    arguments = prepare_server_args(sys.argv[1:])
    if launched.other_server(arguments):
        if required():
            raise SystemExit(
                "kvcached: KVCACHED_REQUIRED=true, but: gRPC, encoder and Ray servers of this "
                "SGLang are not covered"
            )
        say_once("kvcached: vanilla: gRPC, encoder and Ray servers are not covered")
        runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)
        return
    launched.clean_up_at_exit()
    try:
        launch_server(arguments, run_scheduler_process_func=launched.run_scheduler_process)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


if __name__ == "__main__":
    sys.exit(main())
