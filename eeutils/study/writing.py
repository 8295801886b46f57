"""The scoreboard's part on texts that a decoder writes: from the tables that notebooks 09 and 10 keep."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from eeutils.exiting import claims
from eeutils.exiting.rules import NEVER
from eeutils.study import page

FULL = "the full model"
WAYS = {
    "classifier": "CALM's classifier, decaying threshold",
    "classifier, constant": "CALM's classifier, constant threshold",
    "state similarity": "CALM's state similarity",
    "margin on a shortlist": "CALM's margin on 2,000 words",
    "margin, exits 18 and 24": "CALM's margin at two exits",
    "policy": "ConsistentEE's policies",
    "schedule": "SkipDecode's schedule",
    "fixed exits": "fixed exits",
    "random exits": "random exits",
}
"""Name in the notebooks' tables -> as shown here."""

BLIND = ("schedule", "fixed exits", "random exits")
"""Those that look at no word."""

NEAR = 1.2
"""The FLOPs speed-up of a word near which ways are shown: hardly any goes far beyond 1.3x."""

WITHIN = 0.1
"""No further from `NEAR` than that, to be compared."""

REFERENCE, TO_FULL = "ROUGE-L", "to the full text"
CLAIMS = ("G", "K5", "H5")
"""How the names of claims on writing begin."""


def curves(folder: Path | None = None) -> dict[str, pd.DataFrame]:
    """Way -> what it wrote, a row a threshold or trained policy, the full model first: columns layers, flops_speedup
    (of a word; all words of all texts together), score (ROUGE-L to the reference) and "to the full text". Empty where
    notebook 09 has not been run."""
    written = _read("09-texts", folder)
    if written is None:
        return {}
    policies = _read("10-policies", folder)
    if policies is not None:
        full = written[written.threshold == NEVER].iloc[:1]
        written = pd.concat([written, full.assign(rule="policy"), policies.assign(rule="policy")])
    columns = ["layers", "flops_speedup", "score", TO_FULL]
    return {
        name: written[written.rule == name].rename(columns={REFERENCE: "score"})[columns].reset_index(drop=True)
        for name in WAYS
        if name in set(written.rule)
    }


def near(folder: Path | None = None) -> pd.DataFrame:
    """A row a way, at its operating point nearest to `NEAR` in FLOPs, best ROUGE-L to the reference first: columns way,
    blind, and those of `curves`. The full model stands first."""
    by_way = curves(folder)
    if not by_way:
        return pd.DataFrame()
    rows = []
    for name, curve in by_way.items():
        early = curve.iloc[1:]
        rows.append(
            {"way": name, "blind": name in BLIND} | early.loc[(early.flops_speedup - NEAR).abs().idxmin()].to_dict()
        )
    shown = pd.DataFrame(rows).sort_values("score", ascending=False)
    full = next(iter(by_way.values())).iloc[0].to_dict()
    return pd.concat([pd.DataFrame([{"way": FULL, "blind": False} | full]), shown], ignore_index=True)


def table(folder: Path | None = None) -> pd.DataFrame:
    """`near` as it is shown."""
    rows = near(folder)
    if rows.empty:
        return rows
    named = rows.way.map(WAYS).fillna(rows.way) + rows.blind.map({True: " (blind)", False: ""})
    shown = pd.DataFrame(
        {
            "layers a word": rows.layers.map("{:.1f}".format),
            "FLOPs of a word": rows.flops_speedup.map("{:.2f}x".format),
            "ROUGE-L": rows.score.map("{:.3f}".format),
            "ROUGE-L to the full model's text": rows[TO_FULL].map("{:.3f}".format),
        }
    )
    return shown.set_index(pd.Index(named, name="what lets a word leave"))


def found(folder: Path | None = None) -> list[str]:
    """What came out, in one sentence computed from the tables; none where nothing was written."""
    rows = near(folder)
    if rows.empty:
        return []
    full, ways = rows.iloc[0], rows.iloc[1:].set_index("way")
    # Ways that hardly save anything would win by staying.
    reach = ways[(ways.flops_speedup - NEAR).abs() <= WITHIN]
    best = {what: _best(reach[reach.blind == blind]) for what, blind in (("the word", False), ("nothing", True))}
    parts = [f"to {score} by the best rule that looks at {what}" for what, score in best.items() if score]
    parts += [part for part in [_reading(folder)] if part]
    if not parts:
        return []
    return [
        f"Writing (one decoder, one seed), near {NEAR:g}x in FLOPs of a word, ROUGE-L falls from {full.score:.3f} "
        f"{'; '.join(parts)}."
    ]


def judged(folder: Path | None = None) -> list[str]:
    """How many claims on writing came to which verdict, in a sentence; none where no notebook has judged one."""
    ledger = page.ledger_table(folder)
    own = ledger[ledger.claim.str.startswith(CLAIMS) & (ledger.verdict != page.NOT_RUN)]
    counts = own.verdict.value_counts()
    told = ", ".join(f"{counts[name]} {name}" for name in claims.VERDICTS if name in counts)
    return [f"Of {len(own)} claims on writing: {told}."] if len(own) else []


def _best(rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    name = rows.score.idxmax()
    return f"{rows.score[name]:.3f} ({WAYS[name]}, {rows.flops_speedup[name]:.2f}x)"


def _reading(folder: Path | None) -> str:
    """Of prompts that are read by a hash."""
    read = _read("10-reading-texts", folder)
    if read is None or len(read) < 2:
        return ""
    hashed = read.iloc[-1]
    return (
        f"to {hashed[REFERENCE]:.3f} by HashEE's schedule on the prompt, trained for it, at "
        f"{hashed['reading speed-up']:.2f}x of reading"
    )


def _read(name: str, folder: Path | None) -> pd.DataFrame | None:
    path = (folder or page.results_dir()) / f"{name}.csv"
    return pd.read_csv(path) if path.exists() else None
