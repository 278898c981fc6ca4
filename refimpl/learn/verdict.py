"""What came of one attempt, for people and for machines."""

from dataclasses import asdict, dataclass, field
from typing import Any

PASSED, NOT_ATTEMPTED, WRONG, RAISES = "passed", "not attempted", "wrong", "raises"
TOO_SLOW, DOES_NOT_RUN = "too slow", "does not run"


@dataclass
class Verdict:
    """The outcome (one of the six above), the smallest case on which the attempt is wrong as `lines`, and what follows
    from it."""

    exercise: str
    outcome: str
    lines: list[str] = field(default_factory=list)
    consequence: str = ""  # what a tenant would see
    mistake: str = ""  # the name of a known one that behaves exactly like the attempt
    says: str = ""
    links: tuple[str, ...] = ()
    cases: int = 0  # tried
    seconds: float = 0.0
    printed: str = ""  # what the attempt printed, cut
    headline: str = ""  # in place of the usual one: a lab may have points, and no smallest case

    @property
    def passed(self) -> bool:
        return self.outcome == PASSED

    def text(self) -> str:
        """Return it as a person reads it."""
        headlines = {
            PASSED: f"passed: {self.cases} cases, each as the definition says",
            NOT_ATTEMPTED: "not attempted",
            WRONG: "not yet." + " The smallest case that was found:" * (len(self.lines) > 1),
            RAISES: "not yet: it raises." + " The smallest case that was found:" * (len(self.lines) > 1),
            TOO_SLOW: "not yet: it does not come to an end.",
            DOES_NOT_RUN: "your file does not run.",
        }
        headline = self.headline or headlines[self.outcome]
        text = [f"{self.exercise}: {headline}", *(f"  {line}" for line in self.lines)]
        text += [f"  In the engine: {self.consequence}"] if self.consequence else []
        if self.mistake:
            text.append(f"  It behaves exactly like a known mistake, {self.mistake}: {self.says}")
            text += [f"    engines that had it: {link}" for link in self.links[:1]]
            text += [f"                         {link}" for link in self.links[1:]]
        text += [f"  Your function prints; it began with: {self.printed!r}"] if self.printed else []
        return "\n".join(text)

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {**asdict(self), "links": list(self.links), "text": self.text()}
