"""How healthy a set of vectors is, and which of them are near each other: numpy, no I/O.

All functions take float32 [n, dim]. A model that fails quietly shows here first: its vectors are
equal, or zero, or all in one cone.
"""

import numpy as np
import numpy.typing as npt

from mmray.report.vectors import VectorCheck

Floats = npt.NDArray[np.float32]

PAIRS = 4000
SPECTRUM_ROWS = 2000
FEW = 16
"""Below so many vectors a spread says nothing."""
COLLAPSED_COSINE = 0.95
COLLAPSED_SPREAD = 2.0


def check(modality: str, vectors: Floats, nulls: int, rng: np.random.Generator) -> VectorCheck:
    """The check of one modality: `vectors` of rows that have one, `nulls` rows that have none."""
    rows, dim = len(vectors) + nulls, vectors.shape[1] if len(vectors) else 0
    finite = np.isfinite(vectors).all(axis=1)
    # In float64: a float32 square overflows from 1e19 on.
    norms = np.linalg.norm(vectors[finite].astype(np.float64), axis=1)
    units = _units(vectors[finite])
    cosine, spread = mean_cosine(units, rng), effective_spread(units, rng)
    bad, zeros = int((~finite).sum()), int((norms == 0).sum())
    warnings = []
    if bad:
        warnings.append(f"{bad:,} vectors hold NaN or infinity")
    if zeros:
        warnings.append(f"{zeros:,} vectors are zero")
    if len(units) >= FEW and cosine > COLLAPSED_COSINE:
        warnings.append(
            f"Collapsed: random pairs have a cosine of {cosine:.3f}, nearly all vectors are alike"
        )
    elif len(units) >= FEW and dim >= FEW and spread < COLLAPSED_SPREAD:
        warnings.append(
            f"Collapsed: the vectors differ in {spread:.1f} effective directions of {dim:,}"
        )
    return VectorCheck(
        modality=modality,
        rows=rows,
        nulls=nulls,
        dim=dim,
        norm_min=float(norms.min()) if len(norms) else 0.0,
        norm_max=float(norms.max()) if len(norms) else 0.0,
        mean_cosine=cosine,
        spread=spread,
        not_finite=bad,
        zeros=zeros,
        warnings=tuple(warnings),
    )


def usable(vectors: Floats) -> npt.NDArray[np.bool_]:
    """Which vectors [n] have a direction: finite and not zero."""
    mask: npt.NDArray[np.bool_] = np.isfinite(vectors).all(axis=1) & (vectors != 0).any(axis=1)
    return mask


def _units(vectors: Floats) -> Floats:
    kept = vectors[usable(vectors)]
    # The largest entry is taken out first, so that no square overflows.
    scaled = kept / np.abs(kept).max(axis=1, keepdims=True, initial=0.0)
    units: Floats = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    return units


def mean_cosine(units: Floats, rng: np.random.Generator) -> float:
    """Mean cosine of random pairs of different rows; 0 when there is no pair."""
    if len(units) < 2:
        return 0.0
    left = rng.integers(len(units), size=PAIRS)
    right = (left + rng.integers(1, len(units), size=PAIRS)) % len(units)
    return float(np.einsum("ij,ij->i", units[left], units[right]).mean())


def effective_spread(units: Floats, rng: np.random.Generator) -> float:
    """Participation ratio of the covariance's eigenvalues, (sum e)^2 / sum e^2: 0 to dim.

    It is found from the Gram matrix's trace and norm, without its eigenvalues.
    """
    if len(units) < 2:
        return 0.0
    if len(units) > SPECTRUM_ROWS:
        units = units[rng.choice(len(units), SPECTRUM_ROWS, replace=False)]
    centred = units.astype(np.float64) - units.mean(axis=0, dtype=np.float64)
    gram = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
    square = float((gram**2).sum())
    # Equal rows leave rounding noise, which has many directions.
    return float(np.trace(gram)) ** 2 / square if np.trace(gram) > 1e-9 * len(units) else 0.0


def medoids(vectors: Floats, count: int, rng: np.random.Generator) -> list[int]:
    """Up to `count` rows that stand for all: those nearest to the centres of spherical k-means.

    Ordered by the size of the group that they stand for.
    """
    units = _units(vectors)
    if len(units) <= count:
        return list(range(len(units)))
    centres = units[rng.choice(len(units), count, replace=False)]
    group = np.zeros(len(units), dtype=np.int64)
    for _ in range(10):
        group = (units @ centres.T).argmax(axis=1)
        for index in range(count):
            if (members := units[group == index]).size and (mean := members.mean(axis=0)).any():
                centres[index] = mean / np.linalg.norm(mean)
    sizes = np.bincount(group, minlength=count)
    found = [
        int(np.where(group == index, units @ centres[index], -2.0).argmax())
        for index in np.argsort(-sizes, kind="stable")
        if sizes[index]
    ]
    return list(dict.fromkeys(found))


def nearest(vectors: Floats, query: int, count: int) -> list[tuple[int, float]]:
    """The `count` rows nearest to row `query` by cosine, itself left out, best first."""
    units = _units(vectors)
    cosines = units @ units[query]
    cosines[query] = -np.inf
    best = np.argsort(-cosines, kind="stable")[: min(count, len(units) - 1)]
    return [(int(index), float(min(1.0, cosines[index]))) for index in best]
