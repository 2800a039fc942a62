"""What the tiers did, counted in blocks, tokens and bytes, and the laws that these counts obey."""

from collections import defaultdict
from dataclasses import dataclass, field

REASONS = ("budget", "damage", "collision", "replaced", "closed")


@dataclass
class Amount:
    """Of blocks: how many, with how many tokens, in how many bytes."""

    blocks: int = 0
    tokens: int = 0
    bytes: int = 0

    def add(self, tokens: int, size: int, blocks: int = 1) -> None:
        """Counts one block, or takes one back with negative numbers."""
        self.blocks += blocks
        self.tokens += tokens
        self.bytes += size


@dataclass
class TierCounts:
    """`found` was adopted at the start; `others` is what other processes put, less what they removed."""

    put: Amount = field(default_factory=Amount)
    found: Amount = field(default_factory=Amount)
    others: Amount = field(default_factory=Amount)
    resident: Amount = field(default_factory=Amount)
    hits: Amount = field(default_factory=Amount)
    evicted: dict[str, Amount] = field(default_factory=lambda: defaultdict(Amount))
    lookups: int = 0
    misses: int = 0
    collisions: int = 0
    damaged: int = 0
    vanished: int = 0  # rows of the index without a file


@dataclass
class Ledger:
    """One for both tiers. A law is broken only by a mistake of ours."""

    warm: TierCounts = field(default_factory=TierCounts)
    cold: TierCounts = field(default_factory=TierCounts)
    promotions: int = 0
    demotions: int = 0
    write_backs: int = 0
    orphans_adopted: int = 0
    orphans_removed: int = 0
    inert_after: int = 64

    def check(self) -> list[str]:
        """In words, each law that is broken; empty if all hold."""
        broken = []
        for name, tier in (("warm", self.warm), ("cold", self.cold)):
            for unit in ("blocks", "tokens", "bytes"):
                came = sum(getattr(part, unit) for part in (tier.put, tier.found, tier.others))
                gone = sum(getattr(part, unit) for part in tier.evicted.values())
                stayed = getattr(tier.resident, unit)
                if came != gone + stayed:
                    broken.append(f"{name}: {came} {unit} came in, but {gone} were evicted and {stayed} are there.")
            if tier.hits.blocks + tier.misses != tier.lookups:
                broken.append(
                    f"{name}: {tier.hits.blocks} hits and {tier.misses} misses are not {tier.lookups} lookups."
                )
        if self.promotions > self.cold.hits.blocks:
            broken.append(f"{self.promotions} promotions are more than the {self.cold.hits.blocks} hits of cold.")
        if self.write_backs > self.demotions:
            broken.append(f"{self.write_backs} write-backs are more than the {self.demotions} demotions.")
        return broken

    def inert(self) -> list[str]:
        """The tiers that were written `inert_after` times and never read back, although lookups missed."""
        tiers = (("warm", self.warm), ("cold", self.cold))
        return [name for name, t in tiers if t.put.blocks >= self.inert_after and not t.hits.blocks and t.misses]
