"""Did the adapter land? What is compared with itself looks plausible, so a model is looked at before it is measured.

At every site the output must be the module's own plus s·(x·Aᵀ)·Bᵀ for the input that the engine reports. On opening,
that is tried with a planted adapter large enough to see, which must also change the logits; when a step is entered,
with the step's own: where its ΔW is not zero, outputs equal to the base's are an error (at step 0 B is zero, and
after a first warm-up step with learning rate 0 it still is).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from em_interp.behaviour.generate import RowAdapters
from em_interp.errors import InputError

if TYPE_CHECKING:
    import torch

    from em_interp.behaviour.chat import Tokens
    from em_interp.mechanism.engines.base import AddVector, Engine

SEEN_FROM = 1e-3  # a write of this share of a site's output must show in the logits; in bfloat16 it takes more
CAUSE = "the usual cause is a module that the engine replaced after it was opened, or another model's adapter"


class AdapterCheck:
    """Checks adapters as they go into an engine; `probe` is a short text that is read each time."""

    def __init__(self, engine: Engine, probe: Tokens, sizes: dict[str, tuple[int, int]]) -> None:
        """`sizes` gives d_in and d_out of each site."""
        import torch

        self._engine, self._probe = engine, probe
        self._own = {site: engine.layout.site(site) for site in sizes}
        for site, found in sizes.items():
            expected = (self._own[site].in_features, self._own[site].out_features)
            if found != expected:
                shapes = f"{found[0]} → {found[1]}, the model's module {expected[0]} → {expected[1]}"
                raise InputError(f"adapter site {site!r} is {shapes}; {CAUSE}")
        with torch.no_grad():
            self._base, _ = engine.run(probe, [], [])
        planted = _planted(sizes, probe.ids.device)
        with engine.adapted(planted):
            self.check(planted, "a planted adapter")

    def check(self, held: RowAdapters, called: str) -> None:
        """Raise InputError where the adapters that the engine holds are not what its sites compute with."""
        import torch

        if not held.A:
            return
        names = [f"{kind}.{site}" for site in held.A for kind in ("site_in", "site_out")]
        with torch.no_grad():
            logits, seen = self._engine.run(self._probe, names, [])
            sites = [self._look(site, held, seen, called) for site in held.A]
        if any(site.expected for site in sites) and not any(site.changed for site in sites):
            raise InputError(f"{called} changes nothing, though its ΔW is not zero; {CAUSE}")
        if max(site.share for site in sites) > _seen_from(logits) and torch.equal(logits, self._base):
            raise InputError(f"{called} writes at its sites, but the logits equal the base's; {CAUSE}")

    def check_pushes(self, pushes: Sequence[AddVector], called: str) -> None:
        """Raise InputError where a learned steering vector does not move the stream after its layer by itself."""
        import torch

        if not pushes:
            return
        first = pushes[0]  # later ones are moved by it too
        name = f"resid_post.{first.layers}"
        with torch.no_grad():
            _, before = self._engine.run(self._probe, [name], [])
            logits, after = self._engine.run(self._probe, [name], pushes)
        expected = before[name] + first.vector.to(before[name].dtype)
        lost = _seen_from(logits) * float(before[name].norm()) > float(first.vector.norm())  # in rounding
        if not torch.equal(after[name], expected) or (torch.equal(logits, self._base) and not lost):
            raise InputError(f"{called} did not land after layer {first.layers}: the stream there is not moved by it")

    def _look(self, site: str, held: RowAdapters, seen: dict[str, torch.Tensor], called: str) -> _Site:
        import torch

        x, found = seen[f"site_in.{site}"], seen[f"site_out.{site}"]
        own = getattr(self._own[site], "inner", self._own[site]).forward(x)  # past hooks and slots
        write = (x.to(held.A[site].dtype) @ held.A[site].transpose(1, 2)) @ held.B[site].transpose(1, 2)
        expected, limits = own + write.to(own.dtype), torch.finfo(own.dtype)
        off = float((found - expected).norm() / expected.norm().clamp(min=limits.tiny))
        if not off <= limits.eps**0.5:
            raise InputError(f"{called} did not land at {site}: its output is {off:.1%} off own + s·B·A·x; {CAUSE}")
        share = float(write.norm() / own.norm().clamp(min=limits.tiny))
        return _Site(not torch.equal(expected, own), not torch.equal(found, own), share)


def _seen_from(logits: torch.Tensor) -> float:
    """From which share of an output on a write must show in the logits: more where numbers have few digits."""
    import torch

    return max(SEEN_FROM, 10 * torch.finfo(logits.dtype).eps)


class _Site(NamedTuple):
    """What was seen at one site: whether its output should change by more than rounding, whether it did, how much."""

    expected: bool
    changed: bool
    share: float  # of the write in the output


def _planted(sizes: dict[str, tuple[int, int]], device: Any) -> RowAdapters:
    """A random rank-1 adapter at every site."""
    import torch

    rng = torch.Generator().manual_seed(0)
    A = {site: torch.randn(1, 1, d_in, generator=rng).to(device) / d_in**0.5 for site, (d_in, _) in sizes.items()}
    B = {site: torch.randn(1, d_out, 1, generator=rng).to(device) for site, (_, d_out) in sizes.items()}
    return RowAdapters(A, B)
