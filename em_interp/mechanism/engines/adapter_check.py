"""Checks that an adapter is in effect. A base that is compared with itself gives plausible numbers, so it is an error.

At every site the output must be the module's own plus s·(x·Aᵀ)·Bᵀ for the input that the engine reports. When a model
is opened this is checked with a planted adapter large enough to change the logits, too. When a step is entered it is
checked with the step's own adapter: where its ΔW is not zero, outputs equal to the base's are an error (at step 0 B is
zero, and after a first warm-up step with learning rate 0 it still is).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from em_interp.behaviour.sampling.generate import RowAdapters
from em_interp.errors import InputError

if TYPE_CHECKING:
    import torch

    from em_interp.behaviour.sampling.chat import Tokens
    from em_interp.mechanism.engines.base import Engine
    from em_interp.mechanism.engines.interventions import AddVector

MIN_VISIBLE_SHARE = 1e-3  # a write of this share of a site's output must change the logits; in bfloat16 it takes more
CAUSE = "the usual cause is a module that the engine replaced after it was opened, or another model's adapter"


class AdapterCheck:
    """Checks adapters when they are put into an engine, by reading a short text (`probe`) each time."""

    def __init__(self, engine: Engine, probe: Tokens, sizes: dict[str, tuple[int, int]]) -> None:
        """`sizes` gives d_in and d_out of each site."""
        import torch

        self._engine, self._probe = engine, probe
        self._modules = {site: engine.hook_points.module(site) for site in sizes}
        for site, size in sizes.items():
            expected = (self._modules[site].in_features, self._modules[site].out_features)
            if size != expected:
                shapes = f"{size[0]} → {size[1]}, the model's module {expected[0]} → {expected[1]}"
                raise InputError(f"adapter site {site!r} is {shapes}; {CAUSE}")
        with torch.no_grad():
            self._base_logits, _ = engine.run(probe, [], [])
        planted = _planted(sizes, probe.ids.device)
        with engine.with_adapter(planted):
            self.check(planted, "a planted adapter")

    def check(self, adapters: RowAdapters, name: str) -> None:
        """Raise InputError where the adapters that the engine was given are not what its sites compute with."""
        import torch

        if not adapters.A:
            return
        names = [f"{kind}.{site}" for site in adapters.A for kind in ("site_in", "site_out")]
        with torch.no_grad():
            logits, activations = self._engine.run(self._probe, names, [])
            sites = [self._check_site(site, adapters, activations, name) for site in adapters.A]
        if any(site.should_change for site in sites) and not any(site.changed for site in sites):
            raise InputError(f"{name} changes nothing, though its ΔW is not zero; {CAUSE}")
        if max(site.share for site in sites) > _min_visible_share(logits) and torch.equal(logits, self._base_logits):
            raise InputError(f"{name} writes at its sites, but the logits equal the base's; {CAUSE}")

    def check_steering_vectors(self, vectors: Sequence[AddVector], name: str) -> None:
        """Raise InputError where a learned steering vector is not added to the residual stream after its layer."""
        import torch

        if not vectors:
            return
        first = vectors[0]  # the stream after later layers is changed by it too
        stream = f"resid_post.{first.layers}"
        with torch.no_grad():
            _, before = self._engine.run(self._probe, [stream], [])
            logits, after = self._engine.run(self._probe, [stream], vectors)
        expected = before[stream] + first.vector.to(before[stream].dtype)
        rounded_away = _min_visible_share(logits) * float(before[stream].norm()) > float(first.vector.norm())
        unchanged = torch.equal(logits, self._base_logits) and not rounded_away
        if unchanged or not torch.equal(after[stream], expected):
            raise InputError(f"{name} is not applied after layer {first.layers}: the residual stream lacks it; {CAUSE}")

    def _check_site(self, site: str, adapters: RowAdapters, activations: dict[str, torch.Tensor], name: str) -> _Site:
        import torch

        x, out = activations[f"site_in.{site}"], activations[f"site_out.{site}"]
        own = getattr(self._modules[site], "inner", self._modules[site]).forward(x)  # without hooks and slots
        A, B = adapters.A[site], adapters.B[site]
        write = (x.to(A.dtype) @ A.transpose(1, 2)) @ B.transpose(1, 2)
        expected, limits = own + write.to(own.dtype), torch.finfo(own.dtype)
        off = float((out - expected).norm() / expected.norm().clamp(min=limits.tiny))
        if not off <= limits.eps**0.5:
            raise InputError(f"{name} is not applied at {site}: its output is {off:.1%} off own + s·B·A·x; {CAUSE}")
        share = float(write.norm() / own.norm().clamp(min=limits.tiny))
        return _Site(not torch.equal(expected, own), not torch.equal(out, own), share)


def _min_visible_share(logits: torch.Tensor) -> float:
    """The share of an output from which on a write must change the logits: more in types with few digits."""
    import torch

    return max(MIN_VISIBLE_SHARE, 10 * torch.finfo(logits.dtype).eps)


class _Site(NamedTuple):
    """One site: whether its output should change by more than rounding, whether it did, and the write's share of it."""

    should_change: bool
    changed: bool
    share: float


def _planted(sizes: dict[str, tuple[int, int]], device: Any) -> RowAdapters:
    """A random rank-1 adapter at every site."""
    import torch

    rng = torch.Generator().manual_seed(0)
    A = {site: torch.randn(1, 1, d_in, generator=rng).to(device) / d_in**0.5 for site, (d_in, _) in sizes.items()}
    B = {site: torch.randn(1, d_out, 1, generator=rng).to(device) for site, (_, d_out) in sizes.items()}
    return RowAdapters(A, B)
