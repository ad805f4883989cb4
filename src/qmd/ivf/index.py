"""The public names of `qmd.ivf`, under the module name that torch-ivf uses."""

from qmd.ivf.base import Index
from qmd.ivf.factory import index_factory
from qmd.ivf.faiss_bridge import from_faiss, to_faiss
from qmd.ivf.flat import IndexFlat, IndexFlatIP, IndexFlatL2
from qmd.ivf.inverted import IndexIVF, IndexIVFFlat
from qmd.ivf.kmeans import kmeans
from qmd.ivf.metric import METRIC_INNER_PRODUCT, METRIC_L2
from qmd.ivf.params import (
    IDSelector,
    IDSelectorAnd,
    IDSelectorArray,
    IDSelectorBatch,
    IDSelectorMask,
    IDSelectorNot,
    IDSelectorOr,
    IDSelectorRange,
    SearchParameters,
    SearchParametersIVF,
    SearchParams,
)
from qmd.ivf.persist import load, save
from qmd.ivf.quantised import IndexIVFPQ, IndexIVFScalarQuantizer
from qmd.ivf.wrap import IndexIDMap, IndexRefineFlat, IndexShards

read_index, write_index = load, save

__all__ = [
    "METRIC_INNER_PRODUCT",
    "METRIC_L2",
    "IDSelector",
    "IDSelectorAnd",
    "IDSelectorArray",
    "IDSelectorBatch",
    "IDSelectorMask",
    "IDSelectorNot",
    "IDSelectorOr",
    "IDSelectorRange",
    "Index",
    "IndexFlat",
    "IndexFlatIP",
    "IndexFlatL2",
    "IndexIDMap",
    "IndexIVF",
    "IndexIVFFlat",
    "IndexIVFPQ",
    "IndexIVFScalarQuantizer",
    "IndexRefineFlat",
    "IndexShards",
    "SearchParameters",
    "SearchParametersIVF",
    "SearchParams",
    "from_faiss",
    "index_factory",
    "kmeans",
    "load",
    "read_index",
    "save",
    "to_faiss",
    "write_index",
]
