"""How much a run's agents may use before a person is asked whether they may go on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, ClassVar, Final, Self, TypeVar, overload

from smithers.durations import Duration
from smithers.errors import InvalidTree
from smithers.tree.checks import check_duration, check_id, check_names

MILLION: Final = 1_000_000

Limit = TypeVar("Limit", int, float, Decimal)


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs: dollars for a million tokens in, and for a million out."""

    input: float | Decimal
    output: float | Decimal

    def of(self, input_tokens: int, output_tokens: int) -> Decimal:
        """Return the price of an answer, in dollars."""
        cost = _exact(self.input) * input_tokens + _exact(self.output) * output_tokens
        return cost / MILLION


@dataclass(frozen=True, slots=True)
class Spent:
    """What agents have used since a run began, or since the last grant."""

    tokens: int = 0
    cost: Decimal = Decimal()  # dollars
    took_ms: int = 0  # total time of their attempts

    def plus(self, other: "Spent") -> "Spent":
        """Return the sum of both."""
        return Spent(
            self.tokens + other.tokens, self.cost + other.cost, self.took_ms + other.took_ms
        )

    def to_wire(self) -> dict[str, Any]:
        """Return `{tokens, cost, seconds}`; the cost is a string, so that no precision is lost."""
        return {"tokens": self.tokens, "cost": str(self.cost), "seconds": self.took_ms / 1000}

    @classmethod
    def of(cls, wire: Mapping[str, Any] | None) -> Self:
        """Parse the result of to_wire; None: nothing is spent."""
        if wire is None:
            return cls()
        return cls(wire["tokens"], Decimal(wire["cost"]), round(wire["seconds"] * 1000))


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The limits of what a run's agents may use; beyond one a person is asked, and may grant as much again.

    `tokens`: in and out. `cost`: dollars, by `prices` (by a model's name), else by what genai-prices knows of pydantic-ai's
    models. `seconds`: the total time of agents' attempts. A node `id`, outside the tree, asks the person; `timeout`,
    `allowed_users` and `allowed_scopes` mean what they mean for an Approval.
    """

    tokens: int | None = None
    cost: float | Decimal | None = None
    seconds: Duration | None = None
    prices: Mapping[str, Price] = field(default_factory=dict, hash=False)
    id: str = "budget"
    timeout: Duration | None = None
    allowed_users: Iterable[str] | None = None
    allowed_scopes: Iterable[str] | None = None

    # The other attributes of a leaf.
    label: ClassVar[str | None] = None
    depends_on: ClassVar[tuple[str, ...]] = ()
    skip_if: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_id(self.id, "Budget")
        check_duration(self.timeout, "Budget(timeout=...)")
        limits = {"tokens": self.tokens, "cost": self.cost, "seconds": self.limit_s}
        given = {name: limit for name, limit in limits.items() if limit is not None}
        if not given:
            raise InvalidTree("Budget() limits nothing: tokens=, cost= or seconds=")
        for name, limit in given.items():
            if not limit > 0:
                raise InvalidTree(f"Budget({name}={limit}) would never let an agent begin")
        for model, price in self.prices.items():
            if not isinstance(price, Price):
                raise InvalidTree(f"Budget(prices=...): {model!r} costs a Price, not {price!r}")
        for name in ("allowed_users", "allowed_scopes"):
            allowed = getattr(self, name)
            if allowed is not None:
                object.__setattr__(self, name, check_names(allowed, f"Budget({name}=...)"))

    @property
    def limit_s(self) -> float | None:
        """The limit of agents' total time, in seconds."""
        return check_duration(self.seconds, "Budget(seconds=...)")

    @property
    def timeout_s(self) -> float | None:
        """How long a person has to answer, in seconds."""
        return check_duration(self.timeout, "Budget(timeout=...)")

    def narrowed(self, other: "Budget") -> "Budget":
        """Return this budget with the smaller of each limit."""
        return replace(
            self,
            tokens=_smaller(self.tokens, other.tokens),
            cost=_smaller(_exact(self.cost), _exact(other.cost)),
            seconds=_smaller(self.limit_s, other.limit_s),
        )

    def is_spent(self, spent: Spent) -> bool:
        """Say whether any limit is used up."""
        return (
            (self.tokens is not None and spent.tokens >= self.tokens)
            or (self.cost is not None and spent.cost >= _exact(self.cost))
            or (self.limit_s is not None and spent.took_ms >= self.limit_s * 1000)
        )

    def describe(self, spent: Spent) -> str:
        """Say how much of each limit is spent."""
        said = []
        if self.tokens is not None:
            said.append(f"{spent.tokens:,} of {self.tokens:,} tokens")
        if self.cost is not None:
            said.append(f"${_exact(spent.cost):.4f} of ${_exact(self.cost):.4f}")
        if self.limit_s is not None:
            said.append(f"{spent.took_ms / 1000:.1f} of {self.limit_s:g} s")
        return ", ".join(said)


def _smaller(one: Limit | None, other: Limit | None) -> Limit | None:
    return min((limit for limit in (one, other) if limit is not None), default=None)


@overload
def _exact(amount: float | Decimal) -> Decimal: ...
@overload
def _exact(amount: float | Decimal | None) -> Decimal | None: ...
def _exact(amount: float | Decimal | None) -> Decimal | None:
    return amount if isinstance(amount, Decimal | None) else Decimal(str(amount))
