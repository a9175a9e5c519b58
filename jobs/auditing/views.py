"""The images of each study that an audit asks about: one at each level or dose, and null interventions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Views:
    """The images of each study in a set.

    Attributes:
        attribute: The attribute that is set; empty for observed images.
        levels: Its levels that are compared.
        nulls: Null interventions on each study.
        doses: Its doses that are compared, in place of levels, where it is continuous.
    """

    attribute: str = ""
    levels: tuple[str, ...] = ()
    nulls: int = 0
    doses: tuple[float, ...] = ()

    @property
    def settings(self) -> dict[str, str | float]:
        """View to the level or dose that all studies have in it: ``level<k>`` or ``dose<d>``."""
        levels: dict[str, str | float] = {f"level{k}": level for k, level in enumerate(self.levels)}
        return levels | {f"dose{d}": dose for d, dose in enumerate(self.doses)}

    @property
    def nulled(self) -> dict[str, int]:
        """View in which each study keeps what it has to the sample of the noise: ``null<r>``.

        A study's own level is among ``settings``; its own dose is not, so that there is ``own`` with the
        sample of the settings.
        """
        own = {"own": 0} if self.doses else {}
        return own | {f"null{r}": r + 1 for r in range(self.nulls)}

    @property
    def judged(self) -> tuple[str, ...]:
        """``observed``, the settings, and ``own`` where it is a view of its own."""
        return ("observed", *self.settings, *(["own"] if self.doses else []))

    @property
    def names(self) -> tuple[str, ...]:
        """``observed``; or the settings and what is nulled, in this order."""
        return (*self.settings, *self.nulled) if self.attribute else ("observed",)
