"""Figures: one number asked for, measured round by round beside its reference, judged against its limit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal, TypeAlias

Better: TypeAlias = Literal["lower", "higher"]
LimitOn: TypeAlias = Literal["value", "ratio"]


@dataclass(slots=True, kw_only=True)
class Figure:
    """What one question came to. Ours and the reference are measured in turn within each round.

    `value` is the median over the rounds (or what `summary` makes of them), `ratio` the median of the rounds' ratios
    ours / reference: the machine's mood differs between rounds, hardly within one.
    """

    name: str
    unit: str
    reference: str
    """What ours is compared with, in words."""
    better: Better = "lower"
    limit: float | None = None
    """None: told for information, never missed."""
    limit_on: LimitOn = "ratio"
    summary: Callable[[Sequence[float]], float] = median
    samples: list[float] = field(default_factory=list[float])
    reference_samples: list[float] = field(default_factory=list[float])
    calls: list[float] = field(default_factory=list[float])
    """Single calls of ours, in `unit`, where calls are what is measured."""

    def add(self, value: float, reference: float | None = None, *, calls: Iterable[float] = ()) -> None:
        """Take in one round."""
        self.samples.append(value)
        if reference is not None:
            self.reference_samples.append(reference)
        self.calls.extend(calls)

    @property
    def value(self) -> float:
        """Ours."""
        return self.summary(self.samples)

    @property
    def reference_value(self) -> float | None:
        """The reference, in the same unit."""
        return median(self.reference_samples) if self.reference_samples else None

    @property
    def ratios(self) -> list[float]:
        """Ours / reference of each round."""
        if not self.reference_samples:
            return []
        return [ours / other for ours, other in zip(self.samples, self.reference_samples, strict=True)]

    @property
    def ratio(self) -> float | None:
        """The median of the rounds' ratios."""
        return median(self.ratios) if self.reference_samples else None

    @property
    def kept(self) -> bool:
        """Whether the limit is kept; no limit is always kept."""
        judged = self.value if self.limit_on == "value" else self.ratio
        if self.limit is None or judged is None:
            return self.limit is None
        return judged <= self.limit if self.better == "lower" else judged >= self.limit

    @property
    def shares(self) -> list[float]:
        """Each round's value as a share of the limit: above 1 it is missed. Empty without a limit."""
        judged = self.samples if self.limit_on == "value" else self.ratios
        if self.limit is None:
            return []
        return [one / self.limit if self.better == "lower" else self.limit / one for one in judged]

    def percentile(self, share: float) -> float:
        """The value below which this share of the single calls lies, of the rounds where no calls were kept."""
        ordered = sorted(self.calls or self.samples)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def document(self) -> dict[str, object]:
        """The figure as it stands in the report."""
        return {
            "name": self.name,
            "value": rounded(self.value),
            "unit": self.unit,
            "reference": self.reference,
            "reference_value": rounded(self.reference_value),
            "ratio": rounded(self.ratio),
            "limit": self.limit,
            "limit_on": self.limit_on,
            "better": self.better,
            "pass": self.kept,
            "samples": [rounded(sample) for sample in self.samples],
            "reference_samples": [rounded(sample) for sample in self.reference_samples],
            "ratios": [rounded(ratio) for ratio in self.ratios],
            "p50": rounded(self.percentile(0.5)),
            "p99": rounded(self.percentile(0.99)),
            "max": rounded(self.percentile(1)),
        }


def rounded(number: float | None) -> float | None:
    """To four significant digits: what lies behind them is noise."""
    return None if number is None else float(f"{number:.4g}")
