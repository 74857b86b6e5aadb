"""What a study cost: seconds of devices at the prices of its settings, and energy where a device tells it."""

from collections.abc import Sequence
from dataclasses import dataclass

from clusterlora.ports.study_store import DeviceUse
from clusterlora.settings import RuntimeSettings

_JOULES_PER_KWH = 3.6e6
CPU = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyCost:
    """What devices did for a study, by phase, with the prices of an hour. An unknown price is None, and so is the money then."""

    uses: tuple[DeviceUse, ...]
    gpu_hour_price: float | None
    cpu_hour_price: float | None
    currency: str

    def money(self, use: DeviceUse) -> float | None:
        """Return what the device's seconds cost; None where its hour has no price."""
        price = self.cpu_hour_price if use.device == CPU else self.gpu_hour_price
        return None if price is None else price * use.seconds / 3600

    @property
    def seconds(self) -> float:
        """Seconds of all devices."""
        return sum(use.seconds for use in self.uses)

    @property
    def total(self) -> float | None:
        """Money for everything; None where a device that was used has no price."""
        return self._sum(self.uses)

    @property
    def kwh(self) -> float | None:
        """Energy of the devices that told it; None where none did."""
        told = [use.joules for use in self.uses if use.metered_seconds]
        return sum(told) / _JOULES_PER_KWH if told else None

    @property
    def money_per_train_token(self) -> float | None:
        """Money of this study's trainings over their tokens; None without a price, and where it trained nothing itself."""
        uses = [use for use in self.uses if use.train_tokens]
        money = self._sum(uses)
        return money / sum(use.train_tokens for use in uses) if uses and money is not None else None

    @property
    def sentences(self) -> tuple[str, ...]:
        """The totals, and what they leave out."""
        if not self.uses:
            return ("Nothing that a device did for this study is recorded.",)
        money = f": {self.total:.2f} {self.currency}" if self.total is not None else f"; what they cost is unknown, as {self._unpriced()}"
        unmetered = sum(use.seconds - use.metered_seconds for use in self.uses)
        energy = (
            "No device told its energy; it is not guessed."
            if self.kwh is None
            else f"{self.kwh:.3f} kWh were told by devices for all but {unmetered / 3600:.2f} of the hours; the rest is not guessed."
        )
        return f"{self.seconds / 3600:.2f} device hours{money}.", energy

    def _unpriced(self) -> str:
        """Return which setting lacks."""
        kinds = {
            "runtime.cpu_hour_price" if use.device == CPU else "runtime.gpu_hour_price" for use in self.uses if self.money(use) is None
        }
        return f"{' and '.join(sorted(kinds))} {'is' if len(kinds) < 2 else 'are'} not set"

    def _sum(self, uses: Sequence[DeviceUse]) -> float | None:
        amounts = [self.money(use) for use in uses]
        return sum(amount for amount in amounts if amount is not None) if amounts and None not in amounts else None


def study_cost(uses: Sequence[DeviceUse], runtime: RuntimeSettings) -> StudyCost:
    """Return what devices did for a study, at the prices of its settings."""
    return StudyCost(
        uses=tuple(uses), gpu_hour_price=runtime.gpu_hour_price, cpu_hour_price=runtime.cpu_hour_price, currency=runtime.currency
    )


def cost_metrics(cost: StudyCost) -> dict[str, float]:
    """Return the totals that are known, by the name they have in the tracker."""
    known = {"device_hours": cost.seconds / 3600, "money": cost.total, "kwh": cost.kwh}
    by_phase: dict[str, float] = {}
    for use in cost.uses:
        by_phase[use.phase] = by_phase.get(use.phase, 0.0) + use.seconds
    return {f"cost/{name}": value for name, value in known.items() if value is not None} | {
        f"cost/seconds/{phase}": seconds for phase, seconds in by_phase.items()
    }
