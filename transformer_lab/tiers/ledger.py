"""What the tiers did, counted in blocks, tokens and bytes, and the laws that these counts obey.

What comes to a tier and goes from it is counted under the lock of that tier, lookups under the lock of all.
"""

from dataclasses import dataclass, field

from transformer_lab.tiers.block import Block

INERT_LOOKUPS = 16  # one text is one lookup, if nothing of it is found
REASONS = ("budget", "damage", "collision", "replaced", "closed", "written", "kept", "too large", "off")


@dataclass
class Amount:
    """Of blocks: how many, with how many tokens, in how many bytes. In cold these are the bytes of whole files."""

    blocks: int = 0
    tokens: int = 0
    bytes: int = 0

    def add(self, block: Block) -> None:
        """Counts one."""
        self.change(1, len(block.token_ids), block.bytes)

    def take(self, block: Block) -> None:
        """Counts one less."""
        self.change(-1, -len(block.token_ids), -block.bytes)

    def change(self, blocks: int, tokens: int, size: int) -> None:
        """Counts so many more, or less."""
        self.blocks += blocks
        self.tokens += tokens
        self.bytes += size


@dataclass
class TierCounts:
    """`found` was adopted from files without a row; `others` is what other processes, or runs before, put or removed.

    `evicted` is by reason. Warm: budget, replaced, collision, closed. Cold: budget, damage, replaced, collision. In the
    queue: written; kept (it is in the files already); too large; off; collision.
    """

    put: Amount = field(default_factory=Amount)
    found: Amount = field(default_factory=Amount)
    others: Amount = field(default_factory=Amount)
    resident: Amount = field(default_factory=Amount)
    hits: Amount = field(default_factory=Amount)
    evicted: dict[str, Amount] = field(default_factory=lambda: {reason: Amount() for reason in REASONS})
    lookups: int = 0
    misses: int = 0
    collisions: int = 0
    damaged: int = 0
    vanished: int = 0  # rows of the index without a file

    def looked_up(self, found: Block | None) -> None:
        """Counts one lookup and what came of it."""
        self.lookups += 1
        if found is None:
            self.misses += 1
        else:
            self.hits.add(found)


@dataclass
class Ledger:
    """One for all tiers. A law is broken only by a mistake of ours.

    `kept` is how many of the caller's blocks warm took, `prefetched` how many were read ahead from cold.
    """

    warm: TierCounts = field(default_factory=TierCounts)
    queue: TierCounts = field(default_factory=TierCounts)
    cold: TierCounts = field(default_factory=TierCounts)
    lookups: int = 0
    misses: int = 0
    kept: int = 0
    prefetched: int = 0
    promotions: int = 0
    demotions: int = 0
    write_backs: int = 0
    orphans_adopted: int = 0
    orphans_removed: int = 0
    inert_after: int = 64

    @property
    def hit_rate(self) -> float:
        """The share of lookups that some tier answered; 0 before the first."""
        return (self.lookups - self.misses) / self.lookups if self.lookups else 0.0

    def check(self) -> list[str]:
        """In words, each law that is broken; empty if all hold."""
        broken = []
        tiers = {"warm": self.warm, "queue": self.queue, "cold": self.cold}
        for name, tier in tiers.items():
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
        hits = sum(tier.hits.blocks for tier in tiers.values())
        if hits + self.misses != self.lookups:
            broken.append(f"In all, {hits} hits and {self.misses} misses are not {self.lookups} lookups.")
        if self.kept + self.promotions != self.warm.put.blocks:
            broken.append(
                f"{self.kept} blocks kept and {self.promotions} promotions are not the {self.warm.put.blocks} of warm."
            )
        if self.promotions > self.queue.hits.blocks + self.cold.hits.blocks + self.prefetched:
            broken.append(f"{self.promotions} promotions are more than the blocks that were found below warm.")
        if self.demotions != self.queue.put.blocks:
            broken.append(f"{self.demotions} demotions are not the {self.queue.put.blocks} blocks of the queue.")
        if self.write_backs > self.cold.put.blocks:
            broken.append(f"{self.write_backs} write-backs are more than the {self.cold.put.blocks} blocks of cold.")
        return broken

    def inert(self) -> list[str]:
        """The tiers that were written `inert_after` times, and asked INERT_LOOKUPS times without an answer."""
        read = {"warm": self.warm.hits.blocks, "cold": self.cold.hits.blocks + self.prefetched}
        tiers = {"warm": self.warm, "cold": self.cold}
        return [
            name
            for name, tier in tiers.items()
            if tier.put.blocks >= self.inert_after and not read[name] and tier.misses >= INERT_LOOKUPS
        ]
