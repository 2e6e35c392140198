"""What is built for so many rows in so much memory, and what a search can turn up."""

import pytest

from mmray.errors import RefusedError
from mmray.index.kinds import KINDS, choices, clusters, steps
from mmray.specs.index import IndexOptions

GIB = 1 << 30


@pytest.mark.parametrize(
    ("rows", "memory", "recall", "kinds"),
    [
        (1, GIB, 0.95, ["flat"]),
        (20_000, GIB, 0.95, ["flat"]),
        (100_000, GIB, 0.95, ["hnsw", "ivf_flat", "sq8", "ivf_pq", "flat"]),
        (100_000, GIB, 1.0, ["flat"]),
        (1_000_000, 8 * GIB, 0.95, ["ivf_flat", "sq8", "ivf_pq", "flat"]),
        (1_000_000, GIB, 0.95, ["sq8", "ivf_pq"]),
        (1_000_000, GIB // 5, 0.95, ["ivf_pq"]),
    ],
)
def test_auto_goes_by_rows_memory_and_recall(
    rows: int, memory: int, recall: float, kinds: list[str]
) -> None:
    found = choices(IndexOptions(min_recall=recall), rows, 384, memory)
    assert [each.kind for each in found] == kinds
    assert all(each.bytes <= memory for each in found)


def test_a_kind_that_does_not_fit_is_refused_and_one_that_does_is_named() -> None:
    options = IndexOptions(kind="ivf_flat")
    with pytest.raises(RefusedError, match=r"1,000,000 vectors of 384.*1\.4 GiB as ivf_flat"):
        choices(options, 1_000_000, 384, GIB)
    with pytest.raises(RefusedError, match="sq8 or ivf_pq would fit"):
        choices(options, 1_000_000, 384, GIB)


def test_nothing_fits() -> None:
    with pytest.raises(RefusedError, match=r"as ivf_pq, and may take 64 MiB$"):
        choices(IndexOptions(), 100_000_000, 384, 64 << 20)


def test_codes_shrink_with_the_memory_and_divide_the_dimension() -> None:
    options = IndexOptions(kind="ivf_pq")
    sizes = []
    for memory in (GIB, GIB // 14, GIB // 30):
        factory = choices(options, 1_000_000, 384, memory)[0].factory
        sizes.append(int(factory.partition("PQ")[2].removesuffix("x8")))
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3
    assert all(384 % each == 0 for each in sizes)


@pytest.mark.parametrize("dim", [1, 2, 3, 7, 128, 1000])
def test_any_dimension_has_a_factory_that_faiss_takes(dim: int) -> None:
    import faiss

    for kind in KINDS:
        choice = choices(IndexOptions(kind=kind), 5000, dim, GIB)[0]  # type: ignore[arg-type]
        assert faiss.index_factory(dim, choice.factory, faiss.METRIC_INNER_PRODUCT).d == dim


def test_clusters_grow_with_the_root_and_never_starve() -> None:
    assert [clusters(rows) for rows in (0, 1, 64, 128, 10_000, 1_000_000)] == [
        1,
        1,
        1,
        2,
        156,
        2048,
    ]
    assert all(rows // clusters(rows) >= 64 for rows in range(64, 5000, 13))
    assert "_HNSW32" in KINDS["ivf_flat"].factory(2_000_000_000, 384, 0)


def test_steps_end_where_they_should() -> None:
    assert steps(1) == [1]
    assert steps(10) == [1, 2, 3, 4, 6, 8, 10]
